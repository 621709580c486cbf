"""Filling in a modality from the others: measured on held-out data, and written for files."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
import trimesh
from PIL import Image
from tests.workflows import making
from torch import Tensor, nn

import perceivers as pv
from perceivers.checkpoints.loading import load_with_info
from perceivers.data import Dataset
from perceivers.data.arrays import hold_arrays
from perceivers.data.row_source import ArrayCells, Part, RowSource
from perceivers.data.writing import write_clip, write_wav
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.models.saving import ModelInfo
from perceivers.types import ModalitySpec
from perceivers.workflows.filling import ORDER_SEED, measure_fill, open_filler
from perceivers.workflows.reconstructing import reconstruct_files

EVERYTHING: Mapping[str, ModalitySpec] = {
    "image": pv.Image(8, 8, 1, (0.5,), (0.25,)),
    "audio": pv.Audio(64, 1, 16_000),
    "video": pv.Video(2, 8, 8),
    "points": pv.Points(12),
}
PAIR = {name: EVERYTHING[name] for name in ("image", "audio")}


def save_model(folder: Path, specs: Mapping[str, ModalitySpec], **options: Any) -> Path:
    """Write an untrained autoencoder whose predictions depend on its input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = pv.create_model("hip_nano", inputs=specs, **options)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    objective = {"ratio": 0.5}
    model.save_pretrained(folder, info=ModelInfo(task="pretrain", objective=objective))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "all", EVERYTHING)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sample in a file of each kind."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("files")
    Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / "a.b.png")
    write_wav(folder / "a.b.wav", rng.uniform(-1, 1, (1, 64)).astype(np.float32), 16_000)
    write_clip(folder / "a.b.mp4", rng.integers(0, 256, (3, 2, 8, 8), np.uint8), 25.0)
    np.save(folder / "a.b.npy", rng.standard_normal((12, 3)).astype(np.float32))
    return folder


ENDINGS = {"image": ".png", "audio": ".wav", "video": ".mp4", "points": ".npy"}


@pytest.mark.parametrize("given", list(EVERYTHING))
def test_each_modality_is_filled_in_from_any_other(
    given: str, model: Path, files: Path, tmp_path: Path
) -> None:
    names = [name for name in EVERYTHING if name != given]
    file = files / f"a.b{ENDINGS[given]}"
    done = reconstruct_files(model, [file], tmp_path, fill=names)
    assert [each.modality for each in done.filled] == names
    assert all((each.given, each.error) == ((given,), None) for each in done.filled)
    # What the sample lacks is neither original nor reconstructed; what it holds is not filled in.
    usual = {path.name for path in tmp_path.glob("a.b_original.*")}
    assert {Path(name).suffix for name in usual} - {".ply"} == {ENDINGS[given]}
    filled = {path.name for path in tmp_path.glob("a.b_filled.*")}
    assert {Path(name).suffix for name in filled} - {".ply"} == {ENDINGS[n] for n in names}
    assert [path.name for path in done.written[-2:]] == ["filled.json", "filled.png"]
    assert all(path.exists() for path in done.written)
    if given != "image":
        with Image.open(tmp_path / "a.b_filled.png") as picture:
            assert picture.size == (8, 8)
    if given != "audio":
        assert soundfile.info(tmp_path / "a.b_filled.wav").frames == 64
    if given != "points":
        cloud = trimesh.load(tmp_path / "a.b_filled.ply")
        assert np.allclose(cloud.vertices, np.load(tmp_path / "a.b_filled.npy"), atol=1e-6)  # pyright: ignore[reportAttributeAccessIssue]
    if given != "video":
        with av.open(str(tmp_path / "a.b_filled.mp4")) as container:
            assert container.streams.video[0].frames == 2
            # A clip that is filled in from a sound is played with it.
            assert len(container.streams.audio) == (given == "audio")


