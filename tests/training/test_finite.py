"""Numbers that are not finite: a run stops before they replace a finite checkpoint."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import Settings
from torch import Tensor, nn

import perceivers as pv
from perceivers.cli.main import main
from perceivers.errors import RunError
from perceivers.finite import list_names, names_not_finite
from perceivers.tasks import Classification
from perceivers.training.events import Evaluated, Event, JsonlWriter, Noted
from perceivers.training.loop import Trainer
from perceivers.training.runtime import Runtime
from perceivers.training.state import load_state
from perceivers.training.window import FiniteGuard, Spoiled
from perceivers.workflows.training import pretrain, train

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perceivers.workflows.run.write_run_report", lambda folder: folder.report)


def after_step(step: int, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let ``change(trainer)`` spoil something when a step is done."""
    original = Trainer._log

    def spy(self: Trainer, *arguments: Any) -> None:
        original(self, *arguments)
        if self.progress.step == step:
            with torch.no_grad():
                change(self)

    monkeypatch.setattr(Trainer, "_log", spy)


def assert_finite(run: Path, step: int) -> None:
    """The state on disk is that of a step, and all of it is finite."""
    progress, state = load_state(run / "checkpoints" / "last.pt")
    assert progress.step == step
    tensors = {**state["model"], **state.get("average", {})}
    for name, each in state["optimizer"]["states"].items():
        tensors |= {f"{key} of {name}": value for key, value in each.items()}
    assert names_not_finite(tensors) == []
    assert names_not_finite(pv.load(f"{run}@last").state_dict()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("evaluates", "words"),
    [
        ("60", r"the loss is nan at step 1; the last finite state, after 0 steps"),
        ("1", r"tensors of the run's state hold NaN or infinity after 1 steps \(model/"),
    ],
)
def test_a_run_that_diverges_at_once_keeps_the_weights_that_it_started_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], evaluates: str, words: str
) -> None:
    out = tmp_path / "run"
    line = f"train --model hip_nano --data digits --out {out} --steps 60 --batch_size 16"
    line += " --optimizer.lr 1e38 --optimizer.clip 0 --schedule.warmup 0.3"
    line += f" --eval_every {evaluates} --device cpu"
    status = main(line.split())
    text = capsys.readouterr().err
    assert status == 2
    for found in (words, r"checkpoints/last\.pt", r"optimizer\.clip \(now 0\.0\)"):
        assert len(re.findall(found, text)) == 1, text
    assert_finite(out, 0)
    assert not (out / "model").exists()
    if "loss" in words:
        assert len(json.loads((out / "bad_batch_step_1.json").read_text())["indices"]) == 16


@pytest.mark.slow
@pytest.mark.parametrize(("clip", "value"), [(0.0, INF), (1.0, NAN)])
def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: float, value: float
) -> None:
    original = Runtime.backward
    calls: list[Tensor] = []

    def poison(self: Runtime, loss: Tensor) -> None:
        original(self, loss)
        calls.append(loss)
        if len(calls) == 4:
            parameter = next(p for p in trainers[0].task.parameters() if p.grad is not None)
            assert parameter.grad is not None
            parameter.grad.view(-1)[0] = value

    trainers: list[Trainer] = []
    begin = Trainer.run
    monkeypatch.setattr(
        Trainer, "run", lambda self, **options: (trainers.append(self), begin(self, **options))[1]
    )
    monkeypatch.setattr(Runtime, "backward", poison)
    with pytest.raises(RunError, match=rf"the gradient norm is {value} at step 3; the weights bef"):
        pretrain(**settings(optimizer={"clip": clip}, quiet=True))
    assert len(json.loads((tmp_path / "run/bad_batch_step_3.json").read_text())["indices"]) == 8
    assert_finite(tmp_path / "run", 3)


def spoil_weight(trainer: Trainer) -> None:
    next(trainer.task.model.parameters()).view(-1)[0] = NAN


def spoil_moment(trainer: Trainer) -> None:
    state = next(iter(trainer.optimizer.state.values()))
    state["exp_avg_sq"].view(-1)[0] = INF


def spoil_average(trainer: Trainer) -> None:
    assert trainer.average is not None
    next(iter(trainer.average.parameters.values())).view(-1)[0] = NAN


def spoil_buffer(trainer: Trainer) -> None:
    trainer.task.model.get_buffer("running_mean")[0] = NAN


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (spoil_weight, "model/"),
        pytest.param(spoil_moment, "optimizer/exp_avg_sq/", marks=pytest.mark.slow),
        pytest.param(spoil_average, "average/", marks=pytest.mark.slow),
        pytest.param(spoil_buffer, "model/running_mean", marks=pytest.mark.slow),
    ],
)
def test_a_state_that_is_not_finite_never_replaces_a_finite_one(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Any,
    name: str,
) -> None:
    original = Trainer.__init__

    def with_buffer(self: Trainer, task: Any, *arguments: Any) -> None:
        task.model.register_buffer("running_mean", torch.zeros(2))
        original(self, task, *arguments)

    monkeypatch.setattr(Trainer, "__init__", with_buffer)
    after_step(6, monkeypatch, spoil)
    # Steps after it must not meet it: what they compute would be found first.
    monkeypatch.setattr(FiniteGuard, "find_step", lambda self: None)
    with pytest.raises(
        RunError, match=rf"of the run's state hold NaN or infinity after 8 steps \({name}"
    ):
        train(**settings(ema=0.9, quiet=True, overwrite=True))
    run = tmp_path / "run"
    progress, state = load_state(run / "checkpoints" / "last.pt")
    assert progress.step == 4
    assert names_not_finite(state["model"]) == names_not_finite(state["average"]) == []
    for folder in ("model", "last"):
        assert names_not_finite(load_file(run / folder / "model.safetensors")) == []


