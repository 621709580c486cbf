"""Optical flow of two pictures of any size, tile by tile: a ``.flo`` file and a picture.

Paper: Perceiver IO (arXiv 2107.14795) App. H: fixed tiles, blended by their distance to the edge.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.data.flow_files import write_flow
from perceivers.data.pictures import convert_channels, read_bytes, read_picture
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.files import write_atomic
from perceivers.report.figures.flow import flow_to_colour
from perceivers.tasks.base import check_answer
from perceivers.tasks.flow import TARGET, FlowConfig, tiled_flow
from perceivers.workflows.objectives import find_settings
from perceivers.workflows.origin import run_config


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
