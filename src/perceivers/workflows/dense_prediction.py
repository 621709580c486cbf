"""Classes of pixels, classes of points and optical flow, for files of any size."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from perceivers.array_files import load_npz
from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.data import AugmentConfig, find_files
from perceivers.data.augment import place_view
from perceivers.data.clouds import OFFSETS, Scenes, read_ragged
from perceivers.data.deep_pictures import is_deep, read_deep, to_drawn
from perceivers.data.drawing import draw_picture, fit_array
from perceivers.data.fits import check_in_place
from perceivers.data.fitting import SampleReader
from perceivers.data.flow_pairs import write_flow
from perceivers.data.loaders import stack_batch
from perceivers.data.pictures import convert_channels, read_bytes, read_picture
from perceivers.data.point_files import read_points
from perceivers.data.sources import EncodedClip
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.files import real_path, write_atomic
from perceivers.report.figures.canvases import choose_side, look_down
from perceivers.report.figures.flow import flow_to_colour
from perceivers.report.figures.segmentation import class_colours, overlay_mask
from perceivers.tasks.base import check_answer
from perceivers.tasks.flow import TARGET, FlowConfig, tiled_flow
from perceivers.tasks.segmentation import IGNORED, element_logits, segmented_modality
from perceivers.types import Points
from perceivers.workflows.origin import run_config
from perceivers.workflows.prediction import is_data_file
from perceivers.workflows.preparing import find_settings

# -- Optical flow of two pictures of any size, tile by tile: a ``.flo`` file and a picture -------
#
# Paper: Perceiver IO (arXiv 2107.14795) App. H: fixed tiles, blended by their distance to the
# edge.


@dataclass(frozen=True)
class FlowFiles:
    """What was written, and the flow ``[2, H, W]`` in pixels (x to the right, y down)."""

    flow: Float[Tensor, "2 H W"]
    paths: tuple[Path, Path]
    tiles: int


def predict_flow(
    model: str | Path,
    first: str | Path,
    second: str | Path,
    out: str | Path,
    *,
    pad: bool = False,
    overwrite: bool = False,
) -> FlowFiles:
    """Write ``NAME.flo`` and the colour-coded ``NAME.png`` of the flow from one picture to another.

    Args:
        model: Run folder, ``RUN@last`` or model folder of a flow model.
        first: Earlier picture.
        second: Later picture of the same size.
        out: Folder to write to.
        pad: Repeat the edge of pictures smaller than a tile instead of refusing them.
        overwrite: Replace files of an earlier call.

    Raises:
        UserError: The model predicts no flow, a picture is unreadable, the pictures differ in size
            or are smaller than a tile, or a file exists.
    """
    loaded = load_with_info(model)
    if not predicts_flow(loaded):
        raise CheckpointError(
            f"{model} predicts no flow (its task is {loaded.info.task or 'not recorded'}); train "
            f"one of the perceiver_io_flow variants with --task flow"
        )
    paths = tuple(Path(out) / f"{Path(first).stem}{suffix}" for suffix in (".flo", ".png"))
    if Path(out).exists() and not Path(out).is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder for the flow and its picture")
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        raise ConfigError(f"{existing[0]} exists; pass --overwrite or another --out")
    frames = [_read_frame(Path(path)) for path in (first, second)]
    if frames[0].shape != frames[1].shape:
        raise DataError(
            f"{first} has {frames[0].shape[1]}x{frames[0].shape[2]} pixels and {second} "
            f"{frames[1].shape[1]}x{frames[1].shape[2]}; two frames have one size"
        )
    pair = torch.from_numpy(np.stack(frames, 1))
    settings = find_settings(FlowConfig, loaded, run_config(model))
    flow, tiles = tiled_flow(loaded.model, pair, scale=settings.scale, pad=pad)
    check_answer(flow, f"{first}, {second}")
    Path(out).mkdir(parents=True, exist_ok=True)
    write_flow(paths[0], flow.numpy())
    write_atomic(paths[1], _png(flow_to_colour(flow.numpy())))
    return FlowFiles(flow=flow, paths=(paths[0], paths[1]), tiles=tiles)


def predicts_flow(loaded: Loaded) -> bool:
    """Whether a model answers flow; converted weights name no task."""
    return TARGET in getattr(loaded.model.config, "outputs", {})


def _read_frame(path: Path) -> np.ndarray:
    """Return an RGB picture as ``[3, H, W]``."""
    picture = convert_channels(read_picture(read_bytes(str(path)), str(path)), 3, str(path))
    return np.asarray(picture).transpose(2, 0, 1)


def _png(picture: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


# -- Classes of points: a labelled cloud and a view from above per file, whatever its size -------
#
# A cloud is read in tiles of as many points as the model reads, each with the points around it,
# as in evaluation; every point is answered once, in its own tile.
#
# Legend: n points of a file, C values per point, P points of a tile, K classes.

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


# -- Masks of pictures of any size and shape: a palette PNG and an overlay per picture -----------
#
# The model reads parts of the aspect ratio that it was trained with, as large as the picture
# allows and at the scale of evaluation; where the picture is longer, parts lie side by side and
# overlap by a quarter at least. Their probabilities are blended by their distance to the edge,
# and enlarged to the picture's size class by class.
#
# Legend: K classes, H W rows and columns.

# Share of a part that it has in common with its neighbour, at least.
OVERLAP = 0.25
# Longest side of a picture relative to its part; beyond it a picture is no photograph.
MAX_PARTS = 64


@dataclass(frozen=True)
class MaskFiles:
    """What was made of one picture.

    Attributes:
        file: The picture.
        mask: Palette PNG of its size, or None with an error.
        overlay: The picture with the mask's colours over it.
        shares: Share of the pixels by class that was found, largest first.
        error: Why there is no mask.
    """

    file: Path
    mask: Path | None = None
    overlay: Path | None = None
    shares: dict[str, float] | None = None
    error: str = ""


def predict_masks(
    model: str | Path,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    overwrite: bool = False,
) -> Iterator[MaskFiles]:
    """Write ``NAME.png`` and ``NAME_overlay.png`` per picture, and ``classes.txt`` beside them.

    The values of a mask are places in ``classes.txt``; its palette shows them as colours. A picture
    that cannot be read ends nothing: it is reported.

    Args:
        model: Run folder, ``RUN@last`` or model folder of a segmentation model.
        paths: Pictures, or folders searched for them.
        out: Folder to write to.
        overwrite: Replace files of an earlier call.

    Raises:
        UserError: The model finds no classes per pixel, a path does not exist or is a table or
            tar, or a file to be written exists.
    """
    loaded = load_with_info(model)
    if loaded.info.task != "segment":
        raise CheckpointError(
            f"{model} finds no masks (its task is {loaded.info.task or 'not recorded'}); train one "
            f"with --task segment"
        )
    if not paths:
        raise ConfigError("nothing to predict; give pictures or folders")
    check_in_place(loaded.model.config.data_inputs, "a mask of a picture")
    if is_data_file(paths):
        raise ConfigError(
            f"{paths[0]} holds samples, and masks are found in picture files alone; unpack it, and "
            f"give the pictures or their folder"
        )
    folder, files = Path(out), find_files([str(path) for path in paths], ("image",))
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder for the masks")
    names = _unique_stems(files)
    targets = [(folder / f"{name}.png", folder / f"{name}_overlay.png") for name in names]
    existing = [path for pair in targets for path in pair if path.exists()]
    if existing and not overwrite:
        raise ConfigError(f"{existing[0]} exists; pass --overwrite or another --out")
    resolved = set(map(real_path, files))
    clash = [path for pair in targets for path in pair if real_path(path) in resolved]
    if clash:
        raise ConfigError(f"{clash[0]} is a picture to be read; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    classes = loaded.info.classes
    write_atomic(folder / "classes.txt", "".join(f"{name}\n" for name in classes))
    for file, pair in zip(files, targets, strict=True):
        yield _write_mask(loaded.model, file, pair, classes)


@torch.no_grad()
def find_mask_of(model: Any, picture: Image.Image | NDArray, path: str) -> UInt8[np.ndarray, "H W"]:
    """Return the class of every pixel of a picture.

    Args:
        model: A segmentation model of pictures.
        picture: Upright, of any size; or an array ``[C, H, W]`` of the model's channels.
        path: Names the picture, for messages.

    Raises:
        DataError: The picture is so long and narrow that it would take more than 64 parts.
    """
    name = segmented_modality(model)
    spec = model.config.inputs[name]
    if isinstance(picture, Image.Image):
        picture = convert_channels(picture, spec.channels, path)
    size = picture.size if isinstance(picture, Image.Image) else picture.shape[:0:-1]
    view = place_view(size, (spec.width, spec.height), 0.5)
    share = min(view.width, view.height)
    count = 1 if share > 1 - 1e-6 else ceil((1 - share) / (share * (1 - OVERLAP))) + 1
    if count > MAX_PARTS:
        raise DataError(
            f"{path}: {size[0]}x{size[1]} pixels would take {count} parts of the "
            f"aspect ratio {spec.width}x{spec.height} (at most {MAX_PARTS}); cut the picture"
        )
    alongs = [place / (count - 1) for place in range(count)] if count > 1 else [0.5]
    views = [place_view(size, (spec.width, spec.height), along) for along in alongs]
    # The whole picture at the model's scale; parts lie on its longer side.
    tall = view.height < view.width
    rows = round(spec.height / view.height) if tall else spec.height
    columns = spec.width if tall else round(spec.width / view.width)
    blended = torch.zeros(0)
    weight = torch.zeros(1, rows, columns)
    ramp = _ramp(spec.height if tall else spec.width)
    ramp = ramp[:, None].expand(spec.height, spec.width) if tall else ramp.expand(*spec.grid)
    for each in views:
        if isinstance(picture, Image.Image):
            drawn = draw_picture(picture, each, (spec.width, spec.height))
        else:
            drawn = fit_array(picture, spec, each)
        raw = torch.from_numpy(drawn.copy())
        logits = element_logits(model, model({name: raw.unsqueeze(0)}))
        check_answer(logits, path)
        shares = logits.softmax(1)[0]
        if not len(blended):
            blended = torch.zeros(len(shares), rows, columns)
        top = min(round(each.top * rows), rows - spec.height)
        left = min(round(each.left * columns), columns - spec.width)
        place = (slice(top, top + spec.height), slice(left, left + spec.width))
        blended[:, *place] += shares * ramp
        weight[:, *place] += ramp
    return _enlarge(blended / weight, (size[1], size[0]))


def _ramp(length: int) -> Float[Tensor, " length"]:
    """Weights of a part along its longer way: 1 in the middle, falling towards both ends."""
    places = torch.arange(length) + 0.5
    return torch.minimum(places, length - places) / (length / 2)


def _enlarge(shares: Float[Tensor, "K h w"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
    """Return the likeliest class at another size, one class in memory at a time."""
    best, found = torch.zeros(size), torch.zeros(size, dtype=torch.uint8)
    for number, share in enumerate(shares):
        value = F.interpolate(share[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        higher = value > best
        best = torch.where(higher, value, best)
        found = torch.where(higher, number, found)
    return found.numpy().astype(np.uint8)


def _read_and_find(
    model: Any, file: Path
) -> tuple[UInt8[np.ndarray, "H W"], UInt8[np.ndarray, "H W 3"]]:
    """Return the classes of one picture, and the picture as it is drawn."""
    data, path = read_bytes(str(file)), str(file)
    if is_deep(data):
        channels = model.config.inputs[segmented_modality(model)].channels
        values = read_deep(data, path, channels)
        return find_mask_of(model, values, path), to_drawn(values)
    picture = read_picture(data, path)
    ids = find_mask_of(model, picture, path)
    return ids, np.asarray(convert_channels(picture, 3, path))


def _write_mask(
    model: Any, file: Path, targets: tuple[Path, Path], classes: Sequence[str]
) -> MaskFiles:
    """Predict and write one picture's files."""
    try:
        ids, plain = _read_and_find(model, file)
    except DataError as error:
        return MaskFiles(file, error=str(error).removeprefix(f"{file}: "))
    palette = Image.new("P", (ids.shape[1], ids.shape[0]))
    palette.frombytes(ids.tobytes())
    palette.putpalette(class_colours(len(classes)).ravel().tolist())
    write_atomic(targets[0], _png_bytes(palette))
    drawn = Image.fromarray(overlay_mask(plain, ids, len(classes)))
    write_atomic(targets[1], _png_bytes(drawn))
    counts = np.bincount(ids.ravel(), minlength=len(classes)) / ids.size
    order = [int(number) for number in np.argsort(-counts, kind="stable") if counts[number] > 0]
    shares = {classes[number]: round(float(counts[number]), 6) for number in order}
    return MaskFiles(file, targets[0], targets[1], shares)


def _unique_stems(files: Sequence[Path]) -> list[str]:
    """Return a name per file: its stem, with a number where that was taken."""
    taken: set[str] = set()
    names = []
    for file in files:
        name, number = file.stem, 1
        while name in taken or f"{name}_overlay" in taken:
            number += 1
            name = f"{file.stem}-{number}"
        taken |= {name, f"{name}_overlay"}
        names.append(name)
    return names


def _png_bytes(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
