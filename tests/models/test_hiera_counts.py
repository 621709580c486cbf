"""Exact parameter counts of the released Hieras, whole and in parts (no memory needed)."""

from typing import Any

import pytest
import torch
from torch import nn

from perceivers.models import create_model
from perceivers.models.hiera.variants import VARIANTS

# Measured with the official code: classifier, without its last Linear, autoencoder, tensors.
COUNTS = {
    "hiera_tiny_224": (27_910_216, 27_141_216, 55_020_896, 157, 263),
    "hiera_small_224": (35_008_072, 34_239_072, 62_118_752, 205, 311),
    "hiera_base_224": (51_524_968, 50_755_968, 78_635_648, 301, 407),
    "hiera_base_plus_224": (69_896_616, 68_999_616, 97_584_064, 301, 407),
    "hiera_large_224": (213_739_912, 212_586_912, 242_875_808, 589, 695),
    "hiera_huge_224": (672_779_752, 670_730_752, 710_081_792, 589, 695),
    "hiera_base_16x224": (51_092_560, 50_784_960, 79_367_104, 302, 408),
    "hiera_base_plus_16x224": (69_392_240, 69_033_440, 98_320_352, 302, 408),
    "hiera_large_16x224": (213_091_600, 212_630_400, 243_621_760, 590, 696),
    "hiera_huge_16x224": (671_627_664, 670_808_064, 710_861_568, 590, 696),
}
# Decoder with its mask token, and the fusion of the stages (which has two biases).
PARTS = {
    "mae_hiera_tiny_224": (26_108_672, 1_771_008),
    "mae_hiera_base_plus_224": (26_174_208, 2_410_240),
    "mae_hiera_large_224": (26_305_280, 3_983_616),
    "mae_hiera_huge_224": (26_764_032, 12_587_008),
}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def build_on_meta(name: str, **settings: Any) -> Any:
    with torch.device("meta"):
        return create_model(name, **settings)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_the_released_ones(name: str) -> None:
    model, autoencoder = build_on_meta(name), build_on_meta(f"mae_{name}")
    assert (
        count(model),
        count(model) - count(model.head),
        count(autoencoder),
        len(list(model.parameters())),
        len(list(autoencoder.parameters())),
    ) == COUNTS[name]


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_the_decoder_have_the_released_counts(name: str) -> None:
    decoder = build_on_meta(name).decoder
    fusion = count(decoder.fusion)
    assert (count(decoder) - fusion, fusion) == PARTS[name]


def test_window_variants_have_two_tables() -> None:
    small, base = (build_on_meta(f"hiera_{size}_abswin_256") for size in ("small", "base"))
    for model, grid in ((small, 16), (base, 14)):
        positions = model.encoder.positions
        assert positions.table.shape == (grid**2, 96)
        assert positions.window.shape == (64, 96)
        assert model.config.layer_scale == 1e-5
    assert small.encoder.blocks[1].shortcut is None
    assert base.encoder.blocks[2].shortcut is not None


def test_every_variant_that_may_has_a_twin_with_a_decoder() -> None:
    twins = {name.removeprefix("mae_") for name in VARIANTS if name.startswith("mae_")}
    names = {name for name in VARIANTS if not name.startswith("mae_")}
    # The last stage of an autoencoder does not pool, which this shortcut needs.
    assert names - twins == {"hiera_small_abswin_256"}
    assert twins < names
