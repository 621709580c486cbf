"""Files for prediction: which are found, what they are read as, and what is refused."""

import io
import wave
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from perceivers.data import find_files, read_files
from perceivers.data.byte_codec import decode_ids
from perceivers.data.files import hold_loose_files, pair_files
from perceivers.data.sources import RawSample
from perceivers.errors import ConfigError, DataError
from perceivers.types import Audio, Bytes, Image, ModalitySpec, Points, Video

WriteFolder = Callable[[Mapping[str, bytes]], Path]


def wav(samples: list[int]) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 8000, 0, "NONE", ""))
        writer.writeframes(np.array(samples, np.int16).tobytes())
    return file.getvalue()


def test_folders_are_searched_for_the_kinds_asked_for(write_folder: WriteFolder) -> None:
    folder = write_folder({"b.txt": b"", "a/1.PNG": b"", "a/2.wav": b"", ".c.txt": b"", "d": b""})
    assert find_files([str(folder)], ("bytes",)) == [folder / "b.txt"]
    assert find_files([str(folder)]) == [folder / "a/1.PNG"]
    both = find_files([str(folder), str(folder / "d")], ("audio", "bytes"))
    assert both == [folder / "a/2.wav", folder / "b.txt", folder / "d"]
    with pytest.raises(DataError, match=r"no videos among 4 files; extensions .*: \.mp4, "):
        find_files([str(folder)], ("video",))
    with pytest.raises(ConfigError, match=r"files of kind 'text' do not exist"):
        find_files([str(folder)], ("text",))


def test_texts_are_read_whole_and_longer_ones_named(write_folder: WriteFolder) -> None:
    folder = write_folder(
        {"a.txt": b"caf\xc3\xa9", "b.md": b"123456", "c.txt": b"", "d.txt": b"xyz"}
    )
    paths = [folder / name for name in ("a.txt", "b.md", "c.txt", "d.txt")]
    (found,) = read_files(paths, {"bytes": Bytes(5)}, 4)
    names, batch = found
    assert names == [paths[0], paths[3]]
    assert [decode_ids(row) for row in batch.inputs["bytes"].numpy()] == ["caf\u00e9", "xyz"]
    assert batch.inputs["bytes"][1].tolist() == [126, 127, 128, 0, 0]
    long, empty = batch.bad
    assert long.startswith(f"{paths[1]}: the text has 6 bytes, and the model reads at most 5")
    assert empty == f"{paths[2]}: the file is empty (0 bytes)"
    (whole,) = read_files(paths[1:2], {"bytes": Bytes(6)}, 1)
    assert whole[1].bad == []


def test_sounds_are_read_and_other_files_named(write_folder: WriteFolder) -> None:
    pytest.importorskip("soundfile")
    folder = write_folder({"a.wav": wav([0, 16384, -16384]), "b.png": b"x", "c.txt": b"x"})
    paths = [folder / name for name in ("a.wav", "b.png", "c.txt")]
    ((names, batch),) = read_files(paths, {"audio": Audio(4, 1, 8000)}, 3)
    assert names == [paths[0]]
    assert batch.inputs["audio"].tolist() == [[[0.0, 0.5, -0.5, 0.0]]]
    assert [reason.split(": ")[1].split(",")[0] for reason in batch.bad] == [
        "belongs to the images",
        "belongs to the texts",
    ]
    assert "but the model reads audio; give it .wav, .flac, .ogg, .mp3, .aif" in batch.bad[0]


def test_pictures_are_read_as_pictures_whatever_they_are_called(
    write_folder: WriteFolder, encode: Callable[..., bytes]
) -> None:
    folder = write_folder({"a.dat": encode(), "b.txt": encode()})
    specs: dict[str, ModalitySpec] = {"image": Image(4, 4)}
    ((names, batch),) = read_files([folder / "a.dat", folder / "b.txt"], specs, 2)
    assert len(names) == 2
    assert batch.inputs["image"].shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    "specs", [{"cloud": Points(4)}, {"text": Bytes(4)}, {"image": Image(4, 4), "x": Points(4)}]
)
def test_what_single_files_do_not_hold_is_refused(
    tmp_path: Path, specs: dict[str, ModalitySpec]
) -> None:
    with pytest.raises(DataError, match="image files contain only 'image', audio files 'audio'"):
        next(read_files([tmp_path / "a"], specs, 1))


