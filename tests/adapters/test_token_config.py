"""Token and position settings: every refusal, nested plain data, single changed fields."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from perceivers.adapters.config import (
    PositionConfig,
    TokenConfig,
    build_nested,
    change_fields,
    covered_grid,
)
from perceivers.errors import ConfigError
from perceivers.types import Image, Video

FOURIER = PositionConfig(kind="fourier", num_bands=4, max_resolution=(8, 8), sine_only=True)

BAD_POSITIONS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "fourier", "num_bands": 0}, r"positions\.num_bands is 0; it must be at least 1"),
    ({"kind": "learned"}, r"positions\.dim is 0; learned positions need it to be at"),
    ({"kind": "fourier", "project": -1}, r"project is -1; it must not be negative"),
    ({"kind": "fourier", "extra_layers": -2}, r"extra_layers is -2; it must not be negative"),
    (
        {"kind": "fourier", "dim": 3},
        r"positions\.dim=3 has no effect with positions\.kind='fourier'",
    ),
    ({"kind": "learned", "dim": 3, "num_bands": 8}, r"num_bands=8 has no effect with .*'learned'"),
    ({"kind": "learned", "dim": 3, "sine_only": True}, r"sine_only=True has no effect with"),
    ({"project": 8}, r"project=8 has no effect with positions\.kind='none'; leave it out"),
]
BAD_TOKENS: list[tuple[dict[str, Any], str]] = [
    ({"stride": (2, 0)}, r"tokens\.stride\[1\] is 0; it must be at least 1"),
    ({"content": "patches"}, r"content 'patches' with patch=\(\); patches need a patch size"),
    ({"patch": (2,)}, r"content 'elements' with patch=\(2,\); .*the others take none"),
    ({"content": "conv"}, r"token content 'conv' needs dim of at least 1"),
    ({"content": "embedding"}, r"token content 'embedding' needs dim of at least 1"),
    ({"dim": -1}, r"tokens\.dim is -1; it must not be negative"),
    ({"num_convs": 0}, r"num_convs is 0; it must be at least 1"),
    ({"mask_rate": 1.5}, r"tokens\.mask_rate is 1\.5; it must be in \[0, 1\]"),
    ({"content": "coordinates"}, r"token content 'coordinates' needs Fourier positions"),
    (
        {"content": "patches", "patch": (2,), "stride": (2,)},
        r"tokens\.stride=\(2,\) has no effect with tokens\.content='patches'; leave it out",
    ),
    ({"num_convs": 2}, r"tokens\.num_convs=2 has no effect with tokens\.content='elements'"),
    ({"padding": "hf"}, r"tokens\.padding='hf' has no effect with tokens\.content='elements'"),
    ({"batch_norm": False}, r"batch_norm=False has no effect with"),
    ({"contrast": 3}, r"contrast=3 has no effect with"),
    ({"content": "conv", "dim": 2, "contrast": 4}, r"tokens\.contrast is 4; it must be odd"),
    ({"content": "conv", "dim": 2, "contrast": -1}, r"tokens\.contrast is -1; it must not be"),
]


@pytest.mark.parametrize(
    ("content", "grid"),
    [("frame_patches", (4, 6)), ("conv", (4, 6)), ("elements", (2, 4, 6))],
)
def test_tokens_that_hold_both_frames_lie_over_one(content: Any, grid: tuple[int, ...]) -> None:
    config = TokenConfig(content=content, dim=3)
    assert covered_grid(Video(2, 4, 6), config) == grid
    assert covered_grid(Image(4, 6), TokenConfig(content="conv", dim=3)) == (4, 6)


@pytest.mark.parametrize(("settings", "text"), BAD_POSITIONS)
def test_contradictory_positions_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build_nested(PositionConfig, settings)


@pytest.mark.parametrize(("settings", "text"), BAD_TOKENS)
def test_contradictory_tokens_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build_nested(TokenConfig, settings)


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("kind", "settings", "text"),
    [
        (PositionConfig, {"kind": "fourrier"}, r"kind is 'fourrier'; .*did you mean 'fourier'\?"),
        (PositionConfig, {"combine": "sum"}, r"combine is 'sum'; choose from \['concat', 'add'\]"),
        (TokenConfig, {"content": "patch"}, r"content is 'patch'; .*did you mean 'patches'\?"),
        (TokenConfig, {"padding": "valid"}, r"padding is 'valid'; choose from \['same', 'hf'\]"),
    ],
)
def test_unknown_choices_are_refused_with_the_nearest(
    kind: type, settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        build_nested(kind, settings)


def test_plain_data_restores_a_nested_config() -> None:
    config = TokenConfig(content="patches", patch=(2, 2), dim=7, positions=FOURIER, mask_rate=0.5)
    data = json.loads(json.dumps(asdict(config)))
    assert build_nested(TokenConfig, data) == config
    data["positions"]["num_bands"] = 5
    assert build_nested(TokenConfig, data) != config
    assert build_nested(TokenConfig, config) is config


def test_unknown_settings_are_named_at_any_depth() -> None:
    with pytest.raises(
        ConfigError, match=r"PositionConfig has no setting 'bands'; its settings are .*num_bands"
    ):
        build_nested(TokenConfig, {"positions": {"bands": 3}})
    with pytest.raises(ConfigError, match=r"TokenConfig has no setting 'strides'.*'stride'\?"):
        build_nested(TokenConfig, {"strides": [2]})
    with pytest.raises(ConfigError, match=r"PositionConfig needs settings by name, got 'fourier'"):
        build_nested(TokenConfig, {"positions": "fourier"})


def test_single_fields_may_be_changed() -> None:
    config = TokenConfig(dim=3, positions=FOURIER)
    changed = change_fields(config, {"dim": 4})
    assert (changed.dim, changed.positions, config.dim) == (4, FOURIER, 3)
    with pytest.raises(ConfigError, match=r"no setting 'dims'.*did you mean 'dim'\?"):
        change_fields(config, {"dims": 4})
