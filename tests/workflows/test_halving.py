"""Successive halving: how many go on, who is ahead, how many steps fit; nothing trains."""

import pytest

from perceivers.workflows.arms import Outcome
from perceivers.workflows.candidates import (
    choose_survivors,
    find_front,
    fit_steps,
    plan_rungs,
    rank,
    spread_evaluations,
)


@pytest.mark.parametrize(
    ("count", "reduce", "rungs"),
    [
        (1, 3, (1,)),
        (3, 3, (3,)),
        (4, 3, (4, 2)),
        (9, 3, (9, 3)),
        (10, 3, (10, 4, 2)),
        (19, 3, (19, 7, 3)),
        (8, 2, (8, 4, 2)),
        (5, 2, (5, 3, 2)),
    ],
)
def test_rungs_shrink_until_the_best_one_can_be_chosen(
    count: int, reduce: int, rungs: tuple[int, ...]
) -> None:
    assert plan_rungs(count, reduce) == rungs


def outcome(name: str, value: float | None, parameters: int = 1) -> Outcome:
    reason = "" if value is not None else "diverged"
    return Outcome(name, reason=reason, value=value, parameters=parameters)


def test_of_equals_the_smaller_model_is_ahead_and_then_the_earlier_one() -> None:
    found = [outcome("a", 0.5, 9), outcome("b", 0.5, 3), outcome("c", 0.7, 9), outcome("d", 0.5, 3)]
    names = [each.name for each in rank(found, higher_is_better=True)]
    assert names == ["c", "b", "d", "a"]
    names = [each.name for each in rank(found, higher_is_better=False)]
    assert names == ["b", "d", "a", "c"]


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("higher", [True, False])
def test_whoever_has_no_finite_result_loses(bad: float | None, higher: bool) -> None:
    found = [outcome("broken", bad), outcome("worst", 0.1), outcome("best", 0.2)]
    assert rank(found, higher_is_better=higher)[-1].name == "broken"
    assert set(choose_survivors(found, 3, higher_is_better=higher)) == {"worst", "best"}


@pytest.mark.parametrize(
    ("seconds", "step", "evaluation", "steps"),
    [
        (10.0, 0.1, 0.0, 100),
        (10.0, 0.1, 0.4, 80),  # five evaluations
        (10.0, 0.1, 2.0, 80),  # only one, as they take long
        (10.0, 0.1, 20.0, 0),
        (0.1, 0.2, 0.0, 0),
    ],
)
def test_steps_fit_into_the_time_beside_their_evaluations(
    seconds: float, step: float, evaluation: float, steps: int
) -> None:
    found, every = fit_steps(seconds, step, evaluation)
    assert found == pytest.approx(steps, abs=1)
    evaluations = -(-found // every)
    assert found * step + evaluations * evaluation <= seconds + 1e-9 or not found


@pytest.mark.parametrize(("steps", "every"), [(20, 4), (3, 1), (21, 5), (0, 1)])
def test_evaluations_are_spread_over_a_run(steps: int, every: int) -> None:
    assert spread_evaluations(steps) == every


def test_the_front_holds_what_no_smaller_model_reaches() -> None:
    points = {"small": (1, 0.5), "equal": (2, 0.5), "better": (3, 0.8), "worse": (9, 0.7)}
    assert find_front(points, higher_is_better=True) == ["small", "better"]
    losses = {name: (count, 1 - value) for name, (count, value) in points.items()}
    assert find_front(losses, higher_is_better=False) == ["small", "better"]
