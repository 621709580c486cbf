"""Small real runs: a model of a few thousand parameters on the built-in digits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perceivers.training.config import PretrainConfig, build_config

Settings = Callable[..., dict[str, Any]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return settings of a run that takes well under a second."""

    def make(**changes: Any) -> dict[str, Any]:
        return {
            "model": "hip_nano",
            "data": "digits",
            "out": str(tmp_path / "run"),
            "steps": 8,
            "batch_size": 8,
            "log_every": 2,
            "eval_every": 4,
            "checkpoint_every": 4,
            "device": "cpu",
            **changes,
        }

    return make


@pytest.fixture
def config(settings: Settings) -> PretrainConfig:
    """Return the same as a config."""
    return build_config(PretrainConfig, settings())
