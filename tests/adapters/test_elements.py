"""ElementAdapter: layouts, scaling of integers, normalisation and back, labels, error texts."""

from typing import Any

import pytest
import torch
from torch import Tensor

from perceivers.adapters import ElementAdapter
from perceivers.errors import InputError
from perceivers.types import Array, Audio, Image, Labels, ModalitySpec, Points, Video

SPECS: list[ModalitySpec] = [
    Image(4, 6, 3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)),
    Image(3, 5, 1),
    Video(2, 3, 4, 2, mean=(0.5,), std=(0.25,)),
    Audio(11, 2, std=(0.1, 0.2)),
    Points(5, 3, mean=(1.0, 2.0, 3.0)),
    Array((2, 3), 4),
]


def draw_raw(spec: ModalitySpec, rng: torch.Generator, batch: int = 2) -> Tensor:
    return torch.rand(batch, *spec.raw_shape, generator=rng)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_unflatten_undoes_flatten(spec: ModalitySpec, rng: torch.Generator) -> None:
    adapter, raw = ElementAdapter("x", spec), draw_raw(spec, rng)
    flat = adapter.flatten(raw)
    assert flat.shape == (2, spec.num_tokens, spec.channels)
    assert torch.equal(adapter.unflatten(flat), raw)
    assert not torch.equal(adapter.unflatten(flat.flip(1)), raw)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_restore_undoes_normalise(spec: ModalitySpec, rng: torch.Generator) -> None:
    adapter, raw = ElementAdapter("x", spec), draw_raw(spec, rng)
    tokens = adapter.normalise(adapter.flatten(raw), torch.float64)
    assert tokens.dtype == torch.float64
    torch.testing.assert_close(adapter.restore(tokens), raw.double(), rtol=0.0, atol=1e-6)
    if spec.mean or spec.std:
        assert not torch.allclose(adapter.unflatten(tokens), raw.double())


def test_pixels_are_tokens_row_by_row_with_their_channels() -> None:
    image = torch.arange(2 * 2 * 3, dtype=torch.float32).reshape(1, 2, 2, 3)  # [B, C, H, W]
    tokens = ElementAdapter("x", Image(2, 3, 2)).flatten(image)
    assert tokens[0].tolist() == [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]


def test_frames_come_before_rows() -> None:
    video = torch.arange(8, dtype=torch.float32).reshape(1, 1, 2, 2, 2)  # [B, C, T, H, W]
    tokens = ElementAdapter("x", Video(2, 2, 2, 1)).flatten(video)
    assert tokens[0, :, 0].tolist() == list(range(8))


def test_normalising_is_scale_then_mean_then_deviation() -> None:
    adapter = ElementAdapter("x", Image(1, 2, 1, mean=(0.2,), std=(0.4,)))
    values = torch.tensor([[[0], [255]]], dtype=torch.uint8)
    expected = torch.tensor([[[(0.0 - 0.2) / 0.4], [(1.0 - 0.2) / 0.4]]])
    torch.testing.assert_close(adapter.normalise(values, torch.float32), expected)


def test_integers_are_scaled_by_their_type_and_floats_are_not() -> None:
    adapter = ElementAdapter("x", Audio(2))
    sound = torch.tensor([[[-32768, 16384]]], dtype=torch.int16)
    tokens = adapter.normalise(adapter.flatten(sound), torch.float32)
    assert tokens[0, :, 0].tolist() == [-1.0, 0.5]
    same = adapter.normalise(adapter.flatten(sound.float()), torch.float32)
    assert same[0, :, 0].tolist() == [-32768.0, 16384.0]


def test_bytes_and_floats_of_one_picture_give_equal_tokens(rng: torch.Generator) -> None:
    spec = Image(4, 4, 3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    adapter = ElementAdapter("x", spec)
    raw = torch.randint(0, 256, (2, 3, 4, 4), generator=rng, dtype=torch.uint8)
    from_bytes = adapter.normalise(adapter.flatten(raw), torch.float32)
    from_floats = adapter.normalise(adapter.flatten(raw / 255), torch.float32)
    torch.testing.assert_close(from_bytes, from_floats)
    assert not torch.allclose(
        adapter.normalise(adapter.flatten(raw.float()), torch.float32), from_bytes
    )


def test_labels_are_one_hot_and_unknown_ones_are_zero() -> None:
    adapter = ElementAdapter("x", Labels(4, 2))
    tokens = adapter.normalise(adapter.flatten(torch.tensor([[0, 3], [-1, 1]])), torch.float32)
    assert tokens.tolist() == [[[1, 0, 0, 0], [0, 0, 0, 1]], [[0, 0, 0, 0], [0, 1, 0, 0]]]
    assert tokens.dtype == torch.float32
    assert adapter.restore(tokens).shape == (2, 2, 4)


def test_a_single_label_may_come_without_its_length_axis() -> None:
    adapter = ElementAdapter("x", Labels(4))
    labels = torch.tensor([2, 0, 1])
    assert torch.equal(adapter.flatten(labels), labels[:, None])
    assert torch.equal(adapter.flatten(labels[:, None]), labels[:, None])


def test_statistics_are_buffers_but_no_part_of_the_state() -> None:
    adapter = ElementAdapter("x", SPECS[0])
    assert not adapter.state_dict()
    assert torch.equal(adapter.double().mean, torch.tensor([0.4, 0.5, 0.6]).double())


@pytest.mark.parametrize(
    ("spec", "raw", "text"),
    [
        (
            Image(4, 6),
            torch.zeros(2, 3, 6, 4),
            r"input 'x' has shape \(2, 3, 6, 4\), but the model was built for \[B, 3, 4, 6\] "
            r"\(image\); resize the data",
        ),
        (Image(4, 6), torch.zeros(2, 4, 6, 3), r"has shape \(2, 4, 6, 3\)"),
        (Audio(5), torch.zeros(2, 5), r"has shape \(2, 5\), .* \[B, 1, 5\] \(audio\)"),
        (
            Image(4, 6),
            torch.zeros(2, 3, 4, 6, dtype=torch.int64),
            r"input 'x' has dtype torch\.int64; use float32, or uint8 \(0\.\.255\) or int16",
        ),
        (
            Labels(4, 2),
            torch.zeros(3, dtype=torch.int64),
            r"input 'x' has shape \(3,\); expected \[B, 2\]",
        ),
        (
            Labels(4),
            torch.zeros(3, 4, dtype=torch.int64),
            r"input 'x' has shape \(3, 4\); expected \[B, 1\]",
        ),
        (
            Labels(4),
            torch.zeros(3),
            r"input 'x' has dtype torch\.float32; labels are class indices \(int64\)",
        ),
    ],
)
def test_wrong_tensors_are_refused_with_their_values(
    spec: ModalitySpec, raw: Tensor, text: str
) -> None:
    with pytest.raises(InputError, match=text):
        ElementAdapter("x", spec).flatten(raw)


@pytest.mark.unhooked
def test_what_is_no_tensor_is_refused() -> None:
    raw: Any = [[1.0]]
    with pytest.raises(InputError, match=r"input 'x' is a list; it must be a tensor"):
        ElementAdapter("x", Audio(1)).flatten(raw)
