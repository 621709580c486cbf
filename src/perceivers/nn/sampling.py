"""Values of pictures between their pixels.

Legend: B batch, C channels, H W rows and columns, h w those of what is sampled.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def pixel_places(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return the coordinates of every pixel, ``[2, H, W]``: channel 0 is x, channel 1 is y."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=device),
        torch.arange(width, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack([x, y])


def sample_pixels(
    pictures: Float[Tensor, "B C H W"],
    places: Float[Tensor, "B 2 h w"],
    how: Literal["bilinear", "bicubic"] = "bilinear",
) -> Float[Tensor, "B C h w"]:
    """Read pictures at any coordinates; beyond the edges their outermost pixels go on.

    Args:
        pictures: What is read.
        places: Coordinates in pixels of the pictures, x before y; (0, 0) is the centre of the
            first pixel.
        how: How values between pixels are made; bicubic is sharper and may overshoot.
    """
    height, width = pictures.shape[-2:]
    size = places.new_tensor([width, height]).view(1, 2, 1, 1)
    # Without aligned corners -1 and 1 are the outer edges of the outermost pixels.
    grid = ((2 * places + 1) / size - 1).permute(0, 2, 3, 1)  # [B, h, w, 2]
    return F.grid_sample(pictures, grid, how, padding_mode="border", align_corners=False)
