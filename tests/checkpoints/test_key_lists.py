"""The exact names of tensors in the released files, without any file."""

from typing import Any

import pytest
import torch

from perceivers.checkpoints.haiku_perceiver import haiku_entries
from perceivers.checkpoints.hugging_face import config_from_hugging_face, hugging_face_entries
from perceivers.checkpoints.names import fused_rows
from perceivers.errors import CheckpointError
from perceivers.models import PerceiverIO
from perceivers.models.flat.trunk import TrunkConfig
from perceivers.models.perceiver_io.variants import VARIANTS, configure

# Keys of the state dictionaries of that library's classes at full size.
KEYS = {
    "perceiver_io_language": 457,
    "perceiver_io_imagenet_learned": 141,
    "perceiver_io_imagenet_fourier": 136,
    "perceiver_io_imagenet_conv": 142,
    "perceiver_io_flow": 425,
    "perceiver_io_multimodal": 183,
}


def config_of(name: str) -> Any:
    return configure(VARIANTS[name], inputs=None, num_classes=None, head="query", overrides={})


@pytest.mark.parametrize("name", KEYS)
def test_hugging_face_has_as_many_keys_as_its_class(name: str) -> None:
    names = [entry.theirs for entry in hugging_face_entries(config_of(name))]
    assert len(names) == len(set(names)) == KEYS[name]


@pytest.mark.parametrize("name", KEYS)
def test_haiku_has_the_same_tensors_but_the_counter(name: str) -> None:
    names = [entry.theirs for entry in haiku_entries(config_of(name))]
    assert len(names) == len(set(names)) == KEYS[name] - (name == "perceiver_io_imagenet_conv")


@pytest.mark.parametrize(
    ("name", "ours", "hugging_face", "haiku"),
    [
        (
            "perceiver_io_flow",
            "trunk.blocks.0.23.mlp.out.bias",
            "perceiver.encoder.self_attends.23.mlp.dense2.bias",
            "perceiver_encoder/~/self_attention_23/mlp/linear_1:b",
        ),
        (
            "perceiver_io_language",
            "decoder.read.norm_mlp.weight",
            "perceiver.decoder.decoding_cross_attention.layernorm.weight",
            "basic_decoder/cross_attention/layer_norm_2:scale",
        ),
        (
            "perceiver_io_imagenet_conv",
            "inputs.readers.image.content.norms.0.running_var",
            "perceiver.input_preprocessor.convnet.batchnorm.running_var",
            "image_preprocessor/~/conv2_d_downsample/~/batchnorm/~/var_ema:average",
        ),
        (
            "perceiver_io_multimodal",
            "decoder.padding.video",
            "perceiver.decoder.padding.image",
            "multimodal_decoder/~decoder_query/image_padding:pos_embs",
        ),
        (
            "perceiver_io_imagenet_learned",
            "inputs.readers.image.positions.project.weight",
            "perceiver.input_preprocessor.positions_projection.weight",
            "image_preprocessor/~_build_network_inputs/position_encoding_projector/linear:w",
        ),
    ],
)
def test_names_are_these(name: str, ours: str, hugging_face: str, haiku: str) -> None:
    config = config_of(name)
    for entries, theirs in (
        (hugging_face_entries(config), hugging_face),
        (haiku_entries(config), haiku),
    ):
        assert [entry.theirs for entry in entries if entry.ours == ours] == [theirs]


def test_query_key_and_value_share_one_projection() -> None:
    trunk = TrunkConfig(num_latents=1, latent_dim=8, depth=1, num_heads=2, qk_dim=4, v_dim=8)
    assert fused_rows(trunk) == [(0, 4), (4, 8), (8, 16)]
    entries = hugging_face_entries(config_of("perceiver_io_language"))
    rows = {e.theirs.rpartition(".self.")[2]: e.rows for e in entries if ".0.3." in e.ours}
    assert rows["query.weight"] == rows["query.bias"] == (0, 256)
    assert rows["key.weight"] == (256, 512)
    assert rows["value.weight"] == (512, 512 + 1280)


def test_a_text_classifier_has_a_class_there_but_no_released_file() -> None:
    name = "PerceiverForSequenceClassification"
    stated = {"qk_channels": 256, "v_channels": 1280}
    config = config_from_hugging_face(name, stated, {}, "x")
    with torch.device("meta"):
        model = PerceiverIO(config)
    assert sum(p.numel() for p in model.parameters()) == 206_098_690
    with pytest.raises(CheckpointError, match=r"no Haiku parameters of a text classifier"):
        haiku_entries(config)
