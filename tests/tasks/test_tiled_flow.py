"""Flow of pictures of any size, and its evaluation on measured pairs, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import perceivers as pv
from perceivers.errors import InputError
from perceivers.tasks.flow import evaluate_pairs, tiled_flow

HEIGHT, WIDTH = 6, 8


class Shift(nn.Module):
    """Answers every pixel of a tile with the same flow, in units of ten pixels."""

    def __init__(self, u: float, v: float) -> None:
        super().__init__()
        output = SimpleNamespace(channels=2, queries="tokens", modality="video")
        spec = pv.Video(2, HEIGHT, WIDTH)
        self.config = SimpleNamespace(inputs={"video": spec}, outputs={"flow": output})
        self.answer = torch.tensor([u, v]) / 10

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Flow [B, 2, H, W]."""
        assert inputs["video"].shape[1:] == (3, 2, HEIGHT, WIDTH)
        return self.answer[:, None, None].expand(len(inputs["video"]), 2, HEIGHT, WIDTH)


def frames(height: int, width: int) -> np.ndarray:
    return np.zeros((3, 2, height, width), np.uint8)


@pytest.mark.parametrize(("size", "tiles"), [((6, 8), 1), ((9, 8), 2), ((9, 20), 8)])
def test_a_constant_flow_stays_constant_in_pictures_of_any_size(
    size: tuple[int, int], tiles: int
) -> None:
    flow, count = tiled_flow(Shift(3.0, -1.0), torch.from_numpy(frames(*size)), scale=10.0)
    assert count == tiles
    expected = torch.tensor([3.0, -1.0])[:, None, None].expand(2, *size)
    torch.testing.assert_close(flow, expected)


def test_small_pictures_are_refused_or_padded() -> None:
    small = torch.from_numpy(frames(4, 8))
    with pytest.raises(InputError):
        tiled_flow(Shift(1.0, 0.0), small)
    assert tiled_flow(Shift(1.0, 0.0), small, pad=True)[0].shape == (2, 4, 8)


def test_measured_pairs_of_several_sizes_count_alike() -> None:
    still = np.zeros((2, 4, 8), np.float32)  # smaller than a tile
    right = np.zeros((2, 9, 20), np.float32)
    right[0] = 3.0
    right[:, 0] = np.nan  # unknown, so not counted
    pairs = [
        {"video": frames(4, 8), "flow": still},
        {"video": frames(9, 20), "flow": right},
    ]
    figures = evaluate_pairs(Shift(3.0, 4.0), pairs, scale=10.0)
    # Off by (3, 4) in the first pair, by (0, 4) in the second; zero flow by 0 and 3.
    assert figures["epe"] == pytest.approx((5.0 + 4.0) / 2)
    assert figures["epe_of_zero"] == pytest.approx(1.5)
    assert figures["outliers"] == pytest.approx(1.0)
    assert figures["pairs"] == 2.0
