"""Masks of pictures of any size and shape: a palette PNG and an overlay per picture.

The model reads parts of the aspect ratio that it was trained with, as large as the picture allows
and at the scale of evaluation; where the picture is longer, parts lie side by side and overlap by a
quarter at least. Their probabilities are blended by their distance to the edge, and enlarged to the
picture's size class by class.

Legend: K classes, H W rows and columns.
"""

from collections.abc import Iterator, Sequence
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

from perceivers.checkpoints.loading import load_with_info
from perceivers.data import find_files
from perceivers.data.augment import place_view
from perceivers.data.deep_pictures import is_deep, read_deep, to_drawn
from perceivers.data.drawing import draw_picture, fit_array
from perceivers.data.element_order import check_in_place
from perceivers.data.pictures import convert_channels, read_bytes, read_picture
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.files import real_path, write_atomic
from perceivers.report.figures.segmentation import class_colours, overlay_mask
from perceivers.tasks.base import check_answer
from perceivers.tasks.segmentation import element_logits, segmented_modality
from perceivers.workflows.prediction import is_data_file

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
