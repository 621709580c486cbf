"""Comparing runs: what differs, what came of it, one page, and nothing overwritten unasked."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perceivers.cli.main import main
from perceivers.errors import RunError
from perceivers.report.figures.curves import draw_comparison
from perceivers.report.html import (
    Summary,
    costs_table,
    differences_table,
    results_table,
    short_names,
)
from perceivers.training.config import PretrainConfig, build_config
from perceivers.training.run_folder import RunFolder
from perceivers.workflows.comparing import compare_runs


def record(step: int, loss: float, **more: Any) -> dict[str, Any]:
    return {"step": step, "split": "train", "loss": loss, **more}


def summary(name: str, **changes: Any) -> Summary:
    made: dict[str, Any] = {
        "settings": {"steps": 4, "optimizer.lr": 1e-3, "out": f"runs/{name}", "ema": 0.0},
        "records": [
            record(2, 1.0, samples_per_second=10.0, seconds=1.0, data_wait=0.5),
            record(4, 0.5, samples_per_second=30.0, seconds=2.5, data_wait=0.25),
            {"step": 4, "split": "val", "top1": 0.75},
        ],
        "best": {"top1": 0.8},
        "best_step": 2,
        "parameters": 12_345,
        **changes,
    }
    return Summary(name=name, **made)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two run folders that stopped before they had a model."""
    made = []
    for name, lr in (("a", 1e-3), ("b", 2e-3)):
        folder = RunFolder(tmp_path / name / "run")
        settings = {"model": "hip_nano", "data": "digits", "out": str(folder.path)}
        config = build_config(PretrainConfig, {**settings, "optimizer": {"lr": lr}})
        folder.create("pretrain", config)
        lines = [record(step, 1 / step) for step in range(1, 40)]
        lines.append({"step": 39, "split": "val", "loss": lr})
        folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        made.append(folder.path)
    return made


def test_only_settings_that_differ_are_told() -> None:
    other = {"steps": 4, "optimizer.lr": 2e-3, "out": "runs/b", "ema": 0.0, "mask.ratio": None}
    table = differences_table([summary("a"), summary("b", settings=other)])
    assert table.header == ("setting", "a", "b")
    assert list(table.rows) == [("optimizer.lr", "0.001", "0.002"), ("mask.ratio", "-", "null")]
    assert table.note == "2 other settings are the same."
    same = differences_table([summary("a"), summary("c")])
    assert not same.rows
    assert same.note == "All 3 settings are the same."


def test_figures_of_best_last_and_other_splits_stand_side_by_side() -> None:
    tested = summary("b", best={}, best_step=None, results={"test": {"top1": 0.7, "views": "1"}})
    rows = {row[0]: row[1:] for row in results_table([summary("a"), tested]).rows}
    assert rows == {
        "val top1, best model": ("0.8", "-"),
        "val top1, last": ("0.75", "0.75"),
        "test top1": ("-", "0.7"),
    }


def test_costs_are_time_rate_and_size() -> None:
    rows = {row[0]: row[1:] for row in costs_table([summary("a"), summary("b", records=[])]).rows}
    assert rows["parameters"] == ("12,345", "12,345")
    assert rows["steps"] == ("4", "0")
    assert rows["training time, seconds"] == ("2.5", "0.0")
    assert rows["samples per second"] == ("20", "-")  # the median of 10 and 30
    assert rows["data wait, fraction"] == ("0.375", "-")
    assert rows["best model at step"] == ("2", "2")


def test_names_are_as_short_as_tells_runs_apart(tmp_path: Path) -> None:
    assert short_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert short_names([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]


def test_the_page_holds_names_differences_and_a_picture(runs: list[Path], tmp_path: Path) -> None:
    page = compare_runs(runs, tmp_path / "page.html")
    text = page.read_text()
    assert "Comparison of 2 runs" in text
    assert "a/run" in text
    assert "optimizer.lr" in text
    assert text.count("data:image/png;base64,") == 1
    assert not re.search(r"(src|href)=[\"']?http", text)  # asks nothing of any server


def test_a_page_is_replaced_only_when_asked(runs: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    with pytest.raises(RunError, match=r"page\.html already exists; replace it with --overwrite"):
        compare_runs(runs, page)
    assert page.read_text() == "mine"
    compare_runs(runs, page, overwrite=True)
    assert "Comparison" in page.read_text()


def test_what_cannot_be_compared_is_said(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="needs two runs or more, got 1"):
        compare_runs(runs[:1], tmp_path / "page.html")
    with pytest.raises(RunError, match="is named twice"):
        compare_runs([runs[0], runs[0] / "."], tmp_path / "page.html")
    with pytest.raises(RunError, match="is a folder; give a file"):
        compare_runs(runs, tmp_path)
    with pytest.raises(RunError, match="is not a run folder"):
        compare_runs([runs[0], tmp_path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.slow
def test_curves_of_many_runs_have_many_colours(tmp_path: Path) -> None:
    from PIL import Image

    def colours(count: int) -> int:
        lines = [record(step, 1.0) for step in range(1, 30)]
        runs = {
            f"run {i}": [{**line, "loss": i + line["step"]} for line in lines] for i in range(count)
        }
        path = draw_comparison(
            tmp_path / f"{count}.png", runs=runs, quantities=[("train", "loss")], title="x"
        )
        pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
        shown, counts = np.unique(pixels, axis=0, return_counts=True)
        # Lines cover many pixels of one colour; text and blended edges are grey or rare.
        return int(((counts > 300) & (np.ptp(shown.astype(int), axis=1) > 60)).sum())

    assert colours(1) == 1
    assert colours(6) == 6


def test_the_command_compares_and_keeps_out_for_comparisons(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(runs[0]), str(runs[1]), "--out", str(page)]) == 0
    assert capsys.readouterr().out == f"comparison: {page}\n"
    assert main(["report", str(runs[0]), str(runs[1]), "--out", str(page)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["report", str(runs[0]), "--out", str(page), "--overwrite"]) == 2
    assert "is for several runs" in capsys.readouterr().err
