"""Facts about opened data: what the samples are, how they pair up, and what is wrong with them.

Every sample is decoded, up to a limit that is spread evenly over the splits, and then read as
training reads it, so that what training refuses is reported here; classes and combinations of
modalities are counted over all samples. Nothing here knows models or tasks.
"""

import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from perceivers.data.augment import AugmentConfig
from perceivers.data.clouds import Scenes
from perceivers.data.dataset import Dataset
from perceivers.data.fitting import SampleReader
from perceivers.data.flow_pairs import FlowPairs
from perceivers.data.inspecting_labels import (
    Choices,
    LabelFacts,
    ModalityFacts,
    TargetFacts,
    count_labels,
    describe_scenes,
    describe_targets,
    find_choices,
    find_label_problems,
    join_modalities,
    spread_sizes,
    title_modality,
)
from perceivers.data.inspecting_samples import SampleFacts, measure_sample
from perceivers.data.sources import (
    PartialSource,
    Source,
    TiledSource,
    UnsureSource,
    WindowedSource,
)
from perceivers.data.texts import Documents
from perceivers.errors import DataError, UserError
from perceivers.settings import Count, checked
from perceivers.types import Video

LIMIT = 10_000
# Videos are read for training with at most this many frames: decoding all takes long.
READ_FRAMES = 8
MAX_BROKEN = 20
MAX_GROUPS = 10
# Decoders release Python's lock; more threads than this wait for the disk.
MAX_THREADS = 8
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SplitFacts:
    """One split.

    Args:
        samples: How many there are.
        looked_at: How many were decoded.
        broken: How many of those cannot be read.
        combinations: Samples by the modalities that they hold, such as ``audio + video``.
        scenes: How many scenes the samples are tiles of; 0 where they are no tiles.
    """

    samples: int
    looked_at: int
    broken: int
    combinations: Mapping[str, int]
    scenes: int = 0


@dataclass(frozen=True)
class Repeats:
    """Samples of equal content among those looked at.

    Args:
        within: Copies beyond the first, by split.
        between: Contents that lie in both of two splits, by ``a and b``.
        contradictions: Contents that are labelled differently.
        groups: Names of equal samples, ``split: name`` each; a few groups.
    """

    within: Mapping[str, int]
    between: Mapping[str, int]
    contradictions: int
    groups: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class DataFacts:
    """What was found of a data set.

    Args:
        splits: By name.
        modalities: By name.
        labels: Label columns.
        targets: Columns of numbers to be predicted.
        broken: ``path: reason`` of samples that cannot be read; the first ones.
        repeats: Samples of equal content.
        problems: Sentences on what is wrong.
        notes: What was decided while opening the data.
        examples: By split, the file or member of a tar that is a readable sample; may be empty.
        scenes: How many scenes all samples are tiles of; one that is divided counts once.
        choices: What else unlabelled data could be read with.
        refused: Why training reads none of the samples, which can be decoded; empty if it does.
    """

    splits: Mapping[str, SplitFacts]
    modalities: Mapping[str, ModalityFacts]
    labels: tuple[LabelFacts, ...]
    targets: tuple[TargetFacts, ...]
    broken: tuple[str, ...]
    repeats: Repeats
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    examples: Mapping[str, str]
    scenes: int = 0
    choices: Choices = field(default_factory=Choices)
    refused: str = ""

    @property
    def num_broken(self) -> int:
        """Samples looked at that cannot be read."""
        return sum(split.broken for split in self.splits.values())

    @property
    def is_usable(self) -> bool:
        """Whether a training sample can be read."""
        train = self.splits["train"]
        return not self.refused and train.looked_at > train.broken


