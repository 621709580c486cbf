"""Training runs of the flat systems: exact resuming, averages, precision, and choosing a task."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.workflows import making
from tests.workflows.conftest import TEXT

import perceivers as pv
from perceivers.errors import ConfigError, DataError, RunError
from perceivers.tasks.mlm import MaskedLanguage
from perceivers.training.config import MlmConfig, TrainConfig, build_config
from perceivers.training.loop import Trainer
from perceivers.training.run_folder import TASKS
from perceivers.training.state import load_state
from perceivers.workflows.task_table import tasks as task_rows
from perceivers.workflows.task_table import tasks_of
from perceivers.workflows.training import VERBS, choose_task


class Cut(Exception):  # noqa: N818 - a power cut
    """Ends a run at once."""


@pytest.fixture
def settings(made: Path) -> dict[str, Any]:
    """Masked bytes for six steps, with a checkpoint every two."""
    return {
        "task": "mlm",
        "model": making.NANO,
        "data": made / "texts.csv",
        "inputs": TEXT,
        "steps": 6,
        "checkpoint_every": 2,
        "eval_every": 3,
        "log_every": 1,
        "model_options": {"trunk": {"dropout_rate": 0.2}},
    }


def weights(path: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(path / which / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# -- the loop --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_run_equals_one_that_nothing_disturbed(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    settings |= {"ema": ema}
    whole = making.quietly(pv.pretrain, out=tmp_path / "whole", **settings).path
    original = Trainer._log

    def cut(self: Trainer, *args: Any) -> None:
        original(self, *args)
        if self.progress.step == 5:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_log", cut)
        with pytest.raises(Cut):
            making.quietly(pv.pretrain, out=tmp_path / "cut", **settings)
    assert load_state(tmp_path / "cut" / "checkpoints" / "last.pt")[0].step == 4
    assert not same(weights(tmp_path / "cut"), weights(whole))
    with monkeypatch.context() as patch:
        patch.setattr("perceivers.workflows.run.write_run_report", lambda folder: folder.report)
        pv.resume(tmp_path / "cut", quiet=True)
    for which in ("last", "model"):
        assert same(weights(tmp_path / "cut", which), weights(whole, which))
    logged = [
        {key: row[key] for key in ("step", "loss")}
        for run in (whole, tmp_path / "cut")
        for row in [json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])]
    ]
    assert logged[0] == logged[1]


@pytest.mark.slow
def test_a_seed_makes_a_run(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"steps": 2}
    runs = [
        making.quietly(pv.pretrain, out=tmp_path / str(number), seed=seed, **settings).path
        for number, seed in enumerate((0, 0, 1))
    ]
    assert same(weights(runs[0]), weights(runs[1]))
    assert not same(weights(runs[0]), weights(runs[2]))


@pytest.mark.slow
def test_recomputing_changes_no_weight(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"steps": 2, "model_options": {}}
    plain, thrifty = (
        weights(making.quietly(pv.pretrain, out=tmp_path / str(on), recompute=on, **settings).path)
        for on in (False, True)
    )
    assert same(plain, thrifty)


def test_recomputing_reaches_the_model(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    original = MaskedLanguage.forward

    def spy(self: MaskedLanguage, *args: Any) -> Any:
        seen.append(self.model.trunk.recompute)
        return original(self, *args)

    monkeypatch.setattr(MaskedLanguage, "forward", spy)
    settings |= {"steps": 1}
    for on in (False, True):
        making.quietly(pv.pretrain, out=tmp_path / str(on), recompute=on, **settings)
    assert seen == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "bf16-pure"])
def test_half_precision_trains_and_saves_what_loads(
    settings: dict[str, Any], tmp_path: Path, precision: str
) -> None:
    settings |= {"steps": 2}
    exact = making.quietly(pv.pretrain, out=tmp_path / "a", **settings)
    half = making.quietly(pv.pretrain, out=tmp_path / "b", precision=precision, **settings)
    wide, narrow = weights(exact.path), weights(half.path)
    assert not same(wide, narrow)
    for name, tensor in wide.items():
        assert torch.allclose(tensor, narrow[name].float(), atol=0.05, rtol=0.02), name
    figures = half.evaluate(split="val")
    assert figures["loss"] == pytest.approx(exact.evaluate(split="val")["loss"], rel=0.1)


@pytest.mark.parametrize("task", ["autoencode", "flow", "multitask"])
def test_other_tasks_train_in_half_precision(made: Path, tmp_path: Path, task: str) -> None:
    verb, settings = {
        "autoencode": (
            pv.pretrain,
            {"model": making.NANO, "data": made / "photographs", "size": 8},
        ),
        "flow": (
            pv.train,
            {
                "model": "perceiver_io_flow_tiny",
                "data": f"warps:{made / 'photographs'}",
                "inputs": {"video": {"height": 16, "width": 16}},
                "model_options": {"trunk": {"depth": 1}},
                "max_flow": 2.0,
            },
        ),
        "multitask": (
            pv.train,
            {
                "model": making.NANO,
                "data": made / "texts.csv",
                "labels": ["topic", "mood"],
                "inputs": TEXT,
            },
        ),
    }[task]
    run = making.quietly(verb, task=task, out=tmp_path / "run", precision="bf16", **settings)
    loss = [json.loads(row) for row in run.folder.metrics.read_text().splitlines()]
    assert all(row["loss"] == row["loss"] for row in loss if "loss" in row)
    # Norms over the batch count batches in whole numbers.
    kinds = {tensor.dtype for tensor in weights(run.path).values()} - {torch.int64}
    assert kinds == {torch.float32}


@pytest.mark.slow
def test_an_average_of_the_weights_is_what_is_saved(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    settings |= {"steps": 4}
    plain = weights(making.quietly(pv.pretrain, out=tmp_path / "a", **settings).path)
    run = making.quietly(pv.pretrain, out=tmp_path / "b", ema=0.9, **settings)
    tensors = load_state(run.folder.checkpoint)[1]
    assert same(plain, tensors["model"])  # the training itself is the same
    saved = weights(run.path)
    average = {n.removeprefix("module.model."): t for n, t in tensors["average"].items()}
    assert all(torch.equal(saved[name], average[name]) for name in saved)
    assert not same(saved, plain)


# -- choosing a task -------------------------------------------------------------------------------


def test_a_verb_trains_what_suits_the_model() -> None:
    assert choose_task("pretrain", None, "hip_nano") == "pretrain"
    assert choose_task("pretrain", None, making.NANO) == "autoencode"
    assert choose_task("pretrain", None, "runs/x") == "pretrain"
    assert choose_task("pretrain", None, None) == "pretrain"
    assert choose_task("train", None, making.NANO) == "classify"
    assert choose_task("finetune", None, "runs/x") == "classify"
    for verb in VERBS:
        tasks = tasks_of(verb)
        assert [choose_task(verb, task, making.NANO) for task in tasks] == list(tasks)


@pytest.mark.parametrize(
    ("verb", "task", "message"),
    [
        (
            "train",
            "mlm",
            r"train trains classify, .*, not 'mlm'; that is for 'perceivers pretrain'",
        ),
        ("pretrain", "flow", r"not 'flow'; that is for 'perceivers train'"),
        ("train", "multitaks", r"not 'multitaks'; did you mean 'multitask'\?"),
        ("pretrain", "xyzzy", r"pretrain trains pretrain, autoencode, mlm, not 'xyzzy'$"),
    ],
)
def test_a_task_of_another_verb_is_refused(verb: str, task: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_task(verb, task, making.NANO)


def test_every_task_has_a_verb_a_config_and_a_preparation() -> None:
    trained = {task for verb in VERBS for task in tasks_of(verb)}
    assert trained == set(TASKS) == set(task_rows())


def test_a_complete_config_says_its_task(made: Path, tmp_path: Path) -> None:
    values = {
        "model": making.NANO,
        "data": str(made / "texts.csv"),
        "out": str(tmp_path / "run"),
        "inputs": TEXT,
        "steps": 1,
        "batch_size": 4,
        "device": "cpu",
    }
    config = build_config(MlmConfig, values)
    with pytest.raises(ConfigError, match=r"got a config and also steps, task; put everything"):
        pv.pretrain(config, steps=3, task="mlm")
    with pytest.raises(ConfigError, match=r"got a TrainConfig; give one of PretrainConfig, MlmC"):
        pv.pretrain(build_config(TrainConfig, values))
    with pytest.raises(ConfigError, match=r"not 'mlm'; that is for 'perceivers pretrain'"):
        pv.train(config)
    assert not (tmp_path / "run").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("perceivers.workflows.run.write_run_report", lambda folder: folder.report)
        run = pv.pretrain(config, quiet=True)
    assert run.task == "mlm"
    assert run.config == config


def test_settings_of_another_task_are_refused(made: Path, tmp_path: Path) -> None:
    base = {"model": making.NANO, "data": made / "texts.csv", "out": tmp_path / "run"}
    for verb, settings, message in (
        (pv.pretrain, {"task": "mlm", "autoencode": {"points": 3}}, r"unknown setting autoencode"),
        (pv.train, {"task": "classify", "flow": {"scale": 3.0}}, r"unknown setting flow"),
        (pv.train, {"task": "multitask", "label_smothing": 0.1}, r"did you mean 'label_smoothing'"),
        (
            pv.train,
            {"task": "multitask", "label_smoothing": 2.0},
            r"label_smoothing is 2\.0; .*\[0, ",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            making.quietly(verb, **base, **settings)
    assert not (tmp_path / "run").exists()


def test_what_would_stop_the_first_step_stops_before_a_folder_is_made(
    made: Path, mlm_run: pv.Run, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"augment\.flip changes image and video, but .*\['bytes'\]"
    ):
        making.quietly(
            pv.pretrain,
            task="mlm",
            model=making.NANO,
            data=made / "texts.csv",
            out=tmp_path / "run",
            augment={"flip": True},
        )
    with pytest.raises(RunError, match=r"holds the model that training starts from"):
        making.quietly(
            pv.finetune, model=mlm_run.path, data=made / "topics.csv", out=mlm_run.path.parent
        )
    with pytest.raises(DataError, match="no such file"):
        making.quietly(pv.train, model=making.NANO, data=made / "no.csv", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
