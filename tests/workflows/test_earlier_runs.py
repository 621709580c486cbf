"""Runs of earlier versions go on with the data as these versions read them."""

import io
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

import perceivers as pv
from perceivers.training.run_folder import RunFolder
from perceivers.workflows.starting import NOTE, prepare_again


def encode(*, sound: bool) -> bytes:
    """Encode four gray frames, with a tone or without."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        pictures = container.add_stream("libx264", rate=25)
        pictures.height = pictures.width = 16
        pictures.pix_fmt = "yuv420p"
        track = container.add_stream("aac", 16000) if sound else None
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 60 * number, np.uint8), "rgb24")
            frame.pts = number
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
        if track is not None:
            wave = np.sin(np.arange(2048, dtype=np.float32))[None]
            heard = av.AudioFrame.from_ndarray(wave, "fltp", "mono")
            heard.sample_rate, heard.pts = 16000, 0
            container.mux(track.encode(heard))
            container.mux(track.encode(None))
    return file.getvalue()


@pytest.fixture
def films(tmp_path: Path) -> str:
    """A folder of videos of which the first is silent."""
    for number in range(12):
        path = tmp_path / "films" / f"{number:02d}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(sound=number > 0))
    return str(tmp_path / "films")


@pytest.mark.slow
def test_a_run_that_began_without_sound_goes_on_without(films: str, tmp_path: Path) -> None:
    run = pv.pretrain(
        task="autoencode",
        model="perceiver_io_tiny",
        data=films,
        out=str(tmp_path / "run"),
        modalities=["video"],
        inputs={"video": {"frames": 2}, "audio": {"samples": 64}},
        batch_size=2,
        steps=1,
        quiet=True,
    )
    folder = RunFolder(Path(run.path))
    task, config = folder.read_config()
    earlier = replace(config, modalities=())
    prepared, now = prepare_again(task, earlier, folder)
    assert now.modalities == ("video",)
    assert list(prepared.specs) == ["video"]
    assert NOTE in prepared.notes
    # What is known of no model, and what was asked for, changes nothing.
    unknown, same = prepare_again(task, earlier, RunFolder(tmp_path / "none"))
    assert (sorted(unknown.specs), same) == (["audio", "video"], earlier)
    assert NOTE not in prepare_again(task, config, folder)[0].notes