@checked
def inspect_data(
    dataset: Dataset,
    *,
    limit: Count = LIMIT,
    threads: Count | None = None,
    progress: Progress | None = None,
) -> DataFacts:
    """Look at the samples of a data set.

    Args:
        dataset: Opened data.
        limit: Samples to decode, at least 1: all when there are no more, otherwise spread evenly
            over every split.
        threads: Samples decoded at once; the processors, up to 8, when not given.
        progress: Called with the samples done and their number.

    Raises:
        ConfigError: A limit below 1.
    """
    places = _choose(dataset.splits, limit)
    looked: dict[str, list[tuple[int, SampleFacts]]] = {split: [] for split in places}
    total, done = sum(map(len, places.values())), 0
    threads = threads or min(MAX_THREADS, os.cpu_count() or 1)
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        # What libraries say of odd files is no more than what is reported here.
        warnings.simplefilter("ignore")
        readers, refused = _make_readers(dataset)
        for split, indices in places.items():
            source = dataset.splits[split]
            reader = readers.get(split)
            found = pool.map(
                partial(_look_at, source, reader), indices, _places_to_read(reader, indices)
            )
            for index, facts in zip(indices, found, strict=True):
                looked[split].append((index, facts))
                done += 1
                if progress is not None:
                    progress(done, total)
    facts = _collect(dataset, looked)
    decoded = any(split.looked_at > split.broken for split in facts.splits.values())
    if not refused or not decoded:
        return facts
    problems = (f"training reads none of the samples: {refused}", *facts.problems)
    return replace(facts, refused=refused, problems=problems)


def _make_readers(dataset: Dataset) -> tuple[dict[str, SampleReader], str]:
    """Return training's reader by split, and why there is none for ``train``."""
    readers: dict[str, SampleReader] = {}
    try:
        specs = {
            name: replace(spec, frames=min(spec.frames, READ_FRAMES))
            if isinstance(spec, Video)
            else spec
            for name, spec in dataset.training_specs().items()
        }
        for split, source in dataset.splits.items():
            if not isinstance(source, FlowPairs):  # each pair is as large as it is measured
                readers[split] = SampleReader(source, specs, AugmentConfig())
    except UserError as error:
        return readers, str(error)
    return readers, ""


def _places_to_read(reader: SampleReader | None, indices: Sequence[int]) -> list[int]:
    """Return as many samples of a reader, which counts documents and scenes in parts of its own."""
    if reader is None:
        return list(indices)
    last = len(reader.source) - 1
    if indices[-1] <= last and not isinstance(reader.source, WindowedSource | TiledSource):
        return list(indices)
    return np.linspace(0, last, len(indices)).round().astype(int).tolist()


def _look_at(source: Source, reader: SampleReader | None, index: int, place: int) -> SampleFacts:
    """Describe a sample, and read it as training does."""
    facts = measure_sample(source, index)
    if facts.problem or reader is None:
        return facts
    try:
        reader(place, np.random.default_rng((0, 0, place)))
    except DataError as error:
        return SampleFacts({}, {}, problem=str(error))
    return facts


def _choose(splits: Mapping[str, Source], limit: int) -> dict[str, list[int]]:
    """Return the samples to look at by split."""
    total = sum(len(source) for source in splits.values())
    share = min(1.0, limit / total)
    return {
        split: np.unique(
            np.linspace(0, len(source) - 1, max(1, int(len(source) * share))).round().astype(int)
        ).tolist()
        for split, source in splits.items()
    }


def _collect(
    dataset: Dataset, looked: Mapping[str, Sequence[tuple[int, SampleFacts]]]
) -> DataFacts:
    """Bring the facts of all samples together."""
    everything = [facts for found in looked.values() for _, facts in found]
    problems = [facts.problem for facts in everything if facts.problem]
    modalities = join_modalities(facts for facts in everything if not facts.problem)
    scenes = [s for s in dataset.splits.values() if isinstance(s, Scenes)]
    if scenes and modalities:
        modalities = describe_scenes(scenes, modalities)
    if documents := [s for s in dataset.splits.values() if isinstance(s, Documents)]:
        # Samples are windows, whose length is the model's choice.
        sizes = [float(piece.end - piece.first) for source in documents for piece in source.pieces]
        per_document = {"bytes per document": spread_sizes(sizes)}
        modalities = {n: replace(m, sizes=per_document) for n, m in modalities.items()}
    splits = {
        split: SplitFacts(
            samples=len(dataset.splits[split]),
            looked_at=len(found),
            broken=sum(bool(facts.problem) for _, facts in found),
            combinations=_combine_names(dataset.splits[split], tuple(modalities), found),
            scenes=_count_scenes([dataset.splits[split]]),
        )
        for split, found in looked.items()
    }
    labels = count_labels(dataset)
    repeats = find_repeats(dataset, looked)
    return DataFacts(
        splits=splits,
        modalities=modalities,
        labels=labels,
        targets=describe_targets(dataset),
        broken=tuple(problems[:MAX_BROKEN]),
        repeats=repeats,
        problems=(
            *_find_problems(splits, modalities, len(problems)),
            *find_label_problems(labels),
            *_repeat_problems(repeats),
        ),
        notes=tuple(dataset.notes),
        examples=_pick_examples(looked),
        scenes=_count_scenes(dataset.splits.values()),
        choices=find_choices(dataset),
    )


