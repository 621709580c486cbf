"""The input of the flow model: around every pixel, the 3x3 neighbourhood in both frames.

Legend: B batch, C channels, T frames (two), H W rows and columns, N pixels (row-major),
P values per pixel: 2 * 9 * C, 54 for RGB.
Paper: Perceiver IO (arXiv 2107.14795) App. H; channel order of the released code, which is
(frame, row of the window, column of the window, channel).
"""

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn import functional as F

from perceivers.errors import InputError

FRAMES = 2
WINDOW = 3


def extract_flow_patches(video: Shaped[Tensor, "B C T H W"]) -> Shaped[Tensor, "B N P"]:
    """Gather the values around every pixel, zero beyond the edges.

    Args:
        video: Two frames, normalised already: the released model sees -1..1, so that the zeros
            outside are mid-grey.

    Raises:
        InputError: Not two frames.
    """
    batch, channels, frames, height, width = video.shape
    if frames != FRAMES:
        raise InputError(f"flow patches of {frames} frames; optical flow is between exactly 2")
    margin = WINDOW // 2
    # [B, H, W, T, C]: channels last, so that each of the nine copies below is of whole runs.
    padded = F.pad(video.permute(0, 3, 4, 2, 1), (0, 0, 0, 0, margin, margin, margin, margin))
    windows = [
        padded[:, row : row + height, column : column + width]
        for row in range(WINDOW)
        for column in range(WINDOW)
    ]
    patches = torch.stack(windows, dim=4)  # [B, H, W, T, 9, C]
    return patches.reshape(batch, height * width, frames * WINDOW * WINDOW * channels)
