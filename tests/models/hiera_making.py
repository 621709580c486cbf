"""Tiny Hieras of one, two and three axes, which the tests of this family share."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from perceivers.masking import MaskPlan, draw_unit_plan
from perceivers.models import Hiera, HieraConfig, HieraDecoder, HieraHead
from perceivers.types import Audio, Image, ModalitySpec, Video

EXACT: dict[str, Any] = dict(rtol=0.0, atol=1e-11)
SIZES: Mapping[str, Any] = {"dim": 8, "num_heads": 2, "depths": (1, 2, 2), "local_stages": 2}
# Mask units of 8 x 8 pixels, of 4 x 4 tokens; 2 x 3 of them.
PICTURE: Mapping[str, Any] = {
    **SIZES,
    "inputs": {"image": Image(16, 24, 2, mean=(0.4, 0.2), std=(0.3, 0.5))},
    "patch_kernel": (3, 3),
    "patch_stride": (2, 2),
    "mask_unit": (4, 4),
    "pool": (2, 2),
}
# Mask units of 2 frames of 8 x 8 pixels; 2 x 2 x 3 of them.
CLIP: Mapping[str, Any] = {
    **SIZES,
    "inputs": {"video": Video(4, 16, 24, 2, mean=(0.4,), std=(0.3,))},
    "patch_kernel": (3, 3, 3),
    "patch_stride": (2, 2, 2),
    "mask_unit": (1, 4, 4),
    "pool": (1, 2, 2),
    "positions": "separable",
}
# Mask units of 64 samples, of 16 tokens; 5 of them.
SOUND: Mapping[str, Any] = {
    **SIZES,
    "inputs": {"sound": Audio(320, 1)},
    "patch_kernel": (7,),
    "patch_stride": (4,),
    "mask_unit": (16,),
    "pool": (4,),
}
KINDS: Mapping[str, Mapping[str, Any]] = {"sound": SOUND, "picture": PICTURE, "clip": CLIP}
DECODER = HieraDecoder(dim=12, depth=2, num_heads=3)
CLASSES = HieraHead(kind="mean", num_outputs=5)
MAP = HieraHead(kind="segmentation", num_outputs=3, dim=10)


def build_hiera(kind: str = "picture", **settings: Any) -> Hiera:
    """Build a double-precision model in evaluation mode, every weight moved by noise."""
    config = HieraConfig(**{**KINDS[kind], **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return stirred(Hiera(config))


def stirred(model: Any) -> Any:
    """Return a model in double precision and evaluation mode, every weight moved by noise."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.double().eval().parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.2 * noise)
    return model


def draw_one(
    model: Hiera, generator: torch.Generator, size: tuple[int, ...] = (), batch: int = 2
) -> Tensor:
    """Draw normal doubles in the raw layout, of another size where one is given."""
    spec: ModalitySpec = model.config.spec
    grid = size or spec.grid
    shape = (spec.channels, *grid) if spec.channels_first else (*grid, spec.channels)
    return torch.randn(batch, *shape, generator=generator, dtype=torch.float64)


def draw_plan(
    model: Hiera, generator: torch.Generator, ratio: float = 0.5, batch: int = 2
) -> MaskPlan:
    """Draw a plan for inputs of the native size."""
    return draw_unit_plan(
        model.config.name, model.num_units(), batch, ratio=ratio, generator=generator
    )


def hidden_pixels(model: Hiera, plan: MaskPlan) -> Tensor:
    """Return where the input is hidden, boolean ``[B, 1, *size]``."""
    kept = plan.kept[model.config.name]
    units = [s // u for s, u in zip(model.config.spec.grid, model.config.unit_size, strict=True)]
    hidden = torch.ones(len(kept), model.num_units(), dtype=torch.bool).scatter(1, kept, False)
    hidden = hidden.reshape(len(kept), 1, *units)
    for axis, size in enumerate(model.config.unit_size):
        hidden = hidden.repeat_interleave(size, 2 + axis)
    return hidden
