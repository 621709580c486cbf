"""One function predicts with the model of every task, from Python as from the command line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.workflows import making

import perceivers as pv
from perceivers.checkpoints.loading import load_with_info
from perceivers.cli.main import main
from perceivers.data.flow_pairs import read_flow
from perceivers.errors import CheckpointError, ConfigError
from perceivers.training.run_folder import TASKS
from perceivers.workflows.prediction import find_files_task
from perceivers.workflows.task_table import tasks


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> tuple[pv.Run, Path]:
    """A segmentation run of small pictures, and its data."""
    root = tmp_path_factory.mktemp("segmented")
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / "data" / folder).mkdir(parents=True)
    for number in range(8):
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(root / "data" / "images" / f"{number}.png")
        ids = (pixels[..., 0] > 127).astype(np.uint8)
        Image.fromarray(ids).save(root / "data" / "masks" / f"{number}.png")
    run = making.quietly(
        pv.train, task="segment", model=making.NANO, data=root / "data", out=root / "run", size=16
    )
    return run, root / "data"


def ask(run: pv.Run, paths: Sequence[Path], out: Path) -> list[dict[str, Any]]:
    records = list(pv.predict(run.path, paths, out=out))
    assert run.predict(paths, out=out, overwrite=True) == records
    return records


def test_segmentation_writes_masks(segmented: tuple[pv.Run, Path], tmp_path: Path) -> None:
    run, data = segmented
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    picture = data / "images" / "0.png"
    bad, good = sorted(
        ask(run, [picture, broken], tmp_path / "out"), key=lambda r: r["file"] == str(picture)
    )
    assert good["file"] == str(picture)
    assert np.asarray(Image.open(good["mask"])).shape == (16, 16)
    assert Path(good["overlay"]).is_file()
    assert sum(good["fractions"].values()) == pytest.approx(1.0, abs=1e-4)
    assert bad["file"] == str(broken)
    assert bad["error"]
    with pytest.raises(ConfigError, match="exists; pass --overwrite"):
        list(pv.predict(run.path, [picture], out=tmp_path / "out"))


def test_flow_writes_flow(flow_run: pv.Run, made: Path, tmp_path: Path) -> None:
    frames = [made / "photographs" / f"{number}.png" for number in (0, 1)]
    (record,) = ask(flow_run, frames, tmp_path / "out")
    flow, _ = read_flow(record["flow"])
    assert flow.shape == (2, 40, 40)
    assert record["mean_motion"] == pytest.approx(float(np.hypot(*flow).mean()), abs=1e-4)
    assert record["largest_motion"] == pytest.approx(float(np.hypot(*flow).max()), abs=1e-4)
    assert Path(record["picture"]).is_file()
    with pytest.raises(ConfigError, match="give exactly two files, got 1"):
        flow_run.predict(frames[:1], out=tmp_path / "b")


def test_an_autoencoder_writes_files(picture_run: pv.Run, made: Path, tmp_path: Path) -> None:
    picture = made / "photographs" / "0.png"
    (record,) = ask(picture_run, [picture], tmp_path / "out")
    assert [Path(p).name for p in record["written"]] == [
        "0_original.png",
        "0_reconstructed.png",
        "overview.png",
    ]


def test_records_are_written_too_where_out_is_given(
    text_run: pv.Run, made: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.jsonl"
    records = list(pv.predict(text_run.path, texts=["cat dog", "sun"], out=out))
    assert [json.loads(line) for line in out.read_text().splitlines()] == records
    with pytest.raises(ConfigError, match=r"x\.jsonl exists"):
        text_run.predict(texts=["cat"], out=out)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("flow_run", {"texts": ["x"]}, "computes flow between two images; give files, not texts"),
        ("clip_run", {"texts": ["x"]}, "passes files through an autoencoder; give files"),
        ("clip_run", {"paths": []}, "nothing to predict; give files"),
        ("text_run", {"texts": ["x"], "pad": True}, "computes no flow, so there is nothing to pad"),
        ("text_run", {"texts": ["x"], "top": 0}, "top is 0"),
        ("flow_run", {"views": pv.Views(temporal=2)}, "only the outputs of classifiers"),
    ],
)
def test_what_a_task_has_no_use_for_is_refused(
    request: pytest.FixtureRequest, name: str, settings: dict[str, Any], message: str
) -> None:
    run = request.getfixturevalue(name)
    with pytest.raises(ConfigError, match=message):
        run.predict(**settings)


def test_a_masked_model_is_told_what_it_is_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"perceivers reconstruct hip_digits_mae FILE"):
        list(pv.predict("hip_digits_mae", ["x.png"]))
    with pytest.raises(CheckpointError, match=r"show its predictions with perceivers predict"):
        pv.reconstruct("hip_digits", ["x.png"], tmp_path / "out")
    bare = pv.create_model("hip_nano", inputs={"image": pv.Image(8, 8, 1)}, num_classes=2)
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(CheckpointError, match=r"task is not recorded\), so it predicts nothing"):
        list(pv.predict(tmp_path / "bare", ["x.png"]))


def test_every_task_has_a_way_to_predict(
    segmented: tuple[pv.Run, Path], flow_run: pv.Run, clip_run: pv.Run
) -> None:
    folders = {"segment": "masks", "flow": "flow", "autoencode": "reconstructed"}
    ways = {
        row.name: [way for way in (row.records, row.fill_texts, row.files) if way is not None]
        for row in tasks().values()
    }
    # Masked models alone predict nothing; they reconstruct.
    assert {name: len(found) for name, found in ways.items()} == {
        name: int(name != "pretrain") for name in TASKS
    }
    for run in (segmented[0], flow_run, clip_run):
        files = find_files_task(load_with_info(run.path), run.path)
        assert files is not None
        assert files.folder == folders[run.task]


def test_the_command_line_says_what_python_returns(
    segmented: tuple[pv.Run, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = segmented
    picture = data / "images" / "3.png"
    (record,) = pv.predict(run.path, [picture], out=tmp_path / "out")
    capsys.readouterr()
    argv = ["predict", str(run.path), str(picture), "--out", str(tmp_path / "out"), "--overwrite"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{record['mask']}, {record['overlay']}: ")
    assert out.endswith(f"1 images segmented, see {tmp_path / 'out'}\n")
