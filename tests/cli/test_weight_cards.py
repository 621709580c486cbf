"""The metrics of the cards of packaged weights come out of the command line."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perceivers.checkpoints.catalogue import own_names
from perceivers.checkpoints.loading import load_with_info

ROOT = Path(__file__).resolve().parents[2]
# Data addresses below the folder of real data; digits come with scikit-learn.
FOLDERS = {
    "trashnet-256": "images/trashnet-256",
    "esc10": "audio/esc10",
    "banking77": "text/banking77",
}
# One sample of the smallest test split that is not ESC-10's may fall on the other side elsewhere.
TOLERANCE = {"hiera_esc10": 1.01 / 39}


def printed(out: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^(\w+): ([\d.]+)$", out, re.M)}


def evaluated(call: Callable[..., Any], root: Path | None, name: str, *flags: Any) -> Any:
    data = str(load_with_info(name).info.provenance["data"])
    address = data if root is None else root / FOLDERS[data]
    outcome = call("evaluate", name, "--data", address, *flags)
    assert outcome.code == 0, outcome.err
    return printed(outcome.out)


def check(name: str, found: dict[str, float]) -> None:
    stated = load_with_info(name).info.metrics
    assert stated
    for metric, value in stated.items():
        wanted = pytest.approx(value, abs=TOLERANCE.get(name, 0.003))
        assert found[metric.removeprefix("test ")] == wanted


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hip_digits", "hip_digits_mae"])
def test_cards_of_digits_are_reproduced(call: Callable[..., Any], name: str) -> None:
    found = evaluated(call, None, name)
    check(name, found)
    with pytest.raises(AssertionError):
        check(name, {metric: value + 0.1 for metric, value in found.items()})


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in own_names() if not n.startswith("hip_digits")])
def test_cards_of_real_data_are_reproduced(
    call: Callable[..., Any], real_data: Path, name: str
) -> None:
    check(name, evaluated(call, real_data, name))


@pytest.mark.slow
def test_five_views_of_sounds_are_reproduced(call: Callable[..., Any], real_data: Path) -> None:
    found = evaluated(call, real_data, "hiera_esc10", "--temporal_views", 5)
    assert found["top1"] == pytest.approx(28 / 39, abs=1.01 / 39)


def test_the_page_of_weights_says_what_the_cards_say() -> None:
    page = (ROOT / "docs" / "checkpoints.md").read_text()
    for name in own_names():
        info = load_with_info(name).info
        (row,) = re.findall(rf"^\| `{name}` \|.*$", page, re.M)
        if "test loss" in info.metrics:
            assert f"{info.metrics['test loss']:.3f}" in row
            assert f"{100 * info.provenance['mask_ratio']:.0f} % hidden" in row
        else:
            assert f"{100 * info.metrics['test top1']:.1f} %" in row
        assert f"{info.provenance['parameters']:,}" in row