def test_a_modality_that_is_given_is_hidden_and_compared(
    model: Path, files: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(files, other)
    wave, _ = soundfile.read(files / "a.b.wav", dtype="float32")
    write_wav(other / "a.b.wav", -wave[None], 16_000)
    (first,), (second,) = (
        reconstruct_files(model, [folder], tmp_path / name, fill=["audio"]).filled
        for folder, name in ((files, "a"), (other, "b"))
    )
    assert set(first.given) == {"image", "video", "points"}
    # Another sound changes nothing of what is filled in, only how far off it is.
    assert Path(first.written[0]).read_bytes() == Path(second.written[0]).read_bytes()
    assert first.error is not None
    assert first.error != second.error
    assert first.unit == "squared"
    (record,) = json.loads((tmp_path / "a" / "filled.json").read_text())["filled"]
    assert record["error"] == first.error
    with pytest.raises(ConfigError, match=r"overview\.png exists|filled\.json exists"):
        reconstruct_files(model, [files], tmp_path / "a", fill=["audio"])


def test_classes_are_written_as_text(files: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", {**PAIR, "mood": pv.Labels(3)}, labels=("mood",))
    names = ["audio", "mood"]
    sound, mood = reconstruct_files(
        folder, [files / "a.b.png"], tmp_path / "out", fill=names
    ).filled
    assert sound.given == mood.given == ("image",)
    lines = (tmp_path / "out" / "a.b_filled_mood.txt").read_text().splitlines()
    assert mood.answer == lines[0]
    shares = [float(line.split()[-1]) for line in lines]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1.0, abs=2e-3)


def test_an_autoencoder_fills_in_films_sounds_and_labels(
    made: Path, clip_run: pv.Run, tmp_path: Path
) -> None:
    film = made / "clips" / "low" / "0.mp4"
    notes: list[str] = []
    done = reconstruct_files(
        clip_run.path, [film], tmp_path / "a", fill=["audio", "label"], note=notes.append
    )
    sound, label = done.filled
    assert sound.given == ("video",)
    assert sound.error is not None
    assert set(label.given) == {"video", "audio"}
    assert label.answer.split()[0] in {"low", "high"}
    assert "training never hid audio as a whole" in notes[0]
    wave = tmp_path / "w.wav"
    write_wav(wave, np.zeros((1, 3200), np.float32), making.RATE)
    (clip,) = reconstruct_files(clip_run.path, [wave], tmp_path / "b", fill=["video"]).filled
    assert (clip.given, clip.error) == (("audio",), None)
    assert not list((tmp_path / "b").glob("*_reconstructed.mp4"))  # it holds no video


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["vide"], r"--fill names 'vide', but .*'video'.*did you mean 'video'"),
        (["x.wav"], r"names 'x\.wav'.*files come before --fill"),
        (["audio", "audio"], r"names 'audio' twice"),
        ("audio", r"fill is 'audio'; give a list of modalities, such as \['audio'\]"),
    ],
)
def test_names_that_do_not_fit_are_refused(
    names: Any, message: str, model: Path, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        pv.reconstruct(model, [files], tmp_path / "out", fill=names)
    assert not (tmp_path / "out").exists()


def test_samples_without_anything_to_fill_in_from_are_left_out(
    model: Path, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"a\.b\.wav: holds only audio.*image or video or points"):
        pv.reconstruct(model, [files / "a.b.wav"], tmp_path / "a", fill=["audio"])
    notes: list[str] = []
    alone = tmp_path / "z.wav"
    shutil.copy(files / "a.b.wav", alone)
    paths = [alone, files / "a.b.png"]
    done = reconstruct_files(model, paths, tmp_path / "b", fill=["audio"], note=notes.append)
    assert [Path(each.file).name for each in done.filled] == ["a.b.png"]
    assert any("skipped: " in note and "z.wav: holds only audio" in note for note in notes)
    assert any("does not record whether training hid whole modalities" in note for note in notes)


ONE = {"image": PAIR["image"]}
CANNOT = {
    "one": ("hip_nano", ONE, {}, "pretrain", {}, r"reads only \['image'\].*--modality_dropout"),
    "patches": (
        "hiera_nano",
        {"image": pv.Image(16, 16, 1)},
        {},
        "pretrain",
        {},
        r"does not reconstruct",
    ),
    "flat": (
        "perceiver_nano",
        PAIR,
        {"num_classes": 2},
        "classify",
        {},
        r"does not reconstruct",
    ),
    "classes": ("hip_nano", PAIR, {"num_classes": 2}, "classify", {}, r"does not reconstruct its"),
    "queries": ("perceiver_io_nano", PAIR, {"num_classes": 2}, "", {}, r"outputs are its own"),
    "space": (
        *("hip_nano", PAIR, {}, "pretrain", {"target": "group-normalised"}),
        r"predicts group-normalised values.*--mask\.target per-channel",
    ),
}


@pytest.mark.parametrize("case", CANNOT)
def test_models_that_cannot_fill_in_say_why(case: str, files: Path, tmp_path: Path) -> None:
    name, specs, options, task, objective, message = CANNOT[case]
    model = pv.create_model(name, inputs=specs, **options)
    classes = ("a", "b") if task == "classify" else ()
    info = ModelInfo(task=task, classes=classes, objective=objective)
    folder = model.save_pretrained(tmp_path / "model", info=info)
    for verb in (
        lambda: pv.reconstruct(folder, [files], tmp_path / "out", fill=["image"]),
        lambda: pv.evaluate(folder, data="digits", fill=True),
    ):
        with pytest.raises(CheckpointError, match=message):
            verb()
    assert not (tmp_path / "out").exists()


def draw_pairs(count: int, seed: int = 0) -> dict[str, Any]:
    """Images and sounds of the same two numbers: tilts of the one, two tones of the other."""
    first, second = np.random.default_rng(seed).uniform(-1, 1, (2, count, 1, 1))
    rows, columns = np.mgrid[-1:1:8j, -1:1:8j]
    image = 0.5 + 0.25 * (first * rows + second * columns)
    times = np.arange(64) / 64
    tones = np.sin(6 * np.pi * times), np.sin(14 * np.pi * times)
    audio = 0.5 * (first[..., 0] * tones[0] + second[..., 0] * tones[1])
    return {"image": image[:, None].astype(np.float32), "audio": audio[:, None].astype(np.float32)}


def to_dataset(train: dict[str, Any], test: dict[str, Any]) -> Dataset:
    """Return pairs; the first test sample lacks its sound and the second its image."""
    gaps = {"image": 1, "audio": 0}
    parts = {
        name: Part(name, ArrayCells([None if i == gaps[name] else x for i, x in enumerate(rows)]))
        for name, rows in test.items()
    }
    numbers = np.arange(len(test["image"]))
    splits = {
        "train": hold_arrays(train, [str(i) for i in range(len(train["image"]))]),
        "test": RowSource(parts, numbers, [str(i) for i in numbers], may_lack=True),
    }
    return Dataset("pairs", splits, (), ())


def test_errors_are_those_of_each_sample_alone(tmp_path: Path) -> None:
    loaded = load_with_info(save_model(tmp_path / "model", PAIR))
    train, test = draw_pairs(9, seed=1), draw_pairs(7)
    dataset, model = to_dataset(train, test), loaded.model

    def values(name: str, arrays: dict[str, Any]) -> Tensor:
        raw = torch.from_numpy(arrays[name]).flatten(1)
        spec = PAIR[name]
        return (raw - spec.mean[0]) / spec.std[0] if spec.std else raw

    order = [i for i in np.random.default_rng(ORDER_SEED).permutation(7) if i > 1]
    before = [order[-1], *order[:-1]]
    found = [
        measure_fill(open_filler(loaded, None), dataset, PAIR, "test", batch_size=size)
        for size in (1, 3, 64)
    ]
    for name, other in (("image", "audio"), ("audio", "image")):
        with torch.no_grad():
            given = {other: torch.from_numpy(test[other])}
            made = model.reconstruct(model.encode(given))[name].squeeze(-1)
        truth, mean = values(name, test), values(name, train).mean(0)
        expected = (
            (made[order] - truth[order]).square().mean(),
            (mean - truth[order]).square().mean(),
            (made[before] - truth[order]).square().mean(),
        )
        for figures in found:
            (each,) = [each for each in figures if each.modality == name]
            assert (each.given, each.samples, each.mean_of) == ((other,), 5, "train")
            assert each.unit == ("variances" if name == "image" else "squared")
            measured = (each.error, each.mean_error, each.other_error)
            assert measured == pytest.approx([float(x) for x in expected], rel=1e-5)


def test_classes_are_measured_in_nats(tmp_path: Path) -> None:
    specs = {**PAIR, "mood": pv.Labels(2)}
    loaded = load_with_info(save_model(tmp_path / "model", specs, labels=("mood",)))
    labels = np.array([0, 0, 1, 0])
    source = hold_arrays(draw_pairs(4), list("abcd"), labels)
    dataset = Dataset("pairs", {"test": source}, ("sad", "glad"), ())
    found = measure_fill(open_filler(loaded, None), dataset, PAIR, "test", batch_size=3)
    (mood,) = [each for each in found if each.modality == "mood"]
    model = loaded.model
    inputs = {name: torch.from_numpy(x) for name, x in draw_pairs(4).items()}
    with torch.no_grad():
        scores = model.reconstruct(model.encode(inputs))["mood"].squeeze(1).log_softmax(-1)
    assert mood.error == pytest.approx(-float(scores[range(4), labels].mean()), rel=1e-5)
    # Three and one, and one more of each.
    constant = -np.log(np.array([4, 4, 2, 4]) / 6).mean()
    assert (mood.mean_error, mood.unit) == (pytest.approx(constant, rel=1e-5), "nats")
    assert mood.mean_of == "test"  # there is no training split


def test_data_of_one_modality_each_cannot_be_compared(tmp_path: Path) -> None:
    loaded = load_with_info(save_model(tmp_path / "model", PAIR))
    dataset = to_dataset(draw_pairs(4), draw_pairs(2))
    with pytest.raises(DataError, match=r"no sample of 'test' holds two modalities"):
        measure_fill(open_filler(loaded, None), dataset, PAIR, "test", batch_size=4)


@pytest.mark.slow
def test_a_trained_model_uses_what_it_is_given(tmp_path: Path) -> None:
    split = np.array(["train"] * 384 + ["val"] * 32 + ["test"] * 96)
    np.savez(tmp_path / "pairs.npz", **draw_pairs(512), split=split)
    run = making.quietly(
        pv.pretrain,
        model="hip_nano",
        data=tmp_path / "pairs.npz",
        out=tmp_path / "run",
        steps=300,
        batch_size=16,
        modality_dropout=0.5,
        eval_every=300,
        optimizer={"lr": 2e-3},
    )
    found = run.evaluate(fill=True)["fill"]
    for each in found.values():
        assert each["error"] < 0.5 * each["mean_error"]
        assert each["mean_error"] < each["other_error"]
    record = json.loads((run.path / "results.json").read_text())
    assert record["test"]["fill"] == found
    assert "Filled in (test)" in run.write_report().read_text()
