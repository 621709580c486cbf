"""Facts about labels, targets and modalities of a data set, and problems with its labels.

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
from perceivers.data.sources import UNKNOWN
from perceivers.errors import ConfigError, DataError

# Fewer training samples than this teach little about a class.
FEW = 5
# Beyond this imbalance, the most common class dominates metrics and loss.
UNBALANCED = 3.0
MAX_NAMED = 6
LABEL = "label"
# Start of the note that lists the columns with which unlabelled data could be read.
CHOICES_NOTE = "label columns to choose from: "
# Trying a column reads the table once or twice more.
MAX_TRIED = 8
# Least samples per class on average; a column with more values names or numbers its rows.
SHARED = 2


@dataclass(frozen=True)
class LabelFacts:
    """Facts about one label column.

    Args:
        name: Name of the column; ``label`` if there is only one.
        classes: Class names.
        counts: Number of samples of each class, by split.
        unknown: Number of samples without a label, by split.
    """

    name: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    unknown: Mapping[str, int]

    @property
    def imbalance(self) -> float:
        """Ratio of the numbers of training samples of the largest and the smallest class.

        Classes without training samples do not count.
        """
        present = [count for count in self.counts["train"] if count]
        return max(present) / min(present) if present else 1.0

    @property
    def majority(self) -> float:
        """Fraction, 0..1, of the most common class among the labelled training samples."""
        counts = self.counts["train"]
        return max(counts) / sum(counts) if sum(counts) else 0.0


@dataclass(frozen=True)
class TargetFacts:
    """Facts about one column of numbers to predict, over all splits.

    Args:
        name: Name of the column.
        least: Smallest known value.
        median: Median of the known values.
        most: Largest known value.
        unknown: Number of samples without a value.
    """

    name: str
    least: float
    median: float
    most: float
    unknown: int


@dataclass(frozen=True)
class Choices:
    """Columns with which unlabelled data could be read, among those tried.

    Args:
        labels: Columns of classes, valid for ``labels``.
        numbers: Columns of numbers, valid for ``targets``.
    """

    labels: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()


def count_labels(dataset: Dataset) -> tuple[LabelFacts, ...]:
    """Count the classes of every label column, from the labels alone.

    Returns:
        Facts about each column; empty if the data are unlabelled.
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
    """Describe the numbers to predict; empty if there are none."""
    values = _join_targets(dataset)
    return tuple(
        _describe_column(name, values[:, number]) for number, name in enumerate(dataset.targets)
    )


def _join_targets(dataset: Dataset) -> NDArray[np.float32]:
    """Return the targets of all splits, ``[n, T]``."""
    held = [source.targets for source in dataset.splits.values() if source.targets is not None]
    return np.concatenate(held) if held else np.zeros((0, len(dataset.targets)), np.float32)


def _describe_column(name: str, values: NDArray[np.float32]) -> TargetFacts:
    known = values[~np.isnan(values)]
    if not len(known):
        return TargetFacts(name, np.nan, np.nan, np.nan, len(values))
    least, median, most = (float(f(known)) for f in (np.min, np.median, np.max))
    return TargetFacts(name, least, median, most, len(values) - len(known))


def find_choices(dataset: Dataset) -> Choices:
    """Find the columns with which unlabelled data could be read, by trying them one by one.

    Args:
        dataset: Data set whose notes list the columns; the first 8 are tried.
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
    """Tell whether a column can be predicted as numbers that are not class ids."""
    with suppress(DataError, ConfigError):
        values = _join_targets(open_data(address, targets=[column]))
        found = np.unique(values)
        # Numbers may be unknown (NaN), but a single label may not, so NaN rules out class ids.
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
    """Return sentences on what makes the labels hard to learn, or metrics unreliable."""
    problems: list[str] = []
    for column in labels:
        place = f"column {column.name!r}: " if len(labels) > 1 else ""
        problems += [place + text for text in _problems_of(column)]
    return problems


def _problems_of(column: LabelFacts) -> list[str]:
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
    shown = ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
    return f"{len(names)} {noun if len(names) == 1 else noun + 'es'} ({shown})"


# -- Facts about the modalities of a data set: distributions of sizes, counts of values ------------


@dataclass(frozen=True)
class Spread:
    """Distribution of a size over the inspected samples.

    Args:
        least: Minimum.
        median: Median.
        high: 95th percentile.
        most: Maximum.
    """

    least: float
    median: float
    high: float
    most: float


@dataclass(frozen=True)
class ModalityFacts:
    """Facts about one modality, over the readable inspected samples.

    Args:
        kind: Kind of spec that it is read with, as in ``types.SPECS``.
        count: Number of samples that contain it.
        sizes: Distributions by quantity, such as ``width`` (pixels), ``seconds`` or ``bytes``.
        values: Number of samples with each value, by property, such as ``sample rate in Hz``.
        flags: Number of samples by oddity, such as ``silent``.
    """

    kind: str
    count: int
    sizes: dict[str, Spread]
    values: Mapping[str, Mapping[str, int]]
    flags: Mapping[str, int]


def join_modalities(samples: Iterable[SampleFacts]) -> dict[str, ModalityFacts]:
    """Collect sizes, values and oddities of readable samples by modality."""
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
    """Measure whole scenes, because tiles are read with points around them.

    Args:
        sources: Tiles of scenes by split; parts of one scene are added up.
        modalities: Facts from the samples about the points and their classes.
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
    """Return the name of a modality for display, as masks of points are not images.

    Args:
        name: Name of the modality.
        facts: Facts about it.
    """
    of_points = facts.kind == MASK_NAME and "width" not in facts.sizes
    return "classes of points" if of_points else name


def spread_sizes(values: Sequence[int] | Sequence[float]) -> Spread:
    """Return minimum, median, 95th percentile and maximum."""
    least, median, high, most = np.percentile(values, (0, 50, 95, 100), method="higher")
    return Spread(float(least), float(median), float(high), float(most))
