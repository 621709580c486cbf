"""Convolutional upsampling against the released code's stored outputs, and by hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perceivers.adapters.upsampling import (
    ConvUpsample2d,
    ConvUpsample3d,
    GridUpsample,
    count_doublings,
)
from perceivers.errors import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden"
Arrays = Mapping[str, NDArray[Any]]


@pytest.fixture(scope="module")
def blocks() -> Arrays:
    with np.load(GOLDEN / "dmr_blocks.npz") as archive:
        return {key: archive[key] for key in archive.files}


def load(module: nn.Module, blocks: Arrays, prefixes: list[str]) -> None:
    """Fill the layers; kernels are [..., out, in] there, and not flipped."""
    state = {}
    for i, prefix in enumerate(prefixes):
        kernel = torch.from_numpy(blocks[f"{prefix}:w"])
        axes = list(range(kernel.ndim - 2))
        kernel = kernel.flip(axes).permute(-1, -2, *axes)
        state[f"convs.{i}.weight"] = kernel.contiguous()
        state[f"convs.{i}.bias"] = torch.from_numpy(blocks[f"{prefix}:b"])
    module.load_state_dict(state)


def channels_first(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array).movedim(-1, 1)


def test_upsampling_of_pictures_is_the_official_one(blocks: Arrays) -> None:
    root = "conv2d_upsample/param/conv2_d_upsample/~/transp_conv_"
    module = ConvUpsample2d(3, 2)
    load(module, blocks, [f"{root}1", f"{root}2"])
    x, expected = (channels_first(blocks[f"conv2d_upsample/{k}"]) for k in ("in0", "out"))
    torch.testing.assert_close(module(x), expected, rtol=0.0, atol=1e-5)
    assert not torch.allclose(module(x.flip(3)), expected, atol=1e-2)


def test_upsampling_of_clips_is_the_official_one(blocks: Arrays) -> None:
    root = "conv3d_upsample/param/conv3_d_upsample/conv3d_transpose_"
    module = ConvUpsample3d(4, 2, num_temporal=1, num_spatial=2)
    load(module, blocks, [f"{root}0", f"{root}1"])
    x, expected = (channels_first(blocks[f"conv3d_upsample/{k}"]) for k in ("in0", "out"))
    torch.testing.assert_close(module(x), expected, rtol=0.0, atol=1e-5)
    assert not torch.allclose(module(x.flip(2)), expected, atol=1e-2)


@pytest.mark.parametrize(("temporal", "spatial"), [(0, 1), (1, 1), (1, 3), (2, 2)])
def test_clips_grow_by_two_for_every_layer(temporal: int, spatial: int) -> None:
    module = ConvUpsample3d(5, 3, num_temporal=temporal, num_spatial=spatial)
    out = module(torch.zeros(1, 5, 3, 2, 1))
    assert out.shape == (1, 3, 3 * 2**temporal, 2 * 2**spatial, 2**spatial)


def test_an_impossible_number_of_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_temporal=3 and num_spatial=2"):
        ConvUpsample3d(4, 2, num_temporal=3, num_spatial=2)
    with pytest.raises(ConfigError, match=r"num_spatial=0: there must be at least one"):
        ConvUpsample3d(4, 2, num_temporal=0, num_spatial=0)


@pytest.mark.parametrize(
    ("factors", "expected"),
    [((4, 4), (0, 2)), ((1, 4, 4), (0, 2)), ((2, 2, 2), (1, 1)), ((4, 16, 16), (2, 4))],
)
def test_factors_are_so_many_doublings(factors: tuple[int, ...], expected: tuple[int, int]) -> None:
    assert count_doublings(factors) == expected
    coarse = (2, 1, 3)[-len(factors) :]
    made = GridUpsample(5, 2, factors)(torch.zeros(1, 5, *coarse))
    assert made.shape == (1, 2, *(n * f for n, f in zip(coarse, factors, strict=True)))


@pytest.mark.parametrize(
    "factors",
    [
        (),
        (4,),
        (2, 2),
        (8, 8),
        (4, 2),
        (1, 8, 8),
        (8, 4, 4),
        (3, 4, 4),
        (2, 4, 8),
        (2, 6, 6),
        (0, 4, 4),
    ],
)
def test_other_factors_are_refused(factors: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"use \(4, 4\) for images, \(1, 4, 4\) for videos"):
        GridUpsample(5, 2, factors)


def test_frames_are_upsampled_as_pictures(blocks: Arrays) -> None:
    """The released code folds frames into the batch where time does not grow."""
    root = "conv2d_upsample/param/conv2_d_upsample/~/transp_conv_"
    module = GridUpsample(3, 2, (1, 4, 4))
    load(module.upsample, blocks, [f"{root}1", f"{root}2"])
    x, expected = (channels_first(blocks[f"conv2d_upsample/{k}"]) for k in ("in0", "out"))
    clip = torch.stack([x, x.flip(3)], 2)
    torch.testing.assert_close(module(clip)[:, :, 0], expected, rtol=0.0, atol=1e-5)
    assert not torch.allclose(module(clip)[:, :, 1], expected, atol=1e-2)


def test_layers_that_double_no_frames_learn_in_bf16_as_in_float32() -> None:
    """Their gradients in bf16 are those of float32, which some kernels miss by any factor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, x = GridUpsample(8, 16, (2, 4, 4)), torch.randn(2, 8, 2, 2, 2)
    module(x).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    assert len(expected) == 4
    for pure in (False, True):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=not pure):
            made = module.bfloat16()(x.bfloat16()) if pure else module(x)
            made.float().square().sum().backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            found = parameter.grad.float()
            error = (found - expected[name]).norm() / expected[name].norm()
            assert 0.0 < float(error) < 0.03, name
