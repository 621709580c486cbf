"""The verbs on every task: flags, files of settings, what is printed and written."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.cli.conftest import Outcome
from tests.workflows import making

import perceivers as pv
from perceivers.cli.training import peek

Call = Callable[..., Outcome]
quick = pytest.mark.usefixtures("without_report")
RUNS = {
    "mlm_run": "pretrain",
    "clip_run": "pretrain",
    "picture_run": "pretrain",
    "text_run": "train",
    "multilabel_run": "train",
    "multitask_run": "train",
    "flow_run": "train",
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.slow
@quick
@pytest.mark.parametrize(("name", "verb"), RUNS.items())
def test_the_config_of_a_run_of_any_task_can_be_given_back(
    call: Call, request: pytest.FixtureRequest, tmp_path: Path, name: str, verb: str
) -> None:
    run: pv.Run = request.getfixturevalue(name)
    argv = ["--config", run.folder.config, "--out", tmp_path / "again", "--quiet"]
    outcome = call(verb, *argv)
    assert outcome.code == 0, outcome.err
    again = pv.Run(tmp_path / "again")
    assert again.task == run.task
    assert again.config.to_json() == {**run.config.to_json(), "out": str(tmp_path / "again")}
    assert same(again.path / "last", run.path / "last")


@pytest.mark.slow
@quick
@pytest.mark.parametrize("form", ["apart", "joined"])
def test_the_task_in_a_file_of_settings_decides_which_flags_there_are(
    call: Call, made: Path, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({"task": "multitask", "model": making.NANO, "steps": 9}))
    given = ["--config", path] if form == "apart" else [f"--config={path}"]
    argv = ["train", *given, "--data", made / "texts.csv", "--labels", '["topic", "mood"]']
    argv += ["--label_smoothing", "0.2", "--inputs", '{"bytes": {"length": 32}}', "--device", "cpu"]
    argv += ["--limit", "1", "--batch_size", "4", "--out", tmp_path / "run", "--quiet"]
    outcome = call(*argv)
    assert outcome.code == 0, outcome.err
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert settings["task"] == "multitask"
    assert settings["label_smoothing"] == 0.2
    assert settings["steps"] == 9


def test_a_task_is_found_before_the_settings_are_parsed(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("task: flow\nsteps: 3\n")
    assert peek(["--task", "mlm"], "task") == "mlm"
    assert peek(["--task=mlm"], "task") == "mlm"
    assert peek(["--config", str(path)], "task") == "flow"
    assert peek([f"--config={path}"], "task") == "flow"
    assert peek([f"--config={path}", "--task", "mlm"], "task") == "mlm"
    assert peek(["--task=mlm", f"--config={path}"], "task") == "flow"  # the later one, as parsed
    assert peek(["--steps", "3"], "task") is None
    assert peek(["--task"], "task") is None
    assert peek(["--task=", "--model", "x"], "task") is None
    assert peek(["--task_", "x"], "task") is None
    assert peek([f"--config={path}"], "model") is None


@pytest.mark.parametrize(
    ("verb", "task", "flag"),
    [
        ("pretrain", "pretrain", "--mask.ratio"),
        ("pretrain", "mlm", "--mlm.unit"),
        ("pretrain", "autoencode", "--autoencode.points"),
        ("train", "classify", "--loss.mixup"),
        ("train", "multilabel", "--multilabel.input_dropout"),
        ("finetune", "multitask", "--label_smoothing"),
        ("train", "flow", "--max_flow"),
    ],
)
def test_help_shows_the_settings_of_the_task(call: Call, verb: str, task: str, flag: str) -> None:
    outcome = call(verb, "--task", task, "--help")
    assert outcome.code == 0
    assert flag in outcome.out
    assert f"those of '{task}'" in " ".join(outcome.out.split())
    assert "--autoencode.loss" in call("pretrain", "--model", making.NANO, "--help").out


@pytest.mark.parametrize(("verb", "task"), [("pretrain", "mlm"), ("train", "flow")])
def test_printed_settings_of_a_task_can_be_fed_back(
    call: Call, tmp_path: Path, verb: str, task: str
) -> None:
    argv = [verb, "--task", task, "--model", "x", "--data", "y", "--out", tmp_path / "run"]
    printed = call(*argv, "--steps", "7", "--print_config")
    assert printed.code == 0
    path = tmp_path / "x.yaml"
    path.write_text(printed.out)
    again = call(verb, "--config", path, "--print_config")
    assert again.out == printed.out
    assert yaml.safe_load(again.out)["task"] == task


# -- training --------------------------------------------------------------------------------------


@quick
def test_a_run_of_masked_bytes_says_what_it_does(call: Call, made: Path, tmp_path: Path) -> None:
    argv = ["pretrain", "--task", "mlm", "--model", making.NANO, "--data", made / "texts.csv"]
    argv += ["--inputs.bytes", '{"length": 32}', "--mlm.ratio", "0.3", "--limit", "1"]
    argv += ["--batch_size", "4", "--device", "cpu", "--out", tmp_path / "run"]
    outcome = call(*argv)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"run: {tmp_path / 'run'}\n")
    assert "pre-training step 1: loss" in outcome.err
    assert "bits_per_byte" in outcome.err
    assert pv.Run(tmp_path / "run").config.mlm.ratio == 0.3  # pyright: ignore[reportAttributeAccessIssue]
    resumed = call("resume", tmp_path / "run", "--quiet")
    assert resumed.code == 0
    assert resumed.err == ""


@quick
def test_a_run_of_masked_bytes_is_fine_tuned(
    call: Call, made: Path, mlm_run: pv.Run, tmp_path: Path
) -> None:
    argv = ["finetune", "--task", "multitask", "--model", mlm_run.path, "--device", "cpu"]
    argv += ["--data", f"{made / 'topics.csv'} + {made / 'moods.csv'}", "--out", tmp_path / "run"]
    outcome = call(*argv, "--limit", "1", "--batch_size", "4")
    assert outcome.code == 0, outcome.err
    assert "tensors copied" in outcome.err
    assert "top1/moods" in outcome.err


# -- using -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlm_run", "clip_run", "multilabel_run", "flow_run"])
def test_figures_are_printed_and_the_report_is_written(
    call: Call, request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    run = pv.Run(shutil.copytree(request.getfixturevalue(name).path, tmp_path / "run"))
    outcome = call("evaluate", run.path, "--split", "val")
    assert outcome.code == 0
    lines = dict(line.split(": ") for line in outcome.out.splitlines())
    figures = json.loads(run.folder.results.read_text())["val"]["figures"]
    assert {key: float(lines[key]) for key in figures} == pytest.approx(figures, abs=5e-5)
    assert lines["report"] == str(run.folder.report)
    assert "Per class" not in outcome.out


def test_texts_are_classified(call: Call, text_run: pv.Run, tmp_path: Path) -> None:
    outcome = call("predict", text_run.path, "--text", "green, tree", "--top", 2)
    assert outcome.code == 0
    assert outcome.err == ""
    (record,) = [json.loads(line) for line in outcome.out.splitlines()]
    assert record == next(iter(pv.predict(text_run.path, texts=["green, tree"], top=2)))
    out = tmp_path / "x.csv"
    (tmp_path / "a.txt").write_text("blue stone")
    argv = ["predict", text_run.path, tmp_path / "a.txt", "--text", "green, tree", "--out", out]
    assert call(*argv).out == f"2 files predicted, see {out}\n"
    with out.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert list(rows[0]) == ["text", "class", "probability", "top", "file", "error"]
    assert [row["text"] or row["file"] for row in rows] == ["green, tree", str(tmp_path / "a.txt")]


def test_masks_are_filled_in(call: Call, mlm_run: pv.Run, tmp_path: Path) -> None:
    outcome = call("predict", mlm_run.path, "--text", "a [MASK] of tea")
    assert outcome.code == 0
    assert set(json.loads(outcome.out)) == {"text", "filled", "answer", "probability"}
    (tmp_path / "a.txt").write_text("no mask")
    (tmp_path / "b.txt").write_text("one [MASK]")
    outcome = call("predict", mlm_run.path, tmp_path)
    assert outcome.code == 0
    assert f"skipped {tmp_path / 'a.txt'}: has no [MASK]" in outcome.err
    assert len(outcome.out.splitlines()) == 2


def test_flow_is_computed_between_two_pictures(
    call: Call, flow_run: pv.Run, made: Path, tmp_path: Path
) -> None:
    photographs = [made / "photographs" / f"{n}.png" for n in (0, 1)]
    out = tmp_path / "flow"
    outcome = call("predict", flow_run.path, *photographs, "--out", out)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"{out / '0.flo'}, {out / '0.png'}: ")
    assert "tiles; motion" in outcome.out
    refused = call("predict", flow_run.path, *photographs, "--out", out)
    assert refused.code == 2
    assert "exists; pass --overwrite" in refused.err
    assert call("predict", flow_run.path, *photographs, "--out", out, "--overwrite").code == 0


@pytest.mark.slow
def test_films_are_given_back(call: Call, clip_run: pv.Run, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = call("reconstruct", clip_run.path, made / "clips" / "low" / "0.mp4", "--out", out)
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"3 files in {out}; see {out / 'overview.png'}\n"
    assert "target space" not in outcome.out
    film, again = made / "clips" / "low" / "0.mp4", tmp_path / "again"
    predicted = call("predict", clip_run.path, film, "--out", again)
    assert predicted.out == f"3 files in {again}; see {again / 'overview.png'}\n"
    for path in out.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()
    assert call("predict", clip_run.path, film, "--out", again).code == 2


# -- models and recipes ----------------------------------------------------------------------------


@pytest.mark.slow
def test_models_of_every_family_are_listed(call: Call) -> None:
    outcome = call("models")
    assert outcome.code == 0
    for name in ("hip_nano", "perceiver_nano", "perceiver_io_nano", "entity_set_nano"):
        assert name in outcome.out
    some = call("models", "perceiver_io_*").out
    listed = {word for line in some.splitlines() for word in line.split() if "_" in word}
    assert set(pv.list_models("perceiver_io_*")) <= listed
    assert "hip_nano" not in some
    assert "perceiver_nano" not in some
    refused = call("models", "perceptron*")
    assert refused.code == 2
    assert "no model matches 'perceptron*'; available: hip_" in refused.err


def test_released_weights_are_listed(call: Call) -> None:
    everything = call("models", "--weights").out
    assert "perceiver_io_language" in everything
    assert "perceiver_io_flow" not in call("models", "perceiver_io_language", "--weights").out
    assert call("models", "gpt*", "--weights").code == 2


def test_recipes_are_listed_shown_and_copied(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listed = call("recipes").out
    for recipe in ("masked_bytes", "optical_flow", "imagenet"):
        assert recipe in listed
    shown = call("recipes", "masked_bytes").out
    assert yaml.safe_load(shown)["task"] == "mlm"
    assert not list(tmp_path.iterdir())
    copied = call("recipes", "masked_bytes", "--copy")
    assert copied.code == 0
    path, command = copied.out.splitlines()
    assert path == "masked_bytes.yaml"
    assert command.startswith("perceivers pretrain --config masked_bytes.yaml --data ")
    assert (tmp_path / path).read_text() == shown
    assert call("recipes", "masked_bytes", "--copy").code == 2
    assert call("recipes", "masked_bytes", "--copy", "--overwrite").code == 0


@quick
def test_a_copied_recipe_runs(
    call: Call, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("recipes", "masked_bytes", "--copy").code == 0
    changes: list[Any] = ["--model", making.NANO, "--inputs.bytes", '{"length": 32}']
    argv = ["pretrain", "--config", "masked_bytes.yaml", *changes, "--data", made / "texts.csv"]
    argv += ["--limit", "1", "--batch_size", "4", "--device", "cpu", "--out", "run", "--quiet"]
    outcome = call(*argv)
    assert outcome.code == 0, outcome.err
    assert pv.Run("run").task == "mlm"
