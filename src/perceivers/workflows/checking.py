"""Inspect a data set, propose a training command for it, and draw preview sheets."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perceivers.data import AugmentConfig, Dataset, open_data
from perceivers.data.dataset import VOID
from perceivers.data.fitting import SampleReader
from perceivers.data.flow_pairs import open_flow_pairs
from perceivers.data.inspecting import LIMIT, DataFacts, Progress, inspect_data
from perceivers.data.inspecting_labels import LabelFacts, ModalityFacts, title_modality
from perceivers.data.masks import kept_classes
from perceivers.data.remote import write_shard_index
from perceivers.data.shards import expand_braces
from perceivers.data.sources import Source
from perceivers.errors import ConfigError, DataError
from perceivers.files import write_json
from perceivers.report.console import Grid, Shown
from perceivers.report.figures.samples import SampleBox, draw_samples
from perceivers.report.html import Section, write_html
from perceivers.settings import Count, Part, checked
from perceivers.training.config import FlowTrainConfig
from perceivers.types import ModalitySpec
from perceivers.version import __version__
from perceivers.workflows.opening import WARPS, open_dataset
from perceivers.workflows.proposing import Proposal, propose, propose_flow

# Height and width of generated frame pairs, as in the optical flow recipe.
FRAME_SIZE = (48, 64)


@dataclass(frozen=True)
class DataReport:
    """Report on a data set.

    Args:
        address: Data address.
        facts: Result of the inspection.
        proposal: Proposed command; None if no training sample can be read.
        sheets: Files of the preview, if requested; the HTML page comes last.
    """

    address: str
    facts: DataFacts
    proposal: Proposal | None
    sheets: tuple[str, ...] = ()

    @property
    def is_usable(self) -> bool:
        """Whether a model can be trained on the data."""
        return self.proposal is not None

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible types."""
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
    json: str | Path | None = None,
    preview: str | Path | None = None,
    overwrite: bool = False,
) -> DataReport:
    """Check the data at an address: contents, problems and the commands to run.

    Args:
        address: Data address, as in training.
        labels: Label columns to read, such as '["topic"]' on the command line.
        targets: Numeric columns to predict.
        val_share: Fraction held out for validation, as in training.
        limit: Number of samples to decode, spread evenly over the splits; classes are counted over
            all samples.
        threads: Number of samples decoded in parallel; default: the number of CPUs, at most 8.
        progress: Called with the number of finished samples and the total.
        json: Also write the report to this ``.json`` file.
        preview: Folder for sheets of model inputs, one PNG per split, and ``index.html``; nothing
            is written if not given.
        overwrite: Replace an existing file or an earlier preview.

    Raises:
        DataError: The address is not understood, or the data violate their format.
        ConfigError: A label column does not exist, a number is out of range, or ``json`` or
            ``preview`` exists.
    """
    if json is not None and Path(json).exists() and not overwrite:
        raise ConfigError(f"{json} exists; pass --overwrite or another --json")
    if preview is not None:
        check_preview(Path(preview), overwrite=overwrite)
    pairs = _open_flow(address, val_share) if not labels and not targets else None
    dataset = pairs or open_data(address, val_share=val_share, labels=labels, targets=targets)
    facts = inspect_data(dataset, limit=limit, threads=threads, progress=progress)
    sheets: tuple[str, ...] = ()
    if preview is not None and facts.is_usable:
        written = write_preview(dataset, preview, overwrite=overwrite)
        sheets = tuple(map(str, written))
    proposal = None
    if facts.is_usable:
        asked = {"labels": list(labels), "targets": list(targets)}
        proposal = (
            propose(facts, dataset, asked, cuda=torch.cuda.is_available())
            if pairs is None
            else propose_flow(address)
        )
    report = DataReport(address, facts, proposal, sheets)
    if json is not None:
        write_json(Path(json), report.to_json())
    return report


def _open_flow(address: str, val_share: float) -> Dataset | None:
    """Open generated frame pairs or a folder of real ones; None for other data."""
    if not address.startswith(WARPS):
        try:
            open_flow_pairs(address)
        except DataError:
            return None
    config = FlowTrainConfig(model="", data=address, out="", val_share=val_share)
    return open_dataset(config, frame_size=FRAME_SIZE)


# -- Preview sheets of model inputs: ``data check --preview`` ------------------------------------

SHOWN = 16
NOTE = (
    "Model inputs with default training settings: after cropping, resampling and channel "
    "conversion, before normalisation. Videos: 4 frames of the clip. Audio: the first channel in "
    "-1..1. Points: from above, y upwards, high points light."
)


