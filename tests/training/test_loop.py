"""The loop: exact resume, budgets, guards, averages and accumulation, on real runs."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import Settings
from torch import Tensor

from perceivers.data import Batch
from perceivers.errors import CheckpointError, DataError, RunError
from perceivers.training.events import Event, JsonlWriter, Stepped, cut_records
from perceivers.training.loop import Interrupted, Trainer, step_generator
from perceivers.training.state import Progress, load_state, save_state
from perceivers.workflows.training import finetune, pretrain, resume, train

Weights = dict[str, Tensor]


def weights(path: Path) -> Weights:
    return load_file(path / "model.safetensors")


def equal(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process SIGTERM when the loop has done ``step`` steps."""
    original = Trainer._log

    def spy(self: Trainer, *args: Any) -> None:
        original(self, *args)
        if self.progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_log", spy)


@pytest.mark.slow
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_run_that_was_interrupted_and_resumed_ends_with_the_same_bits(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    options = {
        "ema": ema,
        "augment": {"rotate": 10.0, "shift": 0.1},
        "model_options": {"drop_path_rate": 0.3, "dropout_rate": 0.2},
        "quiet": True,
    }
    whole = pretrain(**settings(out=str(tmp_path / "whole"), **options))
    other = pretrain(**settings(out=str(tmp_path / "other"), seed=1, **options))
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        with pytest.raises(Interrupted, match="stopped at step 5"):
            pretrain(**settings(out=str(tmp_path / "cut"), **options))
    run = resume(tmp_path / "cut", quiet=True)
    for name in ("model", "last"):
        assert equal(weights(whole.path / name), weights(run.path / name))
        assert not equal(weights(whole.path / name), weights(other.path / name))
    assert records(whole.folder.metrics) == records(run.folder.metrics)


def records(path: Path) -> list[dict[str, float]]:
    """Everything in metrics.jsonl but times."""
    timed = {"seconds", "samples_per_second", "data_wait"}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: line[key] for key in line if key not in timed} for line in lines]


@pytest.mark.slow
def test_lamb_resumes_exactly_too(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"optimizer": {"name": "lamb"}, "quiet": True}
    whole = pretrain(**settings(out=str(tmp_path / "whole"), **options))
    with monkeypatch.context() as patch:
        interrupt_at(4, patch)
        with pytest.raises(Interrupted):
            pretrain(**settings(out=str(tmp_path / "cut"), **options))
    run = resume(tmp_path / "cut", quiet=True)
    assert equal(weights(whole.path / "last"), weights(run.path / "last"))


@pytest.mark.slow
def test_accumulation_computes_the_same_classifier(settings: Settings, tmp_path: Path) -> None:
    one = train(**settings(out=str(tmp_path / "one"), steps=3, quiet=True))
    four = train(**settings(out=str(tmp_path / "four"), steps=3, accumulate=4, quiet=True))
    other = train(**settings(out=str(tmp_path / "other"), steps=3, seed=5, quiet=True))
    a, b, c = (weights(run.path / "last") for run in (one, four, other))
    largest = max(float((a[name] - b[name]).abs().max()) for name in a)
    assert largest < 2e-4  # Adam's first steps magnify rounding where gradients are near zero
    assert max(float((a[name] - c[name]).abs().max()) for name in a) > 0.1


@pytest.mark.slow
def test_a_limit_ends_the_run_and_a_finished_run_resumes_to_itself(settings: Settings) -> None:
    run = pretrain(**settings(limit=3, quiet=True))
    before = weights(run.path / "last")
    assert load_state(run.folder.checkpoint)[0].step == 3
    assert equal(before, weights(resume(run.path, quiet=True).path / "last"))


