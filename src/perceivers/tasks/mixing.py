"""MixUp blends two samples, CutMix pastes a box of one into another; both mix the labels too.

A random permutation pairs samples within the batch, or within each half if both are enabled. This
differs from the released script, which mixes two batches into one so that each sample is used once.

Legend: B batch, K classes, C channels, H W rows and columns.
Paper: MixUp (arXiv 1710.09412), CutMix (arXiv 1905.04899); both as in Perceiver IO
(arXiv 2107.14795) App. A.1.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perceivers.errors import ConfigError
from perceivers.types import ModalitySpec

Mixed = tuple[dict[str, Tensor], Float[Tensor, "B K"]]


def check_mixing(specs: Mapping[str, ModalitySpec], *, mixup: bool, cutmix: bool) -> None:
    """Raise if the samples of a modality cannot be mixed.

    Args:
        specs: The model's inputs.
        mixup: Whether MixUp is enabled.
        cutmix: Whether CutMix is enabled.

    Raises:
        ConfigError: CutMix with inputs other than images and clips, or MixUp with ids or with point
            clouds of varying size.
    """
    others = {name: spec.kind for name, spec in specs.items() if not spec.has_pixels}
    if cutmix and others:
        raise ConfigError(
            f"cutmix pastes boxes of images and clips, but the model reads {others} (modality: "
            f"kind); set cutmix to false"
        )
    # Class or character ids cannot be averaged.
    discrete = {name: kind for name, kind in others.items() if specs[name].indexed}
    if mixup and discrete:
        raise ConfigError(
            f"mixup blends values, but the model reads ids: {discrete} (modality: kind); set mixup "
            f"to 0"
        )
    ragged = [name for name, spec in specs.items() if spec.may_lack and not spec.indexed]
    if mixup and ragged:
        raise ConfigError(
            f"mixup blends values, but the point clouds of {ragged} may differ in size; set mixup "
            f"to 0, or declare the points with ragged=False"
        )


def mix_samples(
    inputs: Mapping[str, Tensor],
    targets: Float[Tensor, "B K"],
    generator: torch.Generator,
    *,
    mixup: float,
    cutmix: bool,
) -> Mixed:
    """Mix a batch; if both are enabled, the first half by MixUp and the rest by CutMix.

    Args:
        inputs: Raw tensors ``[B, ...]`` by name, of modalities that ``check_mixing`` accepts.
        targets: Class probabilities.
        generator: Random generator.
        mixup: Parameter a of MixUp's Beta(a, a) distribution; 0 disables MixUp.
        cutmix: Whether CutMix is enabled.
    """
    if mixup > 0.0 and cutmix:
        half = len(targets) // 2
        blended = blend_samples(_part(inputs, slice(half)), targets[:half], mixup, generator)
        pasted = paste_boxes(_part(inputs, slice(half, None)), targets[half:], generator)
        together = {name: torch.cat([blended[0][name], pasted[0][name]]) for name in inputs}
        return together, torch.cat([blended[1], pasted[1]])
    if cutmix:
        return paste_boxes(inputs, targets, generator)
    return blend_samples(inputs, targets, mixup, generator)


def blend_samples(
    inputs: Mapping[str, Tensor],
    targets: Float[Tensor, "B K"],
    alpha: float,
    generator: torch.Generator,
) -> Mixed:
    """Blend every sample with another by its own weight from Beta(alpha, alpha) (MixUp)."""
    seed = int(torch.randint(2**31, (), generator=generator))
    # torch's Beta distribution takes no generator, so NumPy's is seeded from the given one.
    drawn = np.random.default_rng(seed).beta(alpha, alpha, size=len(targets))
    shares = torch.from_numpy(drawn).float().to(targets.device)  # [B]
    order = _partners(targets, generator)
    mixed = {}
    for name, raw in inputs.items():
        share = shares.reshape(-1, *[1] * (raw.ndim - 1))
        blended = raw.float() * share + raw[order].float() * (1.0 - share)
        # Keep integer types: adapters infer the value range from the dtype.
        integers = not raw.is_floating_point()
        mixed[name] = (blended.round() if integers else blended).to(raw.dtype)
    return mixed, _mix_targets(targets, order, shares)


def paste_boxes(
    inputs: Mapping[str, Tensor], targets: Float[Tensor, "B K"], generator: torch.Generator
) -> Mixed:
    """Replace a box of every image, or of all frames of a clip, by that of another one (CutMix).

    The fraction of the area that the box covers is uniform in 0..1. The box has the aspect ratio of
    the image and a uniformly random centre, so it may extend beyond the border; labels are mixed by
    the area inside. All images of a sample use the same box relative to their size.

    Args:
        inputs: Images ``[B, C, H, W]`` and clips ``[B, C, T, H, W]``, uint8 or float, by name.
        targets: Class probabilities.
        generator: Random generator.
    """
    draws = torch.rand(3, len(targets), generator=generator)
    order = _partners(targets, generator)
    mixed, kept = {}, []
    for name, raw in inputs.items():
        box = draw_boxes(draws, raw.shape[-2], raw.shape[-1]).to(raw.device)  # [B, H, W]
        place = box.reshape(len(box), *[1] * (raw.ndim - 3), *box.shape[1:])
        mixed[name] = torch.where(place, raw[order], raw)
        kept.append(1.0 - box.float().mean((1, 2)))
    return mixed, _mix_targets(targets, order, torch.stack(kept).mean(0))


def draw_boxes(draws: Float[Tensor, "3 B"], height: int, width: int) -> Bool[Tensor, "B H W"]:
    """Return the mask of each sample's box.

    Args:
        draws: Centre x, centre y and area of each box, as fractions in 0..1.
        height: Rows H.
        width: Columns W.
    """
    across, down, area = draws.double()
    inside = []
    for centre, side in ((down, height), (across, width)):
        middle = (centre * side).floor()[:, None]
        # Both sides scale by the square root, so that their product is the area.
        half = (area.sqrt() * side).floor()[:, None] // 2
        places = torch.arange(side)
        inside.append((places >= middle - half) & (places < middle + half))  # [B, side]
    return inside[0][:, :, None] & inside[1][:, None, :]


def _part(inputs: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: raw[rows] for name, raw in inputs.items()}


def _partners(targets: Tensor, generator: torch.Generator) -> Int[Tensor, " B"]:
    return torch.randperm(len(targets), generator=generator).to(targets.device)


def _mix_targets(targets: Tensor, order: Tensor, kept: Tensor) -> Float[Tensor, "B K"]:
    """Mix soft targets; ``kept`` ``[B]`` is the fraction taken from the original sample."""
    kept = kept[:, None]
    return targets * kept + targets[order] * (1.0 - kept)
