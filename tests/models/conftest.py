"""Small models with weights that are far from their quiet start, and inputs that fit them."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from perceivers.models import HiP, HiPConfig, HiPLevel
from perceivers.types import FIRST_BYTE, Array, Audio, ModalitySpec

LEVELS = (
    HiPLevel(num_groups=6, num_latents=4, latent_dim=8, depth=1, num_heads=2),
    HiPLevel(num_groups=1, num_latents=6, latent_dim=16, depth=2, num_heads=4),
    HiPLevel(num_groups=6, num_latents=4, latent_dim=12, depth=1, num_heads=2),
)
# 2 groups with 1 + 1 empty slots and 4 groups with 3 + 0: the official two-modality case.
INPUTS: Mapping[str, ModalitySpec] = {"a": Audio(21), "b": Array((9, 5), 2)}


def build_model(**settings: Any) -> HiP:
    """Build a double-precision model in evaluation mode, every weight moved by noise."""
    config = HiPConfig(
        **{"inputs": INPUTS, "levels": LEVELS, "token_dim": 8, "position_dim": 8, **settings}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return move_weights(HiP(config))


def move_weights(model: Any) -> Any:
    """Return a model in double precision and evaluation mode, every weight moved by noise."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.double().eval().parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * noise)
    return model


def draw_inputs(
    generator: torch.Generator, inputs: Mapping[str, ModalitySpec] = INPUTS, batch: int = 2
) -> dict[str, Tensor]:
    """Draw a batch for the specs: indices for labels and texts, normal doubles for all others."""
    drawn = {}
    for name, spec in inputs.items():
        shape = (batch, *spec.raw_shape)
        if spec.kind == "labels":
            drawn[name] = torch.randint(0, spec.channels, shape, generator=generator)
        elif spec.kind == "bytes":
            drawn[name] = torch.randint(FIRST_BYTE, spec.channels, shape, generator=generator)
        else:
            drawn[name] = torch.randn(shape, generator=generator, dtype=torch.float64)
    return drawn


@pytest.fixture
def build() -> Callable[..., HiP]:
    """Return ``build_model``."""
    return build_model


@pytest.fixture
def draw(rng: torch.Generator) -> Callable[..., dict[str, Tensor]]:
    """Return ``draw_inputs`` bound to the seeded generator."""
    return lambda *args, **kwargs: draw_inputs(rng, *args, **kwargs)


@pytest.fixture
def stir() -> Callable[..., Any]:
    """Return ``move_weights``."""
    return move_weights
