"""Logits for every input element from the pyramid: the stages meet in one width and are summed.

Legend: B batch, C channels of a stage, D common width, N classes.
Paper: the pyramid's use follows Panoptic FPN's semantic branch (arXiv 1901.02446) Sec. 3, without
its convolutions: Hiera's maps have already mixed their neighbours.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.models.hiera.block import NORM_EPSILON
from perceivers.models.hiera.config import HieraConfig
from perceivers.nn.linear import Linear

LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class SegmentationHead(nn.Module):
    """A normalised Linear per stage, summed at the finest one, and a two-layer read-out.

    Args:
        config: With a segmentation head.
    """

    def __init__(self, config: HieraConfig) -> None:
        super().__init__()
        self.mode = LINEAR_MODES[len(config.mask_unit)]
        self.stride = config.patch_stride
        head = config.head
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=NORM_EPSILON) for dim in config.dims)
        self.laterals = nn.ModuleList(Linear(dim, head.dim) for dim in config.dims)
        self.norm = nn.LayerNorm(head.dim, eps=NORM_EPSILON)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.out = Linear(head.dim, head.num_outputs)

    def forward(self, maps: Sequence[Float[Tensor, "B _ ..."]]) -> Float[Tensor, "B N *size"]:
        """Return logits for every element of the (padded) input."""
        finest = tuple(maps[0].shape[2:])
        total = None
        for x, norm, lateral in zip(maps, self.norms, self.laterals, strict=True):
            x = lateral(norm(x.movedim(1, -1))).movedim(-1, 1)
            x = x if total is None else self._resize(x, finest)
            total = x if total is None else total + x
        assert total is not None
        x = F.gelu(self.norm(total.movedim(1, -1)))
        size = [n * stride for n, stride in zip(finest, self.stride, strict=True)]
        return self._resize(self.out(self.dropout(x)).movedim(-1, 1), size)

    def _resize(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(x, size=tuple(size), mode=self.mode, align_corners=False)
