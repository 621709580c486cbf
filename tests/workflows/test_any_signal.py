"""Texts and ragged clouds through a HiP and a Hiera, from pre-training to files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.workflows import making

import perceivers as pv
from perceivers.errors import CheckpointError
from perceivers.plan.estimates import PlanSettings
from perceivers.workflows.anomaly import AnomalySettings, find_anomalies, write_anomalies

pytestmark = pytest.mark.slow

# Who is pre-trained on what.
CASES: dict[str, dict[str, Any]] = {
    "hip texts": {"model": "hip_nano", "data": "texts.csv"},
    "hip words": {"model": "hip_nano", "data": "texts.csv", "task": "mlm"},
    "hip clouds": {"model": "hip_nano", "data": "clouds.npz"},
    "hiera texts": {"model": "hiera_nano_text", "data": "texts.csv"},
    "hiera words": {"model": "hiera_nano_text", "data": "texts.csv", "task": "mlm"},
}
TEXT = {"bytes": {"length": 128}}
NOTE = "a green tree stands in the rain, a blue stone lies under it, and the sun is far behind"
Trained = Callable[[str], pv.Run]


@pytest.fixture(scope="module")
def trained(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of a case, trained when it is first asked for."""
    root, runs = tmp_path_factory.mktemp("any_signal"), dict[str, pv.Run]()

    def find(case: str) -> pv.Run:
        if case not in runs:
            settings = CASES[case] | {"data": made / CASES[case]["data"], "out": root / case}
            inputs = {} if "clouds" in case else TEXT
            runs[case] = making.quietly(pv.pretrain, **settings, inputs=inputs)
        return runs[case]

    return find


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A text and a cloud of seven points."""
    (tmp_path / "note.v2.txt").write_text(NOTE)
    cloud = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    np.save(tmp_path / "cloud.npy", cloud)
    return {"texts": tmp_path / "note.v2.txt", "clouds": tmp_path / "cloud.npy"}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow if "words" in case else []) for case in CASES],
)
def test_what_was_pre_trained_is_evaluated_and_fine_tuned(
    case: str, trained: Trained, made: Path, tmp_path: Path
) -> None:
    run = trained(case)
    figures = run.evaluate(split="val")
    assert np.isfinite(figures["loss"])
    assert ("bits_per_byte" in figures) == ("words" in case)
    data = made / "clouds.npz" if "clouds" in case else made / "topics.csv"
    tuned = making.quietly(pv.finetune, model=run.path, data=data, out=tmp_path / "tuned")
    assert all(np.isfinite(value) for value in tuned.evaluate(split="val").values())


@pytest.mark.parametrize("case", [case for case in CASES if "words" not in case])
def test_hidden_parts_are_reconstructed_as_files(
    case: str, trained: Trained, files: dict[str, Path], tmp_path: Path
) -> None:
    file = files[case.split()[1]]
    *written, overview = trained(case).reconstruct([file], tmp_path / "out")
    assert overview.name == "overview.png"
    assert [path.name for path in written] == [
        f"{file.stem}_{kind}{ending}"
        for kind in ("original", "masked", "reconstructed")
        for ending in ((".npy", ".ply") if "clouds" in case else (".txt",))
    ]
    if "clouds" in case:
        original, seen, made = map(np.load, written[::2])
        assert original.shape == made.shape == (7, 3)
        assert 0 < len(seen) < 7
        assert np.isfinite(made).all()
        assert all((original == row).all(1).any() for row in seen)
    else:
        original, masked = (path.read_text().rstrip() for path in written[:2])
        assert original == NOTE
        assert len(masked) == len(original)
        assert "_" in masked
        assert all(a in {b, "_"} for a, b in zip(masked, original, strict=True))


@pytest.mark.parametrize("case", ["hip words", "hiera words"])
def test_masks_of_a_text_are_filled_in(case: str, trained: Trained) -> None:
    (record,) = pv.predict(trained(case).path, texts=["a [MASK][MASK] tree"])
    assert len(record["answer"].encode("utf-8", "replace")) >= 1
    assert record["filled"].startswith("a ")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_other_verbs_take_them(
    case: str, trained: Trained, files: dict[str, Path], made: Path, tmp_path: Path
) -> None:
    run = trained(case)
    page = run.write_report().read_text()
    assert ("Reconstructed texts" in page) == ("texts" in case)
    assert ("Masked bytes" in page) == ("words" in case)
    features = pv.embed(run.path, str(made / CASES[case]["data"]), split="val")
    assert np.isfinite(features.features).all()
    settings = AnomalySettings(repeats=1, ratio=0.5, draw=1)
    if "words" not in case:
        file = files[case.split()[1]]
        found = find_anomalies(run.path, [file], settings=settings)
        written = write_anomalies(found, tmp_path / "odd")
        assert len([path for path in written if path.suffix == ".png"]) == 1
    else:
        with pytest.raises(CheckpointError, match=r"task mlm\) hides bytes by"):
            find_anomalies(run.path, [files["texts"]])
    if "hip" in case:
        file = files["clouds" if "clouds" in case else "texts"]
        assert pv.explain(run.path, [file], tmp_path / "maps")


@pytest.mark.slow
@pytest.mark.parametrize(("model", "task"), [("hip_nano", "pretrain"), ("hiera_nano_text", "mlm")])
def test_their_memory_is_planned(model: str, task: str) -> None:
    settings = PlanSettings(model=model, task=task, inputs=TEXT, batch_size=4)
    assert pv.plan_training(settings).weights.count > 0
