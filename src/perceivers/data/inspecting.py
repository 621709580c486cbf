"""Facts about opened data: what the samples are, how they pair up, and what is wrong with them.

Samples are decoded, up to a limit that is spread evenly over the splits, and then read as in
training, so that whatever training would reject is reported; classes and combinations of modalities
are counted over all samples. Nothing here depends on models or tasks.
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
from perceivers.data.modality import modality_of
from perceivers.data.sources import (
    Source,
)
from perceivers.data.texts import Documents
from perceivers.errors import DataError, UserError
from perceivers.settings import Count, checked

LIMIT = 10_000
MAX_BROKEN = 20
MAX_GROUPS = 10
# Decoders release Python's global lock; more threads than this wait for the disk.
MAX_THREADS = 8
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SplitFacts:
    """Facts about one split.

    Args:
        samples: Number of samples.
        looked_at: Number of samples that were decoded.
        broken: Number of those that cannot be read.
        combinations: Number of samples by the modalities that they contain, such as ``audio +
            video``.
        scenes: Number of scenes that the samples are tiles of; 0 if they are not tiles.
    """

    samples: int
    looked_at: int
    broken: int
    combinations: Mapping[str, int]
    scenes: int = 0


@dataclass(frozen=True)
class Repeats:
    """Samples with identical content among those decoded.

    Args:
        within: Number of copies beyond the first, by split.
        between: Number of contents that occur in both of two splits, by ``a and b``.
        contradictions: Number of contents with different labels.
        groups: Names of identical samples, ``split: name`` each; a few groups.
    """

    within: Mapping[str, int]
    between: Mapping[str, int]
    contradictions: int
    groups: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class DataFacts:
    """Facts about a data set.

    Args:
        splits: Facts by split.
        modalities: Facts by modality.
        labels: Facts about the label columns.
        targets: Facts about the columns of numbers to predict.
        broken: ``path: reason`` of samples that cannot be read; the first ones.
        repeats: Samples with identical content.
        problems: Sentences on what is wrong.
        notes: What was decided while opening the data.
        examples: By split, the file or tar member of a readable sample; may be empty.
        scenes: Number of scenes that all samples are tiles of; a divided scene counts once.
        choices: Columns with which unlabelled data could be read.
        refused: Why training can read none of the samples, although they can be decoded; empty if
            it can.
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
        """Number of decoded samples that cannot be read."""
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
    """Inspect the samples of a data set.

    Args:
        dataset: Opened data.
        limit: Number of samples to decode, at least 1; if there are more, these are spread evenly
            over every split.
        threads: Number of samples decoded at once; by default one per processor, up to 8.
        progress: Called with the number of samples done and the total.

    Raises:
        ConfigError: A limit below 1.
    """
    places = _choose(dataset.splits, limit)
    looked: dict[str, list[tuple[int, SampleFacts]]] = {split: [] for split in places}
    total, done = sum(map(len, places.values())), 0
    threads = threads or min(MAX_THREADS, os.cpu_count() or 1)
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        # Warnings of libraries about odd files add nothing to what is reported here.
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
    problems = (f"training cannot read the samples: {refused}", *facts.problems)
    return replace(facts, refused=refused, problems=problems)


def _make_readers(dataset: Dataset) -> tuple[dict[str, SampleReader], str]:
    """Return the readers of training by split, and why training cannot read the data, if so."""
    readers: dict[str, SampleReader] = {}
    try:
        specs = {
            name: modality_of(spec).glimpse(spec) for name, spec in dataset.training_specs().items()
        }
        for split, source in dataset.splits.items():
            if source.is_fitted:
                readers[split] = SampleReader(source, specs, AugmentConfig())
    except UserError as error:
        return readers, str(error)
    return readers, ""


def _places_to_read(reader: SampleReader | None, indices: Sequence[int]) -> list[int]:
    """Return as many indices for a reader, which counts documents and scenes in its own parts."""
    if reader is None:
        return list(indices)
    last = len(reader.source) - 1
    if indices[-1] <= last and not reader.source.cut_by:
        return list(indices)
    return np.linspace(0, last, len(indices)).round().astype(int).tolist()


def _look_at(source: Source, reader: SampleReader | None, index: int, place: int) -> SampleFacts:
    facts = measure_sample(source, index)
    if facts.problem or reader is None:
        return facts
    try:
        reader(place, np.random.default_rng((0, 0, place)))
    except DataError as error:
        return SampleFacts({}, {}, problem=str(error))
    return facts


def _choose(splits: Mapping[str, Source], limit: int) -> dict[str, list[int]]:
    """Return the indices of the samples to decode, by split."""
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
    everything = [facts for found in looked.values() for _, facts in found]
    problems = [facts.problem for facts in everything if facts.problem]
    modalities = join_modalities(facts for facts in everything if not facts.problem)
    items = [source.items for source in dataset.splits.values()]
    scenes = [held for held in items if isinstance(held, Scenes)]
    if scenes and modalities:
        modalities = describe_scenes(scenes, modalities)
    if documents := [held for held in items if isinstance(held, Documents)]:
        # The samples are windows, whose length depends on the model, so measure documents instead.
        sizes = [float(piece.end - piece.first) for held in documents for piece in held.pieces]
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
    """Count the scenes behind tiles; parts of one scene count once."""
    scenes = [held for source in sources if isinstance(held := source.items, Scenes)]
    return len({name for held in scenes for name in held.scenes})


def _combine_names(
    source: Source, names: Sequence[str], looked: Sequence[tuple[int, SampleFacts]]
) -> dict[str, int]:
    """Count all samples of a split by the modalities that they contain."""
    if not source.present:
        return {" + ".join(names): len(source)} if names else {}
    if not source.is_sure:
        # The modalities are known only after reading, so only inspected samples are counted.
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
    """Find samples with identical content by their hashes.

    Args:
        dataset: Data set whose labels are compared.
        looked: Indices and facts of the inspected samples by split.
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
    return () if source.labels is None else tuple(np.atleast_1d(source.labels[index]).tolist())


def _find_problems(
    splits: Mapping[str, SplitFacts], modalities: Mapping[str, ModalityFacts], num_broken: int
) -> list[str]:
    problems = []
    looked_at = sum(split.looked_at for split in splits.values())
    if num_broken:
        problems.append(
            f"{num_broken} of {looked_at} samples looked at cannot be read; training leaves them "
            f"out, and stops if there are too many"
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
    problems = [
        f"{count} samples are in both {pair}: metrics there will look too good"
        for pair, count in repeats.between.items()
    ]
    problems += [
        f"{count} samples of {split!r} are copies of others in it"
        for split, count in repeats.within.items()
    ]
    if repeats.contradictions:
        problems.append(f"{repeats.contradictions} identical samples have different labels")
    return problems


def _pick_examples(looked: Mapping[str, Sequence[tuple[int, SampleFacts]]]) -> dict[str, str]:
    """Return the path of the first readable sample of each split."""
    return {
        split: next((facts.path for _, facts in found if facts.path and not facts.problem), "")
        for split, found in looked.items()
    }
