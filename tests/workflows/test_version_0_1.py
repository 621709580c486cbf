"""What version 0.1 left behind: its runs resume, its models load, evaluate and export, to the same.

``tests/data/version_0_1/make.py`` made the files, with that version. Metrics are compared to four
digits, since other processors round otherwise.
"""

import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import perceivers as pv
from perceivers.workflows import run as run_module

PAST = Path(__file__).parents[1] / "data" / "version_0_1"
EXPECTED: Mapping[str, Any] = json.loads((PAST / "expected.json").read_text())
EXPORTED = ("classify_hip", "classify_hiera", "multitask", "choose")


def _load_maker() -> Any:
    spec = importlib.util.spec_from_file_location("version_0_1", PAST / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker = _load_maker()


@pytest.fixture
def past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the kept files, as the working directory: the runs name their data relatively."""
    # Reports are tested by themselves, and draw for a second.
    monkeypatch.setattr(run_module, "write_run_report", lambda folder: folder.report)
    copy = Path(shutil.copytree(PAST, tmp_path / "past"))
    monkeypatch.chdir(copy)
    return copy


def check(found: Any, expected: Any, where: str) -> None:
    """Compare nested metrics; whole numbers and names exactly."""
    if isinstance(expected, Mapping):
        assert found.keys() >= expected.keys(), where
        for name, value in expected.items():
            check(found[name], value, f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, value in enumerate(expected):
            check(found[number], value, f"{where}[{number}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6, nan_ok=True), where
    else:
        assert found == expected, where


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_finished_run_loads_and_evaluates_as_it_did(past: Path, name: str) -> None:
    check(maker.describe(past / "runs" / "finished" / name), EXPECTED[name]["finished"], name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_stopped_run_resumes_to_the_same_metrics_and_says_what_was_not_checked(
    past: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = past / "runs" / "stopped" / name
    assert not (run / "last" / "config.json").is_file() or (run / "config.yaml").is_file()
    # A run in parts goes on in one process; several would start this test again.
    pv.resume(run, devices=1, strategy="auto")
    check(maker.describe(run), EXPECTED[name]["resumed"], name)
    said = capsys.readouterr()
    assert "from here on" in said.out + said.err


# The hook that checks shapes does not know sizes that are symbols.
@pytest.mark.unhooked
@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_a_kept_model_exports(past: Path, name: str) -> None:
    done = pv.export(past / "runs" / "finished" / name, out=past / "x.onnx")
    assert done.largest <= 1e-4 * done.absmax


def test_a_kept_export_answers_as_the_model_does(past: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = pv.load(past / "runs" / "finished" / "classify_hip" / "model").eval()
    image = (torch.arange(3 * 64) % 256).to(torch.uint8).reshape(3, 1, 8, 8)
    session = onnxruntime.InferenceSession(past / "classify_hip.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.inference_mode():
        expected = model(image).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found, expected + 1e-3, rtol=1e-4, atol=1e-5)


def test_other_weights_would_be_noticed(past: Path) -> None:
    """Control: a weight that changed changes what is compared."""
    folder = past / "runs" / "finished" / "classify_hip"
    model = pv.load(folder / "model")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    model.save_pretrained(folder / "model", overwrite=True)
    found = maker.summarise(folder / "model")
    expected = EXPECTED["classify_hip"]["finished"]["outputs"]["model"]
    with pytest.raises(AssertionError):
        check(found, expected, "model")
