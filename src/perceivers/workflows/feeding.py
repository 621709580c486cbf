"""What embed and anomaly read: a data set by its address, or files, as batches with names."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perceivers.checkpoints.loading import Loaded
from perceivers.data import Batch, Dataset, find_files, make_eval_loader, read_files
from perceivers.data.files import find_kind
from perceivers.data.fitting import cut_windows
from perceivers.errors import DataError
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
    return first.is_dir() and any(find_kind(path.name) in kinds for path in first.rglob("*"))


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
        return open_files(given, specs, batch_size)
    if len(given) != 1:
        raise DataError(f"a split is asked for ({split}) of {len(given)} addresses; give one")
    dataset, wanted = open_for_model(loaded, config, given[0])
    return feed_dataset(dataset, wanted, list(specs), split, batch_size, workers)


def open_files(given: Sequence[str], specs: Mapping[str, ModalitySpec], batch_size: int) -> Feed:
    """Open loose files; the class of one is the folder it lies in.

    Raises:
        DataError: A path does not exist, or nothing of the model's kinds is there.
    """
    files = find_files(list(given), tuple(specs))

    def read() -> Iterator[Portion]:
        for found, batch in read_files(files, specs, batch_size):
            folders = [path.parent.name for path in found]
            yield Portion(batch, [str(path) for path in found], folders, "")

    return Feed(read, len(files), notes=(f"{len(files)} files",))


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
        dataset: Opened data.
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

    def read() -> Iterator[Portion]:
        for name, source in sources.items():
            loader = make_eval_loader(source, specs, batch_size=batch_size, workers=workers)
            for batch in loader:
                batch.inputs = {n: x for n, x in batch.inputs.items() if n in read_by_model}
                named = [str(source.names[index]) for index in batch.index.tolist()]
                yield Portion(batch, named, name_classes(batch, dataset.classes), name)

    return Feed(
        read,
        sum(map(len, sources.values())),
        classes=dataset.classes,
        columns=dataset.columns,
        targets=dataset.targets,
        notes=dataset.notes,
    )


def name_classes(batch: Batch, classes: Sequence[str]) -> list[str]:
    """Return the class name of every sample; empty where unknown, or with several columns."""
    if batch.labels is None or batch.labels.ndim != 1 or not classes:
        return [""] * len(batch)
    return [str(classes[label]) if label >= 0 else "" for label in batch.labels.tolist()]
