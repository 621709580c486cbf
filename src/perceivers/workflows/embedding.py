"""Extract features of files or data sets with any model (the verb ``embed``), in bounded memory.

Legend: B batch, n samples, N latents (or cells of the last map), D width of a feature.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.data import Batch, Dataset, Source, find_files, make_eval_loader, read_files
from perceivers.data.files import find_kind, pair_files
from perceivers.data.fitting import cut_windows
from perceivers.data.text_sources import walk_files
from perceivers.errors import ConfigError, DataError, suggest
from perceivers.finite import check_answer
from perceivers.models.compiling import Uncompiled
from perceivers.report.console import Shown, name_skipped
from perceivers.settings import Count, Natural, checked
from perceivers.tasks.base import can_lack, held_modalities
from perceivers.text_names import show_name, write_csv
from perceivers.training.config import TrainConfig
from perceivers.types import ModalitySpec
from perceivers.workflows.numerics import Note, compile_loaded, tell
from perceivers.workflows.opening import own_data, run_config
from perceivers.workflows.task_table import open_for_model

# -- Input of embed and anomaly: a data set or files, read as batches with names -----------------

# Order in which all splits are read.
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Portion:
    """A batch of readable samples.

    Attributes:
        batch: Batch whose inputs contain only what the model reads.
        names: Names of the samples ``[B]``; for files, their paths.
        classes: Class names of the samples ``[B]``; for files, their parent folders. Empty if
            unknown.
        split: Split of the samples; empty for files.
    """

    batch: Batch
    names: list[str]
    classes: list[str]
    split: str


@dataclass(frozen=True)
class Feed:
    """Samples that can be read repeatedly.

    Attributes:
        read: Returns a new iterator over non-empty batches.
        size: Number of samples, including unreadable ones.
        classes: Class names in the order of the labels; empty without labels.
        columns: Class names by label column, if there are several.
        targets: Names of numeric targets.
        notes: Remarks on the opened data.
    """

    read: Callable[[], Iterator[Portion]]
    size: int
    classes: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def are_files(given: Sequence[str], split: str | None, kinds: Sequence[str] = ()) -> bool:
    """Whether arguments name files rather than a data set.

    Several arguments are files and folders. A single one is a data address, unless it is a media
    file or a folder that contains files of ``kinds``.
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
    """Open files or a data set as input for a model.

    Args:
        loaded: The model.
        config: Settings of the model's run, which determine how data are opened.
        given: One data address; or files and folders, searched for files of the model's kinds.
        split: Split to read; default: all. Marks ``given`` as a data address.
        batch_size: Samples per batch.
        workers: Number of processes that read a data set.
        folders_are_files: Read a single folder of media as loose files instead of a data set with
            splits.

    Raises:
        UserError: There are no data, or they do not suit the model.
    """
    specs = loaded.model.config.data_inputs
    if are_files(given, split, tuple(specs) if folders_are_files else ()):
        return open_files(given, specs, batch_size, may_lack=can_lack(loaded.model))
    if len(given) != 1:
        raise DataError(f"split {split} needs one data address, got {len(given)}; give one")
    dataset, wanted = open_for_model(loaded, config, given[0])
    return feed_dataset(dataset, wanted, list(specs), split, batch_size, workers)


def open_files(
    given: Sequence[str], specs: Mapping[str, ModalitySpec], batch_size: int, *, may_lack: bool
) -> Feed:
    """Open loose files, paired by name; the class of a file is its parent folder.

    Args:
        given: Files and folders.
        specs: Modalities of the model.
        batch_size: Samples per batch.
        may_lack: Whether a sample may lack some of several modalities.

    Raises:
        DataError: A path does not exist, or there are no files of the model's kinds.
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
    """Read one split of a data set, or all splits one after the other.

    Args:
        dataset: Opened data; may lack some modalities of the model entirely.
        specs: Everything that the loader reads.
        read_by_model: Names of the model's inputs among ``specs``.
        split: The split; default: all.
        batch_size: Samples per batch.
        workers: Number of reading processes.

    Raises:
        DataError: The split does not exist.
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
    """Return the modalities that are absent from all samples of a split.

    Returns none if the data contain nothing that the model reads, or if the first sample cannot be
    read: the loader then raises the proper error.
    """
    if source.is_pictures:
        held = {"image"}
    elif source.present:
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
    """Add modalities that all samples lack, as zeros marked as absent.

    Args:
        batch: The batch, modified in place.
        missing: Specs of the missing modalities by name.
    """
    for name, spec in missing.items():
        dtype = torch.int64 if spec.indexed else torch.float32
        batch.inputs[name] = torch.zeros(len(batch), *spec.raw_shape, dtype=dtype)
        batch.present[name] = torch.zeros(len(batch), dtype=torch.bool)


def name_classes(batch: Batch, classes: Sequence[str]) -> list[str]:
    """Return the class name of every sample; empty if unknown or if there are several columns."""
    if batch.labels is None or batch.labels.ndim != 1 or not classes:
        return [""] * len(batch)
    return [str(classes[label]) if label >= 0 else "" for label in batch.labels.tolist()]


