"""Medians, ranges, speeds of the same round, the paper's numbers, and the tables of all that."""

from dataclasses import replace
from typing import Any

import pytest

from perceivers.bench.children import Largest, Measurement
from perceivers.bench.settings import PERCEIVER_IO, BenchSettings
from perceivers.bench.tables import (
    PAPER_LARGEST,
    SPEEDS,
    MedianRange,
    Row,
    choose_reference,
    kept_per_input,
    number,
    paper_speed,
    show_spread,
    summarise,
    write_tables,
)

ABOUT = {
    "command": "perceivers bench",
    "date": "2026-11-30",
    "rounds": 3,
    "machine": {
        "cpu": "a CPU",
        "gpu": None,
        "torch": "2.13.0",
        "threads": 2,
        "load_average": [0.1, 0.2, 0.3],
    },
}


def measured(model: str, size: int, turn: int, seconds: float | None, **more: Any) -> Measurement:
    given: dict[str, Any] = {"peak_bytes": 2_000_000_000, "kept_bytes": 1000 * size**2}
    return Measurement(
        model=model,
        size=size,
        round=turn,
        name="step",
        status="measured",
        seconds=seconds,
        **{**given, **more},
    )


def make_rows() -> list[Row]:
    found = []
    for turn, (theirs, ours) in enumerate([(6.0, 2.0), (8.0, 2.0), (9.0, 1.8)], start=1):
        for size in (512, 224):
            found += [
                measured(PERCEIVER_IO, size, turn, theirs),
                measured("hip_16", size, turn, ours, peak_bytes=turn * 1_000_000_000),
            ]
    return summarise(found, PERCEIVER_IO)


def test_speed_is_the_reference_over_this_of_the_same_round() -> None:
    rows = make_rows()
    assert [(row.size, row.model) for row in rows] == [
        (224, PERCEIVER_IO),
        (224, "hip_16"),
        (512, PERCEIVER_IO),
        (512, "hip_16"),
    ]
    row = rows[1]
    assert row.seconds == MedianRange(2.0, 1.8, 2.0)
    assert row.speed == MedianRange(4.0, 3.0, 9.0 / 1.8)
    assert (row.peak_bytes, row.inputs, row.paper) == (3_000_000_000, 224 * 224, 3.72)
    assert rows[0].speed == MedianRange(1.0, 1.0, 1.0)


def test_a_round_that_one_of_the_two_lacks_makes_no_speed() -> None:
    lost = replace(measured(PERCEIVER_IO, 224, 2, None), status="out of memory", message="too much")
    found = [measured("hip_16", 224, turn, 2.0) for turn in (1, 2)]
    rows = summarise([measured(PERCEIVER_IO, 224, 1, 6.0), lost, *found], PERCEIVER_IO)
    assert [row.status for row in rows] == ["out of memory", "measured"]
    assert rows[0].message == "too much"
    assert rows[1].speed == MedianRange(3.0, 3.0, 3.0)
    assert summarise(found, PERCEIVER_IO)[0].speed is None


def test_bytes_per_input_are_a_slope() -> None:
    rows = make_rows()
    assert kept_per_input(rows, "hip_16", 1) == pytest.approx(1000)
    assert kept_per_input(rows, "hip_16", 4) == pytest.approx(250)
    assert kept_per_input(rows[:2], "hip_16", 1) is None
    smaller = replace(rows[1], inputs=1, kept_bytes=10**9)
    assert kept_per_input([smaller, *rows], "hip_16", 1) == pytest.approx(1000)


def test_the_reference_is_the_perceiver_io_or_the_first() -> None:
    assert choose_reference(BenchSettings(), ["hip_16", PERCEIVER_IO]) == PERCEIVER_IO
    assert choose_reference(BenchSettings(), ["hip_16", "hip_256"]) == "hip_16"
    assert choose_reference(BenchSettings(reference="hip_256"), ["hip_16"]) == "hip_256"


@pytest.mark.parametrize(
    ("model", "reference", "size", "found"),
    [
        ("hip_256", PERCEIVER_IO, 512, 3.85),
        ("hip_16", PERCEIVER_IO, 1024, "Perceiver IO out of memory"),
        ("hip_16", PERCEIVER_IO, 2048, "out of memory"),
        ("hip_256", f"transformers:{PERCEIVER_IO}", 2048, "Perceiver IO out of memory"),
        ("hip_256", PERCEIVER_IO, 4096, None),
        ("hip_256", "hip_16", 512, None),
        ("hip_mini", PERCEIVER_IO, 512, None),
    ],
)
def test_numbers_of_the_paper(model: str, reference: str, size: int, found: object) -> None:
    assert paper_speed(model, reference, size) == found


def test_the_paper_runs_out_in_its_order() -> None:
    assert PAPER_LARGEST[PERCEIVER_IO] < PAPER_LARGEST["hip_16"] < PAPER_LARGEST["hip_256"]
    assert SPEEDS.keys() | {PERCEIVER_IO} == PAPER_LARGEST.keys()


def test_tables_hold_every_number() -> None:
    largest = [
        Largest(
            model=model,
            limit=4e9,
            size=size,
            peak_bytes=peak,
            next_size=size + 32,
            next_status="out of memory",
        )
        for model, size, peak in (("hip_16", 2016, 3_950_000_000), (PERCEIVER_IO, 0, None))
    ]
    rows = make_rows()
    rows[2] = replace(rows[2], status="out of memory", seconds=None)
    rows[3] = replace(rows[3], status="failed", seconds=None, message="ValueError: no")
    settings = BenchSettings(passes=("step",), memory_limit=(4.0,))
    text = write_tables(settings, rows, largest, reference=PERCEIVER_IO, about=ABOUT)
    for line in (
        "a CPU, 2 threads, torch 2.13.0, float32, batch 1, 2026-11-30, load average 0.1 before",
        "Medians of 3 rounds with their range; peak memory of the whole process",
        f"| size (inputs) | {PERCEIVER_IO} | hip_16 |",
        "| 224 (50,176) | 8.00 s [6.00-9.00], 2 GB | 2.00 s [1.80-2.00], 3 GB |",
        "| 512 (262,144) | out of memory | failed |",
        "| 224 (50,176) | 1.00 | 4.00 [3.00-5.00] (paper: 3.72) |",
        "| 224 (50,176) | 50.2 | 50.2 |",
        "| bytes per further input | 1,000 | 1,000 |",
        "| 4 GB | hip_16 | 2016 x 2016 | 4,064,256 | 3.95 GB | 2048: out of memory | 1024 x 1024 |",
        f"| 4 GB | {PERCEIVER_IO} | none | - | - | 32: out of memory | 512 x 512 |",
        "- hip_16, 512, step: ValueError: no",
    ):
        assert line in text
    assert text.isascii()


def test_numbers_have_three_digits() -> None:
    texts = [number(value) for value in (0.00123, 0.5, 7.4, 19.44, 123.4, 1234.5)]
    assert texts == ["0.00123", "0.500", "7.40", "19.4", "123", "1,234"]
    assert show_spread(MedianRange(2.0, 1.5, 2.5)) == "2.00 [1.50-2.50]"
    assert show_spread(MedianRange(2.0, 2.0, 2.0)) == "2.00"
