"""Generated inputs of every kind, each with the outcome that its kind states.

``make fuzz`` runs 500 cases of seed 0; ``FUZZ_CASES`` and ``FUZZ_SEED`` choose others, and the name
of a test repeats its case: ``FUZZ_SEED=7 pytest -m fuzz -k picture_cut-7-3``.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import lightning_fabric
import pytest
import tifffile
from tests.fuzz import names, settings, signals, states, tables
from tests.fuzz.bench import KINDS, Bench, bounded, generator

from perceivers.checkpoints import loading
from perceivers.workflows import run as run_module
from perceivers.workflows import training

# Imports that take seconds do not count against a case's time.
LOADED_FIRST = (lightning_fabric, tifffile, loading, training)
MODULES = (names, settings, signals, states, tables)
SEED = int(os.environ.get("FUZZ_SEED", "0"))
CASES = int(os.environ.get("FUZZ_CASES", "500"))
RUNS = Path(__file__).parents[1] / "data" / "version_0_1" / "runs"


def list_cases() -> Iterator[tuple[str, int]]:
    """Every kind in turn, beginning at another one for another seed."""
    order = sorted(KINDS)
    start = SEED % len(order)
    rounds = math.ceil(CASES / len(order))
    cases = [(name, number) for number in range(rounds) for name in order[start:] + order[:start]]
    yield from cases[:CASES]


@pytest.mark.fuzz
@pytest.mark.parametrize(
    ("name", "number"),
    [pytest.param(*case, id=f"{case[0]}-{SEED}-{case[1]}") for case in list_cases()],
)
def test_an_input_gets_the_outcome_that_its_kind_states(
    name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Reports are tested by themselves, and draw for a second.
    monkeypatch.setattr(run_module, "write_run_report", lambda folder: folder.report)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)
    with bounded():
        KINDS[name](Bench(tmp_path, generator(name, SEED, number), RUNS))


def test_every_module_holds_kinds() -> None:
    homes = {function.__module__ for function in KINDS.values()}
    assert homes == {module.__name__ for module in MODULES}
