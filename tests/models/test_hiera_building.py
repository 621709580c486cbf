"""Building Hieras: decoders, heads, classifiers from autoencoders, folders, first weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.hiera_making import CLASSES, DECODER, EXACT, MAP, PICTURE, build_hiera, draw_one

from perceivers.checkpoints.loading import load_with_info
from perceivers.errors import ConfigError
from perceivers.models import Hiera, HieraConfig, HieraDecoder, HieraHead, create_model
from perceivers.models.hiera.variants import as_classifier
from perceivers.types import Image, Video

BASE = HieraConfig(**PICTURE, head=CLASSES)
IMAGE = {"image": Image(32, 32, 3)}
WINDOW: dict[str, Any] = {"positions": "window", "position_grid": (3, 5)}

# -- by name ---------------------------------------------------------------------------------


def test_a_decoder_is_the_variant_s_own_or_changed_or_complete() -> None:
    own = create_model("hiera_nano", inputs=IMAGE, decoder=True).config
    assert own.decoder == HieraDecoder(dim=64, depth=1, num_heads=2)
    assert own == create_model("mae_hiera_nano", inputs=IMAGE).config
    assert (own.init, own.pools, own.head.kind) == ("autoencoder", 1, "none")
    deep = create_model("hiera_nano", inputs=IMAGE, decoder={"depth": 3}).config.decoder
    assert deep == HieraDecoder(dim=64, depth=3, num_heads=2)
    assert create_model("hiera_nano", inputs=IMAGE, decoder=DECODER).config.decoder == DECODER
    plain = create_model("mae_hiera_nano", inputs=IMAGE, decoder=False).config
    assert (plain.decoder, plain.init, plain.pools) == (None, "autoencoder", 2)
    clips = create_model("mae_hiera_nano_video", inputs={"video": Video(4, 16, 16)}).config
    assert (clips.decoder.order, clips.decoder.all_frames) == ("channels_last", True)
    assert create_model("mae_hiera_nano", inputs=IMAGE, num_classes=3).config.decoder is None


def test_a_head_is_named_or_complete() -> None:
    assert create_model("hiera_nano", inputs=IMAGE).config.head == HieraHead()
    for name in ("query", "mean"):
        config = create_model("hiera_nano", inputs=IMAGE, num_classes=3, head=name).config
        assert config.head == HieraHead(kind="mean", num_outputs=3)
        assert config.num_classes == 3
    for classes in (None, 3):
        model = create_model("hiera_nano", inputs=IMAGE, num_classes=classes, head=MAP)
        assert model.config.head == replace(MAP, num_outputs=3)
        assert model(torch.rand(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    with torch.device("meta"):
        assert create_model("hiera_tiny_224").config.num_classes == 1000
        assert create_model("hiera_tiny_224", num_classes=5).config.num_classes == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 3, "head": "token"}, r"head='token': a Hiera has the heads 'mean' and"),
        ({"num_classes": {"a": 2}}, r"num_classes=\{'a': 2\}: a Hiera has one head"),
        ({"head": "segmentation"}, r"head='segmentation' needs num_classes"),
        ({"num_classes": 3, "decoder": True}, r"num_classes=3, .*: an autoencoder has no classes"),
        ({"head": "mean", "decoder": True}, r"head='mean': an autoencoder has no classes"),
        ({"decoder": "yes"}, r"decoder='yes': pass True for the decoder of the variant"),
        ({"decoder": {"depht": 1}}, r"HieraDecoder has no setting 'depht'"),
        ({"num_classes": -1}, r"head\.num_outputs is -1; it must not be neg"),
    ],
)
def test_what_cannot_be_built_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_model("hiera_nano", inputs=IMAGE, **settings)


def test_a_size_must_be_said() -> None:
    with pytest.raises(
        ConfigError, match=r"this variant has no input size; describe it with inputs="
    ):
        create_model("hiera_nano")


def test_a_classifier_keeps_the_encoder_and_pools_every_stage(rng: torch.Generator) -> None:
    model = build_hiera(decoder=DECODER, drop_path_rate=0.1)
    config = as_classifier(model.config, 7, "query")
    assert (config.decoder, config.pools, config.init) == (None, 2, "paper")
    assert (config.head.kind, config.num_classes, config.drop_path_rate) == ("mean", 7, 0.1)
    classifier = Hiera(config).double().eval()
    carried = {k: v for k, v in model.state_dict().items() if k.startswith(Hiera.core)}
    missing, unexpected = classifier.load_state_dict(carried, strict=False)
    assert (sorted(missing), unexpected) == (["head.bias", "head.weight"], [])
    x = draw_one(model, rng)
    ours, theirs = classifier.encoder(x).stages, model.encoder(x).stages
    torch.testing.assert_close(ours[1], theirs[1], **EXACT)
    assert (ours[2].shape[2], theirs[2].shape[2]) == (1, 4)
    again = as_classifier(replace(BASE, head=MAP, dropout_rate=0.2), 4, "segmentation")
    assert again.head == HieraHead(kind="segmentation", num_outputs=4, dim=10)
    assert again.dropout_rate == 0.2
    assert as_classifier(BASE, 4, MAP).head == replace(MAP, num_outputs=4)
    assert as_classifier(replace(BASE, head=MAP), 4, "mean").head.dim == 128


# -- folders ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("picture", {"head": CLASSES, "feature_norms": (1,), "layer_scale": 0.1}),
        ("picture", {"head": MAP, **WINDOW}),
        ("clip", {"decoder": DECODER}),
    ],
)
def test_a_model_folder_brings_the_function_back(
    rng: torch.Generator, tmp_path: Path, kind: str, part: dict[str, Any]
) -> None:
    model = build_hiera(kind, **part).float()
    model.save_pretrained(tmp_path / "m")
    again = load_with_info(tmp_path / "m").model.eval()
    assert isinstance(again, Hiera)
    assert again.config == model.config
    x = draw_one(model, rng).float()
    torch.testing.assert_close(again(x), model(x))
    assert set(again.state_dict()) == set(model.state_dict())


# -- first weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("part", [{"head": CLASSES}, {"decoder": DECODER, "init": "autoencoder"}])
def test_initialising_again_leaves_nothing_behind(part: dict[str, Any]) -> None:
    """Every parameter is drawn, also those that keep the framework's own draw."""
    model = Hiera(HieraConfig(**PICTURE, **part, layer_scale=0.1, feature_norms=(1,)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    torch.manual_seed(3)
    model.init_weights()
    first = {name: p.clone() for name, p in model.state_dict().items()}
    assert all(bool(p.isfinite().all()) for p in first.values())
    torch.manual_seed(4)
    model.init_weights()
    drawn = {name for name, p in model.state_dict().items() if not torch.equal(p, first[name])}
    assert {n for n in first if n.endswith("qkv.weight")} < drawn
    assert {"encoder.stem.weight", "encoder.positions.table"} < drawn


def test_classifiers_and_autoencoders_start_as_released() -> None:
    paper = Hiera(HieraConfig(**{**PICTURE, "dim": 64}, head=CLASSES)).state_dict()
    weight = paper["encoder.blocks.4.attention.qkv.weight"]
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    for name in ("encoder.blocks.4.attention.qkv.bias", "norm.bias", "encoder.stem.bias"):
        assert torch.equal(paper[name], torch.full_like(paper[name], 0.02))
    assert float(paper["head.weight"].abs().max()) < 0.001 * 0.1
    config = HieraConfig(**{**PICTURE, "dim": 64}, decoder=DECODER, init="autoencoder")
    mae = Hiera(config).state_dict()
    weight = mae["encoder.blocks.4.attention.qkv.weight"]
    bound = (6 / (256 + 768)) ** 0.5
    assert 0.99 * bound < float(weight.abs().max()) < 1.0001 * bound  # rounding to float32
    assert not mae["norm.bias"].any()
    assert mae["decoder.positions"].std().item() == pytest.approx(0.02, rel=0.2)
    fused = mae["decoder.fusion.merges.0.weight"]
    assert 0.99 * 256**-0.5 < float(fused.abs().max()) <= 256**-0.5
    assert mae["decoder.fusion.merges.0.bias"].any()
