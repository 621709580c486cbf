"""Specs by request: overrides, chosen modalities, the longest of some clips."""

from typing import Any

import numpy as np
import pytest

from perceivers.data import Dataset
from perceivers.data.arrays import hold_arrays
from perceivers.data.augment import AugmentConfig, Look
from perceivers.data.by_modality import sounds, videos
from perceivers.data.fitting import SampleReader
from perceivers.data.measuring import override_spec
from perceivers.data.sources import Encoded, Source
from perceivers.errors import ConfigError, DataError
from perceivers.types import Audio, Bytes, Image, ModalitySpec, Points, Video

ARRAYS = {
    "image": np.full((4, 1, 4, 4), 51, np.uint8),
    "audio": np.array([[[0, 16384, -16384, 0]]] * 4, np.int16),
}


class Clips(Source):
    """Four films of 1 to 4 frames with sound, undecoded; the bytes are the length."""

    names = ("0", "1", "2", "3")

    def read(self, index: int) -> Any:
        """Return both clips of one film."""
        data = bytes([index + 1])
        return {kind: Encoded(f"{index}.mp4", data, kind) for kind in ("video", "audio")}


def dataset(source: Any) -> Dataset:
    return Dataset("x", {"train": source, "val": source}, (), ())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace the decoders; the list tells which were called, and how."""
    seen: list[Any] = []

    def native_video(clip: Encoded) -> Video:
        assert clip.data is not None
        if clip.data == b"\4":
            raise DataError(f"{clip.path}: damaged")
        return Video(clip.data[0], 2, 2, 1, frame_rate=25.0)

    def fit_clip(clip: Any, video: Video, audio: Audio, look: Look, *, sound: Any) -> Any:
        seen.append(("both", clip.path, None if sound is None else sound.path, look.rng))
        return np.full(video.raw_shape, 255, np.uint8), np.ones(audio.raw_shape, np.float32)

    def fit_audio(clip: Any, spec: Audio, look: Look) -> Any:
        seen.append(("audio", clip.path, look.rng))
        return np.zeros(spec.raw_shape, np.float32)

    monkeypatch.setattr(videos, "native_video", native_video)
    monkeypatch.setattr(sounds, "native_audio", lambda clip: Audio(10 * clip.data[0], 1, 8000))
    monkeypatch.setattr(videos, "fit_clip", fit_clip)
    monkeypatch.setattr(sounds, "fit_audio", fit_audio)
    return seen


def test_overrides_come_before_measuring() -> None:
    specs = dataset(hold_arrays(ARRAYS, list("abcd"))).specs(
        overrides={"image": {"height": 2, "channels": 3}, "audio": {"samples": 2, "mean": [0.25]}}
    )
    assert specs["image"] == Image(2, 4, 3, mean=(0.2,) * 3, std=(1.0,) * 3)
    # The middle two samples are measured; a mean that is given is kept.
    assert specs["audio"] == Audio(2, 1, mean=(0.25,), std=(0.5,))


def test_only_chosen_modalities_are_described() -> None:
    opened = dataset(hold_arrays(ARRAYS, list("abcd")))
    assert set(opened.specs()) == {"image", "audio"}
    assert set(opened.specs(modalities=("audio",))) == {"audio"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": ("sound",)}, r"modality 'sound' is asked for, but the data hold \['audio'"),
        ({"overrides": {"imag": {}}}, r"'imag' is asked for, .*; did you mean 'image'\?"),
        (
            {"overrides": {"image": {"hight": 3}}},
            r"'image' \(image\) has no setting 'hight'; it has height, .*did you mean 'height'\?",
        ),
        ({"overrides": {"image": {"height": 0}}}, r"Image\.height is 0; it must be at least 1"),
        (
            {"overrides": {"image": {"mean": [0.1, 0.2]}}},
            r"Image\.mean has 2 values for 1 channels",
        ),
    ],
)
def test_what_there_is_not_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataset(hold_arrays(ARRAYS, list("abcd"))).specs(**options)


@pytest.mark.unhooked
def test_settings_of_a_modality_are_fields_of_their_type() -> None:
    with pytest.raises(ConfigError, match=r"Bytes\.length is '3'; it must be an integer"):
        override_spec("bytes", Bytes(4), {"length": "3"})
    with pytest.raises(ConfigError, match=r"Audio\.mean\[0\] is 'a'; it must be a number"):
        override_spec("audio", Audio(4), {"mean": ["a"]})
    values: Any = 3
    with pytest.raises(ConfigError, match="settings of modality 'bytes' are 3; give fields"):
        override_spec("bytes", Bytes(4), values)


def test_fields_that_are_derived_cannot_be_set() -> None:
    assert override_spec("bytes", Bytes(4), {"wrap": "cls_sep"}) == Bytes(4, "cls_sep")
    with pytest.raises(ConfigError, match=r"no setting 'channels'; it has length, wrap"):
        override_spec("bytes", Bytes(4), {"channels": 3})


def test_arrays_that_cannot_be_resized_say_so() -> None:
    films = hold_arrays({"video": np.zeros((2, 1, 3, 2, 2), np.uint8)}, ["a", "b"])
    assert dataset(films).specs(overrides={"video": {"frames": 2}})["video"].grid == (2, 2, 2)
    with pytest.raises(DataError, match=r"shape \(1, 3, 2, 2\) \[C, T, H, W\], .* 2 channels"):
        dataset(films).specs(overrides={"video": {"channels": 2}})
    grids = hold_arrays({"array": np.zeros((2, 3, 1), np.uint8)}, ["a", "b"])
    with pytest.raises(DataError, match=r"'array' has shape \(3, 1\) per sample, .*expects"):
        dataset(grids).specs(overrides={"array": {"shape": 2}})


def test_clips_are_as_long_as_the_longest_that_can_be_read(calls: list[Any]) -> None:
    specs = dataset(Clips()).specs()
    assert specs["video"] == Video(3, 2, 2, 1, frame_rate=25.0, mean=(1.0,), std=(1.0,))
    assert specs["audio"] == Audio(40, 1, 8000, mean=(1.0,), std=(1.0,))
    assert [call[0] for call in calls] == ["both"] * 4


def test_a_film_and_its_sound_begin_together(calls: list[Any]) -> None:
    class Apart(Clips):
        def read(self, index: int) -> Any:
            sample = super().read(index)
            return sample | {"audio": sample["audio"]._replace(path="0.wav")}

    specs: dict[str, ModalitySpec] = {"audio": Audio(4), "video": Video(2, 2, 2, 1)}
    rng = np.random.default_rng(0)
    SampleReader(Clips(), specs, AugmentConfig())(0, rng)
    SampleReader(Apart(), specs, AugmentConfig())(0)
    assert calls == [("both", "0.mp4", None, rng), ("both", "0.mp4", "0.wav", None)]
    calls.clear()
    fitted = SampleReader(Clips(), {"audio": Audio(4)}, AugmentConfig())(1, rng)
    assert calls == [("audio", "1.mp4", rng)]
    assert fitted["audio"].shape == (1, 4)


def test_clips_need_specs_of_their_kind() -> None:
    with pytest.raises(
        DataError, match="'video' consists of video files, but the spec is of kind 'audio'"
    ):
        SampleReader(Clips(), {"video": Audio(4)}, AugmentConfig())


@pytest.mark.parametrize(
    ("name", "shape", "spec"),
    [("audio", (2, 9), Audio(9, 1)), ("points", (5, 3), Points(5, 2)), ("bytes", (2, 2), Bytes(4))],
)
def test_what_cannot_be_fitted_is_refused_before_reading(
    name: str, shape: tuple[int, ...], spec: ModalitySpec
) -> None:
    source = hold_arrays({name: np.zeros((2, *shape), np.float32)}, ["a", "b"])
    with pytest.raises(DataError, match=rf"modality '{name}' has shape \({shape[0]}, {shape[1]}\)"):
        SampleReader(source, {name: spec}, AugmentConfig())
