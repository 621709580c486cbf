"""embed, probe and anomaly from the command line, and the weights that come along in every verb."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Outcome = Any


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in two folders, one of them of noise."""
    import perceivers as pv

    root, source = tmp_path_factory.mktemp("scans"), pv.open_data("digits").splits["test"]
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = np.asarray(source.read(number)["image"])[0]
        for name, picture in (("good", pixels), ("bad", rng.permuted(pixels))):
            (root / name).mkdir(exist_ok=True)
            Image.fromarray(picture).save(root / name / f"{number}.png")
    return root


def test_embed_writes_an_archive_and_says_what_it_holds(
    call: Callable[..., Outcome], tmp_path: Path
) -> None:
    out = tmp_path / "f.npz"
    outcome = call("embed", "hip_digits", "digits", "--split", "val", "--out", out)
    assert outcome.code == 0
    assert outcome.out == f"{out}: 179 features of 128 values\n"
    assert np.load(out)["features"].shape == (179, 128)


def test_embed_reads_files_and_names_bad_ones(
    call: Callable[..., Outcome], scans: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no")
    out = tmp_path / "f.csv"
    files = [scans / "good" / "0.png", bad]
    outcome = call("embed", "hip_digits_mae", *files, "--out", out, "--pool", "flat")
    assert outcome.code == 0
    assert f"skipped: {bad}" in outcome.err
    assert outcome.out == f"{out}: 1 features of 2048 values\n"
    assert len(out.read_text().splitlines()) == 2


@pytest.mark.slow
def test_probe_prints_a_table_beside_the_floors(
    call: Callable[..., Outcome], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 99, (60, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(60) % 2
    pictures[labels == 1] += 150
    np.savez(tmp_path / "d.npz", image=pictures, label=labels)
    out = tmp_path / "p.json"
    outcome = call("probe", "hip_digits_mae", "--data", tmp_path / "d.npz", "--out", out)
    assert outcome.code == 0
    assert "majority" in outcome.out
    assert "val accuracy" in outcome.out
    assert "fitted by scikit-learn" in outcome.out
    assert "torchmetrics" in outcome.out
    rows = json.loads(out.read_text())["rows"]
    figures = {(row["features"], row["probe"]): row["figures"]["accuracy"] for row in rows}
    assert figures["model", "linear"] == figures["simple", "linear"] == 1.0
    assert figures["none", "majority"] <= 0.7


def test_anomaly_ranks_draws_and_prints_the_area(
    call: Callable[..., Outcome], scans: Path, tmp_path: Path
) -> None:
    out = tmp_path / "found"
    words = ["--normal", "good", "--repeats", 2, "--draw", 2, "--out", out]
    outcome = call("anomaly", "hip_digits_mae", scans, *words)
    assert outcome.code == 0
    assert "plain errors; give --reference" in outcome.out
    assert "auroc: 1.0" in outcome.out or "auroc: 0.9" in outcome.out
    assert f"24 samples scored, see {out / 'scores.csv'}" in outcome.out
    assert len(list(out.glob("*.png"))) == 2
    assert "bad" in (out / "scores.csv").read_text().splitlines()[1]


def test_anomaly_of_a_run_is_relative_to_its_own_validation_data(
    call: Callable[..., Outcome], pretrained: Path, scans: Path, tmp_path: Path
) -> None:
    words = ["--repeats", 1, "--draw", 0, "--out", tmp_path / "found"]
    outcome = call("anomaly", pretrained, scans / "good" / "0.png", *words)
    assert outcome.code == 0
    assert "deviations above the median of 179 normal samples" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["embed", "hip_digits", "digits", "--out", "f.txt"], r"written as \.npz or \.csv"),
        (["embed", "hip_digits"], "give a data address"),
        (["embed", "hip_digits", "digits", "--split", "best"], r"no 'best' split"),
        (["embed", "hip_digits", "digits", "--pool", "sum"], "sum"),
        (["embed", "hip_digitz", "digits"], "did you mean 'hip_digits'"),
        (["probe", "hip_digits", "--out", "p.txt"], r"written as \.json"),
        (["probe", "hip_digits"], "give a data address"),
        (["anomaly", "hip_digits", "digits"], "does not fill in what is hidden"),
        (["anomaly", "hip_digits_mae", "digits", "--top", "0"], r"top is 0\.0"),
        (
            ["anomaly", "hip_digits_mae", "digits", "--ratio", "2"],
            r"ratio is 2\.0; it must be in \(0, 1\)",
        ),
        (["anomaly", "hip_digits_mae", "nowhere.png"], "nowhere.png"),
    ],
)
def test_mistakes_are_one_message(
    refuse: Callable[..., str],
    arguments: list[str],
    pattern: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    refuse(arguments, pattern)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced_unasked(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("{}")
    refuse(["probe", "hip_digits", "--out", tmp_path / "p.json"], "exists; pass --overwrite")
    (tmp_path / "scores.jsonl").write_text("")
    words = ["anomaly", "hip_digits_mae", "digits", "--out", tmp_path]
    refuse(words, "holds scores already; pass --overwrite")


@pytest.mark.slow
def test_weights_that_come_along_work_in_every_verb(
    call: Callable[..., Outcome], scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = scans / "good" / "0.png"
    listed = call("models", "hip_d*", "--weights")
    assert "hip_digits_mae" in listed.out
    assert "Apache-2.0" in listed.out
    predicted = call("predict", "hip_digits", picture)
    assert json.loads(predicted.out)["class"] in set("0123456789")
    assert call("evaluate", "hip_digits", "--data", "digits", "--split", "val").code == 0
    assert call("reconstruct", "hip_digits_mae", picture, "--out", "made").code == 0
    assert call("explain", "hip_digits", picture, "--out", "explained").code == 0
    photograph = tmp_path / "p.jpg"
    Image.new("RGB", (90, 70), (120, 90, 60)).save(photograph)
    named = json.loads(call("predict", "hiera_trashnet", photograph).out)
    assert named["class"] in {"cardboard", "glass", "metal", "paper", "plastic", "trash"}
    assert call("reconstruct", "hiera_trashnet_mae", photograph, "--out", "made2").code == 0
