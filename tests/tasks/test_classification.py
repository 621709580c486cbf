"""Classification by hand: cross-entropy, smoothing, weights, MixUp, confusion and accuracies."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import perceivers as pv
from perceivers.data import Batch
from perceivers.errors import ConfigError, DataError
from perceivers.tasks import Classification, ClassificationConfig
from perceivers.tasks.classification import accuracies, balanced_weights, confusion

LABELS = [2, 0, 1, 2]


def make_task(**settings: Any) -> Classification:
    """A three-class task on 4 x 4 pictures in evaluation mode."""
    weights = settings.pop("weights", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = pv.create_model("hip_nano", inputs={"image": pv.Image(4, 4, 1)}, num_classes=3)
    return Classification(model, 3, ClassificationConfig(**settings), weights).eval()


@pytest.fixture
def batch(rng: torch.Generator) -> Batch:
    pictures = torch.randint(0, 256, (4, 1, 4, 4), generator=rng).to(torch.uint8)
    return Batch({"image": pictures}, torch.tensor(LABELS), torch.arange(4), [])


def log_softmax(row: Sequence[float]) -> list[float]:
    total = math.log(sum(math.exp(value) for value in row))
    return [value - total for value in row]


@torch.no_grad()
def test_the_loss_is_cross_entropy(batch: Batch, rng: torch.Generator) -> None:
    task = make_task()
    rows = [log_softmax(row) for row in task.model(batch.inputs).tolist()]
    expected = -sum(row[label] for row, label in zip(rows, LABELS, strict=True)) / 4
    assert float(task(batch, rng).total) == pytest.approx(expected, rel=1e-5)
    assert float(task(batch, rng).total) != pytest.approx(-rows[0][LABELS[0]], rel=1e-3)


@torch.no_grad()
def test_smoothing_spreads_a_share_of_the_target(batch: Batch, rng: torch.Generator) -> None:
    task = make_task(label_smoothing=0.3)
    rows = [log_softmax(row) for row in task.model(batch.inputs).tolist()]
    expected = 0.0
    for row, label in zip(rows, LABELS, strict=True):
        target = [0.1 + (0.7 if k == label else 0.0) for k in range(3)]
        expected -= sum(t * value for t, value in zip(target, row, strict=True)) / 4
    assert float(task(batch, rng).total) == pytest.approx(expected, rel=1e-5)
    task.config = ClassificationConfig()
    assert float(task(batch, rng).total) != pytest.approx(expected, rel=1e-3)


@torch.no_grad()
def test_class_weights_weigh_samples_by_their_class(batch: Batch, rng: torch.Generator) -> None:
    weights = [0.5, 2.0, 4.0]
    task = make_task(weights=torch.tensor(weights))
    rows = [log_softmax(row) for row in task.model(batch.inputs).tolist()]
    expected = -sum(weights[k] * row[k] for row, k in zip(rows, LABELS, strict=True)) / 4
    assert float(task(batch, rng).total) == pytest.approx(expected, rel=1e-5)


def test_balanced_weights_are_inverse_frequencies() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 3, -1])
    # 7 known labels, 4 classes: n / (K x count).
    expected = torch.tensor([7 / 16, 7 / 8, 0.0, 7 / 4])
    torch.testing.assert_close(balanced_weights(labels, 4), expected)
    even = balanced_weights(torch.tensor([0, 1, 2]), 3)
    torch.testing.assert_close(even, torch.ones(3))


def test_pairs_are_counted() -> None:
    truth = torch.tensor([0, 0, 1, 2, 2, 2])
    guess = torch.tensor([0, 1, 1, 2, 0, 2])
    assert confusion(guess, truth, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    assert confusion(truth, guess, 3).tolist() != confusion(guess, truth, 3).tolist()


def test_accuracies_by_hand() -> None:
    matrix = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]])
    found = accuracies(matrix)
    assert found["top1"] == pytest.approx(4 / 6)
    assert found["macro"] == pytest.approx((1 / 2 + 1 + 2 / 3) / 3)  # the fourth does not occur
    assert accuracies(torch.zeros(2, 2, dtype=torch.int64)) == {"top1": 0.0, "macro": 0.0}


def test_evaluation_agrees_with_counting(batch: Batch) -> None:
    task = make_task()
    figures = task.evaluate([batch, batch])
    with torch.no_grad():
        logits = task.model(batch.inputs)
    right = sum(int(a == b) for a, b in zip(logits.argmax(-1).tolist(), LABELS, strict=True))
    rows = [log_softmax(row) for row in logits.tolist()]
    loss = -sum(row[label] for row, label in zip(rows, LABELS, strict=True)) / 4
    assert figures["top1"] == pytest.approx(right / 4)
    assert figures["loss"] == pytest.approx(loss, rel=1e-5)
    flipped = Batch(batch.inputs, (torch.tensor(LABELS) + 1) % 3, batch.index, [])
    assert task.evaluate([flipped])["loss"] != pytest.approx(loss, rel=1e-3)


def mix(task: Classification, raw: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Mix a batch with one-hot targets, as training does."""
    targets = torch.nn.functional.one_hot(torch.tensor(LABELS), 3).float()
    generator = torch.Generator().manual_seed(seed)
    mixed, blended = task._mix({"image": raw}, targets, generator)
    return mixed["image"], blended


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_mixup_keeps_the_type_and_mixes_labels_by_the_same_share(dtype: torch.dtype) -> None:
    """Pictures of constant value show the share and the partner of every sample."""
    task = make_task(mixup=1.0)
    values = torch.tensor([10.0, 40.0, 90.0, 250.0])
    raw = values.reshape(4, 1, 1, 1).expand(4, 1, 4, 4).to(dtype)
    mixed, targets = mix(task, raw, seed=5)
    assert mixed.dtype == dtype
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    generator = torch.Generator().manual_seed(5)
    seed = int(torch.randint(2**31, (), generator=generator))
    share = float(np.random.default_rng(seed).beta(1.0, 1.0))
    order = torch.randperm(4, generator=generator).tolist()
    assert 0.05 < share < 0.95
    assert order != [0, 1, 2, 3]
    for sample, partner in enumerate(order):
        value = share * float(values[sample]) + (1 - share) * float(values[partner])
        tolerance = 1e-3 if dtype.is_floating_point else 0.501
        assert float(mixed[sample].float().mean()) == pytest.approx(value, abs=tolerance)
        wanted = [0.0, 0.0, 0.0]
        wanted[LABELS[sample]] += share
        wanted[LABELS[partner]] += 1 - share
        assert targets[sample].tolist() == pytest.approx(wanted)


