"""Numbers on the command line that are no training settings: every flag of every verb is walked."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Outcome

from perceivers.cli.main import VERBS, open_command

# What a verb needs before it looks at a number; the weights come with the package.
NEEDED: dict[str, list[str]] = {
    "demo": ["--out", "OUT"],
    "resume": ["OUT"],
    "evaluate": ["hip_digits", "--data", "digits"],
    "predict": ["hip_digits", "x.png"],
    "embed": ["hip_digits", "digits", "--out", "OUT.npz"],
    "probe": ["hip_digits", "--data", "digits"],
    "anomaly": ["hip_digits_mae", "digits", "--out", "OUT"],
    "reconstruct": ["hip_digits_mae", "x.png", "--out", "OUT"],
    "explain": ["hip_digits", "x.png", "--out", "OUT"],
    "plan": ["--model", "hip_nano", "--inputs", '{"image": {"height": 8, "width": 8}}'],
    "bench": ["--models", "hip_nano", "--sizes", "8", "--no-peers", "--out", "OUT"],
    "bakeoff": ["digits", "--steps", "1"],
    "shuffle": ["digits"],
    "data": ["check", "digits"],
}
# Their numbers are fields of configs, whose files and flags are walked with them.
TRAINING = {"pretrain", "finetune", "train"}


def numbers(verb: str) -> Iterator[tuple[str, type]]:
    """The flags of a verb that take a number, with its type."""
    parser = open_command(verb, []).parser
    for action in parser._actions:
        hint: Any = getattr(action, "_typehint", None) or action.type
        kind = getattr(hint, "__origin__", hint)
        if action.option_strings and kind in {int, float}:
            yield action.option_strings[-1], kind


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in TRAINING])
def test_a_number_that_makes_no_sense_is_refused_by_name(
    call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str
) -> None:
    flags = list(numbers(verb))
    assert bool(flags) == (verb in NEEDED)
    monkeypatch.chdir(tmp_path)
    for flag, kind in flags:
        name = flag.removeprefix("--").removesuffix("_views")
        for value in ("-1", *(["nan", "inf", "-inf"] if kind is float else ["1.5", "9" * 30])):
            outcome = call(verb, *NEEDED[verb], f"{flag}={value}")
            assert outcome.code == 2, (flag, value, outcome)
            assert name in outcome.err, (flag, value, outcome)
    assert list(tmp_path.iterdir()) == []
