"""Settings: one config for Python, YAML and flags; mistakes are named."""

from pathlib import Path
from typing import Any

import pytest

from perceivers.errors import ConfigError
from perceivers.training.config import (
    ClassifyConfig,
    OptimizerConfig,
    PretrainConfig,
    build_config,
    read_yaml,
)

BASE: dict[str, Any] = {"model": "hip_nano", "data": "digits", "out": "runs/x"}


def test_a_config_survives_the_round_trip_through_plain_data() -> None:
    config = build_config(
        PretrainConfig,
        {**BASE, "optimizer": {"name": "lamb", "lr": 0.5}, "mask": {"kind": "uniform"}},
    )
    again = build_config(PretrainConfig, config.to_json())
    assert again == config
    assert again != build_config(PretrainConfig, BASE)


def test_nested_settings_may_be_config_objects() -> None:
    config = build_config(ClassifyConfig, {**BASE, "optimizer": OptimizerConfig(lr=0.25)})
    assert config.optimizer.lr == 0.25


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stpes": 3}, r"unknown setting stpes; did you mean 'steps'\?"),
        ({"mask": {"ration": 0.5}}, r"unknown setting mask\.ration; did you mean 'ratio'\?"),
        ({"steps": "many"}, r"steps"),
        ({"steps": 0}, r"steps is 0; it must be at least 1"),
        ({"batch_size": 6, "accumulate": 4}, r"batch_size=6 does not divide into accumulate=4"),
        ({"ema": 1.5}, r"ema is 1\.5; it must be in \[0, 1\]"),
        ({"optimizer": {"lr": 0.0}}, r"optimizer\.lr=0\.0 and .* must be positive"),
        ({"mask": {"ratio": 1.0}}, r"mask ratio is 1\.0; it must lie strictly between 0 and 1"),
        ({"minutes": -1.0}, r"minutes is -1\.0; it must not be negative"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(PretrainConfig, {**BASE, **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n- b\n", "must hold 'setting: value' lines, found list"), ("a: [", "not readable YAML")],
)
def test_a_yaml_file_must_be_a_mapping(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_yaml(path)
