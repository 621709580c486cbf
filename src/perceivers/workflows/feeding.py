"""What embed and anomaly read: a data set by its address, or files, as batches with names."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from perceivers.checkpoints.loading import Loaded
from perceivers.data import Batch, Dataset, Source, find_files, make_eval_loader, read_files
from perceivers.data.files import find_kind, pair_files
from perceivers.data.fitting import cut_windows
from perceivers.data.sources import PartialSource, PictureSource
from perceivers.data.text_folders import walk_files
from perceivers.errors import DataError
from perceivers.tasks.presence import can_lack
from perceivers.text_names import show_name
from perceivers.training.config import TrainConfig
from perceivers.types import ModalitySpec
from perceivers.workflows.evaluation import open_for_model

# The order in which splits are read when all are.
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Portion:
    """A batch of readable samples.

    Attributes:
        batch: Its inputs hold only what the model reads.
        names: The samples' names ``[B]``; paths of files.
        classes: Their class names ``[B]``, of files the folders they lie in; empty where unknown.
        split: The split they belong to; empty for files.
    """

    batch: Batch
    names: list[str]
    classes: list[str]
    split: str


@dataclass(frozen=True)
class Feed:
    """Samples that can be read any number of times.

    Attributes:
        read: Starts reading; yields no empty batches.
        size: Samples, unreadable ones included.
        classes: Class names in the order of the labels; none without labels.
        columns: Class names by label column, where there are several.
        targets: Names of the numbers to be predicted.
        notes: Sentences on what was opened.
    """

    read: Callable[[], Iterator[Portion]]
    size: int
    classes: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def are_files(given: Sequence[str], split: str | None, kinds: Sequence[str] = ()) -> bool:
    """Tell whether arguments name files rather than a data set.

    Several arguments are files and folders. One is a data address, unless it is a media file, or a
    folder that holds files of ``kinds``.
    """
    if split is not None or not given:
        return False
    first = Path(given[0]).expanduser()
    if len(given) > 1 or (first.is_file() and find_kind(first.name) is not None):
        return True
    return first.is_dir() and any(find_kind(path.name) in kinds for path in walk_files(first))


def open_feed(
    loaded: Loaded,
    config: TrainConfig | None,
    given: Sequence[str],
    *,
    split: str | None = None,
    batch_size: int = 64,
    workers: int = 0,
    folders_are_files: bool = False,
) -> Feed:
    """Open files, or a data set, as a model reads them.

    Args:
        loaded: The model.
        config: Its run's settings, which say how its data were opened.
        given: One data address; or files and folders, searched for files of the model's kinds.
        split: The split to read; all when not given. It says that ``given`` is a data address.
        batch_size: Samples at once.
        workers: Processes that read a data set.
        folders_are_files: Read a single folder of media as files, whatever their order in it,
            rather than as a data set with splits.

    Raises:
        UserError: Nothing is there, or it does not fit the model.
    """
    specs = loaded.model.config.data_inputs
    if are_files(given, split, tuple(specs) if folders_are_files else ()):
        return open_files(given, specs, batch_size, may_lack=can_lack(loaded.model))
    if len(given) != 1:
        raise DataError(f"a split is asked for ({split}) of {len(given)} addresses; give one")
    dataset, wanted = open_for_model(loaded, config, given[0])
    return feed_dataset(dataset, wanted, list(specs), split, batch_size, workers)


def open_files(
    given: Sequence[str], specs: Mapping[str, ModalitySpec], batch_size: int, *, may_lack: bool
) -> Feed:
    """Open loose files, paired by name; the class of one is the folder it lies in.

    Args:
        given: Files and folders.
        specs: What the model reads.
        batch_size: Samples at once.
        may_lack: A sample may lack some of several modalities.

    Raises:
        DataError: A path does not exist, or nothing of the model's kinds is there.
    """
    files = find_files(list(given), tuple(specs))
    size = len(pair_files(files, tuple(specs)))

    def read() -> Iterator[Portion]:
        for found, batch in read_files(files, specs, batch_size, may_lack=may_lack):
            folders = [show_name(path.parent.name) for path in found]
            yield Portion(batch, [show_name(str(path)) for path in found], folders, "")

    note = f"{len(files)} files" + (f", paired to {size} samples" if size < len(files) else "")
    return Feed(read, size, notes=(note,))


def feed_dataset(
    dataset: Dataset,
    specs: Mapping[str, ModalitySpec],
    read_by_model: Sequence[str],
    split: str | None,
    batch_size: int,
    workers: int,
) -> Feed:
    """Read one split of a data set, or all, one after the other.

    Args:
        dataset: Opened data; some modalities of the model may be missing altogether.
        specs: What the loader brings.
        read_by_model: The modalities among them that are inputs.
        split: The split; all when not given.
        batch_size: Samples at once.
        workers: Processes that read.

    Raises:
        DataError: There is no such split.
    """
    if split is not None and split not in dataset.splits:
        raise DataError(
            f"{dataset.address} has no {split!r} split; it has {sorted(dataset.splits)}"
        )
    chosen = [split] if split else [name for name in SPLITS if name in dataset.splits]
    sources = {name: cut_windows(dataset.splits[name], specs) for name in chosen}
    missing = {name: find_missing(source, read_by_model) for name, source in sources.items()}

    def read() -> Iterator[Portion]:
        for name, source in sources.items():
            found = {n: spec for n, spec in specs.items() if n not in missing[name]}
            loader = make_eval_loader(source, found, batch_size=batch_size, workers=workers)
            for batch in loader:
                blank_missing(batch, {n: specs[n] for n in missing[name]})
                batch.inputs = {n: batch.inputs[n] for n in read_by_model}
                named = [str(source.names[index]) for index in batch.index.tolist()]
                yield Portion(batch, named, name_classes(batch, dataset.classes), name)

    return Feed(
        read,
        sum(map(len, sources.values())),
        classes=dataset.classes,
        columns=dataset.columns,
        targets=dataset.targets,
        notes=(
            *dataset.notes,
            *(f"{name}: no sample holds {' or '.join(m)}" for name, m in missing.items() if m),
        ),
    )


def find_missing(source: Source, read_by_model: Sequence[str]) -> list[str]:
    """Return which of several modalities no sample of a split holds.

    Data that hold nothing the model reads, or whose first sample cannot be read, are the loader's
    business: then none is named.
    """
    if isinstance(source, PictureSource):
        held = {"image"}
    elif isinstance(source, PartialSource):
        held = set(source.present)
    elif len(read_by_model) > 1:
        try:
            held = set(source.read(0))
        except DataError:
            return []
    else:
        return []
    missing = [name for name in read_by_model if name not in held]
    return missing if len(missing) < len(read_by_model) else []


def blank_missing(batch: Batch, missing: Mapping[str, ModalitySpec]) -> None:
    """Put zeros, marked as absent, where all samples lack a modality.

    Args:
        batch: Changed in place.
        missing: What is to be added, by name.
    """
    for name, spec in missing.items():
        dtype = torch.int64 if spec.kind == "bytes" else torch.float32
        batch.inputs[name] = torch.zeros(len(batch), *spec.raw_shape, dtype=dtype)
        batch.present[name] = torch.zeros(len(batch), dtype=torch.bool)


def name_classes(batch: Batch, classes: Sequence[str]) -> list[str]:
    """Return the class name of every sample; empty where unknown, or with several columns."""
    if batch.labels is None or batch.labels.ndim != 1 or not classes:
        return [""] * len(batch)
    return [str(classes[label]) if label >= 0 else "" for label in batch.labels.tolist()]
