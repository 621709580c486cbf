"""Successive halving: how many go on, for how long each trains, and who is ahead.

Every rung has the same share of the time, and within a rung every candidate the same; so whoever
stays trains longer in the next rung. Nothing here trains.

Paper: Jamieson and Talwalkar (arXiv 1502.07943).
"""

from collections.abc import Mapping, Sequence
from math import isfinite

from perceivers.workflows.arms import Outcome

# Evaluations of a run, where they take no more than a share of its time.
EVALUATIONS, EVALUATION_SHARE = 5, 0.3


def plan_rungs(count: int, reduce: int) -> tuple[int, ...]:
    """Return how many candidates train in each rung.

    Args:
        count: Candidates, at least 1.
        reduce: One in so many goes on, rounded up, at least 2. The last rung is the first with no
            more than that many: its best one wins.
    """
    counts = [count]
    while counts[-1] > reduce:
        counts.append(-(-counts[-1] // reduce))
    return tuple(counts)


def rank(outcomes: Sequence[Outcome], *, higher_is_better: bool) -> list[Outcome]:
    """Return outcomes from best to worst, failed ones last.

    Of equal ones the smaller model is ahead, then the one that comes first: time, which differs
    from run to run, decides nothing.
    """

    def key(item: tuple[int, Outcome]) -> tuple[bool, float, int, int]:
        place, outcome = item
        value = outcome.value
        if outcome.has_failed or value is None:
            return True, 0.0, 0, place
        return False, -value if higher_is_better else value, outcome.parameters, place

    return [outcome for _, outcome in sorted(enumerate(outcomes), key=key)]


def choose_survivors(
    outcomes: Sequence[Outcome], keep: int, *, higher_is_better: bool
) -> list[str]:
    """Return the names of those that go on, best first; fewer where fewer have a result."""
    ranked = rank(outcomes, higher_is_better=higher_is_better)
    return [outcome.name for outcome in ranked if not outcome.has_failed][:keep]


def fit_steps(seconds: float, step_seconds: float, eval_seconds: float) -> tuple[int, int]:
    """Return the steps that fit into a time, and between how many of them one evaluates.

    Args:
        seconds: For steps and evaluations.
        step_seconds: Of one step, positive.
        eval_seconds: Of one evaluation.

    Returns:
        Steps, 0 where not even one fits beside its evaluation, and ``eval_every``, at least 1.
    """
    count = EVALUATIONS
    if eval_seconds > 0:
        count = min(count, max(1, int(EVALUATION_SHARE * seconds / eval_seconds)))
    left = seconds - count * eval_seconds
    steps = int(left / step_seconds) if isfinite(step_seconds) and left > 0 else 0
    return steps, spread_evaluations(steps, count)


def spread_evaluations(steps: int, count: int = EVALUATIONS) -> int:
    """Return ``eval_every`` for a number of evaluations, the last of them at the last step."""
    return max(1, -(-steps // count))


def find_front(points: Mapping[str, tuple[int, float]], *, higher_is_better: bool) -> list[str]:
    """Return the names of the Pareto front: no other is as good with fewer parameters.

    Args:
        points: Parameters and metric by name.
        higher_is_better: Direction of the metric.

    Returns:
        From the smallest to the largest model.
    """
    sign = -1.0 if higher_is_better else 1.0
    front: list[str] = []
    best = float("inf")
    for name, (_, value) in sorted(
        points.items(), key=lambda item: (item[1][0], sign * item[1][1])
    ):
        if sign * value < best:
            front.append(name)
            best = sign * value
    return front
