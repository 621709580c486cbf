"""Segmentation of images and point clouds, and optical flow, for files of any size."""

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

from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.data import AugmentConfig, find_files
from perceivers.data.augment import place_view
from perceivers.data.clouds import OFFSETS, Scenes, read_ragged
from perceivers.data.deep_pictures import is_deep, read_deep, to_drawn
from perceivers.data.drawing import draw_picture, fit_array
from perceivers.data.files import is_data_file
from perceivers.data.fits import check_in_place
from perceivers.data.fitting import SampleReader
from perceivers.data.flow_pairs import write_flow
from perceivers.data.loaders import stack_batch
from perceivers.data.pictures import convert_channels, read_bytes, read_picture
from perceivers.data.point_files import read_points
from perceivers.data.sources import Encoded
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.files import real_path, write_atomic
from perceivers.finite import check_answer
from perceivers.reading import load_npz
from perceivers.report.figures.canvases import choose_side, look_down
from perceivers.report.figures.flow import flow_to_colour
from perceivers.report.figures.scores import class_colours, overlay_mask
from perceivers.tasks.flow import TARGET, FlowConfig, tiled_flow
from perceivers.tasks.segmentation import IGNORED, element_logits, segmented_modality
from perceivers.types import Points
from perceivers.workflows.opening import run_config
from perceivers.workflows.task_table import find_settings

# -- Optical flow between two images of any size: a ``.flo`` file and a colour-coded image -------
#
# Paper: Perceiver IO (arXiv 2107.14795) App. H: fixed tiles, blended by the distance to the tile
# edge.


