"""Compilation as a setting: refusals, exact resume, and answers that agree with the plain model.

Generated code and the shape checks exclude each other: ``pytest -m unhooked
--jaxtyping-packages=``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.workflows import making

import perceivers as pv
from perceivers.checkpoints.loading import load_with_info
from perceivers.cli.main import main
from perceivers.errors import ConfigError
from perceivers.training.loop import Trainer
from perceivers.workflows.embedding import embed
from perceivers.workflows.evaluation import evaluate
from perceivers.workflows.prediction import check_compiled
from perceivers.workflows.task_table import tasks

SETTINGS: dict[str, Any] = {"model": "perceiver_nano", "data": "digits", "batch_size": 8}


def quiet(test: Callable[..., None]) -> Callable[..., None]:
    """Allow what torch warns of in itself."""
    for text in ("`torch.jit:DeprecationWarning", "The .grad attribute:UserWarning"):
        test = pytest.mark.filterwarnings(f"ignore:{text}")(test)
    return test


class Cut(Exception):  # noqa: N818 - stands for a process that is killed
    """Ends a run between two checkpoints."""


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the compiler alone, which takes seconds to load."""
    for place in ("workflows.numerics", "training.runtime"):
        monkeypatch.setattr(f"perceivers.{place}.check_compiler", lambda device: None)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: None)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "last" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strategy": "fsdp"}, "does not work with strategy fsdp"),
        ({"device": "mps"}, "not on device mps"),
        ({}, "not on the PATH"),
    ],
)
def test_a_run_that_cannot_be_compiled_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reason: str
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=reason):
        making.quietly(pv.train, out=tmp_path / "run", compile=True, **SETTINGS, **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_compiler")
def test_what_compilation_has_no_effect_on_is_refused(
    mlm_run: pv.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"compile=True has no effect on .*fills in \[MASK\]"):
        list(pv.predict(mlm_run.path, texts=["a [MASK]"], compile=True))
    loaded = load_with_info(mlm_run.path)
    written = [row.files(loaded) for row in tasks().values() if row.files and row.name != "segment"]
    assert len(written) == 2
    for files in written:
        with pytest.raises(ConfigError, match=f"no effect on run: it {files.does}, one sample"):
            check_compiled(loaded, "run", files)
    assert main(["evaluate", str(mlm_run.path), "--subsets", "--compile"]) == 2
    assert "--compile has no effect with --subsets" in capsys.readouterr().err


@pytest.mark.usefixtures("no_compiler")
def test_fewer_samples_than_a_batch_are_not_compiled_and_that_is_said(
    mlm_run: pv.Run, made: Path
) -> None:
    said: list[str] = []
    texts = str(made / "texts.csv")
    plain = embed(mlm_run.path, texts, split="val")
    found = embed(mlm_run.path, texts, split="val", compile=True, note=said.append)
    assert np.array_equal(found.features, plain.features)
    assert said == [
        "compile: no batch had 64 samples, so nothing was compiled; use a smaller batch size, or "
        "leave compile out"
    ]


@pytest.mark.unhooked
@pytest.mark.slow
@quiet
def test_a_compiled_run_resumes_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS | {
        "steps": 4,
        "eval_every": 1,  # what an evaluation compiles must not change the steps after it
        "checkpoint_every": 2,
        "accumulate": 2,
        "recompute": True,
        "ema": 0.5,
        "model_options": {"trunk": {"dropout_rate": 0.5}},
    }
    torch.compiler.reset()
    whole = making.quietly(pv.train, out=tmp_path / "whole", compile=True, **settings).path
    plain = making.quietly(pv.train, out=tmp_path / "plain", **settings).path
    original = Trainer._log

    def cut(self: Trainer, *args: Any) -> None:
        original(self, *args)
        if self.progress.step == 3:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_log", cut)
        with pytest.raises(Cut):
            making.quietly(pv.train, out=tmp_path / "cut", compile=True, **settings)
    torch.compiler.reset()  # as in a new process
    monkeypatch.setattr("perceivers.workflows.run.write_run_report", lambda folder: folder.report)
    assert pv.resume(tmp_path / "cut", quiet=True).config.compile
    assert same(weights(tmp_path / "cut"), weights(whole))
    assert not same(weights(whole), weights(plain))
    assert weights(whole).keys() == weights(plain).keys()


@pytest.mark.unhooked
@pytest.mark.slow
@quiet
def test_compiled_answers_agree_with_those_of_the_plain_model(tmp_path: Path) -> None:
    run = making.quietly(pv.train, out=tmp_path / "run", **SETTINGS).path
    said: list[str] = []
    torch.compiler.reset()
    plain, compiled = (
        embed(run, split="val", batch_size=100, compile=on, note=said.append)
        for on in (False, True)
    )
    assert compiled.features.shape == plain.features.shape
    np.testing.assert_allclose(compiled.features, plain.features, rtol=1e-4, atol=1e-5)
    assert not np.array_equal(compiled.features[:100], plain.features[:100])
    assert np.array_equal(compiled.features[100:], plain.features[100:])
    assert len(said) == 1
    assert "parts of the model took" in said[0]
    assert said[0].endswith("batches of other sizes than 100, which ran uncompiled: 1")
    a, b = (evaluate(run, split="val", batch_size=100, compile=on).figures for on in (False, True))
    assert a == pytest.approx(b, abs=0.02)
