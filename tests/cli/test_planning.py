"""The verb plan."""

import json
from pathlib import Path

import pytest

from perceivers.cli.main import main
from perceivers.workflows.planning import scaled

INPUTS = '{"image": {"height": 16, "width": 16, "channels": 1}}'


def test_a_plan_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    words = ["plan", "--model", "hip_nano", "--inputs", INPUTS, "--batch_size", "4"]
    words += ["--samples", "1e6", "--epochs", "3", "--device", "a100", "--hourly_cost", "2"]
    assert main([*words, "--sample_bytes", "1000", "--json", str(path)]) == 0
    text = capsys.readouterr().out
    for word in (
        "image",
        "parameters",
        "largest batch",
        "109 TFLOP/s",
        "3,000,000 samples",
        "cost",
    ):
        assert word in text
    plan = json.loads(path.read_text())
    assert plan["duration"]["steps"] == 750_000
    assert plan["duration"]["storage"] == 1e9
    assert plan["tokens"] == [{"name": "image", "elements": 256, "tokens": 256, "groups": 4}]


@pytest.mark.slow
def test_a_recipe_is_planned_and_flags_win(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "task: pretrain\nmodel: hip_nano\ndata: digits\nbatch_size: 64\nsteps: 30\nema: 0.9\n"
    )
    assert main(["plan", "--recipe", str(recipe), "--batch_size", "8"]) == 0
    text = capsys.readouterr().out
    assert "240 samples, 30 steps" in text


def test_mistakes_are_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 2
    assert "required: --model" in capsys.readouterr().err
    assert main(["plan", "--model", "hip_nano", "--inputs", INPUTS, "--device", "h1"]) == 2
    assert "'h1' is not in the table" in capsys.readouterr().err
    assert main(["plan", "--model", "hip_nano", "--batchsize", "3"]) == 2


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--model", "hip_nano", "--inputs", INPUTS, "--memory", "0.01"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "too much; use --accumulate" in text


def test_numbers_are_short() -> None:
    assert scaled(0.0, "B") == "0 B"
    assert scaled(999.0, "B") == "999 B"
    assert scaled(1.5e9, "B") == "1.5 GB"
    assert scaled(346e12, "FLOP/s") == "346 TFLOP/s"
    assert scaled(2e22, "FLOP") == "2e+04 EFLOP"