@pytest.mark.slow
def test_patience_stops_a_run_that_no_longer_improves(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perceivers.tasks import MaskedAutoencoding

    monkeypatch.setattr(MaskedAutoencoding, "evaluate", lambda self, batches: {"loss": 1.0})
    run = pretrain(**settings(steps=100, eval_every=2, patience=2, quiet=True))
    assert load_state(run.folder.checkpoint)[0].step == 6


@pytest.mark.slow
def test_a_time_budget_stops_a_run(settings: Settings) -> None:
    run = pretrain(**settings(steps=10_000, minutes=1e-4, quiet=True))
    assert 1 <= load_state(run.folder.checkpoint)[0].step < 50


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = pretrain(**settings(out=str(tmp_path / "clean"), steps=8, limit=3, quiet=True))
    original = Batch.split

    def poison(batch: Batch, parts: int) -> list[Batch]:
        if poison.calls == 3:  # type: ignore[attr-defined]
            batch.inputs["image"] = torch.full(batch.inputs["image"].shape, float("nan"))
        poison.calls += 1  # type: ignore[attr-defined]
        return original(batch, parts)

    poison.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(Batch, "split", poison)
    with pytest.raises(RunError, match=r"the loss is nan at step 3; .*indices.*optimizer\.lr"):
        pretrain(**settings(quiet=True))
    indices = json.loads((tmp_path / "run" / "bad_batch_step_3.json").read_text())["indices"]
    assert len(indices) == 8
    saved = weights(tmp_path / "run" / "last")
    assert all(torch.isfinite(value).all() for value in saved.values())
    assert saved.keys() == weights(clean.path / "last").keys()


def test_too_many_unreadable_samples_stop_a_run(settings: Settings, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            path = tmp_path / "data" / name / f"{i}.png"
            Image.new("L", (8, 8), 40 * i).save(path)
            if i > 1:
                path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(
        DataError, match=r"samples could not be read, more than max_bad_share=0\.05"
    ):
        pretrain(**settings(data=str(tmp_path / "data"), size=8, channels=1, quiet=True))


@pytest.mark.slow
def test_a_few_unreadable_samples_do_not_stop_a_run_that_has_read_little(
    settings: Settings, tmp_path: Path
) -> None:
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            path = tmp_path / "data" / name / f"{i}.png"
            Image.new("L", (8, 8), 40 * i).save(path)
    broken = tmp_path / "data" / "b" / "5.png"
    broken.write_bytes(broken.read_bytes()[:30])
    pretrain(**settings(data=str(tmp_path / "data"), size=8, channels=1, quiet=True))


@pytest.mark.slow
def test_fine_tuning_takes_the_encoder_and_leaves_the_decoder(
    settings: Settings, tmp_path: Path
) -> None:
    first = pretrain(**settings(out=str(tmp_path / "a"), quiet=True))
    second = finetune(
        **settings(model=str(first.path), out=str(tmp_path / "b"), limit=1, quiet=True)
    )
    source, target = weights(first.path / "model"), weights(second.path / "model")
    assert not [name for name in target if name.startswith("decoder")]
    assert {name.split(".")[0] for name in target} == {"encoder", "head"}
    shared = [name for name in target if name in source]
    drift = max(float((source[name] - target[name]).abs().max()) for name in shared)
    assert drift < 0.03  # one step away; positions learn twenty times as fast as the rest


def test_steps_draw_their_randomness_from_seed_step_and_process_alone() -> None:
    def draw(*key: int) -> tuple[float, float]:
        generator = step_generator(*key)
        return float(torch.rand(())), float(torch.rand((), generator=generator))

    assert draw(0, 3, 0) == draw(0, 3, 0)
    assert len({draw(0, 3, 0), draw(1, 3, 0), draw(0, 4, 0), draw(0, 3, 1)}) == 4
    # What an objective draws is keyed on samples, not on the process that holds them.
    assert draw(0, 3, 0)[1] == draw(0, 3, 1)[1]
    assert draw(0, 3, 0)[0] != draw(0, 3, 1)[0]
    assert draw(0, 3, 0)[1] != draw(0, 4, 0)[1]


def test_records_beyond_the_checkpoint_and_torn_lines_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"st')
    cut_records(path, 4)
    assert path.read_text() == '{"step": 2}\n{"step": 4}\n'


def test_metrics_are_one_record_per_line(tmp_path: Path) -> None:
    from perceivers.training.events import Finished, Started

    writer = JsonlWriter(tmp_path / "m.jsonl")
    events: list[Event] = [
        Started(step=0, total=2),
        Stepped(2, 2, 0.5, {"image": 0.25}, 0.1, 10.0, 1.0, 0.125),
        Finished(2, "done"),
    ]
    for event in events:
        writer(event)
    record = json.loads((tmp_path / "m.jsonl").read_text())
    assert record["loss"] == 0.5
    assert record["loss/image"] == 0.25
    assert record["data_wait"] == 0.125


def test_a_truncated_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_state(path, Progress(step=3), {"model": {"w": torch.ones(3)}})
    assert load_state(path)[0].step == 3
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a complete training checkpoint"):
        load_state(path)
    torch.save({"progress": vars(Progress()), "model": Path}, path)
    with pytest.raises(CheckpointError, match="not a complete training checkpoint"):
        load_state(path)
    with pytest.raises(CheckpointError, match="stopped before its first checkpoint"):
        load_state(tmp_path / "none.pt")