def test_a_video_gives_both_of_its_modalities(write_folder: WriteFolder) -> None:
    path = write_folder({"a.mp4": b"x"}) / "a.mp4"

    def read(*wanted: str) -> RawSample:
        return hold_loose_files(pair_files([path], wanted), wanted).read(0)

    assert set(read("video", "audio")) == {"video", "audio"}
    assert set(read("video")) == {"video"}
    sound = read("audio")
    assert [clip.kind for clip in sound.values()] == ["audio"]  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(DataError, match="belongs to the videos, but the model reads bytes"):
        read("bytes")


# -- several modalities ----------------------------------------------------------------------------

PAIR: dict[str, ModalitySpec] = {"image": Image(4, 4), "audio": Audio(4, 1, 8000)}


def test_files_of_one_folder_and_name_are_one_sample() -> None:
    paths = [
        Path(name) for name in ("a/1.wav", "b/1.jpg", "a/1.jpg", "a/1.txt", "a/1.x", "a/2.png")
    ]
    assert pair_files([*paths, paths[0]], ["image", "audio"]) == [
        {"image": "a/1.jpg", "audio": "a/1.wav"},
        {"image": "b/1.jpg"},
        {"bytes": "a/1.txt"},
        {"image": "a/1.x"},
        {"image": "a/2.png"},
    ]
    assert list(pair_files(paths, ["image", "audio"])[0]) == ["image", "audio"]
    assert list(pair_files(paths, ["audio", "image"])[0]) == ["audio", "image"]
    twins = [Path("a/1.jpg"), Path("a/1.png")]
    assert pair_files(twins, ["image"]) == [{"image": "a/1.jpg"}, {"image": "a/1.png"}]
    with pytest.raises(
        DataError, match=r"a/1\.png: lies beside '1\.jpg'; .* one file of each kind"
    ):
        pair_files(twins, ["image", "audio"])


def test_a_sample_may_lack_modalities_where_that_is_allowed(
    write_folder: WriteFolder, encode: Callable[..., bytes]
) -> None:
    pytest.importorskip("soundfile")
    sound = wav([0, 16384, -16384, 0])
    folder = write_folder({"1.png": encode(), "1.wav": sound, "2.wav": sound, "3.png": encode()})
    paths = [*find_files([str(folder)], ("image", "audio")), folder / "4.txt"]
    ((names, batch),) = read_files(paths, PAIR, 8, may_lack=True)
    assert names == [folder / "1.png", folder / "2.wav", folder / "3.png"]
    assert batch.index.tolist() == [0, 1, 2]
    assert batch.present["image"].tolist() == [True, False, True]
    assert batch.present["audio"].tolist() == [True, True, False]
    assert batch.inputs["audio"][:, 0, 1].tolist() == [0.5, 0.5, 0.0]
    assert not batch.inputs["image"][1].any()
    (reason,) = batch.bad
    assert reason.startswith(f"{folder / '4.txt'}: belongs to the texts, but the model reads image")
    ((names, batch),) = read_files(paths, PAIR, 8)
    assert names == [folder / "1.png"]
    assert batch.present == {}
    assert batch.bad[0] == (
        f"{folder / '2.wav'}: comes without image, but image, audio are read together; "
        f"also give files with the same folder and name, such as 2.jpg"
    )
    assert batch.bad[1].endswith("such as 3.wav")


def test_the_sound_of_a_video_counts_unless_a_file_of_sound_lies_beside_it(
    write_folder: WriteFolder, encode_video: Callable[..., bytes]
) -> None:
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    wave = np.full((1, 8000), 0.25, np.float32)
    heard = encode_video(frames, wave=wave)
    files = {
        "1.mp4": heard,
        "2.mp4": heard,
        "2.wav": wav([16384] * 8000),
        "3.mp4": encode_video(frames),
    }
    folder = write_folder({**files, "4.wav": wav([16384] * 8000), "5.mp4": b"no film"})
    specs: dict[str, ModalitySpec] = {"video": Video(2, 8, 8), "audio": Audio(8, 1, 8000)}
    ((names, batch),) = read_files(
        find_files([str(folder)], ("video", "audio")), specs, 8, may_lack=True
    )
    assert [path.name for path in names] == ["1.mp4", "2.mp4", "3.mp4", "4.wav"]
    assert batch.present["video"].tolist() == [True, True, True, False]
    assert batch.present["audio"].tolist() == [True, True, False, True]
    assert batch.inputs["audio"][1].tolist() == [[0.5] * 8]
    assert batch.inputs["audio"][0].tolist() != [[0.5] * 8]
    (reason,) = batch.bad
    assert reason.startswith(f"{folder / '5.mp4'}: cannot be decoded")