def write_preview(dataset: Dataset, folder: str | Path, *, overwrite: bool = False) -> list[Path]:
    """Write ``SPLIT.png``, a sheet of up to 16 samples spread over each split, and ``index.html``.

    Args:
        dataset: Opened data.
        folder: Output folder.
        overwrite: Replace an earlier preview.

    Returns:
        The sheets, then the page.

    Raises:
        ConfigError: ``folder`` is a file or already holds a preview.
        DataError: No sample can be read.
    """
    folder = Path(folder)
    check_preview(folder, overwrite=overwrite)
    classes = kept_classes(dataset.mask_classes, VOID)[0] if dataset.mask_classes else ()
    sections, bad = [], []
    for split, source in dataset.splits.items():
        reader = _reader(dataset, source)
        boxes, unread = _read_boxes(dataset, source, reader)
        bad += unread
        if boxes:
            title = f"{dataset.address}: {split}"
            sheet = draw_samples(
                folder / f"{split}.png", boxes, classes=classes, title=title, note=NOTE
            )
            count = f"{len(boxes)} of {len(reader.source if reader else source)} samples"
            caption = f"{count}, spread over the split."
            specs = reader.specs if reader else {}
            lines = [
                f"{name}: {spec.kind} {'x'.join(map(str, spec.raw_shape))}"
                for name, spec in specs.items()
            ]
            sections.append(
                Section(
                    title=split,
                    text="\n\n".join([*lines, *(f"not readable: {each}" for each in unread[:5])]),
                    figures=[(sheet, caption)],
                )
            )
    if not sections:
        raise DataError(f"no sample of {dataset.address} can be read: {'; '.join(bad[:3])}")
    page = write_html(
        folder / "index.html",
        title="Preview of model inputs",
        subtitle=dataset.address,
        sections=sections,
        footer=f"perceivers {__version__}",
    )
    return [*(section.figures[0][0] for section in sections), page]


