"""A graph of tensors, and random tensors to trace and compare it with.

Legend: B batch, N elements.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from perceivers.models.hip import HiP
from perceivers.types import FIRST_BYTE, PAD, ModalitySpec, Points

BATCH = "batch"


@dataclass(frozen=True)
class Graph:
    """A module with positional tensors, and what they are called.

    Attributes:
        module: Its ``forward`` takes ``*tensors`` and returns a tuple.
        inputs: Names of the tensors.
        outputs: Names of the results.
        raw: The modalities among the inputs.
        sample: Draws the inputs for a batch size, from a generator.
        free: Sizes that a caller may choose, by axis, for each input.
        largest: The largest value of a free size, where there is one.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    raw: Mapping[str, ModalitySpec]
    sample: Callable[[int, torch.Generator], tuple[Tensor, ...]]
    free: tuple[Mapping[int, str], ...]
    largest: Mapping[str, int] = field(default_factory=dict)

    def example(self, batch: int, seed: int) -> tuple[Tensor, ...]:
        """Draw random inputs of the right kinds."""
        return self.sample(batch, torch.Generator().manual_seed(seed))


def inputs_of(model: Any) -> Mapping[str, ModalitySpec]:
    """Return what a graph of the model reads; labels that a HiP only predicts are not read."""
    return model.config.grouped_inputs if isinstance(model, HiP) else model.config.inputs


def random_raw(spec: ModalitySpec, batch: int, generator: torch.Generator) -> Tensor:
    """Random raw samples: bytes for pictures, indices for labels and texts, normal floats else.

    Texts end in padding, and clouds that may be ragged in absent points, another number for every
    sample.
    """
    shape = (batch, *spec.raw_shape)
    if spec.kind in {"image", "video"}:
        return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    if spec.kind == "labels":
        return torch.randint(0, spec.channels, shape, generator=generator)
    # How many elements a text or a cloud has: at least one.
    length = torch.randint(1, spec.num_tokens + 1, (batch, 1), generator=generator)
    absent = torch.arange(spec.num_tokens) >= length  # [B, N]
    if spec.kind == "bytes":
        ids = torch.randint(FIRST_BYTE, spec.channels, shape, generator=generator)
        return torch.where(absent, PAD, ids)
    values = torch.randn(shape, generator=generator)
    if isinstance(spec, Points) and spec.ragged:
        return torch.where(absent.unsqueeze(-1), torch.nan, values)
    return values


def draw_raw(
    raw: Mapping[str, ModalitySpec], batch: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Draw random raw samples of every modality."""
    return tuple(random_raw(spec, batch, generator) for spec in raw.values())
