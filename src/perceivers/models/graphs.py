"""Parts of models as graphs of positional tensors, and random tensors to trace and compare them.

Legend: B batch, N elements.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from perceivers.types import FIRST_BYTE, PAD, ModalitySpec

BATCH = "batch"


@dataclass(frozen=True)
class Graph:
    """A module with positional tensor inputs, and their names and sizes.

    Attributes:
        module: Module whose ``forward`` takes ``*tensors`` and returns a tuple.
        inputs: Names of the input tensors.
        outputs: Names of the output tensors.
        raw: Modalities among the inputs.
        sample: Creates random inputs from a batch size and a generator.
        free: Names of dynamic sizes by axis, for each input.
        largest: Maximum of a dynamic size by name, if it has one.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    raw: Mapping[str, ModalitySpec]
    sample: Callable[[int, torch.Generator], tuple[Tensor, ...]]
    free: tuple[Mapping[int, str], ...]
    largest: Mapping[str, int] = field(default_factory=dict)

    def example(self, batch: int, seed: int) -> tuple[Tensor, ...]:
        """Create random inputs of the right types and shapes."""
        return self.sample(batch, torch.Generator().manual_seed(seed))


def random_raw(spec: ModalitySpec, batch: int, generator: torch.Generator) -> Tensor:
    """Return random raw samples of a modality.

    Images and videos are uint8, labels and text are indices, all others normal floats. Texts end in
    padding and ragged point clouds in absent points (NaN); their lengths vary by sample.
    """
    shape = (batch, *spec.raw_shape)
    if spec.has_pixels:
        return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    if spec.kind == "labels":
        return torch.randint(0, spec.channels, shape, generator=generator)
    # Number of elements of a text or a cloud: at least one.
    length = torch.randint(1, spec.num_tokens + 1, (batch, 1), generator=generator)
    absent = torch.arange(spec.num_tokens) >= length  # [B, N]
    if spec.kind == "bytes":
        ids = torch.randint(FIRST_BYTE, spec.channels, shape, generator=generator)
        return torch.where(absent, PAD, ids)
    values = torch.randn(shape, generator=generator)
    if spec.may_lack:
        return torch.where(absent.unsqueeze(-1), torch.nan, values)
    return values


def draw_raw(
    raw: Mapping[str, ModalitySpec], batch: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Return random raw samples of every modality."""
    return tuple(random_raw(spec, batch, generator) for spec in raw.values())
