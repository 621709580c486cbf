"""Contents: the convolutional stem against a plain reference, patches, strides, rows, points."""

from math import inf

import numpy as np
import pytest
import torch
from torch import Tensor

from perceivers.adapters.config import PositionConfig, TokenConfig
from perceivers.adapters.elements import is_point
from perceivers.adapters.tokens import ConvStem, make_content, pad_same
from perceivers.errors import ConfigError
from perceivers.types import Audio, Bytes, Image, ModalitySpec, Points, Video

POINTS = PositionConfig(kind="fourier", num_bands=2, max_resolution=(8, 8, 8))


def slide(x: np.ndarray, kernel: int, outside: float) -> np.ndarray:
    """All windows of a picture ``[C, H, W]`` at stride 2 under SAME: ``[h, w, C, k, k]``."""
    sizes = [-(-n // 2) for n in x.shape[1:]]
    total = [max((m - 1) * 2 + kernel - n, 0) for m, n in zip(sizes, x.shape[1:], strict=True)]
    first = [t // 2 for t in total]
    out = np.full((*sizes, x.shape[0], kernel, kernel), outside)
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            for a in range(kernel):
                for b in range(kernel):
                    row, column = 2 * i + a - first[0], 2 * j + b - first[1]
                    if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                        out[i, j, :, a, b] = x[:, row, column]
    return out


def reference_stem(x: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """Convolve, rectify and pool a picture ``[C, H, W]`` once per weight."""
    for weight in weights:
        x = np.einsum("hwcab,dcab->dhw", slide(x, 7, 0.0), weight)
        x = slide(np.maximum(x, 0.0), 3, -inf).max((3, 4)).transpose(2, 0, 1)
    return x


def build_stem(height: int, width: int, convs: int = 1, **settings: bool | str) -> ConvStem:
    config = TokenConfig(content="conv", dim=3, num_convs=convs, **settings)  # pyright: ignore[reportArgumentType]
    stem = make_content(Image(height, width, 2), config)
    assert isinstance(stem, ConvStem)
    return stem.double()


@pytest.mark.parametrize(
    ("height", "width", "convs", "grid"),
    [(16, 12, 1, (4, 3)), (9, 7, 1, (3, 2)), (13, 8, 1, (4, 2)), (16, 21, 2, (1, 2))],
)
def test_the_stem_pads_as_tensorflow_does(
    rng: torch.Generator, height: int, width: int, convs: int, grid: tuple[int, int]
) -> None:
    stem = build_stem(height, width, convs, batch_norm=False)
    x = torch.randn(1, height * width, 2, generator=rng, dtype=torch.float64)
    ours = stem(x)
    assert stem.grid == grid
    picture = x[0].T.reshape(2, height, width).numpy()
    weights = [conv.weight.detach().numpy() for conv in stem.convs]  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    expected = torch.from_numpy(reference_stem(picture, weights)).flatten(1).T.unsqueeze(0)
    torch.testing.assert_close(ours, expected, rtol=0.0, atol=1e-12)
    other = build_stem(height, width, convs, batch_norm=False)
    assert not torch.allclose(other(x), ours)


def test_padding_of_even_sizes_is_uneven() -> None:
    """2 before and 3 after the convolution, none before and 1 after the pooling."""
    conv = pad_same(torch.ones(1, 1, 8, 9), 7, 0.0)
    assert tuple(conv.shape) == (1, 1, 13, 15)
    assert conv[0, 0, :, 4].tolist() == [0, 0, *[1] * 8, 0, 0, 0]
    assert conv[0, 0, 4].tolist() == [0, 0, 0, *[1] * 9, 0, 0, 0]
    pool = pad_same(torch.ones(1, 1, 8, 9), 3, -inf)
    assert pool[0, 0, :, 4].tolist() == [*[1] * 8, -inf]
    assert pool[0, 0, 4].tolist() == [-inf, *[1] * 9, -inf]


@pytest.mark.parametrize(("padding", "side"), [("same", 56), ("hf", 55)])
def test_both_paddings_have_the_grid_of_their_release(padding: str, side: int) -> None:
    stem = build_stem(224, 224, padding=padding)
    assert stem.grid == (side, side)
    out = stem.float()(torch.rand(1, 224 * 224, 2))
    assert tuple(out.shape) == (1, side * side, 3)


def test_the_port_s_padding_is_torch_s_own(rng: torch.Generator) -> None:
    stem = build_stem(14, 12, padding="hf", batch_norm=False)
    x = torch.randn(2, 14 * 12, 2, generator=rng, dtype=torch.float64)
    weight = next(stem.convs.parameters())
    y = torch.conv2d(x.transpose(1, 2).unflatten(2, (14, 12)), weight, stride=2, padding=3)
    y = torch.max_pool2d(y.relu(), 3, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(stem(x), y, rtol=0.0, atol=1e-12)
    same = build_stem(14, 12, batch_norm=False)
    same.load_state_dict(stem.state_dict())
    assert same(x).shape != y.shape


def test_batch_norm_uses_the_batch_in_training_and_what_it_remembers_later(
    rng: torch.Generator,
) -> None:
    stem = build_stem(8, 8)
    x = torch.randn(4, 64, 2, generator=rng, dtype=torch.float64)
    fresh = stem.eval()(x)
    trained = stem.train()(x)
    assert not torch.allclose(trained, fresh)
    assert not torch.allclose(stem.eval()(x), fresh)  # running statistics have moved by a tenth
    norm = stem.norms[0]
    assert isinstance(norm, torch.nn.BatchNorm2d)
    assert (norm.momentum, norm.eps) == (0.1, 1e-5)
    assert not list(build_stem(8, 8, batch_norm=False).norms.parameters())


def test_two_frames_are_a_picture_of_twice_the_channels(rng: torch.Generator) -> None:
    config = TokenConfig(content="conv", dim=3)
    pair = make_content(Video(2, 8, 12, 2), config).double()
    picture = make_content(Image(8, 12, 4), config).double()
    picture.load_state_dict(pair.state_dict())
    frames = torch.randn(1, 2, 2, 96, generator=rng, dtype=torch.float64)  # [B, C, T, H W]
    tokens = pair(frames.flatten(2).transpose(1, 2))
    assert pair.grid == picture.grid == (2, 3)
    assert torch.equal(tokens, picture(frames.flatten(1, 2).transpose(1, 2)))
    swapped = frames.flip(2).flatten(2).transpose(1, 2)
    assert not torch.allclose(tokens, pair(swapped))


def test_contrast_leaves_the_light_out_frame_by_frame(rng: torch.Generator) -> None:
    plain, contrast = (
        make_content(Video(2, 8, 8, 1), TokenConfig(content="conv", dim=3, contrast=n)).double()
        for n in (0, 3)
    )
    contrast.load_state_dict(plain.state_dict())
    frames = torch.randn(1, 2, 8, 8, generator=rng, dtype=torch.float64)
    brighter = frames + torch.tensor([0.5, -2.0], dtype=torch.float64).view(2, 1, 1)
    before, after = (x.reshape(1, 128, 1) for x in (frames, brighter))
    torch.testing.assert_close(contrast(before), contrast(after))
    assert not torch.allclose(plain(before), plain(after))
    # By hand: the square of a corner holds four pixels, that of an inner one nine.
    less = frames.clone()
    for frame, row, column in np.ndindex(2, 8, 8):
        rows, columns = slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2)
        less[0, frame, row, column] -= frames[0, frame, rows, columns].mean()
    torch.testing.assert_close(contrast(before), plain(less.reshape(1, 128, 1)))


def test_elements_are_kept_by_their_stride() -> None:
    content = make_content(Image(3, 5, 1), TokenConfig(stride=(2, 2)))
    assert content.grid == (2, 3)
    cells = torch.arange(15.0).reshape(1, 15, 1)
    assert content(cells)[0, :, 0].tolist() == [0, 2, 4, 10, 12, 14]
    whole = make_content(Image(3, 5, 1), TokenConfig())
    assert torch.equal(whole(cells), cells)


def test_a_patch_holds_its_elements_channels_fastest() -> None:
    content = make_content(Video(2, 2, 4, 2), TokenConfig(content="patches", patch=(2, 1, 2)))
    assert (content.grid, content.dim) == ((1, 2, 2), 8)
    values = torch.arange(2 * 2 * 4.0)  # one number per element, its channels tell themselves apart
    tokens = content(torch.stack([values, -values], -1).unsqueeze(0))
    assert tokens[0, 1].tolist() == [2, -2, 3, -3, 10, -10, 11, -11]


def test_frame_patches_are_windows_of_both_frames(rng: torch.Generator) -> None:
    content = make_content(Video(2, 3, 4, 1), TokenConfig(content="frame_patches"))
    assert (content.grid, content.dim) == ((3, 4), 18)
    frames = torch.randn(1, 24, 1, generator=rng)
    centre = content(frames)[0, 5]  # row 1, column 1
    first = frames[0, :12, 0].reshape(3, 4)[0:3, 0:3].flatten()
    second = frames[0, 12:, 0].reshape(3, 4)[0:3, 0:3].flatten()
    assert torch.equal(centre, torch.cat([first, second]))
    assert not content(frames)[0, 0, :3].any()  # beyond the first row there are zeros


def test_bytes_look_their_rows_up() -> None:
    content = make_content(Bytes(4), TokenConfig(content="embedding", dim=5))
    rows = content.get_parameter("rows.weight")
    assert tuple(rows.shape) == (262, 5)
    ids = torch.tensor([[0, 261, 7, 7]])
    assert torch.equal(content(ids)[0], rows[ids[0]])
    short = torch.tensor([[0, 255, 7, 7]], dtype=torch.uint8)
    assert torch.equal(content(short)[0], rows[short[0].long()])


def test_coordinates_leave_the_other_channels_as_content() -> None:
    config = TokenConfig(content="coordinates", positions=POINTS)
    values = torch.arange(10.0).reshape(1, 2, 5)
    content = make_content(Points(2, 5), config)
    assert content(values)[0].tolist() == [[3, 4], [8, 9]]
    assert make_content(Points(2, 3), config).dim == 0


def test_a_row_with_any_nan_is_no_point() -> None:
    nan = float("nan")
    values = torch.tensor([[[0.0, 1.0], [nan, 1.0], [nan, nan], [inf, 0.0]]])
    assert is_point(values).tolist() == [[True, False, False, True]]


REFUSED: list[tuple[ModalitySpec, TokenConfig, str]] = [
    (Image(4, 4), TokenConfig(stride=(2,)), r"token stride=\(2,\) has 1 sizes for a image"),
    (
        Audio(10),
        TokenConfig(content="patches", patch=(4,)),
        r"a audio of \(10,\) cannot be cut into patches of \(4,\): 10 is not a multiple of 4",
    ),
    (
        Image(4, 4),
        TokenConfig(content="patches", patch=(4,)),
        r"token patch=\(4,\) has 1 sizes for a image of \(4, 4\); give one per axis",
    ),
    (
        Video(3, 4, 4),
        TokenConfig(content="frame_patches"),
        r"content 'frame_patches' needs a video of 2 frames, not Video\(frames=3",
    ),
    (
        Audio(64),
        TokenConfig(content="conv", dim=4),
        r"a convolutional stem reads images and videos of 2 frames, not audio",
    ),
    (
        Video(3, 8, 8),
        TokenConfig(content="conv", dim=4),
        r"content 'conv' needs a video of 2 frames, not Video\(frames=3",
    ),
    (
        Image(4, 4),
        TokenConfig(content="conv", dim=4, num_convs=3, padding="hf"),
        r"an image of \(4, 4\) is too small for 3 convs",
    ),
    (
        Image(4, 4),
        TokenConfig(content="embedding", dim=4),
        r"an embedding reads bytes, not image",
    ),
    (Bytes(4), TokenConfig(), r"bytes are embedded; use token content 'embedding'"),
    (
        Points(4, 2),
        TokenConfig(content="coordinates", positions=POINTS),
        r"coordinates need points with at least 3 channels, not Points\(points=4, channels=2",
    ),
    (
        Image(4, 4),
        TokenConfig(content="coordinates", positions=POINTS),
        r"coordinates need points .*not Image\(height=4",
    ),
]


@pytest.mark.parametrize(("spec", "config", "text"), REFUSED)
def test_contents_that_do_not_fit_are_refused(
    spec: ModalitySpec, config: TokenConfig, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        make_content(spec, config)


def test_a_stem_keeps_samples_apart(rng: torch.Generator) -> None:
    stem = build_stem(8, 8).eval()
    x: Tensor = torch.randn(3, 64, 2, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(stem(x)[1:2], stem(x[1:2]), rtol=0.0, atol=1e-12)
    assert not torch.allclose(stem(x)[1:2], stem(x[:1]))
