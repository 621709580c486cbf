"""Convolutional upsampling: from answers on a coarse grid to values on the raw one.

The released code pads its transposed convolutions as TensorFlow does ("SAME"): with a kernel of 4
every output has exactly ``stride`` times the size of its input.

Legend: B batch, C channels, T frames, H W rows and columns, K channels out.
Paper: Perceiver IO (arXiv 2107.14795) App. H; the released postprocessing blocks.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.errors import ConfigError

KERNEL = 4


class ConvUpsample2d(nn.Module):
    """Four times the size: two transposed convolutions by two, ReLU between.

    Args:
        dim: Channels in.
        channels: Channels K out; between the two there are twice as many.
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
    """Doubles height and width at every layer, and frames at the first few; ReLU between.

    Args:
        dim: Channels in.
        channels: Channels K out; every earlier layer has twice as many as the next.
        num_temporal: Layers, from the first, that double the frames too.
        num_spatial: Layers; each doubles height and width.

    Raises:
        ConfigError: Frames would be doubled more often than there are layers.
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
            # Where a stride of one leaves an uneven margin, ``forward`` cuts the odd frame.
            self.convs.append(
                nn.ConvTranspose3d(widths[i], widths[i + 1], KERNEL, stride=stride, padding=1)
            )

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B K To Ho Wo"]:
        """Return values on the finer grid."""
        for i, conv in enumerate(self.convs):
            assert isinstance(conv, nn.ConvTranspose3d)
            frames = x.shape[2] * conv.stride[0]
            x = conv(F.relu(x) if i else x)[:, :, :frames]
        return x
