"""Files of a run folder beside its state: damaged ones are named, and nothing is lost by them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perceivers.errors import CheckpointError, RunError, UserError
from perceivers.training.config import PretrainConfig
from perceivers.training.events import check_records, cut_records
from perceivers.training.run_folder import RunFolder
from perceivers.workflows.reporting import read_start_positions

SOUND = '{"step": 2, "split": "train", "loss": 0.5}\n'


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    found = RunFolder(tmp_path / "run")
    found.create("pretrain", PretrainConfig(model="hip_nano", data="digits", out=str(found.path)))
    return found


@pytest.mark.parametrize(
    "line", ["x", "[1]", "3", "{}", '{"step": "2"}', '{"step": true}', "[" * 100_000, "\x00"]
)
def test_lines_that_are_no_records_are_left_out_and_kept_in_a_copy(
    folder: RunFolder, line: str
) -> None:
    text = f"{SOUND}{line}\n{SOUND}"
    folder.metrics.write_text(text)
    (note,) = check_records(folder.metrics)
    assert "1 lines are not valid records and are ignored, the first is line 2" in note
    cut_records(folder.metrics, 4)
    assert folder.metrics.read_text() == SOUND * 2
    assert (folder.path / "metrics.damaged.jsonl").read_text() == text


def test_a_torn_last_line_needs_no_note(folder: RunFolder) -> None:
    folder.metrics.write_text(f'{SOUND}{{"st')
    assert check_records(folder.metrics) == []
    cut_records(folder.metrics, 4)
    assert folder.metrics.read_text() == SOUND
    assert not (folder.path / "metrics.damaged.jsonl").exists()


@pytest.mark.parametrize(
    "results",
    [
        "{",
        "[]",
        {"test": 3},
        {"test": {}},
        {"test": {"figures": {"top1": "high"}, "confusion": None}},
        {"test": {"figures": {"top1": 0.5}, "confusion": [[1, 2], [3]]}},
        {"test": {"figures": {"top1": 0.5}, "confusion": [[1, -2], [3, 4]]}},
        {"test": {"figures": {"top1": 0.5}, "confusion": "many"}},
    ],
)
def test_damaged_results_are_refused_and_not_replaced(folder: RunFolder, results: Any) -> None:
    text = results if isinstance(results, str) else json.dumps(results)
    folder.results.write_text(text)
    for use in (folder.read_results, lambda: folder.add_results("val", {"figures": {}})):
        with pytest.raises(CheckpointError, match=r"results\.json"):
            use()
    assert folder.results.read_text() == text


WRITER = """
import sys
from pathlib import Path
from perceivers.training.run_folder import RunFolder
for number in range(20):
    RunFolder(Path(sys.argv[1])).add_results(f"{sys.argv[2]}{number}", {"figures": {"loss": 1.0}})
"""


@pytest.mark.slow
def test_evaluations_at_the_same_time_lose_no_results(folder: RunFolder) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(folder.path), name], env=os.environ)
        for name in "ab"
    ]
    assert [writer.wait(timeout=300) for writer in writers] == [0, 0]
    assert len(folder.read_results()) == 40
    assert not (folder.path / ".results.lock").exists()


def test_results_do_not_make_a_run_folder_that_is_gone(folder: RunFolder) -> None:
    folder.path.rename(folder.path.with_name("elsewhere"))
    with pytest.raises(RunError, match="no longer a run folder"):
        folder.add_results("test", {"figures": {}})
    assert not folder.path.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"x" * 1000])
def test_damaged_position_tables_cost_only_their_panel(folder: RunFolder, content: bytes) -> None:
    folder.figures.mkdir()
    path = folder.figures / "positions_before.npz"
    path.write_bytes(content)
    tables, problem = read_start_positions(folder)
    assert tables == {}
    assert "cannot be read" in problem
    np.savez(path, image=np.ones(3))
    tables, problem = read_start_positions(folder)
    assert list(tables) == ["image"]
    assert problem == ""


@pytest.mark.parametrize(
    "change",
    [
        "",
        "task: pretrain\nmodel: [",
        "[1, 2]",
        "task: nosuch\n",
        "task: [pretrain]\n",
        "task: pretrain\nsteps: many\n",
        "task: pretrain\nmodel: hip_nano\ndata: digits\nout: r\nstepps: 3\n",
        "task: pretrain\nmodel: hip_nano\ndata: digits\nout: r\noptimizer: 3\n",
        "a: &a [*a]\n",
    ],
)
def test_a_config_that_was_broken_by_hand_is_refused(folder: RunFolder, change: str) -> None:
    folder.config.write_text(change)
    with pytest.raises(UserError):
        folder.read_config()
