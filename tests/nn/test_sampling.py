"""Sampling between pixels: whole places, halves by hand, and places outside."""

from typing import Literal

import pytest
import torch

from perceivers.nn.patches import pixel_places, sample_pixels

How = Literal["bilinear", "bicubic"]


def test_places_are_x_before_y() -> None:
    assert pixel_places(2, 3).tolist() == [[[0, 1, 2], [0, 1, 2]], [[0, 0, 0], [1, 1, 1]]]


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_whole_places_give_the_pixels_themselves(how: How, rng: torch.Generator) -> None:
    pictures = torch.randn(2, 3, 5, 7, generator=rng, dtype=torch.float64)
    places = pixel_places(5, 7).double().expand(2, -1, -1, -1)
    torch.testing.assert_close(sample_pixels(pictures, places, how), pictures)
    shifted = sample_pixels(pictures, places + torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), how)
    torch.testing.assert_close(shifted[..., :-1], pictures[..., 1:])


def test_halves_are_means_and_outside_the_last_pixel_goes_on() -> None:
    pictures = torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]]])
    places = torch.tensor([[0.5, 0.0], [0.0, 0.5], [0.5, 0.5], [-3.0, 0.0], [9.0, 9.0]])
    found = sample_pixels(pictures, places.T[None, :, None])
    torch.testing.assert_close(found.flatten(), torch.tensor([2.0, 4.0, 6.0, 0.0, 12.0]))
