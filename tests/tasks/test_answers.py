"""Scores that are NaN: no class, no figure, no loss hides them."""

from math import isfinite

import pytest
import torch
from tests.tasks.every_task import TASKS

from perceivers.errors import DataError
from perceivers.finite import check_answer, is_answer
from perceivers.tasks.base import Choices
from perceivers.tasks.flow import outlier_share

INF, NAN = float("inf"), float("nan")
# Of the truth alone; and a fraction of errors, whose worst value is 1.
STAYS = {"epe_of_zero", "outliers"}


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("name", TASKS)
def test_weights_that_are_not_finite_show_in_the_loss_and_in_every_figure(
    name: str, value: float
) -> None:
    task, batch = TASKS[name]()
    sound = task.evaluate([batch])
    assert all(isfinite(figure) for figure in sound.values()), sound
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.fill_(value)
    task.train()
    loss = task(batch, torch.Generator().manual_seed(0))
    assert not bool(loss.total.isfinite()), loss
    found = task.evaluate([batch])
    hidden = {n: figure for n, figure in found.items() if isfinite(figure)}
    assert hidden.keys() <= STAYS, hidden
    assert task.best_metric in found


def test_which_scores_name_a_class() -> None:
    rows = [[0.0, 1.0], [NAN, 1.0], [INF, 1.0], [-INF, 1.0], [-INF, -INF]]
    assert is_answer(torch.tensor(rows)).tolist() == [True, False, False, True, False]
    assert is_answer(torch.tensor(rows).T, 0).tolist() == [True, False, False, True, False]


def test_one_missing_answer_spoils_the_figures_and_none_does_not() -> None:
    choices = Choices(torch.device("cpu"))
    assert choices.judge({"top1": 0.5}) == {"top1": 0.5}
    assert choices.of(torch.tensor([[0.0, 1.0], [2.0, 1.0]])).tolist() == [1, 0]
    assert choices.judge({"top1": 0.5}) == {"top1": 0.5}
    choices.of(torch.tensor([[0.0, 1.0], [NAN, 1.0]]))
    assert not isfinite(choices.judge({"top1": 0.5})["top1"])


def test_an_answer_that_is_not_finite_is_refused_by_name() -> None:
    check_answer(torch.ones(3), "a.png")
    for value in (NAN, INF, -INF):
        with pytest.raises(DataError, match=r"a\.png: the model's output contains NaN or infinity"):
            check_answer(torch.tensor([1.0, value]), "a.png")


def test_flow_of_nan_is_an_outlier() -> None:
    true = torch.ones(2, 1, 2)
    made = true.clone()
    assert float(outlier_share(made, true)) == 0.0
    made[0, 0, 0] = NAN
    assert float(outlier_share(made, true)) == 0.5
