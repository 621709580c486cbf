"""The table of released weights, and what their licences allow."""

import pytest

from perceivers.checkpoints.catalogue import CATALOGUE, find_weights, is_non_commercial
from perceivers.models import list_models


def test_every_release_is_listed_once_with_a_model_a_source_and_a_licence() -> None:
    assert len(CATALOGUE) == len({weights.name for weights in CATALOGUE}) == 12
    for weights in CATALOGUE:
        assert weights.variant in list_models()
        assert weights.source.startswith("https://")
        assert weights.source.endswith(weights.name)
        assert weights.license == {"haiku": "CC-BY-4.0", "hf": "Apache-2.0"}[weights.converter]
        assert weights.sha256 is None or len(weights.sha256) == 64


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("optical_flow_checkpoint.pystate", "perceiver_io_flow"),
        ("deepmind/vision-perceiver-conv", "perceiver_io_imagenet_conv"),
        ("downloads/vision-perceiver-conv/", "perceiver_io_imagenet_conv"),
    ],
)
def test_weights_are_found_by_their_last_name(name: str, variant: str) -> None:
    found = find_weights(name)
    assert found is not None
    assert found.variant == variant
    assert find_weights("conv") is None


@pytest.mark.parametrize(
    ("licence", "forbids"),
    [
        ("CC-BY-NC-4.0", True),
        ("CC BY-NC-SA 4.0", True),
        ("for non-commercial use only", True),
        ("Noncommercial", True),
        ("research-only", True),
        ("CC-BY-4.0", False),
        ("Apache-2.0", False),
        ("NCSA", False),
        ("as stated by the source of the parameters", False),
        ("", False),
    ],
)
def test_licences_that_forbid_commercial_use_are_told(licence: str, forbids: bool) -> None:
    assert is_non_commercial(licence) is forbids