def _count_scenes(sources: Iterable[Source]) -> int:
    """Count the scenes that samples are tiles of; parts of one scene count once."""
    return len({name for s in sources if isinstance(s, Scenes) for name in s.scenes})


def _combine_names(
    source: Source, names: Sequence[str], looked: Sequence[tuple[int, SampleFacts]]
) -> dict[str, int]:
    """Count all samples of a split by the modalities that they hold."""
    if not isinstance(source, PartialSource):
        return {" + ".join(names): len(source)} if names else {}
    if isinstance(source, UnsureSource) and not source.is_sure:
        # Only reading tells, so only those looked at are counted.
        found = Counter(" + ".join(sorted(f.modalities)) for _, f in looked if not f.problem)
        return dict(found.most_common())
    present = source.present
    held = sorted(present)
    rows = np.stack([present[name] for name in held], axis=1)
    counts = Counter(map(tuple, rows.tolist()))
    return {
        " + ".join(n for n, has in zip(held, row, strict=True) if has): count
        for row, count in counts.most_common()
    }


def find_repeats(
    dataset: Dataset, looked: Mapping[str, Sequence[tuple[int, SampleFacts]]]
) -> Repeats:
    """Find samples of equal content, by their hashes.

    Args:
        dataset: Whose labels are compared.
        looked: Places and facts of samples by split.
    """
    places: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for split, found in looked.items():
        for index, facts in found:
            if facts.digest is not None:
                places[facts.digest].append((split, index))
    groups = [group for group in places.values() if len(group) > 1]
    within: Counter[str] = Counter()
    between: Counter[str] = Counter()
    contradictions = 0
    for group in groups:
        counts = Counter(split for split, _ in group)
        within.update({split: count - 1 for split, count in counts.items() if count > 1})
        held = [split for split in dataset.splits if split in counts]
        between.update(f"{a} and {b}" for i, a in enumerate(held) for b in held[i + 1 :])
        contradictions += len({_label_of(dataset.splits[s], i) for s, i in group}) > 1
    # Copies across splits matter more than those within one.
    groups.sort(key=lambda group: len({split for split, _ in group}), reverse=True)
    named = tuple(
        tuple(f"{split}: {dataset.splits[split].names[index]}" for split, index in group)
        for group in groups[:MAX_GROUPS]
    )
    return Repeats(dict(within), dict(between), contradictions, named)


def _label_of(source: Source, index: int) -> tuple[int, ...]:
    """Return the labels of a sample."""
    return () if source.labels is None else tuple(np.atleast_1d(source.labels[index]).tolist())


def _find_problems(
    splits: Mapping[str, SplitFacts], modalities: Mapping[str, ModalityFacts], num_broken: int
) -> list[str]:
    """Say what is wrong with the files."""
    problems = []
    looked_at = sum(split.looked_at for split in splits.values())
    if num_broken:
        problems.append(
            f"{num_broken} of {looked_at} samples looked at cannot be read; training leaves them "
            f"out, and stops when they are too many"
        )
    for name, facts in modalities.items():
        for what in ("sample rate in Hz", "channels", "colours", "values per point"):
            found = facts.values.get(what, {})
            if len(found) > 1:
                listed = ", ".join(f"{value} ({count})" for value, count in found.items())
                problems.append(f"{name}: {what.removesuffix(' in Hz')} differs: {listed}")
        title = title_modality(name, facts)
        problems += [f"{title}: {count} {flag}" for flag, count in facts.flags.items()]
    return problems


def _repeat_problems(repeats: Repeats) -> list[str]:
    """Say what equal samples spoil."""
    problems = [
        f"{count} samples lie in both {pair}: figures there will look too good"
        for pair, count in repeats.between.items()
    ]
    problems += [
        f"{count} samples of {split!r} are copies of others there"
        for split, count in repeats.within.items()
    ]
    if repeats.contradictions:
        problems.append(f"{repeats.contradictions} equal samples are labelled differently")
    return problems


def _pick_examples(looked: Mapping[str, Sequence[tuple[int, SampleFacts]]]) -> dict[str, str]:
    """Return where the first readable sample of each split lies."""
    return {
        split: next((facts.path for _, facts in found if facts.path and not facts.problem), "")
        for split, found in looked.items()
    }