@pytest.mark.slow
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_figure_that_is_not_finite_is_shown_and_never_the_best(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    events: list[Event] = []
    figures = iter([value, 0.25, value, 0.5])
    write = JsonlWriter.__call__
    monkeypatch.setattr(
        JsonlWriter, "__call__", lambda self, event: (events.append(event), write(self, event))[1]
    )
    monkeypatch.setattr(
        Classification, "evaluate", lambda self, batches: {"loss": 1.0, "top1": next(figures)}
    )
    run = train(**settings(eval_every=2, quiet=True))
    assert [e.is_best for e in events if isinstance(e, Evaluated)] == [False, True, False, True]
    assert load_state(run.folder.checkpoint)[0].best == 0.5
    noted = [event.text for event in events if isinstance(event, Noted)]
    assert [text.split(",")[0] for text in noted] == [
        f"validation top1 is {value} at step {step}" for step in (2, 6)
    ]


@pytest.mark.slow
def test_a_run_without_a_finite_figure_has_no_best_model(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classification, "evaluate", lambda self, batches: {"top1": NAN})
    with pytest.raises(RunError, match=r"no evaluation gave a finite top1, .*last\.pt"):
        train(**settings(quiet=True))
    assert_finite(tmp_path / "run", 8)
    assert not (tmp_path / "run" / "model").exists()


# -- parts -----------------------------------------------------------------------------------------


class FakeRuntime:
    """Processes that found something in earlier ranks, on a device of one's choice."""

    def __init__(self, device: str, others: tuple[Any, ...] = ()) -> None:
        self.device = SimpleNamespace(type=device)
        self.others = others

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Set where the other processes found something too."""
        return tuple(flag or bool(self.others) for flag in flags)

    def gather(self, value: Any) -> list[Any]:
        """The others' values and this one's."""
        return [*self.others, value]


def guard(device: str, *others: Any) -> FiniteGuard:
    runtime: Any = FakeRuntime(device, others)
    return FiniteGuard(runtime, lambda: {}, every=3)


def add(into: FiniteGuard, number: int, loss: float = 1.0, norm: float = 1.0) -> bool:
    return into.add(number, torch.tensor(loss), torch.tensor(norm), [number, -number])


def test_a_gpu_is_waited_for_once_per_record_and_no_step_is_forgotten() -> None:
    assert [add(guard("cpu"), number) for number in range(4)] == [True] * 4
    late = guard("cuda")
    assert [add(late, number, loss=NAN if number in {4, 5} else 1.0) for number in range(7)] == [
        True, False, False, True, False, False, True,
    ]  # fmt: skip
    found = late.find_step()
    assert found is not None
    assert (found.step, found.what, found.indices) == (4, "loss", [4, -4])
    assert found.value != found.value
    assert late.find_step() is None  # looked at once
    add(late, 7)
    assert late.find_step() is None


def test_the_first_bad_step_of_all_processes_counts_and_a_loss_before_a_norm() -> None:
    other = (2, 1.0, INF, [20])
    mine = guard("cpu", other)
    add(mine, 2, loss=NAN, norm=INF)
    assert repr(mine.find_step()) == repr(Spoiled(2, "loss", NAN, [2, -2]))
    fine = guard("cpu", other)
    add(fine, 2, norm=INF)
    assert fine.find_step() == Spoiled(2, "gradient norm", INF, [20, 2, -2])
    later = guard("cpu", other)
    add(later, 3, loss=NAN)
    assert later.find_step() == Spoiled(2, "gradient norm", INF, [20])


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_value_that_is_not_finite_is_found_anywhere(kind: torch.dtype, value: float) -> None:
    for place in (0, 499, 999):
        spoiled = torch.ones(1000, dtype=kind)
        assert names_not_finite({"a": spoiled}) == []
        spoiled[place] = value
        assert names_not_finite({"b": torch.ones(2), "a": spoiled.view(10, 100).t()}) == ["a"]


def test_large_and_empty_and_whole_numbers_are_finite() -> None:
    fine = {
        "large": torch.full((100,), 3e38),
        "half": torch.full((100,), 65_000.0, dtype=torch.float16),
        "empty": torch.zeros(0),
        "whole": torch.ones(2, dtype=torch.int64),
        "number": 3,
    }
    assert names_not_finite(fine) == []
    assert list_names([*"abcdef"]) == "a, b, c, d and 2 more"
    assert list_names(["a"]) == "a"


def test_the_weights_of_every_family_start_finite() -> None:
    inputs = {"image": pv.Image(32, 32, 3)}
    for name in ("hip_nano", "perceiver_nano", "perceiver_io_nano", "hiera_nano"):
        model: nn.Module = pv.create_model(name, inputs=inputs, num_classes=2)
        assert names_not_finite(model.state_dict()) == []
