"""Files for prediction: found, paired, read and batched; one bad file does not end the job.

Legend: n samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perceivers.data.augment import AugmentConfig, Views
from perceivers.data.containers import EXTENSIONS, wrap_file
from perceivers.data.fitting import SampleReader
from perceivers.data.folders import PictureFiles
from perceivers.data.joined import Parts
from perceivers.data.loaders import Batch, merge_empty, read_readable
from perceivers.data.sources import RawSample, pick
from perceivers.data.text_sources import walk_files
from perceivers.data.texts import TEXT_EXTENSION
from perceivers.errors import ConfigError, DataError, suggest
from perceivers.settings import Count, checked
from perceivers.text_names import compose, find_spelling
from perceivers.types import ModalitySpec

ENDINGS = {**EXTENSIONS, "bytes": (TEXT_EXTENSION,)}
NOUNS = {
    "image": "pictures",
    "audio": "sounds",
    "video": "videos",
    "points": "point clouds",
    "bytes": "texts",
}


@dataclass(frozen=True, eq=False)
class LooseFiles:
    """A source of files that were given one by one, each read as its name says.

    Args:
        samples: The files of each sample by kind, from ``pair_files``.
        wanted: Modalities that every sample must give; a video without a sound beside it gives its
            sound too.
    """

    samples: Sequence[Parts]
    wanted: Sequence[str]
    labels: None = field(default=None, init=False)

    @property
    def names(self) -> Sequence[str]:
        """The first file of each sample."""
        return self._names

    @cached_property
    def _names(self) -> Sequence[str]:
        return [next(iter(parts.values())) for parts in self.samples]

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.samples)

    def read(self, index: int) -> RawSample:
        """Return the modalities of one sample.

        Raises:
            DataError: A file cannot be read, is empty, or is of another kind; or a modality has
                none.
        """
        sample = self._read_parts(self.samples[index])
        if missing := [kind for kind in self.wanted if kind not in sample]:
            path = Path(self.names[index])
            beside = [path.with_suffix(ENDINGS[kind][0]).name for kind in missing]
            raise DataError(
                f"{path}: comes without {' and '.join(missing)}, and all of "
                f"{', '.join(self.wanted)} are read together here; give files of the same folder "
                f"and name too, such as {' and '.join(beside)}"
            )
        return sample

    def _read_parts(self, parts: Parts) -> RawSample:
        """Return what the files of one sample hold."""
        sample = {}
        for kind, path in parts.items():
            if kind not in self.wanted:
                raise DataError(
                    f"{path}: belongs to the {NOUNS[kind]}, but the model reads "
                    f"{' and '.join(self.wanted)}; give it {list_endings(self.wanted)}"
                )
            has_sound = self._gives_sound(parts) if kind == "video" else False
            held = wrap_file(kind, path, None, has_sound=has_sound)
            # Decoders say so themselves, but an empty text would pass for one.
            if isinstance(text := held.get("bytes"), np.ndarray) and not len(text):
                raise DataError(f"{path}: the file is empty (0 bytes)")
            sample |= held
        return sample

    def _gives_sound(self, parts: Parts) -> bool | None:
        """Tell whether the video of a sample is its sound as well; None looks for a track."""
        return "audio" in self.wanted and "audio" not in parts


class PartialLooseFiles(LooseFiles):
    """Files that were given one by one, of whose samples some may lack modalities."""

    @cached_property
    def present(self) -> Mapping[str, NDArray[np.bool_]]:
        """Which samples hold each modality ``[n]``, every video counted as one with sound."""
        return {
            kind: np.array(
                [kind in parts or ("video" in parts and kind == "audio") for parts in self.samples]
            )
            for kind in self.wanted
        }

    def read(self, index: int) -> RawSample:
        """Return the modalities that one sample holds.

        Raises:
            DataError: A file cannot be read, is empty, or is of another kind.
        """
        return self._read_parts(self.samples[index])

    def _gives_sound(self, parts: Parts) -> bool | None:
        """Let a video that may be a sample's sound be looked at; a silent one lacks it."""
        return None if super()._gives_sound(parts) else False