@dataclass(frozen=True)
class FlowFiles:
    """Predicted flow ``[2, H, W]`` in pixels (x to the right, y down), and the written files."""

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
    """Predict the flow from one image to another; write ``NAME.flo`` and a colour-coded ``.png``.

    Args:
        model: Run folder, ``RUN@last`` or model folder of a flow model.
        first: Earlier image; gives ``NAME``.
        second: Later image of the same size.
        out: Output folder.
        pad: Repeat the edges of images smaller than a tile; without it they are an error.
        overwrite: Replace files of an earlier call.

    Raises:
        UserError: The model does not predict flow, an image is unreadable, the images differ in
            size or are smaller than a tile, or a file exists.
    """
    loaded = load_with_info(model)
    if not predicts_flow(loaded):
        raise CheckpointError(
            f"{model} predicts no flow (its task is {loaded.info.task or 'not recorded'}); train "
            f"a perceiver_io_flow variant with --task flow"
        )
    paths = tuple(Path(out) / f"{Path(first).stem}{suffix}" for suffix in (".flo", ".png"))
    if Path(out).exists() and not Path(out).is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder for the flow and its image")
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        raise ConfigError(f"{existing[0]} exists; pass --overwrite or another --out")
    frames = [_read_frame(Path(path)) for path in (first, second)]
    if frames[0].shape != frames[1].shape:
        raise DataError(
            f"{first} has {frames[0].shape[1]}x{frames[0].shape[2]} pixels and {second} "
            f"{frames[1].shape[1]}x{frames[1].shape[2]}; both frames must have the same size"
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
    """Whether a model predicts flow."""
    # The output decides, because converted weights may have no recorded task.
    return TARGET in getattr(loaded.model.config, "outputs", {})


def _read_frame(path: Path) -> np.ndarray:
    """Read an RGB image as ``[3, H, W]``."""
    picture = convert_channels(read_picture(read_bytes(str(path)), str(path)), 3, str(path))
    return np.asarray(picture).transpose(2, 0, 1)


def _png(picture: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


# -- Point segmentation: a labelled cloud and a view from above per file -------------------------
#
# A cloud is split into tiles of the model's number of points; a tile includes surrounding points as
# context, as in evaluation. Each point is classified once, in its own tile.
#
# Legend: n points of a file, C values per point, P points of a tile, K classes.

TILES_AT_ONCE = 8


@dataclass(frozen=True)
class CloudFiles:
    """Files written for one file of points.

    Attributes:
        file: The input file.
        labelled: ``.npz`` with the points and their classes; None on error.
        views: One PNG per cloud: view from above in class colours.
        shares: Fraction of the points by predicted class, largest first.
        error: Why nothing was written; empty on success.
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
    """Classify all points of some files; write ``NAME.npz``, views from above and ``classes.txt``.

    The ``.npz`` holds ``points`` ``[n, C]``, ``offsets``, and ``label`` ``[n]`` (uint8, line
    numbers of ``classes.txt`` starting at 0); it can be used as a data address. An unreadable file
    is reported and does not stop the others.

    Args:
        loaded: A segmentation model for points.
        paths: Files of points, ragged ``.npz`` files, or folders searched for files of points.
        out: Output folder.
        overwrite: Replace files of an earlier call.

    Raises:
        UserError: A path does not exist, or an output file already exists.
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
            f"{stems.count(twice[0])} files are called {twice[0]!r}, so their outputs would have "
            f"the same name; predict them with separate --out folders"
        )
    targets = [folder / f"{stem}.npz" for stem in stems]
    clash = [path for path in targets if real_path(path) in set(map(real_path, files))]
    if clash:
        raise ConfigError(f"{clash[0]} is an input file; choose another --out")
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
        model: A segmentation model for points.
        scenes: Clouds whose spans cover all points; ids are ignored.
    """
    name = segmented_modality(model)
    spec: Points = model.config.inputs[name]
    tiled = Scenes(scenes.points, None, scenes.spans, scenes.scenes, spec.points)
    reader = SampleReader(tiled.as_source(), {name: spec}, AugmentConfig())
    found = np.full(len(scenes.points), IGNORED, np.uint8)
    for start in range(0, len(tiled.tiles), TILES_AT_ONCE):
        places = range(start, min(start + TILES_AT_ONCE, len(tiled.tiles)))
        batch = stack_batch(reader, [reader(place) for place in places], list(places), [])
        logits = element_logits(model, model({name: batch.inputs[name]}))
        check_answer(logits, str(scenes.scenes[0]))
        answers = logits.argmax(1).numpy()
        for place, answer in zip(places, answers, strict=True):
            tile = tiled.tiles[place]
            # The tile's own points come first, in the order of their rows; context follows.
            found[tiled.spans[tile.scene, 0] + tile.rows] = answer[: len(tile.rows)]
    return found


def _read_cloud(file: Path, spec: Points) -> Scenes:
    if file.suffix.lower() == ".npz":
        content = load_npz(file)
        if OFFSETS not in content:
            raise DataError(f"{file}: keys are {sorted(content)}; ragged clouds need {OFFSETS!r}")
        points, spans = read_ragged(file, content)
    else:
        points = read_points(Encoded(str(file), None, "points"), spec)
        spans = np.array([[0, len(points)]])
    if points.shape[1] != spec.channels:
        raise DataError(
            f"{file}: {points.shape[1]} values per point, but the model reads {spec.channels}"
        )
    return Scenes(points, None, spans, [f"{file.stem}/{row}" for row in range(len(spans))])


def _write_cloud(model: Any, file: Path, target: Path, classes: Sequence[str]) -> CloudFiles:
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
    """Return a PNG of the class colours seen from above."""
    seen = look_down(cloud, choose_side(len(cloud)))
    ids = np.where(seen < 0, IGNORED, found[seen])
    buffer = BytesIO()
    Image.fromarray(class_colours(num_classes)[ids]).save(buffer, "PNG")
    return buffer.getvalue()


# -- Image segmentation at any size and aspect ratio: a palette PNG and an overlay per image -----
#
# The model reads crops with the aspect ratio of its training, as large as the image allows, at the
# scale of evaluation. A longer image is covered by crops side by side that overlap by at least a
# quarter. Their probabilities are blended by the distance to the crop edge and resized to the image
# class by class.
#
# Legend: K classes, H W rows and columns.

# Minimum overlap of neighbouring crops, as a fraction of a crop.
OVERLAP = 0.25
# Maximum number of crops; only extremely elongated images need more.
MAX_PARTS = 64


@dataclass(frozen=True)
class MaskFiles:
    """Files written for one image.

    Attributes:
        file: The image.
        mask: Palette PNG of the same size; None on error.
        overlay: Image with the mask colours over it.
        shares: Fraction of the pixels by predicted class, largest first.
        error: Why there is no mask; empty on success.
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
    """Segment images; write ``NAME.png`` and ``NAME_overlay.png`` per image, and ``classes.txt``.

    Mask values are line numbers of ``classes.txt`` starting at 0; the palette gives them colours.
    An unreadable image is reported and does not stop the others.

    Args:
        model: Run folder, ``RUN@last`` or model folder of a segmentation model.
        paths: Images, or folders searched for them.
        out: Output folder.
        overwrite: Replace files of an earlier call.

    Raises:
        UserError: The model is not a segmentation model, a path does not exist or is a table or
            tar, or an output file already exists.
    """
    loaded = load_with_info(model)
    if loaded.info.task != "segment":
        raise CheckpointError(
            f"{model} predicts no masks (its task is {loaded.info.task or 'not recorded'}); train "
            f"one with --task segment"
        )
    if not paths:
        raise ConfigError("nothing to predict; give images or folders")
    check_in_place(loaded.model.config.data_inputs, "a mask of an image")
    if is_data_file(paths):
        raise ConfigError(
            f"{paths[0]} holds samples, but masks are predicted only for image files; unpack it, "
            f"and give the images or their folder"
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
        raise ConfigError(f"{clash[0]} is an input image; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    classes = loaded.info.classes
    write_atomic(folder / "classes.txt", "".join(f"{name}\n" for name in classes))
    for file, pair in zip(files, targets, strict=True):
        yield _write_mask(loaded.model, file, pair, classes)


@torch.no_grad()
def find_mask_of(model: Any, picture: Image.Image | NDArray, path: str) -> UInt8[np.ndarray, "H W"]:
    """Return the class of every pixel of an image.

    Args:
        model: A segmentation model for images.
        picture: Upright image of any size, or an array ``[C, H, W]`` with the model's channels.
        path: Name of the image for error messages.

    Raises:
        DataError: The image is so long and narrow that it would need more than 64 crops.
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
            f"{path}: {size[0]}x{size[1]} pixels would take {count} crops of the "
            f"aspect ratio {spec.width}x{spec.height} (at most {MAX_PARTS}); cut the image"
        )
    alongs = [place / (count - 1) for place in range(count)] if count > 1 else [0.5]
    views = [place_view(size, (spec.width, spec.height), along) for along in alongs]
    # Canvas: the whole image at the model's scale; crops move along its longer side.
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
    """Return blending weights along one axis: about 1 in the middle, falling to both ends."""
    places = torch.arange(length) + 0.5
    return torch.minimum(places, length - places) / (length / 2)


def _enlarge(shares: Float[Tensor, "K h w"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
    """Return the likeliest class at another size, resizing one class at a time to save memory."""
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
    """Return the classes of one image, and the image as 8-bit RGB."""
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
    """Return a unique name per file: its stem, numbered if already used."""
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
