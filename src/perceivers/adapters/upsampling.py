"""Convolutional upsampling of decoder outputs from a coarse grid to the raw grid.

As in the released postprocessing, images, and videos with a decoder output for every frame, are
upsampled by four in space; other videos are upsampled in time as well.

The released code pads its transposed convolutions as TensorFlow does ("SAME"): with a kernel of 4,
the output is exactly ``stride`` times as large as the input.

Legend: B batch, C channels, T frames, H rows, W columns, K output channels; "o" marks output sizes.
Paper: Perceiver IO (arXiv 2107.14795) App. H; the released postprocessing blocks.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.errors import ConfigError

KERNEL = 4


def count_doublings(factors: Sequence[int]) -> tuple[int, int]:
    """Return how many times the number of frames is doubled, and the number of rows and columns.

    Args:
        factors: Upsampling factor along each axis: rows and columns, or frames, rows and columns.

    Raises:
        ConfigError: Upsampling does not support these factors.
    """
    if len(factors) in {2, 3}:
        temporal, *spatial = map(_doublings, (1, *factors)[-3:])
        if (temporal, *spatial) == (0, 2, 2) or 0 < temporal <= spatial[0] == spatial[1]:
            return temporal, spatial[0]
    raise ConfigError(
        f"patch {tuple(factors)} is not supported by transposed convolutions; use (4, 4) for "
        f"images, (1, 4, 4) for videos, or (t, s, s) with powers of two, 2 <= t <= s"
    )


def _doublings(factor: int) -> int:
    """Return the binary logarithm of a power of two; -1 for other numbers."""
    return factor.bit_length() - 1 if factor > 0 and factor & (factor - 1) == 0 else -1


class GridUpsample(nn.Module):
    """Upsamples decoder outputs on a coarse grid to values on the raw grid.

    Args:
        dim: Channels of a decoder output.
        channels: Values K per element.
        factors: Upsampling factor along each axis, as in ``count_doublings``.

    Raises:
        ConfigError: Upsampling does not support these factors.
    """

    def __init__(self, dim: int, channels: int, factors: Sequence[int]) -> None:
        super().__init__()
        temporal, spatial = count_doublings(factors)
        self.by_frame = len(factors) == 3 and not temporal
        self.upsample = (
            ConvUpsample3d(dim, channels, num_temporal=temporal, num_spatial=spatial)
            if temporal
            else ConvUpsample2d(dim, channels)
        )

    def forward(self, x: Float[Tensor, "B C *coarse"]) -> Float[Tensor, "B K *fine"]:
        """Return values on the raw grid; without temporal upsampling, frames are independent."""
        if not self.by_frame:
            return self.upsample(x)
        frames = x.transpose(1, 2)
        made = self.upsample(frames.flatten(0, 1))
        return made.unflatten(0, frames.shape[:2]).transpose(1, 2)


class ConvUpsample2d(nn.Module):
    """Upsamples by four: two transposed convolutions with stride 2, with a ReLU between them.

    Args:
        dim: Input channels.
        channels: Output channels K; the hidden layer has twice as many.
    """

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.ConvTranspose2d(a, b, KERNEL, stride=2, padding=1)
            for a, b in ((dim, 2 * channels), (2 * channels, channels))
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K Ho Wo"]:
        """Return values on the finer grid."""
        first, second = self.convs
        return second(F.relu(first(x)))


class ConvUpsample3d(nn.Module):
    """Doubles height and width in every layer, and frames in the first ones; ReLU between layers.

    Args:
        dim: Input channels.
        channels: Output channels K; every earlier layer has twice as many as the next one.
        num_temporal: Number of layers, from the first, that also double the frames.
        num_spatial: Number of layers; each doubles height and width.

    Raises:
        ConfigError: There are more temporal than spatial layers, or no layers.
    """

    def __init__(self, dim: int, channels: int, *, num_temporal: int, num_spatial: int) -> None:
        super().__init__()
        if not 0 <= num_temporal <= num_spatial or num_spatial < 1:
            raise ConfigError(
                f"num_temporal={num_temporal} and num_spatial={num_spatial}: there must be at "
                f"least one layer, and frames are doubled in some of them"
            )
        widths = [dim, *(channels * 2**i for i in reversed(range(num_spatial)))]
        self.convs = nn.ModuleList()
        for i in range(num_spatial):
            stride = (2 if i < num_temporal else 1, 2, 2)
            # A stride of one with this kernel adds a frame at one end, which ``forward`` removes.
            self.convs.append(
                nn.ConvTranspose3d(widths[i], widths[i + 1], KERNEL, stride=stride, padding=1)
            )

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B K To Ho Wo"]:
        """Return values on the finer grid."""
        for i, conv in enumerate(self.convs):
            assert isinstance(conv, nn.ConvTranspose3d)
            frames = x.shape[2] * conv.stride[0]
            x = F.relu(x) if i else x
            x = (conv(x) if conv.stride[0] > 1 else in_float32(conv, x))[:, :, :frames]
        return x


def in_float32(conv: nn.ConvTranspose3d, x: Float[Tensor, "B C T H W"]) -> Tensor:
    """Apply a layer in float32 instead of bf16, and in other types as they are."""
    # With a temporal stride of one, weight gradients of oneDNN in bf16 are wrong by arbitrary
    # factors (torch 2.13 on CPU).
    if x.dtype != torch.bfloat16 and not torch.is_autocast_enabled(x.device.type):
        return conv(x)
    assert conv.bias is not None
    with torch.autocast(x.device.type, enabled=False):
        made = F.conv_transpose3d(
            x.float(), conv.weight.float(), conv.bias.float(), conv.stride, padding=1
        )
    return made.to(x.dtype)
