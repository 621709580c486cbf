"""Average precision: by hand, with ties, against scikit-learn, and the wrong way round."""

import pytest
import torch
from torch import Tensor

from perceivers.errors import DataError
from perceivers.tasks.average_precision import average_precision, mean_average_precision


def truth_of(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


@pytest.mark.parametrize(
    ("scores", "truth", "expected"),
    [
        # Ranked true, false, true, false: precisions 1/1 and 2/3.
        ([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0], (1 + 2 / 3) / 2),
        # The same in another order, on another scale.
        ([-7.0, -1.0, -9.0, 3.0], [1, 0, 0, 1], (1 + 2 / 3) / 2),
        ([3.0, 2.0, 1.0], [1, 1, 0], 1.0),
        ([3.0, 2.0, 1.0], [0, 0, 1], 1 / 3),
        # The first two are tied: one true of two. Then the third: two of three.
        ([0.5, 0.5, 0.4], [1, 0, 1], (1 / 2 + 2 / 3) / 2),
        ([0.5, 0.5, 0.4], [0, 1, 1], (1 / 2 + 2 / 3) / 2),
        # All tied: the share of true samples, in any order.
        ([0.2, 0.2, 0.2, 0.2], [1, 0, 0, 0], 1 / 4),
        ([0.2, 0.2, 0.2, 0.2], [0, 0, 0, 1], 1 / 4),
        ([1.0], [1], 1.0),
        ([float("inf"), float("-inf")], [0, 1], 1 / 2),
    ],
)
def test_by_hand(scores: list[float], truth: list[int], expected: float) -> None:
    found = average_precision(torch.tensor(scores), truth_of(*truth))
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("levels", [3, 20, 10_000])
def test_agrees_with_scikit_learn(levels: int, rng: torch.Generator) -> None:
    """Few levels make many ties."""
    metrics = pytest.importorskip("sklearn.metrics")
    scores = torch.randint(0, levels, (300,), generator=rng).float() / levels
    truth = torch.rand(300, generator=rng) < 0.3
    expected = metrics.average_precision_score(truth.numpy(), scores.numpy())
    assert average_precision(scores, truth) == pytest.approx(expected, abs=1e-12)
    assert average_precision(-scores, truth) != pytest.approx(expected, abs=1e-3)


def test_the_mean_is_over_outputs_that_occur_and_samples_that_are_known() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.8, 0.2, 0.4], [0.7, 0.3, 0.9]])
    truth = torch.tensor([[1, 0, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.bool)
    known = torch.ones(3, 3, dtype=torch.bool)
    expected = ((1 + 2 / 3) / 2 + 1 / 3) / 2  # the second output is never true
    assert mean_average_precision(scores, truth, known) == pytest.approx(expected)
    known[2, 2] = False  # now the third output has 0.5 (false), 0.4 (true)
    expected = ((1 + 2 / 3) / 2 + 1 / 2) / 2
    assert mean_average_precision(scores, truth, known) == pytest.approx(expected)
    known[1, 2] = False  # what is true there is not known any more
    assert mean_average_precision(scores, truth, known) == pytest.approx((1 + 2 / 3) / 2)
    assert mean_average_precision(scores, truth & False, known) == 0.0


def test_transposed_scores_change_the_figure(rng: torch.Generator) -> None:
    """The figures of the first Perceiver preprint came from transposed scores."""
    truth = torch.rand(6, 4, generator=rng) < 0.5
    truth[0] = True
    scores = truth.float() + 0.1 * torch.rand(6, 4, generator=rng)
    known = torch.ones_like(truth)
    assert mean_average_precision(scores, truth, known) == 1.0
    square = slice(0, 4)
    right = mean_average_precision(scores[square], truth[square], known[square])
    wrong = mean_average_precision(scores[square].T, truth[square], known[square])
    assert right == 1.0
    assert wrong < 0.9
    # And the whole question transposed is another one: outputs ranked within a sample.
    noise = torch.rand(6, 4, generator=rng)
    rows = mean_average_precision(noise, truth, known)
    columns = mean_average_precision(noise.T, truth.T, known.T)
    assert rows != pytest.approx(columns, abs=1e-3)


@pytest.mark.unhooked
def test_transposed_scores_are_refused_where_the_shape_shows_it() -> None:
    truth = torch.ones(6, 4, dtype=torch.bool)
    with pytest.raises(DataError, match=r"scores have shape \[4, 6\], truth \[6, 4\] .*transposed"):
        mean_average_precision(torch.zeros(4, 6), truth, truth)


@pytest.mark.unhooked
def test_vectors_are_needed() -> None:
    with pytest.raises(DataError, match=r"scores have shape \[3\] and truth \[2\]"):
        average_precision(torch.zeros(3), truth_of(1, 0))
    with pytest.raises(DataError, match=r"scores have shape \[2, 2\]"):
        average_precision(torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool))


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(DataError, match=r"1 of 2 scores are NaN"):
        average_precision(torch.tensor([0.0, float("nan")]), truth_of(1, 0))
    with pytest.raises(DataError, match=r"none of 2 samples is true"):
        average_precision(torch.zeros(2), truth_of(0, 0))
