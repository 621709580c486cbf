"""Classification by hand: cross-entropy, smoothing, weights, mixing and evaluation."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import perceivers as pv
from perceivers.data import Batch
from perceivers.errors import ConfigError, DataError
from perceivers.tasks import Classification, ClassificationConfig
from perceivers.tasks.classification import balanced_weights, soft_cross_entropy
from perceivers.tasks.mixing import mix_samples

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


@torch.no_grad()
def test_every_kind_of_mixing_changes_the_training_loss(batch: Batch) -> None:
    task, losses = make_task(), set()
    kinds: list[dict[str, Any]] = [{}, {"mixup": 0.4}, {"cutmix": True}]
    for settings in (*kinds, {"mixup": 0.4, "cutmix": True}):
        task = Classification(task.model, 3, ClassificationConfig(**settings)).eval()
        losses.add(round(float(task(batch, torch.Generator().manual_seed(2)).total), 5))
        again = float(task(batch, torch.Generator().manual_seed(2)).total)
        assert round(again, 5) in losses
    assert len(losses) == 4


@torch.no_grad()
def test_smoothing_comes_after_mixing(batch: Batch) -> None:
    task = make_task(mixup=0.4, cutmix=True, label_smoothing=0.3)
    targets = torch.nn.functional.one_hot(torch.tensor(LABELS), 3).float()
    generator = torch.Generator().manual_seed(1)
    inputs, mixed = mix_samples(batch.inputs, targets, generator, mixup=0.4, cutmix=True)
    smooth = mixed * 0.7 + 0.1
    expected = -(smooth * task.model(inputs).log_softmax(-1)).sum(-1).mean()
    found = task(batch, torch.Generator().manual_seed(1)).total
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_class_that_cannot_be_named_costs_nothing(smoothing: float) -> None:
    """By hand: the third place is absent in the first row, so its loss is that of two classes."""
    logits = torch.tensor([[1.0, 0.0, -torch.inf], [0.5, -0.5, 2.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    loss = soft_cross_entropy(logits, targets, smoothing)
    first = log_softmax([1.0, 0.0])
    second = log_softmax([0.5, -0.5, 2.0])
    rest = 1 - smoothing
    expected = -(rest + smoothing / 2) * first[0] - smoothing / 2 * first[1]
    for share, value in zip((0.0, 0.5, 0.5), second, strict=True):
        expected -= (rest * share + smoothing / 3) * value
    assert float(loss.detach()) == pytest.approx(expected / 2, rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert float(logits.grad[0, 2]) == 0.0
    # PyTorch's own is what makes this necessary.
    plain = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
    assert not bool(plain.isfinite())


def test_a_target_that_cannot_be_named_costs_infinity_and_nan_stays() -> None:
    target = torch.tensor([[0.0, 1.0]])
    assert float(soft_cross_entropy(torch.tensor([[0.0, -torch.inf]]), target)) == math.inf
    assert math.isnan(float(soft_cross_entropy(torch.tensor([[torch.nan, 0.0]]), target)))


def test_the_loss_is_the_one_of_pytorch_on_finite_logits(rng: torch.Generator) -> None:
    logits, weights = torch.randn(5, 4, generator=rng), torch.rand(4, generator=rng)
    targets = torch.rand(5, 4, generator=rng)
    targets /= targets.sum(1, keepdim=True)
    expected = torch.nn.functional.cross_entropy(
        logits, targets, weight=weights, label_smoothing=0.1
    )
    torch.testing.assert_close(soft_cross_entropy(logits, targets, 0.1, weights), expected)
    assert not torch.allclose(soft_cross_entropy(logits, targets, 0.1), expected)


def test_a_model_of_texts_is_not_mixed() -> None:
    model = pv.create_model(
        "hip_nano", inputs={"position": pv.Array(8, 1), "label": pv.Labels(4)}, num_classes=3
    )
    with pytest.raises(ConfigError, match=r"mixup blends values, but .* \{'label': 'labels'\}"):
        Classification(model, 3, ClassificationConfig(mixup=0.2))
    Classification(model, 3, ClassificationConfig())


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
