"""Errors of optical flow by hand, and warping on a real pair."""

import os
from pathlib import Path

import pytest
import torch

from perceivers.data.flow_pairs import open_flow_pairs
from perceivers.errors import InputError
from perceivers.tasks.flow import (
    end_point_error,
    end_point_errors,
    outlier_share,
    warp_backward,
)

# A measured pair, where FLOW_DATA names a folder that holds it.
RUBBER_WHALE = Path(os.environ.get("FLOW_DATA", "flow")) / "middlebury-rubberwhale"
NAN = float("nan")


def flow(*pairs: tuple[float, float]) -> torch.Tensor:
    """One row of pixels."""
    return torch.tensor(pairs).T[:, None]  # [2, 1, W]


def test_the_error_is_the_distance_of_the_end_points() -> None:
    predicted, true = flow((3.0, 4.0), (1.0, 1.0)), flow((0.0, 0.0), (1.0, -1.0))
    assert end_point_errors(predicted, true).tolist() == [[5.0, 2.0]]
    assert end_point_error(predicted, true) == 3.5
    assert end_point_error(predicted, true, torch.tensor([[False, True]])) == 2.0


def test_every_pixel_of_a_batch_counts_alike() -> None:
    true = torch.zeros(2, 2, 1, 2)
    predicted = torch.zeros(2, 2, 1, 2)
    predicted[1, 0, 0] = torch.tensor([2.0, 6.0])
    valid = torch.tensor([[[True, False]], [[True, True]]])
    assert end_point_error(predicted, true, valid) == pytest.approx(8 / 3)


def test_outliers_are_off_by_three_pixels_and_five_percent() -> None:
    true = flow((100.0, 0.0), (100.0, 0.0), (10.0, 0.0), (10.0, 0.0))
    predicted = flow((104.0, 0.0), (106.0, 0.0), (13.0, 0.0), (14.0, 0.0))
    # 4 px of 100 is under 5 %; 3 px is not more than 3.
    assert outlier_share(predicted, true) == 0.5
    assert outlier_share(predicted, true, torch.tensor([[True, True, True, False]])) == (
        pytest.approx(1 / 3)
    )


def test_unknown_truth_counts_for_nothing_and_leaves_gradients_alone() -> None:
    true, predicted = flow((NAN, NAN), (1.0, 0.0)), flow((7.0, 7.0), (3.0, 0.0))
    predicted.requires_grad_()
    error = end_point_error(predicted, true)
    error.backward()
    assert error == 2.0
    assert outlier_share(predicted, true) == 0.0
    assert predicted.grad is not None
    assert predicted.grad[:, 0].T.tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_no_known_pixel_is_an_error() -> None:
    with pytest.raises(InputError, match="none of the 1 pixels has a known true flow"):
        end_point_error(flow((0.0, 0.0)), flow((NAN, 0.0)))
    with pytest.raises(InputError, match="none of the 1 pixels"):
        outlier_share(flow((0.0, 0.0)), flow((0.0, 0.0)), torch.tensor([[False]]))


def test_warping_looks_up_where_the_flow_points() -> None:
    frame2 = torch.arange(12.0).reshape(1, 1, 3, 4)
    right = torch.zeros(1, 2, 3, 4)
    right[:, 0] = 1.0
    first_row = warp_backward(frame2, right)[0, 0, 0]
    torch.testing.assert_close(first_row, torch.tensor([1.0, 2.0, 3.0, 3.0]))
    first_column = warp_backward(frame2, right.flip(1))[0, 0, :, 0]
    torch.testing.assert_close(first_column, torch.tensor([4.0, 8.0, 8.0]))


@pytest.mark.skipif(not RUBBER_WHALE.exists(), reason="the Middlebury pair is not here")
def test_true_flow_takes_rubber_whale_s_second_frame_to_its_first() -> None:
    sample = open_flow_pairs(RUBBER_WHALE).read(0)
    frame1, frame2 = torch.from_numpy(sample["video"]).float().transpose(0, 1)
    true = torch.from_numpy(sample["flow"])
    known = true.isfinite().all(0)

    def difference(flow: torch.Tensor) -> float:
        warped = warp_backward(frame2[None], flow.nan_to_num()[None])[0]
        return float((warped - frame1).abs()[:, known].mean())

    assert difference(torch.zeros_like(true)) == pytest.approx(5.7, abs=0.1)
    assert difference(true) == pytest.approx(1.4, abs=0.1)
    assert difference(true.round()) == pytest.approx(1.9, abs=0.1)  # the nearest pixel alone
    assert difference(true.flip(0)) > 4
    assert difference(-true) > 6
