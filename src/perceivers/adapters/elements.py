"""Raw elements as tokens: one token per pixel, audio sample, point, byte or label.

Checks raw tensors, flattens and normalises them, and inverts both.

Legend: B batch, N tokens (row-major on the grid), C channels.
Paper: HiP (arXiv 2202.10890) Sec. 3.1: inputs are flattened, without modality-specific networks.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.errors import InputError
from perceivers.types import PAD, ModalitySpec

# Divisors that map integer types to 0..1 (uint8) or -1..1 (int16).
INTEGER_SCALE = {torch.uint8: 255.0, torch.int16: 32768.0}


class ElementAdapter(nn.Module):
    """Converts the raw tensor of one modality to normalised elements and back, on its device.

    Args:
        name: Name of the modality, for messages.
        spec: Specification of the modality.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, spec: ModalitySpec) -> None:
        super().__init__()
        self.name = name
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.mean or (0.0,)), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std or (1.0,)), persistent=False)

    def flatten(self, raw: Tensor) -> Tensor:
        """Return ``[B, N, C]`` (labels and bytes: ``[B, N]``) with unchanged values.

        Raises:
            InputError: The shape or dtype of the tensor is not that of the modality.
        """
        self._check(raw)
        if self.spec.indexed:
            return raw.reshape(raw.shape[0], -1)
        if self.spec.channels_first:
            return raw.flatten(2).transpose(1, 2)
        return raw.reshape(raw.shape[0], -1, self.spec.channels)

    @property
    def may_lack(self) -> bool:
        """Whether elements may be missing: texts are padded, ragged points may be fewer."""
        return self.spec.may_lack

    def real(self, raw: Tensor) -> Bool[Tensor, "B N"] | None:
        """Return which elements are valid (not padding or missing points); None if all are."""
        if not self.may_lack:
            return None
        values = self.flatten(raw)
        return values != PAD if self.spec.indexed else is_point(values)

    def normalise(self, values: Tensor, dtype: torch.dtype) -> Float[Tensor, "*B C"]:
        """Normalise flattened values: scale, subtract the mean, divide by the standard deviation.

        Accepts any subset of the elements, so that masked ones need no computation. Labels become
        one-hot vectors; a negative label (unknown) becomes a vector of zeros.
        """
        if self.spec.kind == "labels":
            known = F.one_hot(values.clamp(min=0).long(), self.spec.channels)
            return (known * (values >= 0).unsqueeze(-1)).to(dtype)
        scale = INTEGER_SCALE.get(values.dtype)
        values = values.to(dtype)
        if scale is not None:
            values = values / scale
        if self.spec.mean:
            values = values - self.mean.to(dtype)
        if self.spec.std:
            values = values / self.std.to(dtype)
        return values

    def restore(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B ..."]:
        """Invert normalisation and flattening, without clipping.

        Images are in 0..1, audio in -1..1; labels are scores per class.
        """
        return self.unflatten(self.denormalise(tokens))

    def to_floats(self, raw: Tensor) -> Tensor:
        """Return a raw tensor as floats in its raw layout: images in 0..1; texts keep their ids."""
        if self.spec.kind == "bytes":
            return raw
        return self.restore(self.normalise(self.flatten(raw), torch.float32))

    def denormalise(self, tokens: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Invert ``normalise`` for floating-point values."""
        if self.spec.std:
            tokens = tokens * self.std.to(tokens.dtype)
        if self.spec.mean:
            tokens = tokens + self.mean.to(tokens.dtype)
        return tokens

    def unflatten(self, tokens: Shaped[Tensor, "B N K"]) -> Shaped[Tensor, "B ..."]:
        """Arrange values per element in the raw layout, with its order of axes."""
        if self.spec.channels_first:
            return tokens.transpose(1, 2).unflatten(2, self.spec.grid)
        return tokens.unflatten(1, self.spec.grid)

    def _check(self, raw: Any) -> None:
        """Check shape and dtype; labels may omit their length axis if it is 1."""
        if not isinstance(raw, Tensor):
            raise InputError(f"input {self.name!r} is a {type(raw).__name__}; it must be a tensor")
        expected, found = self.spec.raw_shape, tuple(raw.shape[1:])
        if self.spec.indexed:
            if found not in {expected, ()} or (found == () and expected != (1,)):
                raise InputError(
                    f"input {self.name!r} has shape {tuple(raw.shape)}; expected [B, {expected[0]}]"
                )
            if raw.is_floating_point() or raw.dtype == torch.bool:
                raise InputError(f"input {self.name!r} has dtype {raw.dtype}; {self.spec.indexed}")
            return
        if found != expected:
            raise InputError(
                f"input {self.name!r} has shape {tuple(raw.shape)}, but the model was built for "
                f"[B, {', '.join(map(str, expected))}] ({self.spec.kind}); resize the data, or "
                f"build the model for this size (learned positions resize with "
                f"pv.load(..., inputs=...))"
            )
        if not (raw.is_floating_point() or raw.dtype in INTEGER_SCALE):
            raise InputError(
                f"input {self.name!r} has dtype {raw.dtype}; use float32, or uint8 (0..255) or "
                f"int16"
            )


def is_point(values: Float[Tensor, "*B C"]) -> Bool[Tensor, "*B"]:
    """Return which rows are points: rows with NaN are missing points."""
    return ~torch.isnan(values).any(-1)
