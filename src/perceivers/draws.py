"""Random generators per sample, whose numbers do not depend on how samples are batched.

Masks and modality dropout are seeded by (seed, position of the sample in training), so they are the
same in one large batch, with gradient accumulation, and on any number of processes.

Legend: B batch.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

# One generator for all samples, one for each, or the global one (None).
Draws: TypeAlias = "torch.Generator | Sequence[torch.Generator] | None"


def sample_generators(
    generator: torch.Generator, position: Tensor | None, stream: int = 0
) -> torch.Generator | list[torch.Generator]:
    """Return one generator per sample, or the given generator if samples have no positions.

    Args:
        generator: Only its initial seed is used if there are positions, not its state.
        position: Unique number of each sample ``[B]``, int64, at least 0; or None.
        stream: Decisions about one sample that must be independent use different streams.
    """
    if position is None:
        return generator
    seed = (generator.initial_seed(),)
    tail = (stream,) if stream else ()
    words = [
        np.random.SeedSequence((*seed, place, *tail)).generate_state(2)
        for place in position.tolist()
    ]
    # Join two 32-bit words to one seed; the shift keeps it within a signed 64-bit integer.
    seeds = [int(high >> 1) << 32 | int(low) for low, high in words]
    return [torch.Generator().manual_seed(value) for value in seeds]


def rand_rows(num_rows: int, *shape: int, generator: Draws) -> Tensor:
    """Sample uniform numbers in [0, 1), ``[B, *shape]``, on the generator's device.

    Args:
        num_rows: Samples B.
        shape: Shape per sample.
        generator: One for all samples or one for each; None uses the global one.
    """
    if generator is None or isinstance(generator, torch.Generator):
        device = "cpu" if generator is None else generator.device
        return torch.rand(num_rows, *shape, generator=generator, device=device)
    assert len(generator) == num_rows
    return torch.stack([torch.rand(*shape, generator=each) for each in generator])