def check_preview(folder: Path, *, overwrite: bool) -> None:
    """Check that a preview can be written to a folder, before samples are read.

    Raises:
        ConfigError: The folder is a file or already holds a preview.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--preview {folder} is a file; give a folder for the sheets")
    if (folder / "index.html").exists() and not overwrite:
        raise ConfigError(f"{folder / 'index.html'} exists; pass --overwrite or another --preview")


def _reader(dataset: Dataset, source: Source) -> SampleReader | None:
    """Return the reader used in training; None for real flow data, whose pairs differ in size."""
    if not source.is_fitted:
        return None
    return SampleReader(source, dataset.training_specs(), AugmentConfig())


def _read_boxes(
    dataset: Dataset, source: Source, reader: SampleReader | None
) -> tuple[list[SampleBox], list[str]]:
    """Read samples spread over a split; also return the errors of unreadable ones."""
    whole = source if reader is None else reader.source
    places = np.unique(np.linspace(0, len(whole) - 1, min(SHOWN, len(whole))).round().astype(int))
    boxes, bad = [], []
    for place in places.tolist():
        try:
            arrays: dict[str, Any] = dict(whole.read(place)) if reader is None else reader(place)
        except DataError as error:
            bad.append(str(error))
            continue
        specs = {} if reader is None else reader.specs
        kinds = {name: _kind(name, specs) for name in arrays}
        caption = describe_labels(dataset, whole, place)
        boxes.append(SampleBox(arrays, kinds, caption, str(whole.names[place])))
    return boxes, bad


def _kind(name: str, specs: dict[str, ModalitySpec] | Any) -> str:
    return specs[name].kind if name in specs else {"video": "video"}.get(name, "array")


def describe_labels(dataset: Dataset, source: Source, index: int) -> str:
    """Describe the labels and targets of a sample; empty if there are none."""
    words = []
    columns = dict(dataset.columns) or ({"label": dataset.classes} if dataset.classes else {})
    if source.labels is not None and columns:
        for (name, classes), label in zip(
            columns.items(), np.atleast_1d(source.labels[index]).tolist(), strict=True
        ):
            known = classes[label] if label >= 0 else "unknown"
            words.append(known if len(columns) == 1 else f"{name}: {known}")
    targets = source.targets
    if targets is not None:
        words += [f"{n}: {v:.4g}" for n, v in zip(dataset.targets, targets[index], strict=True)]
    return ", ".join(words)


# -- What ``data check`` prints, and ``data index`` ----------------------------------------------

# Smaller classes are summed up in one row.
SHOWN_CLASSES = 30
SHOWN_VALUES = 4
UNITS = {"width": "pixels", "height": "pixels"}
UNUSABLE = 2


def index_shards(tars: Sequence[str]) -> Shown:
    """Write x.tar.index.json next to each tar; upload both to the same place.

    Args:
        tars: Tar files, or ranges such as 'x-{000..012}.tar'.

    Raises:
        DataError: A file is not an uncompressed tar.
    """
    paths = [path for address in tars for path in expand_braces(address)]
    return Shown(str(write_shard_index(Path(path))) for path in paths)


def show(report: DataReport) -> Shown:
    """Show the report; the status is 2 if no model can be trained on the data."""
    return Shown(_show_report(report), status=0 if report.is_usable else UNUSABLE)


def _show_report(report: DataReport) -> Iterator[str | Grid]:
    facts = report.facts
    total = sum(split.samples for split in facts.splits.values())
    what = f"tiles of {facts.scenes:,} scenes" if facts.scenes else "samples"
    yield f"{report.address}: {total:,} {what}; counts by split and modality:"
    yield _show_splits(facts)
    if facts.modalities:
        yield _show_modalities(facts)
    for column in facts.labels:
        yield from _show_classes(column)
    if facts.targets:
        yield _grid(
            ("target", "min", "median", "max", "unknown"),
            [
                (t.name, f"{t.least:.4g}", f"{t.median:.4g}", f"{t.most:.4g}", str(t.unknown))
                for t in facts.targets
            ],
        )
    for text in facts.broken:
        yield f"broken: {text}"
    if facts.num_broken > len(facts.broken):
        yield f"broken: {facts.num_broken - len(facts.broken)} more"
    for group in facts.repeats.groups:
        yield f"identical: {' = '.join(group[:3])}{' = ...' if len(group) > 3 else ''}"
    for text in facts.notes:
        yield f"note: {text}"
    for text in facts.problems:
        yield f"problem: {text}"
    if report.proposal is None:
        yield "no training sample can be read, so there is nothing to propose"
    else:
        yield from _show_proposal(report.proposal)
    if report.sheets:
        yield f"\npreview: {report.sheets[-1]} and {len(report.sheets) - 1} sheets"


def _show_proposal(proposal: Proposal) -> Iterator[str]:
    recipe = f", based on the recipe {proposal.recipe}" if proposal.recipe else ""
    yield f"\nproposed: task {proposal.task}{recipe}. {proposal.reason}\n"
    yield from proposal.commands
    for text in proposal.hints:
        yield f"\nhint: {text}"


def _show_splits(facts: DataFacts) -> Grid:
    combinations = list(
        dict.fromkeys(name for split in facts.splits.values() for name in split.combinations)
    )
    counted = ("tiles", "scenes") if facts.scenes else ("samples",)
    titles = {name: title_modality(name, found) for name, found in facts.modalities.items()}
    held = [" + ".join(titles.get(n, n) for n in c.split(" + ")) for c in combinations]
    return _grid(
        ("split", *counted, "checked", "broken", *held),
        [
            (
                name,
                f"{split.samples:,}",
                *([f"{split.scenes:,}"] if facts.scenes else []),
                f"{split.looked_at:,}",
                f"{split.broken:,}",
                *(f"{split.combinations.get(c, 0):,}" for c in combinations),
            )
            for name, split in facts.splits.items()
        ],
    )


def _show_modalities(facts: DataFacts) -> Grid:
    rows = [row for name, found in facts.modalities.items() for row in _modality_rows(name, found)]
    return _grid(("modality", "property", "min", "median", "max", "values"), rows)


def _modality_rows(name: str, facts: ModalityFacts) -> list[tuple[str, ...]]:
    """Return one row per size, and one per property with counts of its values."""
    title = title_modality(name, facts)
    rows = [
        (
            title,
            f"{what} in {UNITS[what]}" if what in UNITS else what,
            _number(size.least),
            _number(size.median),
            _number(size.most),
            "",
        )
        for what, size in facts.sizes.items()
    ]
    for what, counts in facts.values.items():
        shown = list(counts.items())[:SHOWN_VALUES]
        listed = ", ".join(f"{value} ({count:,})" for value, count in shown)
        more = f", {len(counts) - len(shown)} more" if len(counts) > len(shown) else ""
        rows.append((title, what, "", "", "", listed + more))
    return rows


def _show_classes(column: LabelFacts) -> Iterator[str | Grid]:
    splits = list(column.counts)
    order = sorted(range(len(column.classes)), key=lambda k: -column.counts["train"][k])
    rows = [
        (column.classes[k], *(f"{column.counts[split][k]:,}" for split in splits))
        for k in order[:SHOWN_CLASSES]
    ]
    rest = order[SHOWN_CLASSES:]
    if rest:
        sums = (f"{sum(column.counts[split][k] for k in rest):,}" for split in splits)
        rows.append((f"{len(rest)} more classes", *sums))
    yield (
        f"{column.name}: {len(column.classes)} classes; the largest has {column.imbalance:.1f} "
        f"times the training samples of the smallest"
    )
    yield _grid(("class", *splits), rows)


def _number(value: float) -> str:
    """Format whole numbers without decimals."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.2f}"


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Grid:
    return Grid(header, rows, bare=True)
