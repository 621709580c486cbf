"""Several classifications at once: unknown labels weigh nothing, figures by hand, wrong columns."""

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
from perceivers.tasks.multitask import Multitask

COLUMNS = {"topic": ("a", "b", "c"), "mood": ("sad", "glad")}
TOPIC = [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]]
MOOD = [[0.0, 1.0], [4.0, 0.0], [0.0, 2.0]]


class Table(nn.Module):
    """Answers with given logits by task."""

    def __init__(self, **logits: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.logits = nn.ParameterDict(
            {n: nn.Parameter(torch.tensor(x)) for n, x in logits.items()}
        )
        outputs = {n: SimpleNamespace(channels=len(x[0])) for n, x in logits.items()}
        self.config = SimpleNamespace(outputs=outputs, data_inputs={"bytes": None})

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The logits, whatever is asked."""
        return {name: self.logits[name] for name in self.config.outputs}


def make_task(**settings: Any) -> Multitask:
    return Multitask(Table(topic=TOPIC, mood=MOOD), COLUMNS, **settings)


def batch_of(labels: Any) -> Batch:
    known = None if labels is None else torch.tensor(labels)
    return Batch({"bytes": torch.zeros(3, 4, dtype=torch.long)}, known, torch.arange(3), [])


def cost(logits: Sequence[float], label: int) -> float:
    return math.log(sum(math.exp(x) for x in logits)) - logits[label]


def test_unknown_labels_weigh_nothing(rng: torch.Generator) -> None:
    task = make_task()
    losses = task(batch_of([[0, -1], [2, 1], [-1, -1]]), rng)
    topic, mood = [cost(TOPIC[0], 0), cost(TOPIC[1], 2)], [cost(MOOD[1], 1)]
    assert float(losses.total.detach()) == pytest.approx(sum(topic + mood) / 3, rel=1e-6)
    assert float(losses.parts["topic"].detach()) == pytest.approx(sum(topic) / 2, rel=1e-6)
    assert float(losses.parts["mood"].detach()) == pytest.approx(mood[0], rel=1e-6)
    losses.total.backward()
    slopes = {name: p.grad.abs().sum(1) > 0 for name, p in task.model.logits.items()}
    assert slopes["topic"].tolist() == [True, True, False]
    assert slopes["mood"].tolist() == [False, True, False]


def test_a_batch_in_which_nothing_is_known_costs_nothing(rng: torch.Generator) -> None:
    losses = make_task()(batch_of([[-1, -1]] * 3), rng)
    assert float(losses.total.detach()) == 0.0


def test_smoothing_spreads_the_target(rng: torch.Generator) -> None:
    labels = batch_of([[0, -1], [-1, -1], [-1, -1]])
    found = float(make_task(label_smoothing=0.3)(labels, rng).total.detach())
    costs = [cost(TOPIC[0], k) for k in range(3)]
    assert found == pytest.approx(0.7 * costs[0] + 0.3 * sum(costs) / 3, rel=1e-6)


def test_figures_are_means_over_tasks() -> None:
    task = make_task()
    figures = task.evaluate(
        [batch_of([[0, 0], [0, 0], [2, -1]]), batch_of([[-1, 1], [1, -1], [0, -1]])]
    )
    # topic: right 0, 2, then 1 of five; mood: wrong, right, then right.
    assert figures["top1/topic"] == pytest.approx(3 / 5)
    assert figures["top1/mood"] == pytest.approx(2 / 3)
    assert figures["top1"] == pytest.approx((3 / 5 + 2 / 3) / 2)
    costs = [cost(TOPIC[0], 0), cost(TOPIC[1], 0), cost(TOPIC[2], 2), cost(TOPIC[1], 1)]
    costs += [cost(TOPIC[2], 0), cost(MOOD[0], 0), cost(MOOD[1], 0), cost(MOOD[0], 1)]
    assert figures["loss"] == pytest.approx(sum(costs) / 8, rel=1e-6)


def test_a_task_without_labels_has_no_share() -> None:
    figures = make_task().evaluate([batch_of([[0, -1], [1, -1], [0, -1]])])
    assert "top1/mood" not in figures
    assert figures["top1"] == figures["top1/topic"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("labels", [None, [0, 1, 2], [[0], [1], [2]], [[0, 1, 0]] * 3])
def test_labels_of_another_shape_are_refused(rng: torch.Generator, labels: Any) -> None:
    with pytest.raises(DataError, match=r"labels have shape .* one column per task \(\['topic', "):
        make_task()(batch_of(labels), rng)
    with pytest.raises(DataError, match="labels have shape"):
        make_task().evaluate([batch_of(labels)])


@pytest.mark.parametrize(
    "columns",
    [
        {"topic": ("a", "b", "c")},
        {"topic": ("a", "b"), "mood": ("sad", "glad")},
        {"topic": ("a", "b", "c"), "moods": ("sad", "glad")},
    ],
)
def test_columns_that_the_model_does_not_answer_are_refused(
    columns: Mapping[str, tuple[str, ...]],
) -> None:
    with pytest.raises(ConfigError, match=r"model has \{'topic': 3, 'mood': 2\}; multitask"):
        Multitask(Table(topic=TOPIC, mood=MOOD), columns)


def test_a_real_model_answers_by_task_and_other_models_are_refused(rng: torch.Generator) -> None:
    sizes = {name: len(classes) for name, classes in COLUMNS.items()}
    inputs = {"bytes": pv.Bytes(4)}
    model = pv.create_model("perceiver_io_nano", inputs=inputs, num_classes=sizes)
    task = Multitask(model, COLUMNS)
    batch = batch_of([[0, 1], [1, -1], [-1, 0]])
    batch.inputs["bytes"] += 70
    losses = task(batch, rng)
    losses.total.backward()
    assert set(losses.parts) == {"topic", "mood"}
    other = pv.create_model("perceiver_nano", inputs=inputs, num_classes=3)
    with pytest.raises(ConfigError, match=r"model has \{\}; multitask needs a perceiver_io"):
        Multitask(other, COLUMNS)
