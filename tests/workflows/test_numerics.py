"""Precision and library of matrix products: chosen when a run starts, and kept when it resumes."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import perceivers as pv
from perceivers.errors import CheckpointError
from perceivers.models.hip import encoder
from perceivers.nn import linear as linear_module
from perceivers.nn.linear import onednn_works
from perceivers.training.loop import Interrupted, Trainer
from perceivers.workflows import numerics as choosing
from perceivers.workflows.numerics import Numerics
from perceivers.workflows.task_table import tasks

SETTINGS: dict[str, Any] = {
    "model": "hip_nano",
    "data": "digits",
    "batch_size": 32,
    "device": "cpu",
    "quiet": True,
    "eval_every": 1000,
    "checkpoint_every": 1000,
}
pytestmark = pytest.mark.skipif(not onednn_works(), reason="this torch lacks oneDNN's product")


@pytest.fixture
def halfway(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Start a run and interrupt it in the middle."""

    def start(out: Path, **settings: Any) -> None:
        before = Trainer._decide

        def stop(self: Trainer) -> tuple[bool, bool]:
            return before(self)[0], self.progress.step == 3

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_decide", stop)
            with pytest.raises(Interrupted):
                pv.train(**{**SETTINGS, **settings}, steps=6, out=str(out))

    return start


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "last" / "model.safetensors")


def equal(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.slow
@pytest.mark.parametrize(("library", "other"), [("onednn", "torch"), ("torch", "onednn")])
def test_a_run_resumes_with_the_library_that_it_began_with(
    halfway: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: str, other: str
) -> None:
    monkeypatch.setattr(linear_module, "LEAST_PRODUCTS", 1 << 10)  # of a small model too
    monkeypatch.setenv("PERCEIVERS_LINEAR", library)
    whole = pv.train(**SETTINGS, steps=6, out=str(tmp_path / "whole"))
    halfway(tmp_path / "half")
    # Another process measures the opposite.
    monkeypatch.delenv("PERCEIVERS_LINEAR")
    monkeypatch.setattr(linear_module, "remembered", lambda *_: other)
    resumed = pv.resume(tmp_path / "half", quiet=True)
    assert equal(whole.path, resumed.path)
    opposite = pv.train(**SETTINGS, steps=6, out=str(tmp_path / "opposite"))
    assert not equal(whole.path, opposite.path)  # so it matters which
    kept = json.loads((resumed.path / "numerics.json").read_text(encoding="utf-8"))
    expected = {"device": "cpu", "precision": "float32", "linear": library, "chunks": True}
    assert kept == expected


@pytest.mark.slow
def test_a_run_from_before_goes_on_with_torch_s_products_and_says_so(
    halfway: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(linear_module, "LEAST_PRODUCTS", 1 << 10)
    monkeypatch.setattr(encoder, "CHUNKED_FROM", 1)
    monkeypatch.setattr(encoder, "CHUNK_SLOTS", 1 << 9)
    monkeypatch.setenv("PERCEIVERS_LINEAR", "torch")
    monkeypatch.setattr(choosing, "Numerics", partial(Numerics, chunks=False))
    whole = pv.train(**SETTINGS, steps=6, out=str(tmp_path / "whole"))
    halfway(tmp_path / "half")
    (tmp_path / "half" / "numerics.json").unlink()
    monkeypatch.delenv("PERCEIVERS_LINEAR")
    monkeypatch.setattr(linear_module, "remembered", lambda *_: "onednn")
    resumed = pv.resume(tmp_path / "half")
    assert "resumes with torch's own" in " ".join(capsys.readouterr().err.split())
    assert equal(whole.path, resumed.path)
    monkeypatch.setattr(choosing, "Numerics", Numerics)
    monkeypatch.setenv("PERCEIVERS_LINEAR", "torch")
    chunks = pv.train(**SETTINGS, steps=6, out=str(tmp_path / "chunks"))
    assert not equal(whole.path, chunks.path)  # so both choices matter


@pytest.mark.parametrize(
    ("record", "environment", "said"),
    [
        ({"linear": "onednn"}, "torch", "used onednn for matrix products and resumes with torch"),
        pytest.param(
            {"device": "cuda", "precision": "bf16"},
            "",
            "computed in bf16 on cuda and resumes in",
            marks=pytest.mark.slow,
        ),
        ({"chunks": 1}, "", "is damaged: chunks is 1, expected True or False"),
        ({"linear": "abacus"}, "", "is damaged: linear is 'abacus', expected torch or onednn"),
    ],
)
def test_what_cannot_be_kept_is_said(
    halfway: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    record: dict[str, str],
    environment: str,
    said: str,
) -> None:
    halfway(tmp_path / "run")
    path = tmp_path / "run" / "numerics.json"
    kept = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(kept | record), encoding="utf-8")
    monkeypatch.setenv("PERCEIVERS_LINEAR", environment)
    if "damaged" in said:
        with pytest.raises(CheckpointError, match=said):
            pv.resume(tmp_path / "run", quiet=True)
        return
    pv.resume(tmp_path / "run")
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_auto_takes_what_was_measured_and_keeps_it(
    halfway: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(choosing, "MEASURED_STEPS", 6)
    monkeypatch.setattr(choosing, "has_fast_bf16", lambda: True)
    monkeypatch.setenv("PERCEIVERS_CACHE", str(tmp_path / "cache"))
    asked = pv.train(**SETTINGS, steps=6, out=str(tmp_path / "asked"), precision="bf16")
    gains = iter([2.0])
    monkeypatch.setattr(choosing, "measure_half", lambda *_: next(gains))
    whole = pv.train(**SETTINGS, steps=6, out=str(tmp_path / "whole"))
    halfway(tmp_path / "half")  # known by now, so not measured again
    resumed = pv.resume(tmp_path / "half", quiet=True)
    kept = json.loads((whole.path / "numerics.json").read_text(encoding="utf-8"))
    assert kept["precision"] == "bf16"
    assert equal(whole.path, resumed.path)
    assert equal(whole.path, asked.path)  # the same as asking for it
    plain = pv.train(**SETTINGS, steps=6, out=str(tmp_path / "plain"), precision="float32")
    assert not equal(whole.path, plain.path)
    short = pv.train(**SETTINGS, steps=5, out=str(tmp_path / "short"))
    kept = json.loads((short.path / "numerics.json").read_text(encoding="utf-8"))
    assert kept["precision"] == "float32"


def test_measuring_changes_nothing() -> None:
    config = pv.ClassifyConfig(
        model="perceiver_io_nano", data="digits", out="unused", model_options={}
    )
    prepared = tasks()["classify"].prepare(config)
    task = prepared.task
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    random = torch.random.get_rng_state()
    batch = next(
        iter(
            choosing.make_train_loader(
                prepared.dataset.splits["train"],
                prepared.specs,
                batch_size=4,
                seed=0,
                augment=config.augment,
                start_step=0,
                num_steps=1,
            )
        )
    )
    assert choosing.measure_half(task, batch) > 0
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in task.state_dict().items())
    assert all(parameter.grad is None for parameter in task.parameters())
