"""Files for prediction: find, pair, read and batch them; one bad file does not stop the rest.

Legend: n samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from perceivers.data.audio_clips import HEARD, SILENT, UNSEEN
from perceivers.data.augment import AugmentConfig, Views
from perceivers.data.fitting import SampleReader
from perceivers.data.joined import Parts
from perceivers.data.loaders import Batch, merge_empty, read_readable
from perceivers.data.modality import FILE_ENDINGS, PLURALS
from perceivers.data.row_source import FileCells, Part, RowSource, hold_pictures
from perceivers.data.sound_tracks import TrackCells
from perceivers.data.sources import pick
from perceivers.data.text_sources import walk_files
from perceivers.errors import ConfigError, DataError, suggest
from perceivers.settings import Count, checked
from perceivers.text_names import compose, find_spelling
from perceivers.types import ModalitySpec

# Decoders report empty files themselves, but an empty text would be accepted.
EMPTY_FILE = "the file is empty (0 bytes)"


def hold_loose_files(
    samples: Sequence[Parts], wanted: Sequence[str], *, may_lack: bool = False
) -> RowSource:
    """Return a source of files given one by one, each read according to its extension.

    Args:
        samples: Files of each sample by kind, from ``pair_files``.
        wanted: Modalities to read; a video without an audio file of the same name provides its
            audio too.
        may_lack: Whether samples may lack some of the modalities; otherwise such samples cannot be
            read.
    """
    parts = {
        kind: Part(kind, FileCells([held.get(kind, "") for held in samples], kind, EMPTY_FILE))
        for kind in wanted
    }
    if "audio" in wanted and "video" in wanted:
        # Where samples may lack audio, videos are checked for a sound track when they are read.
        codes = {"audio": HEARD, "video": UNSEEN if may_lack else HEARD}
        first = [next((k for k in codes if k in held), "") for held in samples]
        files = FileCells(
            [held.get(k, "") for held, k in zip(samples, first, strict=True)], "audio"
        )
        tracks = np.array([codes.get(kind, SILENT) for kind in first], np.int8)
        parts["audio"] = Part("audio", TrackCells(files, tracks, assumed=True))
    flaws = {
        row: flaw
        for row, held in enumerate(samples)
        if (flaw := _find_flaw(held, wanted, may_lack=may_lack))
    }
    names = [next(iter(held.values())) for held in samples]
    return RowSource(parts, np.arange(len(names)), names, may_lack=may_lack, flaws=flaws)


def _find_flaw(held: Parts, wanted: Sequence[str], *, may_lack: bool) -> str:
    """Return why a sample is not what a model reads; empty if it is."""
    for kind, path in held.items():
        if kind not in wanted:
            return (
                f"{path}: belongs to the {PLURALS[kind]}, but the model reads "
                f"{' and '.join(wanted)}; give it {list_endings(wanted)}"
            )
    given = {*held, *(["audio"] if "video" in held else [])}
    missing = [kind for kind in wanted if kind not in given]
    if may_lack or not missing:
        return ""
    path = Path(next(iter(held.values())))
    beside = [path.with_suffix(FILE_ENDINGS[kind][0]).name for kind in missing]
    return (
        f"{path}: comes without {' and '.join(missing)}, but {', '.join(wanted)} are read "
        f"together; also give files with the same folder and name, such as {' and '.join(beside)}"
    )


def pair_files(paths: Sequence[Path], wanted: Sequence[str]) -> list[dict[str, str]]:
    """Return the files of each sample by kind, in the order of ``wanted``.

    If several modalities are wanted, files of these kinds with the same path without extension are
    one sample, as in folders of training data; every other file is a sample of its own.

    Args:
        paths: The files. One with an unknown extension is read as the first modality.
        wanted: Modalities that the model reads, at least one.

    Raises:
        DataError: A sample would have two files of one kind.
    """
    samples: list[dict[str, str]] = []
    paired: dict[str, dict[str, str]] = {}
    for path in paths:
        kind = find_kind(path.name)
        if kind is None or len(wanted) == 1 or kind not in wanted:
            # A model that reads only audio gets the sound tracks of videos.
            heard = kind == "video" and list(wanted) == ["audio"]
            samples.append({"audio" if heard else kind or wanted[0]: str(path)})
            continue
        stem = compose(str(path.with_suffix("")))
        if stem not in paired:
            samples.append(paired.setdefault(stem, {}))
        if paired[stem].setdefault(kind, str(path)) != str(path):
            raise DataError(
                f"{path}: lies beside {Path(paired[stem][kind]).name!r}; files of several kinds "
                f"are paired by name, so a name may have one file of each kind"
            )
    order = [*wanted, *FILE_ENDINGS]
    return [dict(sorted(parts.items(), key=lambda part: order.index(part[0]))) for parts in samples]


def find_kind(name: str) -> str | None:
    """Return the modality that a file is read as, by its extension; None if unknown."""
    lower = name.lower()
    return next((kind for kind, endings in FILE_ENDINGS.items() if lower.endswith(endings)), None)


def list_endings(kinds: Sequence[str]) -> str:
    """Return the extensions of the files of some kinds, for messages."""
    return ", ".join(ending for kind in kinds for ending in FILE_ENDINGS[kind])


def find_files(paths: Sequence[str], kinds: Sequence[str] = ("image",)) -> list[Path]:
    """Return the given files, and the files of some kinds in the given folders, sorted.

    Args:
        paths: Files and folders; a file that is given directly may have any extension.
        kinds: What to look for in folders: ``image``, ``audio``, ``video``, ``points`` and
            ``bytes`` (texts).

    Raises:
        DataError: A path does not exist, or a folder contains no files of these kinds.
        ConfigError: A kind that does not exist.
    """
    for kind in kinds:
        if kind not in FILE_ENDINGS:
            raise ConfigError(
                f"files of kind {kind!r} do not exist; the kinds are {', '.join(FILE_ENDINGS)}"
                + suggest(kind, FILE_ENDINGS)
            )
    endings = tuple(ending for kind in kinds for ending in FILE_ENDINGS[kind])
    found: list[Path] = []
    for given in paths:
        path = find_spelling(Path(given).expanduser())
        if path.is_dir():
            below = list(walk_files(path))
            matching = sorted(str(file) for file in below if file.name.lower().endswith(endings))
            if not matching:
                nouns = " or ".join(PLURALS[kind] for kind in kinds)
                raise DataError(
                    f"{given}: no {nouns} among {len(below)} files; extensions understood: "
                    f"{list_endings(kinds)}"
                )
            found += map(Path, matching)
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{given}: no such file or folder; check the spelling")
    return found


@checked
def read_files(
    paths: Sequence[Path],
    specs: Mapping[str, ModalitySpec],
    batch_size: Count,
    views: Views | None = None,
    *,
    may_lack: bool = False,
) -> Iterator[tuple[list[Path], Batch]]:
    """Yield the readable samples in order, as in evaluation, with the first file of each.

    ``Batch.index`` refers to ``pair_files(paths, specs)``; ``Batch.bad`` names unreadable samples.
    A text that is longer than its spec counts as unreadable, instead of being read in part.

    Args:
        paths: Files of the kinds in the specs.
        specs: What the model reads: ``image``, ``audio``, ``video``, ``points`` or ``bytes``. Files
            of several kinds are paired by name; ``video`` and ``audio`` together are both read from
            a video file without an audio file of the same name.
        batch_size: Samples per batch, at least 1; batches with unreadable samples are smaller.
        views: Views of each sample, by default one. With several, the batch size counts views, but
            every batch has at least one sample.
        may_lack: Whether samples may lack some of several modalities, as ``Batch.present`` tells;
            otherwise such samples count as unreadable.

    Raises:
        DataError: No file can be read, or the specs name a modality that single files do not
            contain.
        ConfigError: The batch size is below 1, or several views would be identical.
    """
    for name, spec in specs.items():
        if name != spec.kind or name not in FILE_ENDINGS:
            raise DataError(
                f"the specs ask for {name!r} ({spec.kind}), but image files contain only 'image', "
                f"audio files 'audio', video files 'video' and 'audio', point files 'points', "
                f"and text files 'bytes'"
            )
    views = views or Views()
    views.check(specs)
    step = max(1, batch_size // views.count)
    wanted = list(specs)
    if wanted == ["image"]:
        # Images have a source of their own, which decodes them no larger than needed.
        names = [str(path) for path in paths]
        source = hold_pictures(names, names)
    else:
        may_lack = may_lack and len(wanted) > 1
        source = hold_loose_files(pair_files(paths, wanted), wanted, may_lack=may_lack)
    reader = SampleReader(source, specs, AugmentConfig(), strict=True)
    batches = (
        read_readable(reader, range(first, min(len(source), first + step)), views.places)
        for first in range(0, len(source), step)
    )
    for batch in merge_empty(batches):
        yield [Path(name) for name in pick(source.names, batch.index.numpy())], batch


# Files that contain several samples, as rows or members; they are opened as data addresses.
DATA_ENDINGS = (".csv", ".jsonl", ".parquet", ".npz", ".tar")


def is_data_file(paths: Sequence[str | Path]) -> bool:
    """Return whether there is a single path, to a file that contains several samples."""
    return len(paths) == 1 and str(paths[0]).lower().endswith(DATA_ENDINGS)
