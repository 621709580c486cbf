"""One modality to tokens: positions per grid and per sample, projection, what is real."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.adapters.config import PositionConfig, TokenConfig
from perceivers.adapters.tokens import Positions, TokenReader, default_tokens
from perceivers.errors import ConfigError
from perceivers.nn.positions import fourier_features, grid_coordinates
from perceivers.types import Array, Audio, Bytes, Image, Labels, ModalitySpec, Points, Video

EXACT: Mapping[str, Any] = dict(rtol=0.0, atol=1e-12)
NAN = float("nan")
CLOUD = TokenConfig(
    content="coordinates",
    positions=PositionConfig(kind="fourier", num_bands=4, max_resolution=(8, 16, 32)),
)


def build_reader(spec: ModalitySpec, config: TokenConfig, rng: torch.Generator) -> TokenReader:
    reader = TokenReader("x", spec, config).double().eval()
    with torch.no_grad():
        for parameter in reader.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
    return reader


def draw(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


# -- positions -------------------------------------------------------------------------------


def test_grid_positions_are_fourier_features_of_the_grid_and_shared(rng: torch.Generator) -> None:
    positions = PositionConfig(kind="fourier", num_bands=3, max_resolution=(10, 20))
    reader = build_reader(Image(4, 5, 2), TokenConfig(positions=positions), rng)
    tokens = reader(draw(rng, 2, 2, 4, 5), torch.float64)
    assert tuple(tokens.shape) == (2, 20, 2 + 2 * (2 * 3 + 1))
    expected = fourier_features(grid_coordinates((4, 5)), 3, (10, 20)).double()
    for sample in tokens:
        torch.testing.assert_close(sample[:, 2:], expected, **EXACT)
    others = fourier_features(grid_coordinates((4, 5)), 3, (4, 5)).double()
    assert not torch.allclose(others, expected)


def test_points_bring_their_own_positions(rng: torch.Generator) -> None:
    reader = build_reader(Points(6, 4), CLOUD, rng)
    clouds = draw(rng, 2, 6, 4)
    tokens = reader(clouds, torch.float64)
    assert tuple(tokens.shape) == (2, 6, 1 + 3 * 9)
    for cloud, sample in zip(clouds, tokens, strict=True):
        expected = fourier_features(cloud[:, :3], 4, (8, 16, 32))
        torch.testing.assert_close(sample[:, 1:], expected, **EXACT)
        assert torch.equal(sample[:, :1], cloud[:, 3:])
    assert not torch.allclose(tokens[0], tokens[1])


def test_coordinates_stay_wide_when_weights_are_narrow(rng: torch.Generator) -> None:
    """Rounded to bf16 first, a coordinate would be off by many periods of the highest wave."""
    config = PositionConfig(kind="fourier", num_bands=8, max_resolution=(2240,) * 3)
    reader = TokenReader("x", Points(6), TokenConfig(content="coordinates", positions=config))
    cloud = torch.rand(1, 6, 3, generator=rng) * 2 - 1
    narrow = reader(cloud, torch.bfloat16)
    assert narrow.dtype == torch.bfloat16
    wide = reader(cloud, torch.float32)
    torch.testing.assert_close(narrow.float(), wide, rtol=0.0, atol=0.01)
    rounded = reader(cloud.bfloat16().float(), torch.float32)
    assert (rounded - wide).abs().max() > 0.5


def test_learned_positions_are_rows_of_a_table(rng: torch.Generator) -> None:
    positions = PositionConfig(kind="learned", dim=3)
    reader = build_reader(Array((2, 4), 2), TokenConfig(positions=positions), rng)
    tokens = reader(draw(rng, 2, 2, 4, 2), torch.float64)
    assert reader.positions is not None
    table = reader.positions.get_parameter("source.table")
    assert tuple(table.shape) == (8, 3)
    for sample in tokens:
        assert torch.equal(sample[:, 2:], table)


def test_positions_may_be_projected_and_refined(rng: torch.Generator) -> None:
    config = PositionConfig(kind="learned", dim=3, project=5, extra_layers=2)
    positions = Positions((4,), config).double()
    with torch.no_grad():
        for parameter in positions.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
    weights = dict(positions.named_parameters())
    x = F.linear(weights["source.table"], weights["project.weight"], weights["project.bias"])
    x = x + F.linear(x, weights["extra.0.weight"], weights["extra.0.bias"])
    x = F.relu(x)  # between the layers only
    x = x + F.linear(x, weights["extra.1.weight"], weights["extra.1.bias"])
    assert positions.dim == 5
    torch.testing.assert_close(positions(torch.float64)[0], x, **EXACT)


def test_positions_are_added_or_concatenated(rng: torch.Generator) -> None:
    raw = draw(rng, 2, 6, 3)
    found = {}
    for combine in ("add", "concat"):
        positions = PositionConfig(kind="learned", dim=3, combine=combine)
        reader = build_reader(Array((6,), 3), TokenConfig(positions=positions), rng)
        assert reader.positions is not None
        table = reader.positions.get_parameter("source.table")
        found[combine] = reader(raw, torch.float64)
        parts = raw + table if combine == "add" else torch.cat([raw, table.expand(2, -1, -1)], -1)
        torch.testing.assert_close(found[combine], parts, **EXACT)
        assert reader.dim == found[combine].shape[-1]
    assert found["add"].shape != found["concat"].shape


@pytest.mark.parametrize(
    ("setting", "width"),
    [({}, 14), ({"num_bands": 2}, 10), ({"sine_only": True}, 8), ({"keep_coordinates": False}, 12)],
)
def test_fourier_settings_change_the_width(setting: dict[str, Any], width: int) -> None:
    config = PositionConfig(**{"kind": "fourier", "num_bands": 3, **setting})
    positions = Positions((4, 5), config)
    assert positions.dim == width
    assert tuple(positions(torch.float32).shape) == (1, 20, width)


def test_positions_that_are_not_kept_take_no_memory_and_are_the_same() -> None:
    config = PositionConfig(kind="fourier", num_bands=3)
    kept, fresh = Positions((4, 5), config), Positions((4, 5), config, cached=False)
    assert (kept.is_cached, fresh.is_cached) == (True, False)
    assert not list(fresh.buffers())
    found = fresh.at_points(grid_coordinates((4, 5)), torch.float32)
    assert torch.equal(found, kept(torch.float32)[0])


# -- content and width -----------------------------------------------------------------------


def test_a_linear_maps_the_content_before_positions_join(rng: torch.Generator) -> None:
    config = TokenConfig(dim=6, positions=PositionConfig(kind="learned", dim=2))
    reader = build_reader(Array((4,), 3), config, rng)
    raw = draw(rng, 2, 4, 3)
    assert reader.linear is not None
    tokens = reader(raw, torch.float64)
    torch.testing.assert_close(tokens[..., :6], reader.linear(raw), **EXACT)
    assert reader.dim == 8


def test_labels_are_one_hot_tokens(rng: torch.Generator) -> None:
    reader = build_reader(Labels(4), TokenConfig(), rng)
    tokens = reader(torch.tensor([[2], [-1]]), torch.float64)
    assert tokens.tolist() == [[[0, 0, 1, 0]], [[0, 0, 0, 0]]]


@pytest.mark.parametrize(
    ("spec", "config", "grid"),
    [
        (Image(6, 4), TokenConfig(stride=(3, 2)), (2, 2)),
        (Video(2, 4, 4), TokenConfig(content="patches", patch=(2, 2, 2)), (1, 2, 2)),
        (Audio(12), TokenConfig(content="patches", patch=(4,)), (3,)),
        (Video(2, 4, 6), TokenConfig(content="frame_patches"), (4, 6)),
        (Image(8, 8), TokenConfig(content="conv", dim=4), (2, 2)),
    ],
)
def test_learned_positions_have_a_row_per_token_not_per_element(
    rng: torch.Generator, spec: ModalitySpec, config: TokenConfig, grid: tuple[int, ...]
) -> None:
    learned = replace(config, positions=PositionConfig(kind="learned", dim=2))
    reader = build_reader(spec, learned, rng)
    tokens = reader(draw(rng, 2, *spec.raw_shape), torch.float64)
    assert reader.grid == grid
    assert tuple(tokens.shape) == (2, reader.num_tokens, reader.dim)
    assert reader.positions is not None
    assert len(reader.positions.get_parameter("source.table")) == reader.num_tokens


# -- what is real ----------------------------------------------------------------------------


def test_padding_of_texts_and_absent_points_are_not_real(rng: torch.Generator) -> None:
    text = build_reader(Bytes(4), default_tokens(Bytes(4)), rng)
    assert text.real(torch.tensor([[9, 0, 1, 0]])).tolist() == [[True, False, True, False]]  # pyright: ignore[reportOptionalMemberAccess]
    clouds = draw(rng, 1, 3, 3)
    clouds[0, 1, 2] = NAN
    ragged = build_reader(Points(3, ragged=True), CLOUD, rng)
    real = ragged.real(clouds)
    assert real is not None
    assert real.tolist() == [[True, False, True]]
    assert torch.equal(ragged.cover(real), real)
    assert ragged(clouds, torch.float64).isfinite().all()
    assert build_reader(Points(3), CLOUD, rng).real(clouds) is None
    assert build_reader(Image(2, 2), TokenConfig(), rng).real(draw(rng, 1, 3, 2, 2)) is None


def test_strided_and_patched_clouds_know_which_tokens_are_real(rng: torch.Generator) -> None:
    spec = Points(6, 2, ragged=True)
    real = torch.tensor([[True, True, True, False, False, False]])
    strided = build_reader(spec, TokenConfig(stride=(2,)), rng)
    assert strided.cover(real).tolist() == [[True, True, False]]
    patched = build_reader(spec, TokenConfig(content="patches", patch=(2,)), rng)
    assert patched.cover(real).tolist() == [[True, True, False]]


def test_what_absent_points_hold_besides_nan_does_not_reach_tokens(rng: torch.Generator) -> None:
    reader = build_reader(Points(4, 5, ragged=True), CLOUD, rng)
    clouds = draw(rng, 1, 4, 5)
    clouds[0, 2, 0] = NAN
    expected = reader(clouds, torch.float64)
    clouds[0, 2, 1:] = draw(rng, 4)
    assert torch.equal(reader(clouds, torch.float64), expected)
    clouds[0, 1, 1:] = draw(rng, 4)
    assert not torch.equal(reader(clouds, torch.float64), expected)


# -- defaults and refusals -------------------------------------------------------------------

DEFAULTS: list[tuple[ModalitySpec, str, tuple[int, ...]]] = [
    (Image(8, 8), "elements", (8, 8)),
    (Array((4, 3), 2), "elements", (4, 3)),
    (Audio(48), "patches", (3,)),
    (Audio(50), "elements", (50,)),  # no multiple of 16
    (Video(2, 8, 12), "patches", (2, 2, 3)),
    (Video(2, 8, 10), "elements", (2, 8, 10)),
    (Points(7, 5), "coordinates", (7,)),
    (Points(7, 2), "coordinates", (7,)),
    (Labels(4, 2), "elements", (2,)),
    (Bytes(9), "embedding", (9,)),
]


@pytest.mark.parametrize(("spec", "content", "grid"), DEFAULTS, ids=str)
def test_every_modality_is_read_when_nothing_is_said(
    rng: torch.Generator, spec: ModalitySpec, content: str, grid: tuple[int, ...]
) -> None:
    config = default_tokens(spec)
    reader = build_reader(spec, config, rng)
    assert (config.content, reader.grid) == (content, grid)
    indexed = spec.kind in {"labels", "bytes"}
    raw = torch.ones(2, *spec.raw_shape, dtype=torch.int64) if indexed else None
    tokens = reader(draw(rng, 2, *spec.raw_shape) if raw is None else raw, torch.float64)
    assert tuple(tokens.shape) == (2, reader.num_tokens, reader.dim)


BAD: list[tuple[ModalitySpec, TokenConfig, str]] = [
    (
        Array((5,), 3),
        TokenConfig(positions=PositionConfig(kind="learned", dim=4, combine="add")),
        r"input 'x': positions of 4 channels cannot be added to content of 3; project them",
    ),
    (
        Points(5),
        replace(CLOUD, dim=8),
        r"input 'x': dim=8 projects the channels of a point besides its coordinates, but there",
    ),
    (
        Image(4, 4),
        TokenConfig(positions=PositionConfig(kind="fourier", max_resolution=(8,))),
        r"max_resolution=\(8,\) for 2 axes; .* one length per",
    ),
    (
        Points(5),
        TokenConfig(content="coordinates", positions=PositionConfig(kind="fourier")),
        r"max_resolution=None for 3 axes; .*no grid to take it",
    ),
]


@pytest.mark.parametrize(("spec", "config", "text"), BAD)
def test_widths_that_do_not_fit_are_refused(
    spec: ModalitySpec, config: TokenConfig, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        TokenReader("x", spec, config)
