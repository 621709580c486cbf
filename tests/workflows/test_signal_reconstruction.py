"""What an autoencoder gives back of files: playable films with sound, pictures, sounds."""

import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image
from tests.workflows import making

import perceivers as pv
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.workflows.reconstructing import reconstruct


def test_films_come_back_with_their_sound(made: Path, clip_run: pv.Run, tmp_path: Path) -> None:
    files = [made / "clips" / name / "0.mp4" for name in ("high", "low")]
    written = clip_run.reconstruct(files, tmp_path / "out")
    names = {path.name for path in written}
    kinds = ("original", "reconstructed")
    assert names == {f"{s}_{k}.mp4" for s in ("0", "0-2") for k in kinds} | {"overview.png"}
    assert written[-1].name == "overview.png"
    for name in ("0_original.mp4", "0-2_reconstructed.mp4"):
        with av.open(str(tmp_path / "out" / name)) as container:
            (pictures,) = container.streams.video
            (sounds,) = container.streams.audio
            assert (pictures.height, pictures.width, pictures.frames) == (8, 8, 2)
            assert sounds.rate == making.RATE
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == 2
    with Image.open(tmp_path / "out" / "overview.png") as picture:
        assert min(picture.size) > 100


@pytest.mark.slow
def test_pictures_come_back_and_hidden_tokens_are_drawn(
    made: Path, picture_run: pv.Run, tmp_path: Path
) -> None:
    picture = made / "photographs" / "0.png"
    written = reconstruct(picture_run.path, [picture], tmp_path / "a")
    assert [path.name for path in written] == [
        "0_original.png",
        "0_reconstructed.png",
        "overview.png",
    ]
    original, made_up = (np.asarray(Image.open(path)) for path in written[:2])
    assert original.shape == made_up.shape == (8, 8, 3)
    again = reconstruct(picture_run.path, [picture], tmp_path / "b")
    other = reconstruct(picture_run.path, [picture], tmp_path / "c", seed=1)
    assert again[1].read_bytes() == written[1].read_bytes()
    assert other[1].read_bytes() != written[1].read_bytes()  # other tokens were read


def test_sounds_come_back_as_wav(made: Path, tmp_path: Path) -> None:
    run = making.quietly(
        pv.pretrain,
        model=making.NANO,
        data=made / "sounds",
        out=tmp_path / "run",
        inputs={"audio": {"samples": 640}},
    )
    written = reconstruct(run.path, [made / "sounds" / "low" / "0.wav"], tmp_path / "out")
    assert [path.name for path in written] == ["0_original.wav", "0_reconstructed.wav"]
    for path in written:
        wave, rate = soundfile.read(path)
        assert wave.shape == (640,)
        assert rate == making.RATE
    given, _ = soundfile.read(made / "sounds" / "low" / "0.wav")
    first = (len(given) - 640) // 2
    assert np.allclose(soundfile.read(written[0])[0], given[first : first + 640], atol=2e-4)


@pytest.mark.slow
def test_an_unreadable_film_does_not_end_the_job(
    made: Path, clip_run: pv.Run, tmp_path: Path
) -> None:
    data = shutil.copytree(made / "clips" / "low", tmp_path / "data")
    (data / "1.mp4").write_bytes(b"no film")
    written = reconstruct(clip_run.path, [data], tmp_path / "out")
    assert {path.name[0] for path in written} == {"0", "2", "3", "4", "o"}
    with pytest.raises(DataError, match=r"none of 1 samples could be read.*1\.mp4"):
        reconstruct(clip_run.path, [data / "1.mp4"], tmp_path / "none")


def test_earlier_files_are_not_replaced_unasked(
    made: Path, picture_run: pv.Run, tmp_path: Path
) -> None:
    picture, out = made / "photographs" / "0.png", tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("ten years")
    with pytest.raises(ConfigError, match=r"out holds files; pass --overwrite or another --out"):
        reconstruct(picture_run.path, [picture], out)
    reconstruct(picture_run.path, [picture], out, overwrite=True)
    assert (out / "thesis.tex").read_text() == "ten years"
    with pytest.raises(ConfigError, match=r"thesis\.tex is a file; give a folder"):
        reconstruct(picture_run.path, [picture], out / "thesis.tex", overwrite=True)


def test_models_that_give_no_signal_back_are_refused(
    made: Path, text_run: pv.Run, cloud_run: pv.Run, mlm_run: pv.Run, tmp_path: Path
) -> None:
    for run in (text_run, cloud_run, mlm_run):
        with pytest.raises(
            CheckpointError, match=r"does not reconstruct its input.* give the pre-training run"
        ):
            reconstruct(run.path, [made / "photographs"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_signals_that_files_do_not_hold_are_refused(tmp_path: Path) -> None:
    making.write_clouds(tmp_path / "x.npz")
    run = making.quietly(
        pv.pretrain, model=making.NANO, data=tmp_path / "x.npz", out=tmp_path / "run"
    )
    with pytest.raises(DataError, match=r"x\.npz: cannot be decoded"):
        reconstruct(run.path, [tmp_path / "x.npz"], tmp_path / "out")
    cloud = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    np.save(tmp_path / "cloud.npy", cloud)
    reconstruct(run.path, [tmp_path / "cloud.npy"], tmp_path / "again")
    original = np.load(tmp_path / "again" / "cloud_original.npy")
    assert original.shape[1] == 3
    assert np.load(tmp_path / "again" / "cloud_reconstructed.npy").shape == original.shape
