"""The table of released weights, and what their licences allow."""

import pytest

from perceivers.checkpoints.catalogue import CATALOGUE, find_weights, is_non_commercial
from perceivers.models import list_models

PERMISSIVE = {"haiku": "CC-BY-4.0", "hf": "Apache-2.0", "sam2": "Apache-2.0", "timm": "Apache-2.0"}


def test_every_release_is_listed_once_with_a_model_a_source_and_a_licence() -> None:
    assert len(CATALOGUE) == len({weights.name for weights in CATALOGUE}) == 78
    for weights in CATALOGUE:
        assert weights.variant in list_models()
        assert weights.source.startswith("https://")
        assert weights.source.endswith(weights.name)
        # Meta's Hieras are for research; what timm trained itself is not.
        metas = (
            "hiera" in weights.name and "sbb2" not in weights.name and "sam2" not in weights.name
        )
        own = "CC-BY-NC-4.0" if metas else PERMISSIVE[weights.converter]
        assert weights.license == own
        assert is_non_commercial(own) is metas
        assert weights.sha256 is None or len(weights.sha256) == 64


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("hiera_base_plus_16x224.pth", "hiera_base_plus_16x224"),
        ("mae_hiera_huge_224.pth", "mae_hiera_huge_224"),
        ("timm/hiera_small_abswin_256.sbb2_e200_in12k", "hiera_small_abswin_256"),
        ("downloads/hiera-base-plus-224-in1k-hf/", "hiera_base_plus_224"),
        ("hiera-large-224-mae-hf", "mae_hiera_large_224"),
        ("optical_flow_checkpoint.pystate", "perceiver_io_flow"),
        ("deepmind/vision-perceiver-conv", "perceiver_io_imagenet_conv"),
        ("sam2.1_hiera_base_plus.pt", "hiera_det_base_plus"),
        ("facebook/sam2-hiera-base-plus", "hiera_det_base_plus"),
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