def test_mixup_is_a_function_of_the_generator_alone(batch: Batch) -> None:
    task = make_task(mixup=0.4)
    torch.manual_seed(1)
    first = mix(task, batch.inputs["image"], seed=3)
    torch.manual_seed(2)
    again = mix(task, batch.inputs["image"], seed=3)
    other = mix(task, batch.inputs["image"], seed=4)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


@torch.no_grad()
def test_mixup_changes_the_training_loss_and_no_evaluation(batch: Batch) -> None:
    task = make_task(mixup=0.4)
    plain = Classification(task.model, 3, ClassificationConfig()).eval()
    losses = [float(t(batch, torch.Generator().manual_seed(0)).total) for t in (task, plain)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)
    assert task.evaluate([batch]) == plain.evaluate([batch])


def test_labels_are_required(batch: Batch, rng: torch.Generator) -> None:
    unlabelled = Batch(batch.inputs, None, batch.index, [])
    with pytest.raises(DataError, match=r"needs labelled data; the batch has no labels"):
        make_task()(unlabelled, rng)


@pytest.mark.parametrize(
    "settings", [{"label_smoothing": 1.0}, {"mixup": -0.1}, {"class_weights": "inverse"}]
)
def test_impossible_losses_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises((ConfigError, TypeError), match=next(iter(settings))):
        ClassificationConfig(**settings)
