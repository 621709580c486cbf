"""Facts about the modalities of a data set: how sizes spread, and how values are shared."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from perceivers.data.inspecting_samples import SampleFacts
from perceivers.data.masks import MASK_NAME
from perceivers.data.scenes import Scenes


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
