"""Metrics of a killed run can be read; other damage is named."""

from pathlib import Path

import pytest

from perceivers.errors import RunError
from perceivers.report.metrics import read_metrics

GOOD = '{"step": 1, "split": "train", "loss": 0.5}\n'


def test_records_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(GOOD + "\n" + GOOD.replace("1", "2"), encoding="utf-8")
    assert [record["step"] for record in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize(
    "tail", [b'{"step": 2, "lo', b"\xff\xfe", b'{"step": 2, "l\n', b"\x00" * 9]
)
def test_a_torn_last_line_is_dropped(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD.encode() + tail)
    assert [record["step"] for record in read_metrics(path)] == [1]


def test_a_last_line_that_only_lacks_its_end_of_line_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(GOOD + GOOD.strip(), encoding="utf-8")
    assert len(read_metrics(path)) == 2


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 2, "lo',
        "[1, 2]",
        "3",
        "{}",
        '{"step": "two"}',
        '{"step": 1, "seconds": "x"}',
        '{"step": 1, "loss": [1]}',
        f'{{"step": {"9" * 5000}}}',
        "[" * 100_000,
    ],
)
def test_a_bad_line_before_the_last_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(GOOD + "\n" + line + "\n" + GOOD, encoding="utf-8")
    with pytest.raises(RunError, match="line 3 is not a record"):
        read_metrics(path)


def test_an_empty_file_has_no_records_and_a_missing_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(RunError, match=r"metrics\.jsonl does not exist"):
        read_metrics(path)
    path.touch()
    assert read_metrics(path) == []