# -- Features: in memory (embed) or written batch by batch (write_features) ----------------------

Pool = Literal["mean", "max", "flat"]
POOLS: tuple[str, ...] = get_args(Pool)
SUFFIXES = (".npz", ".csv")


@dataclass(frozen=True)
class Features:
    """Features of n samples, in reading order.

    Attributes:
        features: ``[n, D]``, float32.
        names: Sample names ``[n]``; for files, their paths.
        labels: Class indices ``[n]``, or ``[n, T]`` for T label columns; -1 if unknown. None
            without labels.
        classes: Class names in the order of the labels.
        splits: Split of each sample ``[n]``; empty for files.
        targets: Numeric targets ``[n, T]``, NaN if unknown; None without targets.
        skipped: Samples that could not be read, as ``path: reason``.
    """

    features: NDArray[np.float32]
    names: list[str]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    splits: list[str]
    targets: NDArray[np.float32] | None
    skipped: list[str]


@dataclass
class Written:
    """A written feature file: ``count`` samples of ``width`` values, and unreadable samples."""

    path: Path
    count: int
    width: int
    skipped: list[str]


@checked
def embed(
    model: str | Path,
    data: str | Path | Sequence[str | Path] | None = None,
    *,
    split: str | None = None,
    pool: Pool = "mean",
    batch_size: Count = 64,
    workers: Natural = 0,
    compile: bool = False,  # noqa: A002 - the setting's name, as in training
    note: Note | None = None,
) -> Features:
    """Compute the features of files or of a data set, and return them in memory.

    Args:
        model: Run folder, ``RUN@last``, model folder, or name of pre-trained weights.
        data: One data address, or a list of files and folders; default: the data of the run.
        split: Split of a data set; default: all.
        pool: ``mean`` or ``max`` over the latents of a Perceiver or Perceiver IO, the processor
            latents of a HiP, or the cells of a Hiera's last feature map; ``flat`` concatenates
            them, cells in row-major order.
        batch_size: Samples per batch.
        workers: Number of processes that read a data set.
        compile: Compile the model for full batches; worthwhile for many batches.
        note: Called with a message on compilation time.

    Raises:
        UserError: There are no data, nothing can be read, or a setting is unknown.
    """
    parts, feed, skipped = _start(
        model, data, split, pool, batch_size, workers, compiles=compile, note=note
    )
    rows, names, splits, labels, targets = [], [], [], [], []
    for features, portion in parts:
        rows.append(features)
        names += portion.names
        splits += [portion.split] * len(portion.names)
        labels.append(portion.batch.labels)
        targets.append(portion.batch.targets)
    return Features(
        features=np.concatenate(rows),
        names=names,
        labels=_join(labels),
        classes=feed.classes,
        splits=splits,
        targets=_join(targets),
        skipped=skipped,
    )


@checked
def write_features(
    model: str | Path,
    data: str | Path | Sequence[str | Path] | None = None,
    out: str | Path = "features.npz",
    *,
    split: str | None = None,
    pool: Pool = "mean",
    batch_size: Count = 64,
    workers: Natural = 0,
    overwrite: bool = False,
    compile: bool = False,  # noqa: A002 - the setting's name, as in training
    note: Note | None = None,
) -> Written:
    """Write the features of files or of a data set, with only one batch in memory at a time.

    An ``.npz`` contains ``features`` float32 ``[n, D]``, ``names``, ``splits``, ``model``,
    ``pool``, and, if available, ``labels`` and ``classes`` or ``targets`` and ``target_names``. A
    ``.csv`` has one row per sample.

    Args:
        model: As for ``embed``.
        data: As for ``embed``.
        out: Output file, ``.npz`` or ``.csv``.
        split: As for ``embed``.
        pool: As for ``embed``.
        batch_size: As for ``embed``.
        workers: As for ``embed``.
        overwrite: Replace an existing file.
        compile: As for ``embed``.
        note: As for ``embed``.

    Raises:
        UserError: As for ``embed``; or ``out`` exists or has another extension.
    """
    path = Path(out)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--out {out}: features are written as {' or '.join(SUFFIXES)} files")
    if path.exists() and not overwrite:
        raise ConfigError(f"{out} exists; pass --overwrite or another --out")
    parts, feed, skipped = _start(
        model, data, split, pool, batch_size, workers, compiles=compile, note=note
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"model": np.array(str(model)), "pool": np.array(pool)}
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        made = Path(folder) / path.name
        if path.suffix == ".csv":
            count, width = _write_csv(made, parts)
        else:
            count, width = _write_npz(made, Path(folder) / "rows", parts, feed, facts)
        os.replace(made, path)  # noqa: PTH105 - atomic, also over an existing file
    return Written(path, count, width, skipped)


