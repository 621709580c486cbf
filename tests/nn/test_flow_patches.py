"""Flow patches: the released code's order of values, its zero border, and one graph."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from perceivers.errors import InputError
from perceivers.nn.patches import extract_flow_patches

GOLDEN = Path(__file__).parents[1] / "golden" / "dmr_blocks.npz"


def test_values_come_in_the_order_of_the_released_code() -> None:
    with np.load(GOLDEN) as file:
        frames = torch.from_numpy(file["patches_for_flow/in"])  # [B, T, H, W, C]
        patches = torch.from_numpy(file["patches_for_flow/out"])  # [B, T, H, W, 27]
    expected = patches.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)  # frame 1, then frame 2
    found = extract_flow_patches(frames.permute(0, 4, 1, 2, 3))
    assert found.shape == (1, 4 * 5, 54)
    assert torch.equal(found, expected)
    assert not torch.equal(extract_flow_patches(frames.permute(0, 4, 1, 2, 3).flip(2)), expected)


def test_one_pixel_by_hand() -> None:
    """The upper right corner: two rows and two columns are inside, the rest is zero."""
    video = torch.arange(1, 13).reshape(1, 1, 2, 2, 3)
    corner = extract_flow_patches(video)[0, 2].tolist()
    assert corner == [0, 0, 0, 2, 3, 0, 5, 6, 0, 0, 0, 0, 8, 9, 0, 11, 12, 0]


@pytest.mark.parametrize("frames", [1, 3])
def test_flow_is_between_two_frames(frames: int) -> None:
    with pytest.raises(InputError, match=f"{frames} frames; .* exactly 2"):
        extract_flow_patches(torch.zeros(1, 3, frames, 4, 4))


@pytest.mark.unhooked
def test_it_exports_with_any_batch_size() -> None:
    class Patches(nn.Module):
        def forward(self, video: Tensor) -> Tensor:
            return extract_flow_patches(video)

    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        Patches(), (torch.zeros(2, 3, 2, 4, 6),), dynamic_shapes=({0: batch},)
    )
    video = torch.randn(5, 3, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(program.module()(video), extract_flow_patches(video))
