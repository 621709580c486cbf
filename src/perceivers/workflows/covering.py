"""Masks that together hide everything: what is hidden in turn, each unit equally often.

Legend: R rows that are drawn apart, N units of a row, P passes.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from perceivers.errors import ConfigError


def cover(
    rows: int, units: int, *, kept: int, repeats: int, generator: torch.Generator
) -> Bool[Tensor, "P R N"]:
    """Draw masks of equal size under which every unit is hidden at least ``repeats`` times.

    Each pass hides the units that were hidden least so far, ties by lot. The counts of two units
    of a row therefore never differ by more than one, with as few passes as that takes.

    Args:
        rows: Rows R, each with a draw of its own.
        units: Units N of a row.
        kept: Units that stay visible in every pass, from 1 to N - 1.
        repeats: How often each unit is hidden, at least 1.
        generator: Source of the lots, on the CPU.

    Returns:
        True where a unit stays visible.

    Raises:
        ConfigError: A number is out of range.
    """
    if not 1 <= kept < units:
        raise ConfigError(
            f"{kept} of {units} units would stay visible; it must be at least 1, and 1 hidden"
        )
    if repeats < 1:
        raise ConfigError(f"repeats is {repeats}; every element must be hidden at least once")
    hidden = units - kept
    times = torch.zeros(rows, units)
    passes = []
    for _ in range(-(-repeats * units // hidden)):
        # Lots lie below 1, so they only decide between units that were hidden equally often.
        order = (times + torch.rand(rows, units, generator=generator)).argsort(1)
        keep = torch.ones(rows, units, dtype=torch.bool)
        keep.scatter_(1, order[:, :hidden], value=False)
        times += ~keep
        passes.append(keep)
    return torch.stack(passes)
