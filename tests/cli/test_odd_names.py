"""Names that are not UTF-8 on the command line: every answer is written, and readable."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ODD = os.fsdecode(b"p\xe9")
SHOWN = r"p\xe9"
SIZE = ["--size", "8", "--batch_size", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose folder and names are not UTF-8, in two classes."""
    root = tmp_path_factory.mktemp("data") / os.fsdecode(b"d\xff\xfe")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("caf\u00e9", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                path = root / split / name / f"{ODD}{i}.png"
                Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(path)
    return root


@pytest.mark.slow
def test_a_run_on_odd_names_loses_no_answer(
    odd: Path, call: Callable[..., Any], tmp_path: Path
) -> None:
    checked = call("data", "check", odd)
    assert rf"file names are not UTF-8, such as {SHOWN}" in checked.out
    run = tmp_path / "run"
    train = ["train", "--task", "classify", "--model", "hip_nano", "--data", odd, "--out", run]
    assert call(*train, "--steps", "2", *SIZE).code == 0
    assert call("evaluate", run).code == 0
    assert json.loads(call("predict", run, odd / "test").out.splitlines()[0])["file"].count(SHOWN)
    for name in ("p.jsonl", "p.csv", "e.csv", "e.npz"):
        verb = "predict" if name[0] == "p" else "embed"
        assert call(verb, run, odd / "test", "--out", tmp_path / name).code == 0
    lines = (tmp_path / "p.jsonl").read_bytes().decode().splitlines()
    assert all(SHOWN in json.loads(line)["file"] for line in lines)
    for name in ("p.csv", "e.csv"):
        with (tmp_path / name).open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        assert len(rows) == 9
        assert all(SHOWN in row[0] for row in rows[1:])
    assert all(SHOWN in name for name in np.load(tmp_path / "e.npz")["names"])
    for path in run.rglob("*"):
        if path.suffix in {".json", ".jsonl", ".html", ".yaml", ".md", ".txt"}:
            path.read_bytes().decode()
    assert "nothing left to train" in call("resume", run).err


def test_what_is_written_gets_a_name_in_utf_8(
    odd: Path, refuse: Callable[..., str], tmp_path: Path
) -> None:
    out = tmp_path / ODD
    train = ["train", "--task", "classify", "--model", "hip_nano", "--data", odd]
    for flags in (["--out", out], [f"--out={out}"]):
        refuse([*train, *flags, *SIZE], r"--out is '.*p\\\\xe9', which is not UTF-8")
    assert not out.exists()


def test_an_address_that_does_not_exist_is_named_with_its_bytes(
    refuse: Callable[..., str], tmp_path: Path
) -> None:
    refuse(["data", "check", tmp_path / ODD], r"p\\+(xe9|udce9)")