def _start(
    model: str | Path,
    data: str | Path | Sequence[str | Path] | None,
    split: str | None,
    pool: str,
    batch_size: int,
    workers: int,
    *,
    compiles: bool,
    note: Note | None,
) -> tuple[Iterator[tuple[NDArray[np.float32], Portion]], Feed, list[str]]:
    """Open the model and its input; features are computed as the iterator is consumed."""
    if pool not in POOLS:
        raise ConfigError(f"pool {pool!r} is unknown; use {', '.join(POOLS)}{suggest(pool, POOLS)}")
    loaded, config = load_with_info(model), run_config(model)
    given = [own_data(model, config)] if data is None else data
    given = [given] if isinstance(given, str | Path) else list(given)
    words = [str(each) for each in given] or [own_data(model, config)]
    feed = open_feed(loaded, config, words, split=split, batch_size=batch_size, workers=workers)
    skipped: list[str] = []
    compiled = compile_loaded(loaded, batch_size, on=compiles)
    return feature_batches(loaded.model, feed, pool, skipped, compiled, note), feed, skipped


def feature_batches(
    model: Any,
    feed: Feed,
    pool: str,
    skipped: list[str],
    compiled: Uncompiled,
    note: Note | None,
) -> Iterator[tuple[NDArray[np.float32], Portion]]:
    """Yield the features ``[B, D]`` of each batch, with the batch.

    Args:
        model: Model of any family.
        feed: Input of the model.
        pool: One of ``POOLS``.
        skipped: List to which unreadable samples are appended as ``path: reason``.
        compiled: Compiled parts of the model.
        note: Called with a message on compilation.
    """
    model.eval()
    for portion in feed.read():
        skipped += portion.batch.bad
        with compiled.batch(len(portion.batch)):
            features = pooled_features(model, portion.batch, pool)
        for row, name in zip(features, portion.names, strict=True):
            check_answer(row, str(name))
        yield features.numpy(), portion
    tell(compiled, note)


@torch.no_grad()
def pooled_features(model: Any, batch: Batch, pool: str) -> Float[Tensor, "B D"]:
    """Return one feature vector per sample, float32 on the CPU.

    Args:
        model: Model of any family; absent modalities are hidden from it.
        batch: Inputs of the model.
        pool: One of ``POOLS``.
    """
    rows = model.feature_tokens(batch.inputs, present=held_modalities(model, batch) or None)
    rows = rows.float().cpu()  # [B, N, C]
    if pool == "flat":
        return rows.flatten(1)
    return rows.amax(1) if pool == "max" else rows.mean(1)


def _write_npz(
    path: Path,
    spool: Path,
    parts: Iterator[tuple[NDArray[np.float32], Portion]],
    feed: Feed,
    facts: Mapping[str, NDArray[Any]],
) -> tuple[int, int]:
    """Collect the rows in a temporary file, then copy them into the archive via a memory map."""
    names: list[str] = []
    splits: list[str] = []
    labels, targets, width = [], [], 0
    with spool.open("wb") as file:
        for features, portion in parts:
            width = features.shape[1]
            file.write(np.ascontiguousarray(features, np.float32).tobytes())
            names += portion.names
            splits += [portion.split] * len(portion.names)
            labels.append(portion.batch.labels)
            targets.append(portion.batch.targets)
    rows = np.memmap(spool, np.float32, mode="r", shape=(len(names), width))
    arrays: dict[str, Any] = {"features": rows, "names": np.array(names)}
    arrays |= {"splits": np.array(splits), **facts}
    for name, joined in (("labels", _join(labels)), ("targets", _join(targets))):
        if joined is not None:
            arrays[name] = joined
    if feed.classes:
        arrays["classes"] = np.array(feed.classes)
    for column, classes in feed.columns.items():
        arrays[f"classes/{column}"] = np.array(classes)
    if feed.targets:
        arrays["target_names"] = np.array(feed.targets)
    np.savez(path, **arrays)
    count = len(rows)
    del arrays, rows  # releases the memory map, so that the temporary folder can be deleted
    return count, width


def _write_csv(path: Path, parts: Iterator[tuple[NDArray[np.float32], Portion]]) -> tuple[int, int]:
    """Write a row per sample: name, split, class, and a column per value."""
    count = width = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        for features, portion in parts:
            if not width:
                width = features.shape[1]
                write_csv(file, [["name", "split", "class", *(f"f{i}" for i in range(width))]])
            named = zip(features, portion.names, portion.classes, strict=True)
            write_csv(
                file,
                ([n, portion.split, word, *(f"{v:.7g}" for v in row)] for row, n, word in named),
            )
            count += len(features)
    return count, width


def _join(parts: Sequence[Tensor | None]) -> NDArray[Any] | None:
    """Concatenate the labels or targets of all batches; None if no batch has any."""
    known = [part.numpy() for part in parts if part is not None]
    if not known:
        return None
    if len(known) != len(parts):
        raise DataError("some splits are labelled and others not; choose one with --split")
    return np.concatenate(known)


def show(done: Written) -> Shown:
    """Show what was written."""
    line = f"{done.path}: {done.count} features of {done.width} values"
    return Shown([line], name_skipped(done.skipped))