def pair_files(paths: Sequence[Path], wanted: Sequence[str]) -> list[dict[str, str]]:
    """Return the files of each sample by kind, in the order of ``wanted``.

    Where several modalities are wanted, files of these kinds with the same path without ending are
    one sample, as in folders of training data; every other file is a sample of its own.

    Args:
        paths: The files. One whose ending is not known is read as the first modality.
        wanted: What the model reads, at least one.

    Raises:
        DataError: A sample would have two files of one kind.
    """
    samples: list[dict[str, str]] = []
    paired: dict[str, dict[str, str]] = {}
    for path in paths:
        kind = find_kind(path.name)
        if kind is None or len(wanted) == 1 or kind not in wanted:
            # Whoever wants the sound alone is given that of videos.
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
    order = [*wanted, *ENDINGS]
    return [dict(sorted(parts.items(), key=lambda part: order.index(part[0]))) for parts in samples]


def find_kind(name: str) -> str | None:
    """Return the modality that a file is read as, by its ending; None where it is not known."""
    lower = name.lower()
    return next((kind for kind, endings in ENDINGS.items() if lower.endswith(endings)), None)


def list_endings(kinds: Sequence[str]) -> str:
    """Return the endings of the files of some kinds, for messages."""
    return ", ".join(ending for kind in kinds for ending in ENDINGS[kind])


def find_files(paths: Sequence[str], kinds: Sequence[str] = ("image",)) -> list[Path]:
    """Return files as they are given, and those of some kinds below folders, sorted.

    Args:
        paths: Files and folders; a file may have any ending, as it was asked for.
        kinds: What to look for in folders: ``image``, ``audio``, ``video``, ``points`` and
            ``bytes`` (texts).

    Raises:
        DataError: A path does not exist, or a folder holds nothing of the kinds.
        ConfigError: A kind that files do not have.
    """
    for kind in kinds:
        if kind not in ENDINGS:
            raise ConfigError(
                f"files of kind {kind!r} are asked for; the kinds are {', '.join(ENDINGS)}"
                + suggest(kind, ENDINGS)
            )
    endings = tuple(ending for kind in kinds for ending in ENDINGS[kind])
    found: list[Path] = []
    for given in paths:
        path = find_spelling(Path(given).expanduser())
        if path.is_dir():
            below = list(walk_files(path))
            matching = sorted(str(file) for file in below if file.name.lower().endswith(endings))
            if not matching:
                raise DataError(
                    f"{given}: no {' or '.join(NOUNS[kind] for kind in kinds)} among {len(below)} "
                    f"files; extensions understood: {list_endings(kinds)}"
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
    """Yield the readable samples in order, as for evaluation, with the first file of each.

    ``Batch.index`` counts in ``pair_files(paths, specs)``; ``Batch.bad`` names what could not be
    read. A text that is longer than its spec is not read in part, but counts as one that could not
    be read.

    Args:
        paths: Files of the kinds that the specs ask for.
        specs: What the model reads: ``image``, ``audio``, ``video``, ``points`` or ``bytes``. Files
            of several kinds are paired by name; ``video`` and ``audio`` together are both read from
            a video file without a sound beside it.
        batch_size: Samples per batch, at least 1; batches with unreadable ones are smaller.
        views: What is seen of each sample, one view when not given. Where there are several the
            batch size counts views, but every batch holds at least one sample.
        may_lack: Of several modalities a sample may lack some, and ``Batch.present`` says which;
            otherwise it could not be read.

    Raises:
        DataError: No file can be read, or the specs ask for what single files do not hold.
        ConfigError: The batch size is below 1, or there is nothing to spread views over.
    """
    for name, spec in specs.items():
        if name != spec.kind or name not in ENDINGS:
            raise DataError(
                f"the specs ask for {name!r} ({spec.kind}), but picture files hold only 'image', "
                f"sound files 'audio', video files 'video' and 'audio', files of points 'points', "
                f"and text files 'bytes'"
            )
    views = views or Views()
    views.check(specs)
    step = max(1, batch_size // views.count)
    wanted = list(specs)
    if wanted == ["image"]:
        # Pictures have a source of their own, which decodes them no larger than needed.
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
