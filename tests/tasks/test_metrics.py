"""Every metric against a case computed by hand."""

import math

import pytest
import torch

from perceivers.tasks.metrics import (
    UNKNOWN,
    add_mean,
    column_shares,
    mean_precision,
    new_accuracies,
    new_column_accuracies,
    new_means,
    new_metric,
    new_precision,
    result,
    results,
    total_weight,
)

CPU = torch.device("cpu")


def test_accuracies_by_hand() -> None:
    truth = torch.tensor([0, 0, 1, 2, 2, 2])
    guess = torch.tensor([0, 1, 1, 2, 0, 2])
    metrics = new_accuracies(4, CPU)
    for metric in metrics.values():
        # Two batches give what one gives.
        metric.update(guess[:4], truth[:4])
        metric.update(guess[4:], truth[4:])
    matrix = result(metrics.pop("matrix"))
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    found = results(metrics)
    assert found["top1"] == pytest.approx(4 / 6)
    assert found["macro"] == pytest.approx((1 / 2 + 1 + 2 / 3) / 3)  # the fourth does not occur


def test_metrics_that_saw_nothing_are_zero() -> None:
    metrics = new_accuracies(2, CPU) | new_means(["loss"], CPU)
    del metrics["matrix"]
    assert results(metrics) == {"top1": 0.0, "macro": 0.0, "loss": 0.0}


def test_a_mean_is_weighted_and_keeps_small_parts_of_large_sums() -> None:
    (mean,) = new_means(["loss"], CPU).values()
    add_mean(mean, torch.tensor(1.0), 3)
    add_mean(mean, torch.tensor(5.0), 1)
    assert result(mean) == pytest.approx(2.0)
    add_mean(mean, torch.tensor(float("nan")), 0)  # the mean of nothing
    assert result(mean) == pytest.approx(2.0)
    assert total_weight(mean) == 4.0
    add_mean(mean, torch.tensor(0.0), 2**25)
    add_mean(mean, torch.tensor(1.0), 1)
    assert total_weight(mean) == 2**25 + 5  # float32 would have lost the last ones


def test_a_mean_that_is_not_a_number_is_not_hidden() -> None:
    (mean,) = new_means(["loss"], CPU).values()
    add_mean(mean, torch.tensor(float("nan")), 2)
    assert math.isinf(result(mean))


def test_column_accuracies_leave_out_unknown_labels_and_columns() -> None:
    metrics = new_column_accuracies({"a": ("x", "y"), "b": ("p", "q", "r")}, CPU)
    metrics["a"].update(torch.tensor([0, 1, 1]), torch.tensor([0, 0, UNKNOWN]))
    metrics["b"].update(torch.tensor([0, 1, 2]), torch.tensor([UNKNOWN] * 3))
    assert column_shares(metrics) == {"a": 0.5}


@pytest.mark.parametrize(
    ("scores", "truth", "expected"),
    [
        # Ranked true, false, true, false: precisions 1/1 and 2/3.
        ([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0], (1 + 2 / 3) / 2),
        ([0.9, 0.8, 0.2], [0, 0, 1], 1 / 3),
        # The first two are tied: one true of two. Then the third: two of three.
        ([0.5, 0.5, 0.4], [1, 0, 1], (1 / 2 + 2 / 3) / 2),
        ([0.5, 0.5, 0.4], [0, 1, 1], (1 / 2 + 2 / 3) / 2),
        # All tied: the share of true samples, in any order.
        ([0.2, 0.2, 0.2, 0.2], [0, 0, 0, 1], 1 / 4),
        ([0.2, 0.3, 0.4], [0, 0, 0], 0.0),
    ],
)
def test_precision_by_hand(scores: list[float], truth: list[int], expected: float) -> None:
    metric = new_precision(1, CPU)
    metric.update(torch.tensor(scores).double()[:, None], torch.tensor(truth)[:, None])
    assert mean_precision(metric) == pytest.approx(expected, abs=1e-6)


def test_mean_precision_is_over_outputs_that_occur_and_samples_that_are_known() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.8, 0.2, 0.4], [0.7, 0.3, 0.9]]).double()
    truth = torch.tensor([[1, 0, 0], [0, 0, 1], [1, 0, 0]])
    metric = new_precision(3, CPU)
    metric.update(scores, truth)
    # The second output is never true.
    assert mean_precision(metric) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 3) / 2)
    truth[2, 2] = UNKNOWN  # now the third output has 0.5 (false), 0.4 (true)
    metric = new_precision(3, CPU)
    metric.update(scores, truth)
    assert mean_precision(metric) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)


def test_mean_precision_of_nothing_is_zero() -> None:
    assert mean_precision(new_precision(2, CPU)) == 0.0


def test_peak_signal_to_noise_by_hand() -> None:
    metric = new_metric("image.PeakSignalNoiseRatio", CPU, data_range=2.0)
    metric.update(torch.tensor([0.1, 0.0]).double(), torch.tensor([0.0, 0.0]).double())
    assert result(metric) == pytest.approx(10 * math.log10(4.0 / 0.005), rel=1e-6)
