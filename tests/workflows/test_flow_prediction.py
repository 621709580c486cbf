"""Flow of pictures of any size: tiles, files, the scale of a run, and pictures that do not fit."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.workflows import making

import perceivers as pv
from perceivers.checkpoints.loading import load_with_info
from perceivers.data.flow_pairs import read_flow
from perceivers.errors import CheckpointError, ConfigError, DataError, InputError
from perceivers.tasks.flow import FlowConfig, tiled_flow
from perceivers.workflows.dense_prediction import predict_flow
from perceivers.workflows.opening import run_config
from perceivers.workflows.task_table import find_settings


@pytest.fixture
def frames(tmp_path: Path) -> tuple[Path, Path]:
    """Two pictures of 40 x 33 pixels."""
    folder = making.write_photographs(tmp_path / "frames", 2, size=(33, 40))
    return folder / "0.png", folder / "1.png"


def pair(height: int, width: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 2, height, width), generator=rng, dtype=torch.uint8)


def test_flow_is_written_as_a_file_and_a_picture(
    flow_run: pv.Run, frames: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "flow"
    done = predict_flow(flow_run.path, *frames, out)
    assert done.paths == (out / "0.flo", out / "0.png")
    flow, known = read_flow(str(done.paths[0]))
    assert flow.shape == (2, 40, 33)
    assert bool(np.all(known))
    assert np.array_equal(flow, done.flow.numpy())
    with Image.open(done.paths[1]) as picture:
        assert picture.size == (33, 40)
    assert done.tiles > 1
    before = done.paths[0].read_bytes()
    with pytest.raises(ConfigError, match=r"0\.flo exists; pass --overwrite or another --out"):
        predict_flow(flow_run.path, *frames, out)
    predict_flow(flow_run.path, frames[1], frames[0], out)  # another name
    again = predict_flow(flow_run.path, *frames, out, overwrite=True)
    assert again.paths[0].read_bytes() == before


def test_one_tile_is_the_model_itself(flow_run: pv.Run) -> None:
    model, frames = flow_run.model(), pair(16, 20)
    flow, tiles = tiled_flow(model, frames, scale=7.0)
    assert tiles == 1
    with torch.no_grad():
        assert torch.allclose(flow, 7.0 * model({"video": frames[None]})[0], atol=1e-6)


def test_tiles_may_be_computed_in_any_number_at_once(flow_run: pv.Run) -> None:
    model, frames = flow_run.model(), pair(30, 41)
    one, tiles = tiled_flow(model, frames)
    many, _ = tiled_flow(model, frames, batch_size=64)
    assert one.shape == (2, 30, 41)
    assert tiles > 2
    assert torch.allclose(one, many, atol=1e-5)


def test_small_pictures_are_refused_or_padded(flow_run: pv.Run) -> None:
    model = flow_run.model()
    for size in ((15, 20), (16, 19), (5, 7)):
        with pytest.raises(InputError, match=r"pad"):
            tiled_flow(model, pair(*size))
        flow, tiles = tiled_flow(model, pair(*size), pad=True)
        assert flow.shape == (2, *size)
        assert tiles == 1
    mixed, tiles = tiled_flow(model, pair(5, 60), pad=True)
    assert mixed.shape == (2, 5, 60)
    assert tiles > 1


def flow_scale(model: str | Path) -> float:
    return find_settings(FlowConfig, load_with_info(model), run_config(model)).scale


@pytest.mark.slow
def test_the_scale_of_a_run_is_used(flow_run: pv.Run, made: Path, tmp_path: Path) -> None:
    assert flow_scale(flow_run.path) == 20.0
    assert flow_scale(f"{flow_run.path}@last") == 20.0
    assert flow_scale(flow_run.path / "model") == 20.0
    run = making.quietly(
        pv.finetune,
        task="flow",
        model=flow_run.path,
        data=f"warps:{made / 'photographs'}",
        out=tmp_path / "run",
        flow={"scale": 3.0},
        max_flow=2.0,
    )
    assert flow_scale(run.path) == 3.0
    # The folder of the model says so by itself.
    assert flow_scale(run.path / "model") == 3.0
    photographs = (made / "photographs" / "0.png", made / "photographs" / "1.png")
    found = predict_flow(run.path, *photographs, tmp_path / "a").flow
    frames = torch.stack(
        [
            torch.from_numpy(np.asarray(Image.open(p)).transpose(2, 0, 1).copy())
            for p in photographs
        ],
        1,
    )
    expected, _ = tiled_flow(run.model(), frames, scale=3.0)
    assert torch.equal(found, expected)


def test_a_model_folder_that_names_no_task_predicts_flow(
    flow_run: pv.Run, frames: tuple[Path, Path], tmp_path: Path
) -> None:
    flow_run.model().save_pretrained(tmp_path / "model")
    done = predict_flow(tmp_path / "model", *frames, tmp_path / "out")
    assert torch.equal(done.flow, predict_flow(flow_run.path, *frames, tmp_path / "b").flow)


def test_pictures_that_are_no_pair_are_refused(
    flow_run: pv.Run, mlm_run: pv.Run, frames: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    other = making.write_photographs(tmp_path / "other", 1) / "0.png"
    with pytest.raises(DataError, match=r"has 40x33 pixels and .* 40x40; both frames must have"):
        predict_flow(flow_run.path, frames[0], other, out)
    with pytest.raises(DataError, match=r"no\.png"):
        predict_flow(flow_run.path, frames[0], tmp_path / "no.png", out)
    shutil.copy(frames[0], tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:90])
    with pytest.raises(DataError, match=r"cut\.png"):
        predict_flow(flow_run.path, frames[0], tmp_path / "cut.png", out)
    with pytest.raises(CheckpointError, match=r"predicts no flow \(its task is mlm\); train a"):
        predict_flow(mlm_run.path, *frames, out)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"--out .*file is a file; give a folder"):
        predict_flow(flow_run.path, *frames, tmp_path / "file")
    assert not out.exists()
