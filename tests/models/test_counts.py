"""Exact parameter counts of the released configurations, whole and in parts (no memory needed)."""

from typing import Any

import pytest
import torch
from torch import nn

from perceivers.checkpoints.haiku import config_from_haiku
from perceivers.models import HiP, create_model
from perceivers.models.hip.variants import VARIANTS
from perceivers.types import Image

# Measured with the official code: total, position table, embed + unembed, read-out, encoder
# blocks, decoder blocks; image 224 x 224 x 3.
COUNTS = {
    "hip_mini": (20_272_611, 1_605_632, 227, 43_872, 15_764_384, 2_858_496),
    "hip_16": (100_787_939, 1_605_632, 227, 43_872, 89_510_304, 9_627_904),
    "hip_256": (96_367_155, 802_816, 115, 1_728, 90_673_904, 4_888_592),
    "hip_16x3": (234_803_299, 1_605_632, 227, 43_872, 230_096_800, 3_056_768),
    "io_mini": (6_904_451, 6_422_528, 899, 99_840, 381_184, 0),
    "io_c_50m": (56_169_475, 25_690_112, 3_587, 1_579_008, 28_896_768, 0),
    "io_c_150m": (176_101_635, 44_957_696, 6_275, 4_827_648, 126_310_016, 0),
}
BLOCKS = {
    "hip_16": [702_752, 2_073_472, 57_796_352, 28_937_728, 6_962_176, 1_973_760, 691_968],
    "hip_256": [
        585_552,
        544_960,
        735_840,
        2_073_472,
        57_796_352,
        28_937_728,
        3_746_048,
        593_792,
        247_744,
        161_760,
        139_248,
    ],
}
# Totals that the official test asserts, for its two mock data sets.
OFFICIAL_TEST = {
    ("HiP", "hip_16"): 99_224_996,
    ("HiP", "hip_256"): 95_585_188,
    ("HiP", "hip_mini"): 18_709_668,
    ("HiPClassBottleneck", "hip_mini"): 21_114_788,
}


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def build_on_meta(name: str, **settings: Any) -> HiP:
    with torch.device("meta"):
        return create_model(name, inputs={"image": Image(224, 224, 3)}, **settings)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_the_released_ones_in_total_and_per_part(name: str) -> None:
    model = build_on_meta(name)
    assert model.decoder is not None
    inputs, readout = model.encoder.inputs, model.decoder.readout
    assert (
        count(model),
        count(inputs.positions),
        count(inputs.embed, readout.unembed),
        count(readout.read),
        count(model.encoder.blocks),
        count(model.decoder.blocks),
    ) == COUNTS[name]


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_has_the_released_count(name: str) -> None:
    model = build_on_meta(name)
    assert model.decoder is not None
    assert [count(b) for b in (*model.encoder.blocks, *model.decoder.blocks)] == BLOCKS[name]


@pytest.mark.parametrize(("kind", "name"), OFFICIAL_TEST)
def test_counts_of_the_official_test(kind: str, name: str) -> None:
    levels, settings = VARIANTS[name]["levels"], VARIANTS[name]
    kwargs: dict[str, Any] = {
        "num_groups": [level.num_groups for level in levels],
        "num_self_attends_per_block": [level.depth for level in levels],
        "z_index_dim": [level.num_latents for level in levels],
        "num_z_channels": [level.latent_dim for level in levels],
        "num_cross_attend_heads": [level.num_cross_heads for level in levels],
        "num_self_attend_heads": [level.num_heads for level in levels],
        "cross_attend_widening_factor": [level.cross_mlp_ratio for level in levels],
        "self_attend_widening_factor": [level.mlp_ratio for level in levels],
        "num_embedding_channels": settings["token_dim"],
        "num_position_encoding_channels": 512,
    }
    if kind == "HiPClassBottleneck":
        kwargs["label_modalities"] = ["audioset_label", "imagenet_label"]
    datasets = (
        ("imagenet", (("imagenet_image", (2, 1024, 3)), ("imagenet_label", (2, 32, 1)))),
        ("audioset", (("audioset_audio", (2, 128, 16)), ("audioset_label", (2, 16, 16)))),
    )
    with torch.device("meta"):
        model = HiP(config_from_haiku(kind, kwargs, datasets))
    assert count(model) == OFFICIAL_TEST[kind, name]


def test_an_encoder_without_decoder_has_none_of_its_parameters() -> None:
    whole = build_on_meta("hip_16")
    encoder = build_on_meta("hip_16", num_classes=1000, head="mean")
    head = 2 * 1024 + 1024 * 1000 + 1000
    assert count(encoder) == count(whole.encoder) + head
    assert not any(name.startswith("decoder") for name in encoder.state_dict())
    assert any(name.startswith("decoder") for name in whole.state_dict())
