"""Files for prediction: find, pair, read and batch them; one bad file does not stop the rest.

Legend: n samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perceivers.data.augment import AugmentConfig, Views
from perceivers.data.containers import wrap_file
from perceivers.data.fitting import SampleReader
from perceivers.data.folders import PictureFiles
from perceivers.data.joined import Parts
from perceivers.data.loaders import Batch, merge_empty, read_readable
from perceivers.data.modality import FILE_ENDINGS, PLURALS
from perceivers.data.sources import RawSample, Source, pick
from perceivers.data.text_sources import walk_files
from perceivers.errors import ConfigError, DataError, suggest
from perceivers.settings import Count, checked
from perceivers.text_names import compose, find_spelling
from perceivers.types import ModalitySpec


@dataclass(frozen=True, eq=False)
class LooseFiles(Source):
    """A source of files given one by one, each read according to its extension.

    Args:
        samples: Files of each sample by kind, from ``pair_files``.
        wanted: Modalities that every sample must provide; a video without an audio file of the same
            name provides its audio too.
    """

    samples: Sequence[Parts]
    wanted: Sequence[str]

    @property
    def names(self) -> Sequence[str]:
        """The first file of each sample."""
        return self._names

    @cached_property
    def _names(self) -> Sequence[str]:
        return [next(iter(parts.values())) for parts in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> RawSample:
        """Return the modalities of one sample.

        Raises:
            DataError: A file cannot be read, is empty, or is of another kind; or a modality is
                missing.
        """
        sample = self._read_parts(self.samples[index])
        if missing := [kind for kind in self.wanted if kind not in sample]:
            path = Path(self.names[index])
            beside = [path.with_suffix(FILE_ENDINGS[kind][0]).name for kind in missing]
            raise DataError(
                f"{path}: comes without {' and '.join(missing)}, but "
                f"{', '.join(self.wanted)} are read together; also give files with the same "
                f"folder and name, such as {' and '.join(beside)}"
            )
        return sample

    def _read_parts(self, parts: Parts) -> RawSample:
        sample = {}
        for kind, path in parts.items():
            if kind not in self.wanted:
                raise DataError(
                    f"{path}: belongs to the {PLURALS[kind]}, but the model reads "
                    f"{' and '.join(self.wanted)}; give it {list_endings(self.wanted)}"
                )
            has_sound = self._gives_sound(parts) if kind == "video" else False
            held = wrap_file(kind, path, None, has_sound=has_sound)
            # Decoders report empty files themselves, but an empty text would be accepted.
            if isinstance(text := held.get("bytes"), np.ndarray) and not len(text):
                raise DataError(f"{path}: the file is empty (0 bytes)")
            sample |= held
        return sample

    def _gives_sound(self, parts: Parts) -> bool | None:
        """Tell whether a video also provides the sample's audio; None checks for a sound track."""
        return "audio" in self.wanted and "audio" not in parts


class PartialLooseFiles(LooseFiles):
    """Files given one by one, whose samples may lack some modalities."""

    @cached_property
    def present(self) -> Mapping[str, NDArray[np.bool_]]:
        """Which samples have each modality ``[n]``; every video counts as one with sound."""
        return {
            kind: np.array(
                [kind in parts or ("video" in parts and kind == "audio") for parts in self.samples]
            )
            for kind in self.wanted
        }

    def read(self, index: int) -> RawSample:
        """Return the modalities that are present in one sample.

        Raises:
            DataError: A file cannot be read, is empty, or is of another kind.
        """
        return self._read_parts(self.samples[index])

    def _gives_sound(self, parts: Parts) -> bool | None:
        """Check a video that may provide audio for a sound track, because it may be silent."""
        return None if super()._gives_sound(parts) else False


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
        source = PictureFiles(names, names)
    else:
        choose = PartialLooseFiles if may_lack and len(wanted) > 1 else LooseFiles
        source = choose(pair_files(paths, wanted), wanted)
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
