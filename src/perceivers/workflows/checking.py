"""Look at data by their address: what is there, what is wrong with it, and what to run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from perceivers.data import Dataset, open_data
from perceivers.data.flow_pairs import open_flow_pairs
from perceivers.data.inspecting import LIMIT, DataFacts, Progress, inspect_data
from perceivers.errors import DataError
from perceivers.settings import Count, Part, checked
from perceivers.training.config import FlowTrainConfig
from perceivers.workflows.opening import WARPS, open_dataset
from perceivers.workflows.previewing import check_preview, write_preview
from perceivers.workflows.proposing import Proposal, propose, propose_flow

# Height and width of generated frame pairs, as the recipe of flow reads them.
FRAME_SIZE = (48, 64)


@dataclass(frozen=True)
class DataReport:
    """What lies at an address.

    Args:
        address: What was looked at.
        facts: What was found.
        proposal: What to run; None when no training sample can be read.
        sheets: Files of the preview that was asked for; the page is the last.
    """

    address: str
    facts: DataFacts
    proposal: Proposal | None
    sheets: tuple[str, ...] = ()

    @property
    def is_usable(self) -> bool:
        """Whether something can be trained on it."""
        return self.proposal is not None

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {**asdict(self), "usable": self.is_usable}


@checked
def check_data(
    address: str,
    *,
    labels: Sequence[str] = (),
    targets: Sequence[str] = (),
    val_share: Part = 0.1,
    limit: Count = LIMIT,
    threads: Count | None = None,
    progress: Progress | None = None,
    preview: str | Path | None = None,
    overwrite: bool = False,
) -> DataReport:
    """Look at data and propose what to train on them; only a preview is written.

    Args:
        address: As for ``open_data``.
        labels: Label columns to read.
        targets: Columns of numbers to be predicted.
        val_share: Share set aside for validation, as training would.
        limit: Samples to decode, spread evenly over the splits; classes are counted over all.
        threads: Samples decoded at once; the processors, up to 8, when not given.
        progress: Called with the samples done and their number.
        preview: Folder for sheets of what a model would be given, a PNG per split and
            ``index.html``; none when not given.
        overwrite: Replace an earlier preview there.

    Raises:
        DataError: The address is not understood, or the data do not keep to their format.
        ConfigError: A label column that is not there, a number out of range, or ``preview`` exists.
    """
    if preview is not None:
        check_preview(Path(preview), overwrite=overwrite)
    pairs = _open_flow(address, val_share) if not labels and not targets else None
    dataset = pairs or open_data(address, val_share=val_share, labels=labels, targets=targets)
    facts = inspect_data(dataset, limit=limit, threads=threads, progress=progress)
    sheets: tuple[str, ...] = ()
    if preview is not None and facts.is_usable:
        written = write_preview(dataset, preview, overwrite=overwrite)
        sheets = tuple(map(str, written))
    if not facts.is_usable:
        return DataReport(address, facts, None, sheets)
    asked = {"labels": list(labels), "targets": list(targets)}
    proposal = (
        propose(facts, dataset, asked, cuda=torch.cuda.is_available())
        if pairs is None
        else propose_flow(address)
    )
    return DataReport(address, facts, proposal, sheets)


def _open_flow(address: str, val_share: float) -> Dataset | None:
    """Open frame pairs: generated ones, or a folder of measured ones; None for other data."""
    if not address.startswith(WARPS):
        try:
            open_flow_pairs(address)
        except DataError:
            return None
    config = FlowTrainConfig(model="", data=address, out="", val_share=val_share)
    return open_dataset(config, frame_size=FRAME_SIZE)
