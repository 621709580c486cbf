"""Labels of a data set: how many samples every class has in every split, and what is wrong.

Legend: n samples, T label or target columns.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perceivers.data.address import open_data
from perceivers.data.clouds import Scenes
from perceivers.data.dataset import Dataset
from perceivers.data.inspecting_samples import SampleFacts
from perceivers.data.masks import MASK_NAME
from perceivers.data.sources import UNKNOWN, TargetSource
from perceivers.errors import ConfigError, DataError

# Fewer training samples than this teach little about a class.
FEW = 5
# From here on the most common class hides the others in figures and in the loss.
UNBALANCED = 3.0
MAX_NAMED = 6
LABEL = "label"
# How the notes on unlabelled data begin to list what could be learned.
CHOICES_NOTE = "label columns to choose from: "
# Each column that could be learned is one more reading of the table, or two.
MAX_TRIED = 8
# Classes have so many samples on average; a column of more values names or numbers its rows.
SHARED = 2


@dataclass(frozen=True)
class LabelFacts:
    """One label column.

    Args:
        name: The column; ``label`` where there is only one.
        classes: Class names.
        counts: Samples of each class by split.
        unknown: Samples without a label by split.
    """

    name: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    unknown: Mapping[str, int]

    @property
    def imbalance(self) -> float:
        """How many times as many training samples the largest class has as the smallest has.

        Classes without training samples do not count.
        """
        present = [count for count in self.counts["train"] if count]
        return max(present) / min(present) if present else 1.0

    @property
    def majority(self) -> float:
        """Share of the most common class among the labelled training samples, 0..1."""
        counts = self.counts["train"]
        return max(counts) / sum(counts) if sum(counts) else 0.0


@dataclass(frozen=True)
class TargetFacts:
    """One column of numbers to be predicted, over all splits.

    Args:
        name: The column.
        least: Smallest known value.
        median: Middle of the known values.
        most: Largest known value.
        unknown: Samples without a value.
    """

    name: str
    least: float
    median: float
    most: float
    unknown: int


@dataclass(frozen=True)
class Choices:
    """Columns that unlabelled data could be read with, as far as they were tried.

    Args:
        labels: Columns of classes, fit for ``labels``.
        numbers: Columns of numbers, fit for ``targets``.
    """

    labels: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()


def count_labels(dataset: Dataset) -> tuple[LabelFacts, ...]:
    """Count the classes of every label column, from the labels alone.

    Returns:
        A column each; nothing when the data are unlabelled.
    """
    columns = dataset.columns or ({LABEL: dataset.classes} if dataset.classes else {})
    found = []
    for number, (name, classes) in enumerate(columns.items()):
        counts, unknown = {}, {}
        for split, source in dataset.splits.items():
            labels = source.labels
            if labels is None:
                labels = np.full(len(source), UNKNOWN, np.int64)
            values = labels if labels.ndim == 1 else labels[:, number]
            known = values[values != UNKNOWN]
            counts[split] = tuple(np.bincount(known, minlength=len(classes)).tolist())
            unknown[split] = len(values) - len(known)
        found.append(LabelFacts(name, tuple(classes), counts, unknown))
    return tuple(found)


def describe_targets(dataset: Dataset) -> tuple[TargetFacts, ...]:
    """Describe the numbers to be predicted; nothing when there are none."""
    values = _join_targets(dataset)
    return tuple(
        _describe_column(name, values[:, number]) for number, name in enumerate(dataset.targets)
    )


def _join_targets(dataset: Dataset) -> NDArray[np.float32]:
    """Return the numbers to be predicted, of all splits ``[n, T]``."""
    held = [
        source.targets
        for source in dataset.splits.values()
        if isinstance(source, TargetSource) and source.targets is not None
    ]
    return np.concatenate(held) if held else np.zeros((0, len(dataset.targets)), np.float32)


def _describe_column(name: str, values: NDArray[np.float32]) -> TargetFacts:
    known = values[~np.isnan(values)]
    if not len(known):
        return TargetFacts(name, np.nan, np.nan, np.nan, len(values))
    least, median, most = (float(f(known)) for f in (np.min, np.median, np.max))
    return TargetFacts(name, least, median, most, len(values) - len(known))


def find_choices(dataset: Dataset) -> Choices:
    """Find what unlabelled data could be read with, by opening them so, a column at a time.

    Args:
        dataset: Whose notes list the columns; the first 8 are tried.
    """
    listed = [note.partition(CHOICES_NOTE)[2] for note in dataset.notes if CHOICES_NOTE in note]
    columns = [column for text in listed for column in text.split(", ")][:MAX_TRIED]
    numbers = [column for column in columns if _holds_numbers(dataset.address, column)]
    labels = [
        column
        for column in columns
        if column not in numbers and _holds_classes(dataset.address, column)
    ]
    return Choices(tuple(labels), tuple(numbers))


def _holds_numbers(address: str, column: str) -> bool:
    """Tell whether a column can be predicted as numbers that are no class ids."""
    with suppress(DataError, ConfigError):
        values = _join_targets(open_data(address, targets=[column]))
        found = np.unique(values)
        # An unknown value (NaN) is allowed of a number, but not of the only label.
        counted = np.array_equal(found, np.arange(len(found)) + (found[0] == 1))
        return not counted or SHARED * len(found) > len(values)
    return False


def _holds_classes(address: str, column: str) -> bool:
    """Tell whether a column can be learned as the only label."""
    with suppress(DataError, ConfigError):
        opened = open_data(address, labels=[column])
        total = sum(len(source) for source in opened.splits.values())
        return 1 < len(opened.classes) <= total / SHARED
    return False


def find_label_problems(labels: Sequence[LabelFacts]) -> list[str]:
    """Say in sentences what makes the labels hard to learn from, or to measure with."""
    problems: list[str] = []
    for column in labels:
        place = f"column {column.name!r}: " if len(labels) > 1 else ""
        problems += [place + text for text in _problems_of(column)]
    return problems


def _problems_of(column: LabelFacts) -> list[str]:
    """Say what is wrong with one column."""
    train = column.counts["train"]
    problems = []
    empty = [name for name, count in zip(column.classes, train, strict=True) if count == 0]
    if empty:
        problems.append(f"{_name(empty, 'class')} without training samples, so never learned")
    tiny = [
        f"{name} ({count})"
        for name, count in zip(column.classes, train, strict=True)
        if 0 < count < FEW
    ]
    if tiny:
        problems.append(f"{_name(tiny, 'class')} with fewer than {FEW} training samples")
    for split, counts in column.counts.items():
        absent = [
            name
            for name, count, trained in zip(column.classes, counts, train, strict=True)
            if split != "train" and trained and not count
        ]
        if absent:
            problems.append(f"{_name(absent, 'class')} absent from {split!r}: not measured there")
    if column.imbalance > UNBALANCED:
        problems.append(
            f"unbalanced: the largest class has {column.imbalance:.1f} times the training samples "
            f"of the smallest; the most common class alone is {100 * column.majority:.1f} %"
        )
    for split, count in column.unknown.items():
        if count:
            problems.append(f"{count} samples of {split!r} have no label")
    if len(column.classes) == 1:
        problems.append("one class only, so there is nothing to tell apart")
    return problems


def _name(names: Sequence[str], noun: str) -> str:
    """Count and list a few names."""
    shown = ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
    return f"{len(names)} {noun if len(names) == 1 else noun + 'es'} ({shown})"


# -- Facts about the modalities of a data set: how sizes spread, and how values are shared -------


@dataclass(frozen=True)
class Spread:
    """How a size is spread over the samples looked at.

    Args:
        least: The smallest.
        median: The middle.
        high: What 95 of 100 samples do not exceed.
        most: The largest.
    """

    least: float
    median: float
    high: float
    most: float


@dataclass(frozen=True)
class ModalityFacts:
    """One modality, over the readable samples looked at.

    Args:
        kind: How it is read: a kind of ``types.SPECS``.
        count: Samples that hold it.
        sizes: Spread by what it is, such as ``width`` (pixels), ``seconds`` or ``bytes``.
        values: Samples by value, by what the value is, such as ``sample rate in Hz``.
        flags: Samples by oddity, such as ``silent``.
    """

    kind: str
    count: int
    sizes: dict[str, Spread]
    values: Mapping[str, Mapping[str, int]]
    flags: Mapping[str, int]


def join_modalities(samples: Iterable[SampleFacts]) -> dict[str, ModalityFacts]:
    """Spread sizes and count values by modality, of readable samples."""
    kinds: dict[str, str] = {}
    counts: Counter[str] = Counter()
    numbers: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    values: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    flags: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        for name, facts in sample.modalities.items():
            kinds[name] = sample.kinds[name]
            counts[name] += 1
            flags[name].update(facts.flags)
            for what, number in facts.numbers.items():
                numbers[name][what].append(float(number))
            for what, value in facts.values.items():
                values[name][what][value] += 1
    return {
        name: ModalityFacts(
            kind=kinds[name],
            count=counts[name],
            sizes={what: spread_sizes(found) for what, found in numbers[name].items()},
            values={what: dict(c.most_common()) for what, c in values[name].items()},
            flags=dict(flags[name]),
        )
        for name in sorted(kinds)
    }


def describe_scenes(
    sources: Sequence[Scenes], modalities: Mapping[str, ModalityFacts]
) -> dict[str, ModalityFacts]:
    """Measure scenes whole: tiles are read with points around them, which are no part of them.

    Args:
        sources: Tiles of scenes by split; parts of one scene add up.
        modalities: Their points, and the classes of these, as samples tell.
    """
    points: Counter[str] = Counter()
    classes: dict[str, set[int]] = defaultdict(set)
    for source in sources:
        for name, (first, end) in zip(source.scenes, source.spans, strict=True):
            points[name] += int(end - first)
            if source.ids is not None:
                classes[name].update(np.unique(source.ids[first:end]).tolist())
    sizes = {
        "points per scene": spread_sizes(list(points.values())),
        "points per tile": spread_sizes([len(tile.rows) for s in sources for tile in s.tiles]),
    }
    found = {"points": replace(modalities["points"], sizes=sizes)}
    if classes:
        counts = [len(ids) for ids in classes.values()]
        flags = {"scenes of one class only": counts.count(1)} if 1 in counts else {}
        per_scene = {"classes per scene": spread_sizes(counts)}
        found[MASK_NAME] = replace(modalities[MASK_NAME], sizes=per_scene, flags=flags)
    return found


def title_modality(name: str, facts: ModalityFacts) -> str:
    """Return what to call a modality before a reader: a mask of points is no picture.

    Args:
        name: Of the modality.
        facts: Of the modality.
    """
    of_points = facts.kind == MASK_NAME and "width" not in facts.sizes
    return "classes of points" if of_points else name


def spread_sizes(values: Sequence[int] | Sequence[float]) -> Spread:
    """Summarise some sizes."""
    least, median, high, most = np.percentile(values, (0, 50, 95, 100), method="higher")
    return Spread(float(least), float(median), float(high), float(most))
