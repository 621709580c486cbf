"""Optical flow of pictures of any size: fixed tiles, blended by their distance to the edge.

Legend: C channels, H W rows and columns of the pictures.
Paper: Perceiver IO (arXiv 2107.14795) App. H.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from perceivers.nn.patches import blend_tiles, crop_to_size, cut_tiles, pad_to_tile, tile_places
from perceivers.tasks.flow import FLOW_SCALE, TARGET, flow_modality
from perceivers.tasks.flow_metrics import end_point_error, outlier_share

MIN_OVERLAP = 20


@torch.no_grad()
def tiled_flow(
    model: Any,
    frames: Tensor,
    *,
    scale: float = FLOW_SCALE,
    min_overlap: int = MIN_OVERLAP,
    pad: bool = False,
    batch_size: int = 1,
) -> tuple[Float[Tensor, "2 H W"], int]:
    """Return the flow of a frame pair of any size, and how many tiles it took.

    Args:
        model: With an output ``flow``.
        frames: ``[C, 2, H, W]``, uint8 or 0..1.
        scale: Pixels per unit of the model's output.
        min_overlap: Pixels that neighbouring tiles share, at least.
        pad: Repeat the edge of pictures smaller than a tile instead of refusing them.
        batch_size: Tiles at once.

    Raises:
        InputError: The pictures are smaller than a tile and ``pad`` is off.
    """
    name = flow_modality(model)
    _, height, width = model.config.inputs[name].grid
    size = (frames.shape[-2], frames.shape[-1])
    if pad:
        frames = pad_to_tile(frames, (height, width))
    whole = (frames.shape[-2], frames.shape[-1])
    overlap = min(min_overlap, min(height, width) // 2)
    places = tile_places(whole, (height, width), overlap)
    tiles = cut_tiles(frames, places, (height, width))
    parts = [model({name: part}).float() for part in tiles.split(batch_size)]
    flow = blend_tiles(torch.cat(parts) * scale, places, whole)
    return crop_to_size(flow, size), len(places)


@torch.no_grad()
def evaluate_pairs(
    model: Any, pairs: Iterable[Mapping[str, NDArray]], *, scale: float = FLOW_SCALE
) -> dict[str, float]:
    """Return the figures of ``OpticalFlow`` over measured pairs, each of its own size.

    Every pair counts alike. Pictures smaller than a tile are padded by their edge, which is cut off
    again before anything is counted.

    Args:
        model: With an output ``flow``.
        pairs: Samples with the frames ``[3, 2, H, W]`` under the model's modality, and ``flow``
            ``[2, H, W]`` in pixels, NaN where unknown.
        scale: Pixels per unit of the model's output.
    """
    model.eval()
    name = flow_modality(model)
    sums = {"epe": 0.0, "epe_of_zero": 0.0, "outliers": 0.0}
    count = 0
    for pair in pairs:
        frames, truth = torch.from_numpy(pair[name]), torch.from_numpy(pair[TARGET])
        predicted, _ = tiled_flow(model, frames, scale=scale, pad=True)
        sums["epe"] += float(end_point_error(predicted, truth))
        sums["epe_of_zero"] += float(end_point_error(torch.zeros_like(truth), truth))
        sums["outliers"] += float(outlier_share(predicted, truth))
        count += 1
    return {name: value / max(count, 1) for name, value in sums.items()} | {"pairs": float(count)}
