"""Single files for prediction: found, read and batched; one bad file does not end the job."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from perceivers.data.augment import AugmentConfig
from perceivers.data.batches import Batch, merge_empty, read_readable
from perceivers.data.fitting import SampleReader
from perceivers.data.folders import PictureFiles, walk_pictures
from perceivers.data.pictures import PICTURE_EXTENSIONS
from perceivers.errors import ConfigError, DataError
from perceivers.types import ModalitySpec


def find_files(paths: Sequence[str]) -> list[Path]:
    """Return files as they are given, and the pictures below folders, sorted.

    Args:
        paths: Files and folders; a file need not look like a picture, as it was asked for.

    Raises:
        DataError: A path does not exist, or a folder holds no pictures.
    """
    found: list[Path] = []
    for given in paths:
        path = Path(given).expanduser()
        if path.is_dir():
            pictures, num_others = walk_pictures(path)
            if not pictures:
                raise DataError(
                    f"{given}: no pictures among {num_others} files; extensions understood: "
                    f"{', '.join(PICTURE_EXTENSIONS)}"
                )
            found += map(Path, pictures)
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{given}: no such file or folder; check the spelling")
    return found


def read_files(
    paths: Sequence[Path], specs: Mapping[str, ModalitySpec], batch_size: int
) -> Iterator[tuple[list[Path], Batch]]:
    """Yield the readable pictures in order, as for evaluation, with their paths.

    ``Batch.index`` counts in ``paths``; ``Batch.bad`` names what could not be read.

    Args:
        paths: Picture files.
        specs: One modality, ``image``.
        batch_size: Pictures per batch, at least 1; batches with unreadable ones are smaller.

    Raises:
        DataError: No file can be read, or the specs ask for more than pictures.
        ConfigError: The batch size is below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
    names = [str(path) for path in paths]
    reader = SampleReader(PictureFiles(names, names), specs, AugmentConfig())
    batches = (
        read_readable(reader, range(first, min(len(names), first + batch_size)))
        for first in range(0, len(names), batch_size)
    )
    for batch in merge_empty(batches):
        yield [Path(paths[index]) for index in batch.index.tolist()], batch
