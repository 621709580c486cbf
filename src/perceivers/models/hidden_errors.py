"""Errors of hidden elements: masks that together hide everything, and sums over their passes.

Each element is hidden in some forward pass and its error recorded there. All samples use the same
masks, so an error depends only on the sample itself.

Legend: B batch, P passes, R rows masked independently, N units per row.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool
from torch import Tensor

from perceivers.errors import ConfigError
from perceivers.finite import check_answer
from perceivers.models.masked import Target
from perceivers.types import ModalitySpec

Raw = Mapping[str, Tensor]


class ErrorMaps(Protocol):
    """Errors of hidden elements for one model family.

    Attributes:
        passes: Number of forward passes per batch.
        unit: Description of what the errors are measured in.
    """

    passes: int
    unit: str

    def __call__(self, inputs: Raw, held: Raw) -> dict[str, Tensor]:
        """Return the mean error of every element over the passes that hide it, ``[B, *grid]``.

        Missing elements, such as padding of texts and missing points, are NaN.

        Args:
            inputs: Raw tensors ``[B, ...]`` by name.
            held: Which samples have a modality, bool ``[B]``, by name; default all.
        """
        ...


def cover(
    rows: int, units: int, *, kept: int, repeats: int, generator: torch.Generator
) -> Bool[Tensor, "P R N"]:
    """Sample masks of equal size that together hide every unit at least ``repeats`` times.

    Each pass hides the units that were hidden least often so far; ties are broken at random. The
    counts of two units of a row therefore differ by at most one, and as few passes as possible are
    used.

    Args:
        rows: Rows R, sampled independently.
        units: Units N per row.
        kept: Visible units per pass, from 1 to N - 1.
        repeats: How often each unit is hidden, at least 1.
        generator: Random generator on the CPU.

    Returns:
        True where a unit is visible.

    Raises:
        ConfigError: ``kept`` or ``repeats`` is out of range.
    """
    if not 1 <= kept < units:
        raise ConfigError(
            f"{kept} of {units} units would be visible; at least 1 must be visible and 1 hidden"
        )
    if repeats < 1:
        raise ConfigError(f"repeats is {repeats}; every element must be hidden at least once")
    hidden = units - kept
    times = torch.zeros(rows, units)
    passes = []
    for _ in range(-(-repeats * units // hidden)):
        # Random numbers are below 1, so they only break ties between equally frequent units.
        order = (times + torch.rand(rows, units, generator=generator)).argsort(1)
        keep = torch.ones(rows, units, dtype=torch.bool)
        keep.scatter_(1, order[:, :hidden], value=False)
        times += ~keep
        passes.append(keep)
    return torch.stack(passes)


def error_unit(specs: Collection[ModalitySpec], target: Target, note: str = "") -> str:
    """Describe what errors are measured in.

    Args:
        specs: Scored modalities.
        target: Target space of numeric values.
        note: Remark on numeric values, appended to their description.
    """
    texts = sum(spec.kind == "bytes" for spec in specs)
    values = f"squared error, {target} values{note}"
    if not texts:
        return values
    return "nats per byte" if texts == len(specs) else f"{values}; nats per byte"


@dataclass
class Tally:
    """Errors summed over passes, and how often each element was counted."""

    errors: Tensor
    times: Tensor

    def mean(self) -> Tensor:
        """Return the mean error; NaN for elements that were never counted."""
        return self.errors / torch.where(self.times > 0, self.times, torch.nan)


def split_ids(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Return sorted indices of the visible and of the hidden entries along the last axis."""
    order = (~keep).to(torch.uint8).argsort(dim=-1, stable=True)
    # All rows have the same number of visible entries.
    kept = int(keep.flatten(0, -2)[0].sum())
    return order[..., :kept], order[..., kept:]


def add_pass(tallies: dict[str, Tally], name: str, errors: Tensor, times: Tensor) -> None:
    """Add the errors of one pass, after checking that those that count are finite."""
    check_answer(errors * times, f"the error of {name}")
    if name not in tallies:
        tallies[name] = Tally(torch.zeros_like(errors), torch.zeros_like(times))
    tallies[name].errors += errors
    tallies[name].times += times


def blank_absent(errors: Tensor, held: Tensor | None) -> Tensor:
    """Set the errors of samples without the modality to NaN."""
    if held is None:
        return errors
    absent = ~held.to(errors.device)
    return errors.masked_fill(absent.view(-1, *[1] * (errors.ndim - 1)), torch.nan)
