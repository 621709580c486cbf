"""Settings: one config for Python, YAML and flags; mistakes are named."""

from pathlib import Path
from typing import Any

import pytest

from perceivers.errors import ConfigError, RunError
from perceivers.training.config import (
    ClassifyConfig,
    OptimizerConfig,
    PretrainConfig,
    build_config,
    read_yaml,
)
from perceivers.training.run_folder import TASKS, RunFolder

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
        ({"ema": 1.5}, r"ema is 1\.5; it must be in \[0, 1\)"),
        (
            {"optimizer": {"lr": 0.0}},
            r"optimizer\.lr is 0\.0; it must be positive \(default 0\.001",
        ),
        ({"mask": {"ratio": 1.0}}, r"mask\.ratio is 1\.0; it must be in \(0, 1\)"),
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


# A setting of every task that is not the default, as a file would hold it.
CHANGES: dict[str, dict[str, Any]] = {
    "pretrain": {"mask": {"ratio": 0.5}},
    "mlm": {"mlm": {"unit": "byte", "ratio": 0.3}},
    "autoencode": {"autoencode": {"points": 7, "weights": {"video": 0.5}}},
    "classify": {"head": "mean", "loss": {"mixup": 0.2}},
    "multilabel": {"multilabel": {"input_dropout": {"video": 0.3}}, "labels": ["a", "b"]},
    "multitask": {"label_smoothing": 0.1},
    "flow": {
        "flow": {"kind": "l1", "scale": 3.0},
        "data": "warps:/x",
        "max_flow": 2.0,
        "repeats": 2,
    },
    "segment": {"head": "full", "segment": {"ignore": 3, "class_weights": "balanced"}},
    "regress": {"targets": ["age"], "head": "mean", "regress": {"loss": "huber", "delta": 0.5}},
}


@pytest.mark.parametrize("task", TASKS)
def test_a_run_folder_gives_back_the_config_of_its_task(tmp_path: Path, task: str) -> None:
    given = {"inputs": {"video": {"frames": 2}}, "modalities": ["video"], "ema": 0.5}
    settings = {**BASE, "out": str(tmp_path / "run"), **given, **CHANGES[task]}
    config = build_config(TASKS[task], settings)
    assert config != build_config(TASKS[task], {**BASE, "out": settings["out"], **given})
    folder = RunFolder(tmp_path / "run")
    folder.create(task, config)
    assert folder.read_config() == (task, config)
    (tmp_path / "run" / "config.yaml").write_text("task: [mlm]\n")
    with pytest.raises(RunError, match=r"task is \['mlm'\]; expected one of"):
        folder.read_config()


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("mlm", {"mlm": {"ration": 0.3}}, r"unknown setting mlm\.ration; did you mean 'ratio'\?"),
        ("mlm", {"mlm": {"ratio": 0}}, r"mlm\.ratio is 0\.0; it must be in \(0, 1\)"),
        (
            "mlm",
            {"mlm": 3},
            r"setting mlm is 3; it must hold settings of its own \(ratio, train_ratio",
        ),
        ("mlm", {"mlm": {"unit": "x"}}, r"unit"),
        (
            "autoencode",
            {"autoencode": {"points": -1}},
            r"autoencode\.points is -1; it must not be neg",
        ),
        ("autoencode", {"mlm": {}}, r"unknown setting mlm .*AutoencodeConfig has model, data"),
        (
            "multilabel",
            {"multilabel": {"input_dropout": {"a": 2.0}}},
            r"\['a'\] is 2\.0; it must be in",
        ),
        ("multitask", {"label_smoothing": -0.1}, r"label_smoothing is -0\.1; it must be in"),
        ("multitask", {"steps": 0}, r"steps is 0; it must be at least 1"),
        ("flow", {"flow": {"scale": -1.0}}, r"flow\.scale is -1\.0; it must be positive"),
        ("flow", {"inputs": {"video": 3}}, r"inputs"),
        ("classify", {"labels": "topic"}, r"labels"),
    ],
)
def test_a_wrong_setting_of_a_task_is_named(
    task: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(TASKS[task], {**BASE, **changes})
