"""Every verb with samples that lack a modality, and with modalities that are filled in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import Outcome
from tests.workflows import making

import perceivers as pv
from perceivers.data.writing import write_wav

Call = Callable[..., Outcome]
Refuse = Callable[..., str]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of images and sounds: a third has both, a third one, and a third the other."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("low", "high"):
        (folder / name).mkdir()
        for i in range(9):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            if i % 3 != 1:
                Image.fromarray(pixels).save(folder / name / f"{i}.png")
            if i % 3 != 0:
                wave = rng.uniform(-1, 1, (1, 64)).astype(np.float32)
                write_wav(folder / name / f"{i}.wav", wave, making.RATE)
    return folder


@pytest.fixture(scope="module")
def pretrained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> pv.Run:
    return making.quietly(
        pv.pretrain,
        model="hip_nano",
        data=data,
        out=tmp_path_factory.mktemp("runs") / "pretrained",
        size=8,
        val_share=0.4,
        modality_dropout=0.5,
    )


@pytest.fixture(scope="module")
def classifier(data: Path, pretrained: pv.Run, tmp_path_factory: pytest.TempPathFactory) -> pv.Run:
    return making.quietly(
        pv.finetune,
        model=pretrained.path,
        data=data,
        out=tmp_path_factory.mktemp("runs") / "classifier",
        val_share=0.4,
        modality_dropout=0.5,
    )


VERBS: dict[str, tuple[str, list[str], list[str]]] = {
    "evaluate": ("classifier", ["--split", "val", "--subsets"], ["By modality, val"]),
    "evaluate losses": ("pretrained", ["--split", "val"], ["loss/image: ", "loss/audio: "]),
    "evaluate filling": (
        *("pretrained", ["--split", "train", "--fill"]),
        ["Filled in, train", "input of another sample", "variances"],
    ),
    "predict": ("classifier", ["{data}"], ['"file": ']),
    "reconstruct": ("pretrained", ["{data}", "--out", "{out}"], ["files in"]),
    "embed": ("classifier", ["{data}", "--out", "{out}/f.npz"], ["18"]),
    "anomaly": ("pretrained", ["{data}", "--out", "{out}", "--draw", "2"], ["18"]),
    "report": ("pretrained", [], ["report: "]),
    "report of classes": ("classifier", [], ["report: "]),
}


DRAWING = {"anomaly", "report", "report of classes"}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] * (case in DRAWING)) for case in VERBS],
)
def test_every_verb_takes_samples_that_lack_a_modality(
    case: str, call: Call, request: pytest.FixtureRequest, data: Path, tmp_path: Path
) -> None:
    if case not in DRAWING:
        request.getfixturevalue("without_report")
    kind, arguments, expected = VERBS[case]
    run = request.getfixturevalue(kind)
    filled = [each.format(data=data, out=tmp_path) for each in arguments]
    outcome = call(case.split()[0], run.path, *filled)
    assert outcome.code == 0, outcome
    assert "skipped" not in outcome.err
    for pattern in expected:
        assert pattern in outcome.out


@pytest.mark.unhooked
@pytest.mark.parametrize("kind", ["pretrained", "classifier"])
def test_models_of_several_modalities_are_exported(
    kind: str, call: Call, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run = request.getfixturevalue(kind)
    outcome = call("export", run.path, "--out", tmp_path / "m.pt2", "--format", "torch-export")
    assert outcome.code == 0, outcome


def test_reconstructions_are_of_what_a_sample_holds(
    call: Call, pretrained: pv.Run, data: Path, tmp_path: Path
) -> None:
    files = [data / "low" / name for name in ("0.png", "1.wav", "2.png", "2.wav")]
    assert call("reconstruct", pretrained.path, *files, "--out", tmp_path).code == 0
    found = {path.name for path in tmp_path.glob("*_original.*")}
    assert found == {"0_original.png", "1_original.wav", "2_original.png", "2_original.wav"}


def test_what_is_filled_in_is_written_and_told(
    call: Call, refuse: Refuse, pretrained: pv.Run, data: Path, tmp_path: Path
) -> None:
    files = [data / "low" / name for name in ("0.png", "1.wav", "2.png", "2.wav")]
    out = ["--out", tmp_path / "out"]
    outcome = call("reconstruct", pretrained.path, *files, *out, "--fill", "audio", "image")
    assert outcome.code == 0
    assert "training never hid" not in outcome.err
    assert "1.wav: holds only audio" in outcome.err
    rows = [line for line in outcome.out.splitlines() if "unknown" in line or "squared" in line]
    assert len(rows) + outcome.out.count("variances") >= 4
    names = {path.name for path in (tmp_path / "out").glob("*_filled.*")}
    assert names == {"0_filled.wav", "1_filled.png", "2_filled.png", "2_filled.wav"}
    records = json.loads((tmp_path / "out" / "filled.json").read_text())["filled"]
    known = {(Path(each["file"]).stem, each["modality"]): each["error"] for each in records}
    assert known["0", "audio"] is known["1", "image"] is None
    assert min(known["2", "audio"], known["2", "image"]) > 0
    refuse(
        ["reconstruct", pretrained.path, "--fill", "audio", files[0]],
        "arguments are required: files|files come before --fill",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temporal_views", "2"], "views are 2x1, but modalities are filled in from one view"),
        (["--compile"], "compile has no effect on filling in modalities"),
    ],
)
def test_settings_without_effect_on_filling_in_are_refused(
    arguments: list[str], message: str, refuse: Refuse, pretrained: pv.Run
) -> None:
    refuse(["evaluate", pretrained.path, "--fill", *arguments], message)


def test_python_returns_what_is_recorded(pretrained: pv.Run) -> None:
    found: dict[str, Any] = pretrained.evaluate(split="train", fill=True)
    assert found["loss"] > 0
    assert set(found["fill"]) == {"image", "audio"}
    record = json.loads((pretrained.path / "results.json").read_text())["train"]
    assert record["fill"] == found["fill"]
    assert "fill" not in record["figures"]
