"""Randomness of single samples: a draw that does not depend on the batch a sample comes in.

Masks and hidden modalities are keyed on (seed, position of the sample in training), so they are the
same in one large batch, in the parts of an accumulated one, and on however many processes.

Legend: B batch.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

# One for all samples, one for each, or the global one.
Draws: TypeAlias = "torch.Generator | Sequence[torch.Generator] | None"


def sample_generators(
    generator: torch.Generator, position: Tensor | None
) -> torch.Generator | list[torch.Generator]:
    """Return a generator per sample, or the given one where samples have no positions.

    Args:
        generator: Only its seed counts.
        position: What tells samples apart ``[B]``, int64, at least 0; None for none.
    """
    if position is None:
        return generator
    seed = generator.initial_seed()
    words = [np.random.SeedSequence((seed, place)).generate_state(2) for place in position.tolist()]
    # Two words of 32 bits make a seed; the sign bit stays free.
    seeds = [int(high >> 1) << 32 | int(low) for low, high in words]
    return [torch.Generator().manual_seed(value) for value in seeds]


def rand_rows(num_rows: int, *shape: int, generator: Draws) -> Tensor:
    """Draw uniform numbers in [0, 1), ``[B, *shape]``, on the generator's device.

    Args:
        num_rows: Samples B.
        shape: What is drawn for each.
        generator: One for all or one per sample; the global one when not given.
    """
    if generator is None or isinstance(generator, torch.Generator):
        device = "cpu" if generator is None else generator.device
        return torch.rand(num_rows, *shape, generator=generator, device=device)
    assert len(generator) == num_rows
    return torch.stack([torch.rand(*shape, generator=each) for each in generator])
