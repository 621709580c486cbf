"""What every combination of family, modality and task that the docs claim must keep to."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contracts.combinations import (
    PAGE,
    SPECS,
    Cell,
    build,
    make_batch,
    name_of,
    read_cells,
    reads_several,
    write_page,
)
from torch import Tensor

import perceivers as pv
from perceivers.data import Batch
from perceivers.models.saving import ModelInfo, save_folder
from perceivers.tasks.base import Task

CELLS = read_cells()
SEVERAL = [cell for cell in CELLS if reads_several(cell[0]) and cell[2] not in {"flow", "segment"}]
# The families of which a Hiera alone reads padding, as zeros.
LACKING = [
    cell for cell in CELLS if cell[1] in {"points, ragged", "bytes"} and "hiera" not in cell[0]
]
STEPS = 300


def mark(cells: Sequence[Cell]) -> list[Any]:
    """Name cells; modalities of which all samples hold all elements are left to the slow tests."""
    return [
        pytest.param(cell, id="-".join(cell), marks=[] if cell in LACKING else pytest.mark.slow)
        for cell in cells
    ]


def made(cell: Cell, *, several: bool = False) -> tuple[Task, Batch]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        task = build(cell, several=several)
        # Heads that start at zero would answer everything alike.
        for parameter in task.model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return task.eval(), make_batch(cell, task)


def learn(task: Task, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and all gradients, under the same masks every time."""
    task.zero_grad()
    total = task(batch, torch.Generator().manual_seed(0)).total
    total.backward()
    found = {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}
    return total.detach(), found


def replaced(batch: Batch, **changes: Any) -> Batch:
    changed = copy.copy(batch)
    for key, value in changes.items():
        setattr(changed, key, value)
    return changed


def same(one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]]) -> bool:
    slopes = all(torch.equal(one[1][name], other[1][name]) for name in one[1])
    return torch.equal(one[0], other[0]) and one[1].keys() == other[1].keys() and slopes


def test_the_page_of_combinations_is_up_to_date() -> None:
    assert PAGE.read_text() == write_page(), "python -m tests.contracts.combinations"


def test_every_family_and_modality_is_on_it() -> None:
    assert {modality for _, modality, _ in CELLS} == set(SPECS)
    assert ("hip", "bytes", "mlm") in CELLS
    assert ("hiera", "points", "classify") not in CELLS


@pytest.mark.parametrize("cell", [c for c in LACKING if "points" in c[1]], ids="-".join)
def test_values_in_rows_that_are_no_point_change_nothing(cell: Cell) -> None:
    task, batch = made(cell)
    first = learn(task, batch)
    cloud = batch.inputs["points"].clone()
    absent = cloud.isnan().any(-1)
    cloud[..., :2][absent] = 1e3
    assert same(learn(task, replaced(batch, inputs={**batch.inputs, "points": cloud})), first)
    assert all(bool(x.isfinite().all()) for x in (first[0], *first[1].values()))
    cloud[0, 0] += 0.5
    assert not same(learn(task, replaced(batch, inputs={**batch.inputs, "points": cloud})), first)


@pytest.mark.parametrize("cell", LACKING, ids="-".join)
def test_a_sample_does_not_depend_on_how_long_others_are(cell: Cell) -> None:
    task, batch = made(cell)
    name = name_of(cell[1])
    with torch.no_grad():
        alone, together = (
            as_dict(task.model({name: part.inputs[name]}))
            for part in (first_sample(batch, 1), fill_others(batch, cell))
        )
    for key, values in alone.items():
        torch.testing.assert_close(together[key][:1], values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "cell", [cell for cell in LACKING if cell[2] in {"pretrain", "mlm"}], ids="-".join
)
def test_samples_of_nothing_but_padding_weigh_nothing(cell: Cell) -> None:
    task, batch = made(cell)
    alone, together = (
        learn(task, part) for part in (first_sample(batch, 1), fill_others(batch, cell))
    )
    assert len(alone[1]) == len(together[1])
    torch.testing.assert_close(together[0], alone[0], rtol=1e-5, atol=1e-6)
    for name, slope in alone[1].items():
        torch.testing.assert_close(together[1][name], slope, rtol=1e-3, atol=1e-5)


def first_sample(batch: Batch, size: int) -> Batch:
    parts = {key: value[:size] for key, value in batch.inputs.items()}
    position = torch.arange(size)
    return replaced(batch, inputs=parts, index=position, position=position)


def fill_others(batch: Batch, cell: Cell) -> Batch:
    """The first sample beside others that hold nothing."""
    nothing = 0 if cell[1] == "bytes" else torch.nan
    name = name_of(cell[1])
    raw = batch.inputs[name].clone()
    raw[1:] = nothing
    return replaced(batch, inputs={**batch.inputs, name: raw})


@pytest.mark.slow
@pytest.mark.parametrize("cell", mark(SEVERAL))
def test_what_stands_in_place_of_an_absent_modality_changes_nothing(cell: Cell) -> None:
    task, batch = made(cell, several=True)
    name = name_of(cell[1])
    there = torch.tensor([True, False, True])
    batch = replaced(batch, present={name: there})
    first = learn(task, batch)
    raw = batch.inputs[name].clone()
    raw[1] = raw[0]
    changed = replaced(batch, inputs={**batch.inputs, name: raw})
    assert same(learn(task, changed), first)
    assert not same(learn(task, replaced(changed, present={})), first)


@pytest.mark.slow
@pytest.mark.parametrize("cell", mark(CELLS))
def test_saved_models_answer_the_same(cell: Cell, tmp_path: Path) -> None:
    task, batch = made(cell)
    loaded = pv.load(save_folder(task.model, tmp_path / "model", ModelInfo()))
    inputs = {name: batch.inputs[name] for name in task.model.config.data_inputs}
    with torch.no_grad():
        one, other = (as_dict(model.eval()(inputs)) for model in (task.model, loaded))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def as_dict(answer: Any) -> dict[str, Tensor]:
    return answer if isinstance(answer, dict) else {"": answer}


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_the_loss_on_one_batch_falls_by_half(cell: Cell) -> None:
    task, batch = made(cell)
    task.train()
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3, weight_decay=0.0)
    losses: list[float] = []
    for _ in range(STEPS):
        loss = task(batch, torch.Generator().manual_seed(0)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if losses[-1] < 0.5 * losses[0]:
            break
    assert losses[-1] < 0.5 * losses[0], (losses[0], min(losses))
