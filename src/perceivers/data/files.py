"""Single files for prediction: found, read and batched; one bad file does not end the job."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from perceivers.data.augment import AugmentConfig
from perceivers.data.batches import Batch, merge_empty, read_readable
from perceivers.data.containers import EXTENSIONS, wrap_file
from perceivers.data.fitting import SampleReader
from perceivers.data.folders import PictureFiles
from perceivers.data.sources import RawSample
from perceivers.data.text_folders import walk_files
from perceivers.data.texts import TEXT_EXTENSION
from perceivers.data.views import Views
from perceivers.errors import ConfigError, DataError, suggest
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
    """A source of sounds, videos, point clouds, texts and pictures, each read as its name says.

    Args:
        names: Where each file lies.
        wanted: Modalities that every file must give; a video gives its sound too. A file whose
            ending is not known is read as the first of them.
    """

    names: Sequence[str]
    wanted: Sequence[str]
    labels: None = field(default=None, init=False)

    def __len__(self) -> int:
        """Count the files."""
        return len(self.names)

    def read(self, index: int) -> RawSample:
        """Return the modalities of one file.

        Raises:
            DataError: The file cannot be read, is empty, or is of another kind.
        """
        path = self.names[index]
        kind = find_kind(path) or self.wanted[0]
        if kind == "video" and list(self.wanted) == ["audio"]:
            kind = "audio"
        gives = {"video", "audio"} if kind == "video" else {kind}
        if not gives.issuperset(self.wanted):
            raise DataError(
                f"{path}: belongs to the {NOUNS[kind]}, but the model reads "
                f"{' and '.join(self.wanted)}; give it {list_endings(self.wanted)}"
            )
        sample = wrap_file(kind, path, None, has_sound="audio" in self.wanted)
        # Decoders say so themselves, but an empty text would pass for one.
        if isinstance(text := sample.get("bytes"), np.ndarray) and not len(text):
            raise DataError(f"{path}: the file is empty (0 bytes)")
        return sample


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
        path = Path(given).expanduser()
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


def read_files(
    paths: Sequence[Path],
    specs: Mapping[str, ModalitySpec],
    batch_size: int,
    views: Views | None = None,
) -> Iterator[tuple[list[Path], Batch]]:
    """Yield the readable files in order, as for evaluation, with their paths.

    ``Batch.index`` counts in ``paths``; ``Batch.bad`` names what could not be read. A text that is
    longer than its spec is not read in part, but counts as one that could not be read.

    Args:
        paths: Files of the kind that the specs ask for.
        specs: What the model reads: ``image``, ``audio``, ``video``, ``points`` or ``bytes``;
            ``video`` and ``audio`` together are both read from each video file.
        batch_size: Files per batch, at least 1; batches with unreadable ones are smaller.
        views: What is seen of each file, one view when not given. Where there are several the batch
            size counts views, but every batch holds at least one file.

    Raises:
        DataError: No file can be read, or the specs ask for what single files do not hold.
        ConfigError: The batch size is below 1, or there is nothing to spread views over.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
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
    names = [str(path) for path in paths]
    # Pictures have a source of their own, which decodes them no larger than needed.
    pictures = list(specs) == ["image"]
    source = PictureFiles(names, names) if pictures else LooseFiles(names, list(specs))
    reader = SampleReader(source, specs, AugmentConfig(), strict=True)
    batches = (
        read_readable(reader, range(first, min(len(names), first + step)), views.places)
        for first in range(0, len(names), step)
    )
    for batch in merge_empty(batches):
        yield [Path(paths[index]) for index in batch.index.tolist()], batch
