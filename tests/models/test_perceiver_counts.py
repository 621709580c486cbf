"""Exact parameter counts of Perceiver and Perceiver IO, whole and in parts (no memory needed)."""

from typing import Any

import pytest
import torch

from perceivers.checkpoints.catalogue import CATALOGUE
from perceivers.models import create_model

# Published, or calculated by the same formulas where the papers print none.
TOTALS = {
    "perceiver_imagenet": 44_912_254,
    "perceiver_imagenet_unshared": 326_241_856,
    "perceiver_imagenet_1x": 42_135_859,
    "perceiver_io_language": 201_108_230,
    "perceiver_io_language_plus": 425_607_430,
    "perceiver_io_imagenet_learned": 62_255_848,
    "perceiver_io_imagenet_fourier": 48_440_627,
    "perceiver_io_imagenet_conv": 48_646_522,
    "perceiver_io_jft_fourier": 213_082_618,
    "perceiver_io_jft_conv": 212_375_930,
    "perceiver_io_flow": 41_057_134,
    "perceiver_io_flow_small": 27_908_974,
    "perceiver_io_multimodal": 19_858_855,
    "perceiver_io_multimodal_176x": 19_658_151,
    "perceiver_io_multimodal_352x": 19_557_799,
}
# Inputs, latents, encoder's cross-attend, self-attention, decoder with its queries, heads after it.
# The classifiers' and flow's last Linear belongs to their decoder.
PARTS = {
    "perceiver_io_language": (1_774_080, 327_680, 6_434_816, 187_712_512, 4_858_880, 262),
    "perceiver_io_imagenet_learned": (12_911_872, 524_288, 3_679_744, 37_810_176, 7_329_768, 0),
    "perceiver_io_imagenet_fourier": (0, 524_288, 2_776_395, 37_810_176, 7_329_768, 0),
    "perceiver_io_imagenet_conv": (9_536, 524_288, 2_972_754, 37_810_176, 7_329_768, 0),
    "perceiver_io_flow": (3_520, 1_048_576, 1_066_578, 37_871_616, 1_066_844, 0),
    "perceiver_io_multimodal": (2_880, 401_408, 2_243_520, 12_623_872, 4_218_328, 368_847),
}
OWN_HEADS = {"perceiver_io_language", "perceiver_io_multimodal"}
# Channels of a token: content, positions, and padding where there are several modalities.
TOKEN_DIMS = {
    "perceiver_imagenet": 261,
    "perceiver_modelnet40": 387,
    "perceiver_io_language": 768,
    "perceiver_io_imagenet_learned": 512,
    "perceiver_io_imagenet_fourier": 261,
    "perceiver_io_imagenet_conv": 322,
    "perceiver_io_jft_fourier": 514,
    "perceiver_io_flow": 322,
    "perceiver_io_multimodal": 704,
    "perceiver_io_audioset_raw": 487,
}


def build_on_meta(name: str, **settings: Any) -> Any:
    with torch.device("meta"):
        return create_model(name, **settings)


def count(model: Any, *prefixes: str) -> int:
    return sum(p.numel() for n, p in model.named_parameters() if n.startswith(prefixes))


@pytest.mark.parametrize("name", TOTALS)
def test_totals_are_the_published_ones(name: str) -> None:
    assert count(build_on_meta(name), "") == TOTALS[name]


@pytest.mark.parametrize("name", PARTS)
def test_every_part_has_the_released_size(name: str) -> None:
    model = build_on_meta(name)
    decoder = ["decoder.queries.", "decoder.read.", "decoder.padding.", "decoder.project."]
    heads = "decoder.heads."
    found = (
        count(model, "inputs."),
        count(model, "trunk.latents"),
        count(model, "trunk.reads."),
        count(model, "trunk.blocks."),
        count(model, *decoder, *([] if name in OWN_HEADS else [heads])),
        count(model, heads) if name in OWN_HEADS else 0,
    )
    assert found == PARTS[name]
    assert sum(found) == TOTALS[name]


@pytest.mark.parametrize("name", TOKEN_DIMS)
def test_tokens_have_the_papers_channels(name: str) -> None:
    assert build_on_meta(name).inputs.dim == TOKEN_DIMS[name]


def test_sharing_is_what_the_count_shows() -> None:
    """Sharing the first cross-attend too would save one of the two."""
    two = build_on_meta("perceiver_imagenet")
    one = build_on_meta("perceiver_imagenet", trunk={"share_reads": "all"})
    assert count(two, "") - count(one, "") == count(one, "trunk.reads.") == 2_776_395


def test_the_catalogue_counts_what_is_built() -> None:
    mine = [weights for weights in CATALOGUE if weights.variant.startswith("perceiver")]
    counts = {weights.variant: weights.parameters for weights in mine}
    assert counts == {name: TOTALS[name] for name in PARTS}
