"""Features that nobody learned: the floor beneath which a model's features are worth nothing.

Legend: B batch, D width of a feature.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from perceivers.adapters.elements import INTEGER_SCALE
from perceivers.data import Batch
from perceivers.types import BYTE_VOCABULARY, FIRST_BYTE, Audio, Bytes, ModalitySpec, Points, Video
from perceivers.types import Image as ImageSpec

# Pixels a side, bands of a spectrum, cells a side, values of an array: a few hundred numbers each.
SIDE, BANDS, CELLS, VALUES = 16, 64, 12, 1024
FRAME, HOP = 512, 256
HASHES = 512


def simple_features(batch: Batch, specs: Mapping[str, ModalitySpec]) -> Float[Tensor, "B D"]:
    """Return small pictures, spectra, counts of bytes, or occupied cells, side by side.

    | modality | feature |
    |---|---|
    | image | pixels, reduced to at most 16 x 16 by averages |
    | video | the same of the mean frame, and of the mean change between frames |
    | audio | mean and deviation over time of the log spectrum in 64 bands |
    | points | a histogram over 12 x 12 cells of the first two coordinates, mean, deviation, count |
    | bytes | counts of bytes, and of pairs in 512 buckets, square roots |
    | other | the values, reduced to at most 1024 by averages |

    What a sample lacks is zero.

    Args:
        batch: Raw tensors ``[B, ...]`` by name.
        specs: What they are.
    """
    parts = []
    for name, spec in specs.items():
        raw = batch.inputs[name]
        part = _one(raw, spec).float()
        if name in batch.present:
            part = part * batch.present[name].unsqueeze(1)
        parts.append(part)
    return torch.cat(parts, 1)


def _one(raw: Tensor, spec: ModalitySpec) -> Float[Tensor, "B D"]:
    """The feature of one modality."""
    if isinstance(spec, Bytes):
        return _bytes(raw)
    if isinstance(spec, Points):
        return _points(raw.float())
    values = raw.float() / INTEGER_SCALE.get(raw.dtype, 1.0)
    if isinstance(spec, ImageSpec):
        return _small(values)
    if isinstance(spec, Video):
        changes = values.diff(dim=2).abs().mean(2) if values.shape[2] > 1 else values[:, :, 0]
        return torch.cat([_small(values.mean(2)), _small(changes)], 1)
    if isinstance(spec, Audio):
        return _spectrum(values.mean(1))
    flat = values.flatten(1)
    if flat.shape[1] <= VALUES:
        return flat
    return F.adaptive_avg_pool1d(flat.unsqueeze(1), VALUES).squeeze(1)


def _small(pictures: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
    height, width = pictures.shape[-2:]
    return F.adaptive_avg_pool2d(pictures, (min(height, SIDE), min(width, SIDE))).flatten(1)


def _spectrum(waves: Float[Tensor, "B S"]) -> Float[Tensor, "B D"]:
    """Log magnitudes of overlapping windows; bands are narrow at the bottom and wide at the top."""
    size = min(FRAME, waves.shape[1])
    windows = waves.unfold(1, size, min(HOP, size)) * torch.hann_window(size, periodic=False)
    magnitude = torch.fft.rfft(windows).abs()  # [B, T, size // 2 + 1]
    bins = magnitude.shape[-1]
    edges = torch.logspace(0, torch.log10(torch.tensor(float(bins))).item(), BANDS + 1)
    edges = (edges - 1).round().long().clamp(max=bins - 1)
    bands = torch.stack(
        [magnitude[..., a : max(int(b), int(a) + 1)].mean(-1) for a, b in edges.unfold(0, 2, 1)], -1
    )
    level = (bands + 1e-4).log()
    spread = level.std(1) if level.shape[1] > 1 else torch.zeros_like(level[:, 0])
    return torch.cat([level.mean(1), spread], 1)


def _points(points: Float[Tensor, "B P C"]) -> Float[Tensor, "B D"]:
    """Where points lie, cloud by cloud; rows of NaN are no points."""
    rows = []
    for cloud in points:
        real = cloud[torch.isfinite(cloud).all(1)]
        cells = torch.zeros(CELLS * CELLS)
        mean = spread = torch.zeros(cloud.shape[1])
        if len(real):
            low, high = real.amin(0), real.amax(0)
            place = ((real - low) / (high - low).clamp(min=1e-6) * CELLS).long().clamp(0, CELLS - 1)
            second = place[:, min(1, place.shape[1] - 1)]
            cells = torch.bincount(place[:, 0] * CELLS + second, minlength=CELLS * CELLS)
            cells = cells / len(real)
            mean, spread = real.mean(0), real.std(0, correction=0)
        count = torch.tensor([float(len(real))])
        rows.append(torch.cat([cells, mean, spread, count]))
    return torch.stack(rows)


def _bytes(ids: Tensor) -> Float[Tensor, "B D"]:
    """Square roots of counts, which tame what is frequent."""
    single = torch.zeros(len(ids), BYTE_VOCABULARY).scatter_add(
        1, ids, (ids >= FIRST_BYTE).to(torch.float32)
    )
    real = ((ids[:, :-1] >= FIRST_BYTE) & (ids[:, 1:] >= FIRST_BYTE)).to(torch.float32)
    pairs = (ids[:, :-1] * 263 + ids[:, 1:]) % HASHES
    double = torch.zeros(len(ids), HASHES).scatter_add(1, pairs, real)
    return torch.cat([single, double], 1).sqrt()
