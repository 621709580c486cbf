"""Comparing a converted model with the outputs stored in its parity bundle."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from perceivers.checkpoints.bundle import Bundle
from perceivers.errors import CheckpointError
from perceivers.models.hip import HiP
from perceivers.models.hip.encoder import Encoded

RELATIVE_TOLERANCE = 1e-5
Precision = Literal["float64", "float32"]
# Allowed when another library runs beside ours: absolute in float64 for outputs below 1, relative
# to the largest beyond; in float32 always relative, because rounding grows with depth.
TOLERANCES = {"float64": 1e-9, "float32": 1e-4}


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference of one output, and what is allowed.

    ``is_empty`` marks outputs without values on both sides, which prove nothing.
    """

    output: str
    largest: float
    allowed: float
    is_empty: bool = False

    @property
    def is_within(self) -> bool:
        """Whether the output agrees; nothing, and values that are not finite, never do."""
        return not self.is_empty and isfinite(self.allowed) and self.largest <= self.allowed


@torch.no_grad()
def verify_bundle(model: HiP, bundle: Bundle) -> list[Difference]:
    """Run the model on the stored inputs and compare every stored output.

    Raises:
        CheckpointError: The bundle stores an output that the model does not make, or of another
            shape.
    """
    allowed = RELATIVE_TOLERANCE * bundle.absmax
    differences = []
    compared = set()
    for dataset, modalities in bundle.datasets:
        inputs = {
            name: torch.from_numpy(bundle.inputs[f"{dataset}/{name}"]) for name, _ in modalities
        }
        encoded = model.encode(inputs)
        made = {
            "input_reconstruction": model.reconstruct(encoded),
            "latents": official_latents(encoded, model.decode(encoded)),
        }
        for kind, outputs in made.items():
            for name, tensor in outputs.items():
                key = f"{dataset}/{kind}/{name}"
                if key not in bundle.outputs:
                    raise CheckpointError(f"the bundle lacks output/{key}, which the model makes")
                compared.add(key)
                if kind == "latents" and tensor.numel() == bundle.outputs[key].size == 0:
                    # The released code may cut all of them away; the other outputs use them.
                    differences.append(Difference(key, 0.0, allowed, is_empty=True))
                    continue
                differences.append(compare_output(key, tensor, bundle.outputs[key], allowed))
    unknown = sorted(bundle.outputs.keys() - compared)
    if unknown:
        raise CheckpointError(f"the bundle stores outputs that the model does not make: {unknown}")
    return differences


def compare_output(key: str, ours: Tensor, theirs: np.ndarray, allowed: float) -> Difference:
    """Compare one output with what was stored.

    Raises:
        CheckpointError: They differ in shape, or hold nothing that could be compared.
    """
    if tuple(ours.shape) != theirs.shape:
        raise CheckpointError(
            f"output {key} has shape {tuple(ours.shape)}, the bundle's {theirs.shape}"
        )
    if theirs.size == 0:
        raise CheckpointError(
            f"output {key} is empty (shape {theirs.shape}), so nothing can be compared; use inputs "
            f"for which it has values"
        )
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, which never agrees
        gap = np.abs(ours.double().numpy() - theirs.astype(np.float64))
    return Difference(output=key, largest=float(gap.max()), allowed=allowed)


def compare_live(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], dtype: Precision
) -> list[Difference]:
    """Compare every output that another library made from the same inputs.

    Raises:
        CheckpointError: One side lacks an output, they differ in shape, or there is nothing to
            compare.
    """
    if not theirs:
        raise CheckpointError("the other side makes no outputs, so nothing can be compared")
    if ours.keys() != theirs.keys():
        raise CheckpointError(
            f"the model makes the outputs {sorted(ours)}, the other side {sorted(theirs)}; all "
            f"must be compared"
        )
    differences = []
    for name, stored in theirs.items():
        largest = float(stored.abs().max()) if stored.numel() else 0.0
        scale = max(1.0, largest) if dtype == "float64" else largest
        allowed = TOLERANCES[dtype] * scale
        differences.append(compare_output(name, ours[name], stored.numpy(), allowed))
    return differences


@contextmanager
def in_precision(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Cast a model for a while; float32 comes back from float64 as it was."""
    before = next(model.parameters()).dtype
    try:
        model.to(dtype)
        yield
    finally:
        model.to(before)


def official_latents(encoded: Encoded, latents: Tensor) -> Mapping[str, Tensor]:
    """Cut the last latents the way the released code does.

    It drops *input* padding from *latents*, which loses rows whenever there is padding; a negative
    end wraps, as slices do. The model itself returns all latents.
    """
    cut = {}
    start = 0
    for share in encoded.layout.shares:
        if encoded.layout.axis == "slots":
            cut[share.name] = latents[:, 0, start : start + share.length]
            start += share.length
            continue
        own = encoded.layout.part(latents, share.name)  # [B, g, N, C]
        if share.group_padding:
            own = own[:, :, : own.shape[2] - share.group_padding]
        own = own.flatten(1, 2)
        if share.final_padding:
            own = own[:, : own.shape[1] - share.final_padding]
        cut[share.name] = own
    return cut
