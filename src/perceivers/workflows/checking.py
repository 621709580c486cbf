"""Look at data by their address: what is there, what is wrong with it, and what to run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from perceivers.data import open_data
from perceivers.data.inspecting import LIMIT, DataFacts, Progress, inspect_data
from perceivers.workflows.proposing import Proposal, propose


@dataclass(frozen=True)
class DataReport:
    """What lies at an address.

    Args:
        address: What was looked at.
        facts: What was found.
        proposal: What to run; None when no training sample can be read.
    """

    address: str
    facts: DataFacts
    proposal: Proposal | None

    @property
    def is_usable(self) -> bool:
        """Whether something can be trained on it."""
        return self.proposal is not None

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {**asdict(self), "usable": self.is_usable}


def check_data(
    address: str,
    *,
    labels: Sequence[str] = (),
    targets: Sequence[str] = (),
    val_share: float = 0.1,
    limit: int = LIMIT,
    threads: int | None = None,
    progress: Progress | None = None,
) -> DataReport:
    """Look at data and propose what to train on them; nothing is written.

    Args:
        address: As for ``open_data``.
        labels: Label columns to read.
        targets: Columns of numbers to be predicted.
        val_share: Share set aside for validation, as training would.
        limit: Samples to decode, spread evenly over the splits; classes are counted over all.
        threads: Samples decoded at once; the processors, up to 8, when not given.
        progress: Called with the samples done and their number.

    Raises:
        DataError: The address is not understood, or the data do not keep to their format.
        ConfigError: A label column that is not there, or a number out of range.
    """
    dataset = open_data(address, val_share=val_share, labels=labels, targets=targets)
    facts = inspect_data(dataset, limit=limit, threads=threads, progress=progress)
    if not facts.is_usable:
        return DataReport(address, facts, None)
    asked = {"labels": list(labels), "targets": list(targets)}
    proposal = propose(facts, dataset, asked, cuda=torch.cuda.is_available())
    return DataReport(address, facts, proposal)
