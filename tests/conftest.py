"""Fixtures of every test: seeded generators, and a global random state that never leaks."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

HOOK_OPTION = "--jaxtyping-packages"
# Where the real data sets of docs/results.md are; beside the checkout where it is not set.
DATA_VARIABLE = "PERCEIVERS_DATA"


def pytest_configure(config: pytest.Config) -> None:
    """Use one thread per test process, and the same examples in every run."""
    torch.set_num_threads(1)
    # What tests measure of this machine is no concern of the user's own runs.
    os.environ.setdefault("PERCEIVERS_CACHE", tempfile.mkdtemp(prefix="perceivers-cache-"))
    settings.register_profile(
        "suite", deadline=None, max_examples=50, derandomize=True, database=None
    )
    settings.load_profile("suite")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what cannot run under the shape-checking hook, saying how to run it."""
    if not config.getoption(HOOK_OPTION):
        return
    skip = pytest.mark.skip(reason=f"runs without the hook: pytest -m unhooked {HOOK_OPTION}=")
    for item in items:
        if "unhooked" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def rng() -> torch.Generator:
    """Return a seeded generator; tests draw from it, never from the global one."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _isolated_global_rng() -> Iterator[None]:
    """Give every test the same global random state, and leave none behind."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of the real data sets; skips the test where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get(DATA_VARIABLE) or beside)
    if not (root / "images" / "trashnet-256").is_dir():
        pytest.skip(
            f"needs real data: neither {DATA_VARIABLE} nor {beside} holds the sets of "
            "docs/results.md"
        )
    return root
