"""Multi-label: columns to outputs, loss over what is known, hidden modalities, figures by hand."""

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import perceivers as pv
from perceivers.data import Batch
from perceivers.errors import ConfigError, DataError
from perceivers.tasks.multilabel import (
    Multilabel,
    MultilabelConfig,
    choose_classes,
    column_widths,
    hide_modalities,
    label_names,
    to_multi_hot,
)

COLUMNS = {"smile": ("no", "yes"), "hair": ("black", "brown", "fair"), "glasses": ("no", "yes")}


class Table(nn.Module):
    """Answers with given logits, whatever it is asked."""

    def __init__(self, logits: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        specs = {"image": pv.Image(2, 2, 1), "label": pv.Labels(3)}
        self.config = SimpleNamespace(data_inputs=specs)
        self.asked: list[Mapping[str, Tensor]] = []

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Remember the question, and answer."""
        self.asked.append(inputs)
        return self.logits


def make_task(logits: Sequence[Sequence[float]], **settings: Any) -> Multilabel:
    return Multilabel(Table(logits), COLUMNS, MultilabelConfig(**settings))


def make_batch(labels: Sequence[Sequence[int]] | None) -> Batch:
    count = len(labels or [0])
    pictures = torch.arange(1, 1 + 4 * count, dtype=torch.uint8).reshape(count, 1, 2, 2)
    known = None if labels is None else torch.tensor(labels)
    return Batch({"image": pictures}, known, torch.arange(count), [])


def test_columns_become_outputs_in_order() -> None:
    assert column_widths(COLUMNS) == {"smile": 1, "hair": 3, "glasses": 1}
    assert label_names(COLUMNS) == ("smile", "hair=black", "hair=brown", "hair=fair", "glasses")
    labels = torch.tensor([[1, 2, 0], [0, 0, -1], [-1, -1, 1]])
    targets, known = to_multi_hot(labels, COLUMNS)
    assert targets.tolist() == [[1, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1]]
    assert known.int().tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert targets.dtype == torch.float32


def test_columns_of_one_class_and_labels_without_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"label columns are \{'a': \('x',\)\}; .* two classes"):
        label_names({"a": ("x",)})
    with pytest.raises(ConfigError, match=r"label columns are \{\}; give at least one"):
        label_names({})
    with pytest.raises(DataError, match=r"label 3 in column 'hair' is out of range; .* 0\.\.2"):
        to_multi_hot(torch.tensor([[0, 0, 0], [1, 3, 0]]), COLUMNS)
    with pytest.raises(DataError, match=r"label -2 in column 'smile'"):
        to_multi_hot(torch.tensor([[-2, 0, 0]]), COLUMNS)
    with pytest.raises(DataError, match=r"labels have shape \[1, 2\], .* give labels \[B, 3\]"):
        to_multi_hot(torch.tensor([[0, 0]]), COLUMNS)


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_the_loss_is_the_mean_over_known_outputs(rng: torch.Generator) -> None:
    task = make_task([[0.5, 1.0, -1.0, 2.0, 3.0], [0.1, 0.2, 0.3, 0.4, -0.5]])
    losses = task(make_batch([[1, 2, -1], [-1, -1, 0]]), rng)
    # True outputs cost softplus(-x), false ones softplus(x): 1 + 3 + 1 known ones.
    costs = [softplus(-0.5), softplus(1.0), softplus(-1.0), softplus(-2.0), softplus(-0.5)]
    assert float(losses.total.detach()) == pytest.approx(sum(costs) / 5, rel=1e-6)
    losses.total.backward()
    slope = task.model.logits.grad
    assert (slope != 0).int().tolist() == [[1, 1, 1, 1, 0], [0, 0, 0, 0, 1]]


def test_a_batch_of_unknown_labels_costs_nothing(rng: torch.Generator) -> None:
    losses = make_task([[1.0] * 5])(make_batch([[-1, -1, -1]]), rng)
    assert float(losses.total.detach()) == 0.0


def test_one_column_may_come_without_an_axis(rng: torch.Generator) -> None:
    model, batch = Table([[0.5, -0.5, 0.0]]), make_batch([[2]])
    task = Multilabel(model, {"hair": COLUMNS["hair"]}, MultilabelConfig())
    expected = float(task(batch, rng).total.detach())
    assert batch.labels is not None
    flat = Batch(batch.inputs, batch.labels[:, 0], batch.index, [])
    assert float(task(flat, rng).total.detach()) == expected
    assert task.evaluate([flat]) == task.evaluate([batch])


def test_figures_by_hand() -> None:
    task = make_task(
        [
            [2.0, 1.0, 5.0, 0.0, -1.0],
            [-1.0, 0.0, 1.0, 3.0, -2.0],
            [1.0, 4.0, 0.0, 1.0, 0.5],
        ]
    )
    figures = task.evaluate([make_batch([[1, 1, 0], [1, 0, -1], [0, 0, -1]])])
    # smile: ranked yes, no, yes. black: ranked yes, no, yes. brown: first. Others never occur.
    assert figures["map"] == pytest.approx(((1 + 2 / 3) / 2 * 2 + 1) / 3)
    assert figures["top1/smile"] == pytest.approx(1 / 3)
    assert figures["top1/hair"] == pytest.approx(2 / 3)
    assert figures["top1/glasses"] == 1.0  # of one known label
    assert figures["column_top1"] == pytest.approx((1 / 3 + 2 / 3 + 1) / 3)
    assert task.best_metric in figures
    assert task.higher_is_better


def test_figures_are_over_all_batches_and_loss_is_that_of_training(rng: torch.Generator) -> None:
    labels = [[1, 1, 0], [0, 2, -1]]
    task = make_task([[2.0, 1.0, 5.0, 0.0, -1.0], [-1.0, 0.0, 1.0, 3.0, -2.0]])
    once, twice = (task.evaluate([make_batch(labels)] * n) for n in (1, 2))
    assert once == pytest.approx(twice)
    training = float(task(make_batch(labels), rng).total.detach())
    assert once["loss"] == pytest.approx(training, rel=1e-6)
    assert task.evaluate([]) == {"loss": 0.0, "map": 0.0, "column_top1": 0.0}


def test_columns_without_known_labels_have_no_figure() -> None:
    figures = make_task([[1.0] * 5]).evaluate([make_batch([[1, -1, -1]])])
    assert "top1/hair" not in figures
    assert figures["column_top1"] == 1.0


def test_classes_are_chosen_within_columns() -> None:
    logits = torch.tensor([[0.1, 9.0, 8.0, 9.5, -0.1], [0.0, -3.0, -1.0, -2.0, 7.0]])
    assert choose_classes(logits, column_widths(COLUMNS)).tolist() == [[1, 2, 0], [0, 1, 1]]


def test_a_model_with_other_outputs_is_refused(rng: torch.Generator) -> None:
    with pytest.raises(ConfigError, match=r"has 4 outputs, but the 3 label columns need 5"):
        make_task([[0.0] * 4])(make_batch([[0, 0, 0]]), rng)


def test_labels_are_needed(rng: torch.Generator) -> None:
    with pytest.raises(DataError, match=r"needs labels; the batch has none"):
        make_task([[0.0] * 5])(make_batch(None), rng)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_hidden_modalities_are_zero_in_whole_samples(dtype: torch.dtype) -> None:
    inputs = {
        "video": torch.arange(1, 1 + 1000 * 6).reshape(1000, 2, 3).to(dtype).clamp(min=1),
        "audio": torch.ones(1000, 4),
    }
    hidden = hide_modalities(inputs, {"video": 0.3}, torch.Generator().manual_seed(0))
    assert hidden["video"].dtype == dtype
    gone = (hidden["video"] == 0).all((1, 2))
    assert 0.25 < float(gone.float().mean()) < 0.35
    assert torch.equal(hidden["video"][~gone], inputs["video"][~gone])
    assert hidden["audio"] is inputs["audio"]
    again = hide_modalities(inputs, {"video": 0.3}, torch.Generator().manual_seed(0))
    other = hide_modalities(inputs, {"video": 0.3}, torch.Generator().manual_seed(1))
    assert torch.equal(again["video"], hidden["video"])
    assert not torch.equal(other["video"], hidden["video"])
    assert (inputs["video"] != 0).all()  # what was given stays


def test_rates_of_zero_and_one_and_missing_values(rng: torch.Generator) -> None:
    inputs = {"a": torch.full((3, 2), torch.nan), "b": torch.ones(3, 2)}
    hidden = hide_modalities(inputs, {"a": 1.0, "b": 0.0}, rng)
    assert not hidden["a"].any()
    assert torch.equal(hidden["b"], inputs["b"])


def test_modalities_are_hidden_in_training_alone(rng: torch.Generator) -> None:
    task, batch = make_task([[0.0] * 5], input_dropout={"image": 1.0}), make_batch([[0, 0, 0]])
    task(batch, rng)
    task.evaluate([batch])
    assert not task.model.asked[0]["image"].any()
    assert torch.equal(task.model.asked[1]["image"], batch.inputs["image"])


@pytest.mark.parametrize(
    ("dropout", "message"),
    [
        ({"image": 1.5}, r"input_dropout\['image'\] is 1.5; it must be in \[0, 1\]"),
        ({"imag": 0.5}, r"names 'imag'; did you mean 'image'\?, but the model reads"),
        ({"label": 0.5}, r"'label', which are labels: 0 is their first class"),
    ],
)
def test_impossible_dropout_is_refused(dropout: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_task([[0.0] * 5], input_dropout=dropout)


def test_a_model_learns_from_it(rng: torch.Generator) -> None:
    model = pv.create_model("hip_nano", inputs={"image": pv.Image(2, 2, 1)}, num_classes=5)
    task = Multilabel(model, COLUMNS, MultilabelConfig())
    task(make_batch([[1, 2, 0], [0, 1, 1]]), rng).total.backward()
    assert all(p.grad is not None for p in model.parameters())
