"""Classes of points: a labelled cloud and a view from above per file, whatever its size.

A cloud is read in tiles of as many points as the model reads, each with the points around it, as in
evaluation; every point is answered once, in its own tile.

Legend: n points of a file, C values per point, P points of a tile, K classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from perceivers.array_files import load_npz
from perceivers.checkpoints.loading import Loaded
from perceivers.data import AugmentConfig, find_files
from perceivers.data.batches import stack_batch
from perceivers.data.clouds import OFFSETS, read_ragged
from perceivers.data.element_order import check_in_place
from perceivers.data.fitting import SampleReader
from perceivers.data.point_files import read_points
from perceivers.data.scenes import Scenes
from perceivers.data.sources import EncodedClip
from perceivers.errors import ConfigError, DataError
from perceivers.files import real_path, write_atomic
from perceivers.report.figures.canvases import choose_side, look_down
from perceivers.report.figures.segmentation import class_colours
from perceivers.tasks.base import check_answer
from perceivers.tasks.segmentation import IGNORED, element_logits, segmented_modality
from perceivers.types import Points

TILES_AT_ONCE = 8


@dataclass(frozen=True)
class CloudFiles:
    """What was made of one file of points.

    Attributes:
        file: The file.
        labelled: ``.npz`` of its points and their classes, or None with an error.
        views: A PNG per cloud, from above, in the colours of the classes.
        shares: Share of the points by class that was found, largest first.
        error: Why there is nothing.
    """

    file: Path
    labelled: Path | None = None
    views: tuple[Path, ...] = ()
    shares: Mapping[str, float] | None = None
    error: str = ""


def predict_clouds(
    loaded: Loaded,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    overwrite: bool = False,
) -> Iterator[CloudFiles]:
    """Write ``NAME.npz`` and a view from above per cloud, and ``classes.txt`` beside them.

    The ``.npz`` holds ``points`` ``[n, C]``, ``offsets`` and ``label`` ``[n]``, uint8, which are
    places in ``classes.txt``; it is itself an address of data. A file that cannot be read ends
    nothing: it is reported.

    Args:
        loaded: A segmentation model of points.
        paths: Files of points, ragged ``.npz`` files, or folders searched for files of points.
        out: Folder to write to.
        overwrite: Replace files of an earlier call.

    Raises:
        UserError: A path does not exist, or a file to be written does.
    """
    if not paths:
        raise ConfigError("nothing to predict; give files of points or folders")
    check_in_place(loaded.model.config.data_inputs, "a class for every point of a file")
    folder, files = Path(out), find_files([str(path) for path in paths], ("points",))
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder for the labelled clouds")
    stems = [file.stem for file in files]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ConfigError(
            f"{stems.count(twice[0])} files are called {twice[0]!r}, so their answers would have "
            f"one name; predict them in separate folders"
        )
    targets = [folder / f"{stem}.npz" for stem in stems]
    clash = [path for path in targets if real_path(path) in set(map(real_path, files))]
    if clash:
        raise ConfigError(f"{clash[0]} is a file to be read; choose another --out")
    existing = [path for path in targets if path.exists()]
    if existing and not overwrite:
        raise ConfigError(f"{existing[0]} exists; pass --overwrite or another --out")
    folder.mkdir(parents=True, exist_ok=True)
    classes = loaded.info.classes
    write_atomic(folder / "classes.txt", "".join(f"{name}\n" for name in classes))
    for file, target in zip(files, targets, strict=True):
        yield _write_cloud(loaded.model, file, target, classes)


@torch.no_grad()
def find_classes_of(model: Any, scenes: Scenes) -> UInt8[np.ndarray, " n"]:
    """Return the class of every point of some clouds.

    Args:
        model: A segmentation model of points.
        scenes: The clouds, whose spans cover all points; their ids are not looked at.
    """
    name = segmented_modality(model)
    spec: Points = model.config.inputs[name]
    tiled = Scenes(scenes.points, None, scenes.spans, scenes.scenes, spec.points)
    reader = SampleReader(tiled, {name: spec}, AugmentConfig())
    found = np.full(len(scenes.points), IGNORED, np.uint8)
    for start in range(0, len(tiled), TILES_AT_ONCE):
        places = range(start, min(start + TILES_AT_ONCE, len(tiled)))
        batch = stack_batch(reader, [reader(place) for place in places], list(places), [])
        logits = element_logits(model, model({name: batch.inputs[name]}))
        check_answer(logits, str(scenes.scenes[0]))
        answers = logits.argmax(1).numpy()
        for place, answer in zip(places, answers, strict=True):
            tile = tiled.tiles[place]
            # The tile's own points come first, in the order of their rows.
            found[tiled.spans[tile.scene, 0] + tile.rows] = answer[: len(tile.rows)]
    return found


def _read_cloud(file: Path, spec: Points) -> Scenes:
    """Return the clouds of one file."""
    if file.suffix.lower() == ".npz":
        content = load_npz(file)
        if OFFSETS not in content:
            raise DataError(f"{file}: keys are {sorted(content)}; ragged clouds need {OFFSETS!r}")
        points, spans = read_ragged(file, content)
    else:
        points = read_points(EncodedClip(str(file), None, "points"), spec)
        spans = np.array([[0, len(points)]])
    if points.shape[1] != spec.channels:
        raise DataError(
            f"{file}: {points.shape[1]} values per point, but the model reads {spec.channels}"
        )
    return Scenes(points, None, spans, [f"{file.stem}/{row}" for row in range(len(spans))])


def _write_cloud(model: Any, file: Path, target: Path, classes: Sequence[str]) -> CloudFiles:
    """Predict and write one file's answers."""
    try:
        scenes = _read_cloud(file, model.config.inputs[segmented_modality(model)])
        found = find_classes_of(model, scenes)
    except DataError as error:
        return CloudFiles(file, error=str(error).removeprefix(f"{file}: "))
    data = BytesIO()
    offsets = np.append(scenes.spans[:, 0], len(found))
    np.savez_compressed(data, points=scenes.points, offsets=offsets, label=found)
    write_atomic(target, data.getvalue())
    views = []
    for number, (first, end) in enumerate(scenes.spans if scenes.points.shape[1] > 1 else ()):
        name = f"{target.stem}-{number}.png" if len(scenes.spans) > 1 else f"{target.stem}.png"
        picture = _draw(scenes.points[first:end], found[first:end], len(classes))
        write_atomic(target.with_name(name), picture)
        views.append(target.with_name(name))
    counts = np.bincount(found, minlength=len(classes)) / len(found)
    order = [int(number) for number in np.argsort(-counts, kind="stable") if counts[number] > 0]
    shares = {classes[number]: round(float(counts[number]), 6) for number in order}
    return CloudFiles(file, target, tuple(views), shares)


def _draw(cloud: NDArray, found: NDArray[np.uint8], num_classes: int) -> bytes:
    """Return a PNG of the classes from above."""
    seen = look_down(cloud, choose_side(len(cloud)))
    ids = np.where(seen < 0, IGNORED, found[seen])
    buffer = BytesIO()
    Image.fromarray(class_colours(num_classes)[ids]).save(buffer, "PNG")
    return buffer.getvalue()
