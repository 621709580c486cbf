"""Every verb where it works: what it prints, what it writes, and that Python does the same."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tests.cli.conftest import Outcome

import perceivers as pv
from perceivers.training.state import load_state

Call = Callable[..., Outcome]
Starting = Callable[..., list[str]]
GOLDEN = Path(__file__).parents[1] / "golden"
quick = pytest.mark.usefixtures("without_report")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    """Whether two model folders hold the same bits."""
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


# -- training --------------------------------------------------------------------------------------


def test_a_run_folder_is_complete(pretrained: Path, classifier: Path) -> None:
    for run in (pretrained, classifier):
        for name in ("config.yaml", "metrics.jsonl", "environment.json", "command.txt"):
            assert (run / name).stat().st_size > 0
        for model in ("model", "last"):
            assert {path.name for path in (run / model).iterdir()} == {
                "README.md",
                "config.json",
                "model.safetensors",
            }
        assert (run / "checkpoints" / "last.pt").is_file()
        assert "<html" in (run / "report.html").read_text()
        assert list((run / "figures").glob("*.png"))


@pytest.mark.slow
@quick
def test_a_config_written_by_a_run_reproduces_it(
    call: Call, pretrained: Path, tmp_path: Path
) -> None:
    settings = yaml.safe_load((pretrained / "config.yaml").read_text())
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump({**settings, "out": str(tmp_path / "again")}))
    assert call("pretrain", "--config", path, "--quiet").code == 0
    assert same(tmp_path / "again" / "last", pretrained / "last")
    assert call("pretrain", "--config", path, "--seed", 1, "--overwrite", "--quiet").code == 0
    assert not same(tmp_path / "again" / "last", pretrained / "last")


@pytest.mark.slow
@quick
def test_the_config_inside_a_run_folder_can_be_given_back(
    call: Call, pretrained: Path, tmp_path: Path
) -> None:
    argv = ["--config", pretrained / "config.yaml", "--out", tmp_path / "again", "--quiet"]
    outcome = call("pretrain", *argv)
    assert outcome.code == 0, outcome.err
    assert same(tmp_path / "again" / "last", pretrained / "last")
    refused = call("train", *argv)
    assert refused.code == 2
    assert "task" in refused.err
    assert "pretrain" in refused.err


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "train"])
def test_a_printed_config_can_be_fed_back(
    call: Call, starting: Starting, tmp_path: Path, verb: str
) -> None:
    argv = [*starting(verb, ema=0.9), "--optimizer.lr", "0.25", "--augment.crop_scale", "[0.5,1]"]
    printed = call(*argv, "--print_config")
    assert printed.code == 0
    assert not (tmp_path / "run").exists()
    settings = yaml.safe_load(printed.out)
    assert settings["optimizer"]["lr"] == 0.25
    assert settings["augment"]["crop_scale"] == [0.5, 1.0]
    path = tmp_path / "printed.yaml"
    path.write_text(printed.out)
    again = call(verb, "--config", path, "--print_config")
    assert again.out == printed.out
    assert call(verb, "--config", path, "--steps", "7", "--print_config").out != printed.out


@pytest.mark.slow
@quick
def test_training_from_scratch_works_and_says_where_the_result_is(
    call: Call, starting: Starting, tmp_path: Path
) -> None:
    outcome = call(*starting("train", limit=1))
    run = tmp_path / "run"
    assert outcome.code == 0
    assert outcome.out == f"run: {run}\nreport: {run / 'report.html'}\n"
    assert "training step 1: loss" in outcome.err
    assert "val loss" in outcome.err
    assert "top1" in outcome.err
    quiet = call(*starting("train", limit=1), "--overwrite", "--quiet")
    assert quiet.err == ""


@pytest.mark.slow
@quick
def test_a_run_is_accepted_where_a_model_name_is(
    call: Call, starting: Starting, pretrained: Path, classifier: Path, tmp_path: Path
) -> None:
    outcome = call(*starting(model=pretrained, limit=1))
    assert outcome.code == 0
    assert f"continuing from the weights of {pretrained / 'model'}" in outcome.err
    before, after = weights(pretrained / "model"), weights(tmp_path / "run" / "last")
    drift = [float((before[name] - after[name]).abs().max()) for name in before]
    assert 0.0 < max(drift) < 0.05
    for model in (f"{pretrained}@last", pretrained / "model", classifier):
        outcome = call(*starting("finetune", model=model, limit=1), "--overwrite")
        assert outcome.code == 0
        assert "tensors copied" in outcome.err


@pytest.mark.slow
@quick
def test_a_run_trained_at_one_size_fine_tunes_at_another(
    call: Call, starting: Starting, pretrained: Path, pictures: Path, tmp_path: Path
) -> None:
    argv = starting("finetune", pictures, model=pretrained, size=12, limit=1, channels=1)
    assert call(*argv).code == 0
    spec = pv.load(tmp_path / "run").config.inputs["image"]
    assert spec.grid == (12, 12)


@pytest.mark.slow
@quick
def test_resuming_a_finished_run_changes_nothing(
    call: Call, pretrained: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(pretrained, tmp_path / "run")
    outcome = call("resume", run)
    assert outcome.code == 0
    assert f"run: {run}" in outcome.out
    assert "all 2 steps are done; there is nothing left to train" in outcome.err
    assert same(run / "last", pretrained / "last")
    assert load_state(run / "checkpoints" / "last.pt")[0].step == 2


@pytest.mark.slow
@quick
def test_python_trains_the_same_weights_as_the_command_line(
    pretrained: Path, classifier: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "data": "digits",
        "limit": 2,
        "batch_size": 8,
        "device": "cpu",
        "quiet": True,
    }
    first = pv.pretrain(model="hip_nano", out=str(tmp_path / "a"), **settings)
    assert same(first.path / "last", pretrained / "last")
    second = pv.finetune(model=str(pretrained), out=str(tmp_path / "b"), **settings)
    assert same(second.path / "last", classifier / "last")
    assert repr(second) == f"Run('{tmp_path / 'b'}', task='classify')"
    other = pv.pretrain(model="hip_nano", out=str(tmp_path / "c"), seed=1, **settings)
    assert not same(other.path / "last", pretrained / "last")


@pytest.mark.slow
def test_the_demo_runs_and_leaves_a_report(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    outcome = call("demo", "--limit", 2, "--out", out)
    assert outcome.code == 0
    assert "1/3 pre-training" in outcome.err
    assert f"report: {out / 'report.html'}" in outcome.out
    assert "a dry run: these numbers mean nothing" in outcome.out
    for name in ("HiP, pre-trained and fine-tuned", "3 nearest neighbours", "support vector"):
        assert name in outcome.out
    page = (out / "report.html").read_text()
    assert "dry run" in page
    for title in ("What happened", "Reconstruction", "Pre-training curves", "Fine-tuning curves"):
        assert title in page
    assert page.count("data:image/png;base64,") >= 4
    assert (out / "finetune" / "results.json").is_file()
    assert call("demo", "--limit", 1, "--out", out, "--quiet").code == 2


# -- using -----------------------------------------------------------------------------------------


def test_evaluation_prints_figures_and_classes_and_keeps_them(
    call: Call, classifier: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(classifier, tmp_path / "run")
    outcome = call("evaluate", run)
    assert outcome.code == 0
    figures = dict(line.split(": ") for line in outcome.out.splitlines()[:3])
    results = json.loads((run / "results.json").read_text())
    found = results["test"]["figures"]
    assert figures["top1"] == f"{found['top1']:.4f}"
    assert figures["samples"] == str(found["samples"]) == "359"
    matrix = np.array(results["test"]["confusion"])
    assert matrix.shape == (10, 10)
    assert matrix.sum() == 359
    assert found["top1"] == pytest.approx(np.trace(matrix) / 359)
    for heading in ("Per class, test", "class", "support", "recall", "precision"):
        assert heading in outcome.out
    assert f"report: {run / 'report.html'}" in outcome.out
    assert "test top-1" in (run / "report.html").read_text()
    assert pv.Run(run).evaluate() == found
    assert pv.evaluate(run).figures == found


@pytest.mark.slow
def test_evaluation_of_another_split_or_the_last_model_is_kept_apart(
    call: Call, classifier: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(classifier, tmp_path / "run")
    pv.Run(run).evaluate(split="val")
    assert set(json.loads((run / "results.json").read_text())) == {"val"}
    outcome = call("evaluate", f"{run}@last", "--limit", 1)
    assert outcome.code == 0
    assert "samples: 64" in outcome.out
    assert set(json.loads((run / "results.json").read_text())) == {"val"}  # a dry run leaves none


def test_a_model_folder_is_evaluated_on_stated_data(call: Call, classifier: Path) -> None:
    argv = ["evaluate", classifier / "model", "--data", "digits", "--batch_size", 100]
    outcome = call(*argv)
    assert outcome.code == 0
    assert "samples: 359" in outcome.out
    assert "report:" not in outcome.out


@pytest.mark.slow
def test_a_pretrained_run_is_evaluated_by_its_loss(
    call: Call, pretrained: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(pretrained, tmp_path / "run")
    outcome = call("evaluate", run, "--split", "val")
    assert outcome.code == 0
    assert outcome.out.startswith("loss: ")
    assert "Per class" not in outcome.out
    loss = json.loads((run / "results.json").read_text())["val"]["figures"]["loss"]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert loss > 0
    assert metrics[-1]["split"] == "val"


def test_predictions_are_ranked_and_sum_to_one(
    call: Call, classifier: Path, pictures: Path
) -> None:
    outcome = call("predict", classifier, pictures, "--top", 10)
    records = [json.loads(line) for line in outcome.out.splitlines()]
    assert outcome.code == 0
    assert outcome.err == ""
    assert len(records) == 24
    for record in records:
        probabilities = [entry["probability"] for entry in record["top"]]
        assert sum(probabilities) == pytest.approx(1.0, abs=1e-4)
        assert probabilities == sorted(probabilities, reverse=True)
        assert record["class"] == record["top"][0]["class"]
        assert record["probability"] == probabilities[0]
        assert {entry["class"] for entry in record["top"]} == {str(k) for k in range(10)}
    assert len({json.dumps(record["top"]) for record in records}) > 1
    few = [json.loads(line) for line in call("predict", classifier, pictures).out.splitlines()]
    assert [record["top"] for record in few] == [record["top"][:5] for record in records]
    assert pv.Run(classifier).predict([pictures]) == few
    assert list(pv.predict(classifier, [str(pictures)], top=10)) == records


def test_predictions_are_written_as_jsonl_and_csv(
    call: Call, classifier: Path, pictures: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"x")
    files = [pictures / "cats" / "0.png", bad, pictures / "dogs" / "1.png"]
    outcome = call("predict", classifier, *files, "--out", tmp_path / "x.jsonl", "--top", 2)
    assert outcome.out == f"2 files predicted, see {tmp_path / 'x.jsonl'}\n"
    records = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert {record["file"] for record in records} == {str(file) for file in files}
    assert call("predict", classifier, *files, "--out", tmp_path / "x.csv", "--top", 2).code == 0
    with (tmp_path / "x.csv").open(newline="") as opened:
        rows = {row["file"]: row for row in csv.DictReader(opened)}
    for record in records:
        row = rows[record["file"]]
        assert row["class"] == record.get("class", "")
        assert row["error"] == record.get("error", "")
        if "top" in record:
            assert row["top"].split("; ")[0].split() == [
                record["class"],
                f"{record['probability']:.4f}",
            ]


@pytest.mark.slow
@quick
@pytest.mark.parametrize("target", ["per-channel", "group-normalised", "raw"])
def test_reconstructions_are_written_and_their_space_named(
    call: Call, starting: Starting, pictures: Path, tmp_path: Path, target: str
) -> None:
    argv = starting(limit=1, **{"mask.target": target})
    assert call(*argv, "--quiet").code == 0
    out = tmp_path / "out"
    files = [pictures / "cats" / "0.png", pictures / "dogs" / "0.png"]
    outcome = call("reconstruct", tmp_path / "run", *files, "--out", out)
    assert outcome.code == 0
    names = {path.name for path in out.iterdir()}
    kinds = ("original", "masked", "reconstructed")
    assert names == {f"{stem}_{k}.png" for stem in ("0", "0-2") for k in kinds} | {"overview.png"}
    assert f"target space: {target}. " in outcome.out
    borrowed = "borrowed from the original" in " ".join(outcome.out.split())
    assert borrowed == (target == "group-normalised")
    original, masked, made = (np.asarray(Image.open(out / f"0_{k}.png")) for k in kinds)
    assert np.array_equal(original, np.asarray(Image.open(files[0])))
    grey = masked == 128
    assert 0.75 <= grey.mean() <= 0.95
    assert np.array_equal(masked[~grey], original[~grey])
    assert made.shape == original.shape
    again = call("reconstruct", tmp_path / "run", *files, "--out", tmp_path / "seed", "--seed", 1)
    assert again.code == 0
    other = np.asarray(Image.open(tmp_path / "seed" / "0_masked.png"))
    assert not np.array_equal(other, masked)


@pytest.mark.slow
def test_a_report_is_written_anew(call: Call, pretrained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(pretrained, tmp_path / "run")
    (run / "report.html").unlink()
    outcome = call("report", run)
    assert outcome.out == f"report: {run / 'report.html'}\n"
    page = (run / "report.html").read_text()
    for title in ("Overview", "Reconstruction", "Configuration", "Commands"):
        assert title in page
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.unhooked
@pytest.mark.parametrize(("format_", "suffix"), [("onnx", ".onnx"), ("torch-export", ".pt2")])
@pytest.mark.parametrize("run", ["classifier", "pretrained"])
def test_a_run_is_exported_and_compared(
    call: Call, request: pytest.FixtureRequest, tmp_path: Path, format_: str, suffix: str, run: str
) -> None:
    folder = shutil.copytree(request.getfixturevalue(run), tmp_path / "run")
    outcome = call("export", folder, "--format", format_)
    part = {"classifier": "model", "pretrained": "autoencoder"}[run]
    path = folder / "exported" / f"{part}{suffix}"
    assert outcome.code == 0, outcome.err
    assert f"{path}: ran at batch sizes 1 and 3; largest difference" in outcome.out
    assert path.stat().st_size > 100_000
    stated = json.loads(path.with_suffix(".json").read_text())
    assert stated["part"] == part
    assert stated["format"] == format_
    assert stated["classes"] == ([str(k) for k in range(10)] if run == "classifier" else [])
    assert call("export", folder, "--format", format_).code == 2
    if format_ == "onnx":  # one slow format is enough for what both share
        return
    assert call("export", folder, "--format", format_, "--overwrite").code == 0
    encoder = tmp_path / f"encoder{suffix}"
    argv = ["export", folder, "--format", format_, "--part", "encoder", "--out", encoder]
    assert call(*argv).code == 0
    assert json.loads(encoder.with_suffix(".json").read_text())["outputs"] == ["latents"]


# -- the library itself ----------------------------------------------------------------------------


@pytest.mark.slow
def test_models_are_listed_by_pattern(call: Call) -> None:
    outcome = call("models", "*_nano")
    assert outcome.code == 0
    assert "hip_nano" in outcome.out
    assert "hip_tiny" not in outcome.out
    everything = call("models").out
    assert all(name in everything for name in pv.list_models())
    assert call("models", "gpt*").code == 2


def test_released_parameters_are_converted_and_verified(call: Call, tmp_path: Path) -> None:
    source, out = GOLDEN / "hip3_two_posproj.npz", tmp_path / "out"
    outcome = call("convert", source, out, "--verify")
    assert outcome.code == 0, outcome
    assert "parameters" in outcome.out
    assert outcome.out.count(": ok") >= 2
    assert "TOO LARGE" not in outcome.out
    assert pv.load(out).config.project_positions == "slot"


def test_parameters_that_were_tampered_with_fail_the_verification(
    call: Call, tmp_path: Path
) -> None:
    with np.load(GOLDEN / "hip3_two_posproj.npz") as archive:
        arrays = {key: archive[key].copy() for key in archive.files}
    key = next(key for key in arrays if key.startswith("param/") and key.endswith(":w"))
    arrays[key].flat[0] += 1.0
    np.savez(tmp_path / "x.npz", **arrays)
    outcome = call("convert", tmp_path / "x.npz", tmp_path / "out", "--verify")
    assert outcome.code == 1
    assert "TOO LARGE" in outcome.out


def test_the_doctor_examines(call: Call) -> None:
    outcome = call("doctor")
    assert outcome.code == 0
    for finding in (
        "Python",
        "torch",
        "matrix products",
        "extra train",
        "a forward and backward pass",
    ):
        assert finding in outcome.out
    assert "works" in outcome.out


@pytest.mark.slow
@quick
def test_pictures_and_predictions_are_not_overwritten_unasked(
    call: Call, pretrained: Path, classifier: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "digit.png"
    Image.new("L", (8, 8), 90).save(picture)
    for argv, made in (
        (("reconstruct", pretrained, picture, "--out", tmp_path / "p"), "p/overview.png"),
        (("predict", classifier, picture, "--out", tmp_path / "x.csv"), "x.csv"),
    ):
        assert call(*argv).code == 0
        before = (tmp_path / made).read_bytes()
        refused = call(*argv)
        assert refused.code == 2
        assert f"{tmp_path / made} exists; pass --overwrite" in refused.err
        assert (tmp_path / made).read_bytes() == before
        assert call(*argv, "--overwrite").code == 0
