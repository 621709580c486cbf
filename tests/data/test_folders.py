"""Folders as data addresses."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from perceivers.data import find_files, make_eval_loader, open_data, read_files
from perceivers.data.folders import read_folder
from perceivers.data.sources import Encoded
from perceivers.errors import ConfigError, DataError
from perceivers.types import Audio, Image

WriteFolder = Callable[[Mapping[str, bytes]], Path]
Encode = Callable[..., bytes]


def labelled(encode: Encode, prefix: str = "", count: int = 3) -> dict[str, bytes]:
    return {
        f"{prefix}{name}/{i}.png": encode(i + 10 * k)
        for k, name in enumerate(("ant", "bee"))
        for i in range(count)
    }


def test_sub_folders_are_classes_in_alphabetical_order(
    write_folder: WriteFolder, encode: Encode
) -> None:
    dataset = open_data(str(write_folder(labelled(encode))))
    assert dataset.classes == ("ant", "bee")
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 4, "val": 2}
    train, val = dataset.splits["train"], dataset.splits["val"]
    assert sorted([*train.names, *val.names]) == sorted(labelled(encode))
    assert train.labels is not None
    assert [dataset.classes[i] for i in train.labels] == [n.split("/")[0] for n in train.names]
    assert dataset.notes == (
        "val: stratified 10 % of train (2 of 6 samples), chosen by a hash of the sample names",
    )


def test_split_folders_are_used_as_they_are(write_folder: WriteFolder, encode: Encode) -> None:
    files = labelled(encode, "train/") | labelled(encode, "valid/", 1)
    dataset = open_data(str(write_folder(files | {"test/bee/x.png": encode(5)})))
    assert {k: len(v) for k, v in dataset.splits.items()} == {"train": 6, "val": 2, "test": 1}
    labels = dataset.splits["test"].labels
    assert labels is not None
    assert labels.tolist() == [1]
    assert dataset.notes == ()


def test_a_class_called_train_is_no_split(write_folder: WriteFolder, encode: Encode) -> None:
    files = {f"{name}/{i}.png": encode(i) for name in ("bus", "train") for i in range(2)}
    assert open_data(str(write_folder(files))).classes == ("bus", "train")


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (("a.png", "b.jpg"), "files lie directly in the folder: unlabelled"),
        (("a.png", "x/b.jpg"), "so sub-folders are not classes"),
        (
            ("x/1/a.png", "y/2/b.png"),
            "no sub-folder contains images, audio, videos or point clouds directly: unlabelled",
        ),
        (("x/a.png", "x/b.png"), "a single sub-folder ('x') makes no classes: unlabelled"),
    ],
)
def test_pictures_without_class_folders_are_unlabelled(
    write_folder: WriteFolder, encode: Encode, names: tuple[str, ...], note: str
) -> None:
    dataset = open_data(str(write_folder({name: encode() for name in names})))
    assert dataset.classes == ()
    assert dataset.splits["train"].labels is None
    assert len(dataset.splits["train"]) == len(dataset.splits["val"]) == 1
    assert note in dataset.notes[0]


def test_other_files_are_counted_and_hidden_ones_are_not(
    write_folder: WriteFolder, encode: Encode
) -> None:
    files = labelled(encode) | {"ant/notes.txt": b"", "README": b"", "ant/._0.png": b"x"}
    folder = write_folder(files | {".git/x.png": b"x", "__MACOSX/ant/0.png": b"x"})
    dataset = open_data(str(folder))
    assert sum(len(split) for split in dataset.splits.values()) == 6
    assert dataset.notes[0] == (
        "2 files that are not images, audio, videos or point clouds were ignored"
    )


def test_links_to_folders_are_followed_once(write_folder: WriteFolder, encode: Encode) -> None:
    folder = write_folder(labelled(encode))
    (folder / "ant" / "loop").symlink_to(folder / "ant")
    assert sum(len(split) for split in open_data(str(folder)).splits.values()) == 6


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"cat/x.txt": b""}, r"cat: class folder without images, .*; add some \(\.jpg, .*remove"),
        ({"val/cow/x.png": b""}, r"val/cow: class 'cow' is not among the 2 training classes ant"),
        ({"val/x.png": b""}, r"val/x.png: lies beside class folders \(1 such files"),
        ({"test/x.txt": b""}, r"test: no class folders; the training classes are ant, bee"),
    ],
)
def test_a_folder_that_breaks_the_format_is_refused(
    write_folder: WriteFolder, encode: Encode, extra: dict[str, bytes], message: str
) -> None:
    prefix = "train/" if next(iter(extra)).startswith(("val", "test")) else ""
    folder = write_folder(labelled(encode, prefix))
    assert open_data(str(folder)).classes == ("ant", "bee")
    write_folder(extra)
    with pytest.raises(DataError, match=message):
        open_data(str(folder))


def test_a_folder_without_pictures_names_the_extensions(write_folder: WriteFolder) -> None:
    folder = write_folder({"a.txt": b"", "x/b.csv": b""})
    with pytest.raises(
        DataError, match=r"no images, .* among 2 files; .*: \.jpg, .*\.wav, .*\.mp4"
    ):
        open_data(str(folder))


def test_reading_a_damaged_file_names_it(write_folder: WriteFolder, encode: Encode) -> None:
    folder = write_folder({"a.png": encode()[:60], "b.png": encode()})
    dataset = open_data(str(folder), val_share=0.5)
    (bad,) = [s for s in dataset.splits.values() if s.names[0] == "a.png"]
    (good,) = [s for s in dataset.splits.values() if s.names[0] == "b.png"]
    assert set(good.read(0)) == {"image"}
    with pytest.raises(DataError, match=rf"^{folder}/a\.png: cannot be decoded"):
        bad.read(0)
    (folder / "a.png").unlink()
    with pytest.raises(DataError, match=rf"^{folder}/a\.png: cannot be read \(No such file"):
        bad.read(0)


def test_files_are_found_as_given_and_folders_searched(
    write_folder: WriteFolder, encode: Encode
) -> None:
    folder = write_folder({"b/2.png": encode(), "a/1.jpg": b"", "a/x.txt": b""})
    found = find_files([str(folder / "a" / "x.txt"), str(folder)])
    assert found == [folder / "a/x.txt", folder / "a/1.jpg", folder / "b/2.png"]
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        find_files([str(folder), "nowhere"])
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no images among 0 files"):
        find_files([str(folder / "empty")])


def test_files_are_read_in_order_and_bad_ones_named(
    write_folder: WriteFolder, encode: Encode
) -> None:
    folder = write_folder({f"{i}.png": encode(i) for i in range(5)} | {"1.png": b"", "5.png": b"x"})
    paths = find_files([str(folder)])
    specs = {"image": Image(10, 12)}
    found = list(read_files(paths, specs, 2))
    assert [[path.name for path in names] for names, _ in found] == [
        ["0.png"],
        ["2.png", "3.png"],
        ["4.png"],
    ]
    bad = [reason for _, batch in found for reason in batch.bad]
    assert [reason.split(": ")[0] for reason in bad] == [str(paths[1]), str(paths[5])]
    (_, alone), *_ = read_files(paths[3:4], specs, 2)
    assert np.array_equal(alone.inputs["image"][0], found[1][1].inputs["image"][1])
    assert not np.array_equal(alone.inputs["image"][0], found[1][1].inputs["image"][0])
    assert found[1][1].labels is None


def test_reading_only_bad_files_names_the_first(write_folder: WriteFolder) -> None:
    folder = write_folder({"0.png": b"", "1.png": b"x"})
    with pytest.raises(DataError, match=r"none of 2 samples could be read; the first: .*/0\.png: "):
        list(read_files(find_files([str(folder)]), {"image": Image(4, 4)}, 1))


def test_reading_files_needs_a_positive_batch_size_and_an_image(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size is 0; it must be at least 1"):
        next(read_files([tmp_path / "a.png"], {"image": Image(4, 4)}, 0))
    with pytest.raises(DataError, match=r"ask for 'sound' \(audio\), but image files contain only"):
        next(read_files([tmp_path / "a.png"], {"sound": Audio(4)}, 1))


def test_sounds_in_class_folders_are_clips(write_folder: WriteFolder, encode_sound: Encode) -> None:
    data = [encode_sound(np.full((1, 20), i / 8)) for i in range(2)]
    files = {f"{name}/{i}.{e}": data[i] for name in "ab" for i, e in enumerate(("flac", "WAV"))}
    folder = write_folder(files)
    found = read_folder(folder)
    source = found.sources["train"]
    assert (found.classes, found.notes, list(source.parts)) == (("a", "b"), (), ["audio"])
    assert list(source.names) == ["a/0.flac", "a/1.WAV", "b/0.flac", "b/1.WAV"]
    part = source.subset(np.array([3, 0]))
    assert part.labels is not None
    assert (list(part.names), part.labels.tolist()) == (["b/1.WAV", "a/0.flac"], [1, 0])
    assert part.read(0) == {"audio": Encoded(f"{folder}/b/1.WAV", data[1], "audio")}
    (folder / "b/1.WAV").unlink()
    with pytest.raises(DataError, match=r"b/1\.WAV: cannot be read \(No such file"):
        part.read(0)


def test_videos_in_folders_give_their_sound(
    write_folder: WriteFolder, encode_video: Encode
) -> None:
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    loud = encode_video(frames, 25, np.zeros((1, 2000)))
    folder = write_folder({"train/a.mp4": loud, "val/b.mkv": loud, "train/c.mp4": b"broken"})
    sources = read_folder(folder).sources
    clip = (f"{folder}/val/b.mkv", loud)
    assert sources["val"].read(0) == {
        "video": Encoded(*clip, "video"),
        "audio": Encoded(*clip, "audio"),
    }
    assert sources["train"].labels is None
    write_folder({"train/a.mp4": encode_video(frames)})
    assert set(read_folder(folder).sources["val"].read(0)) == {"video"}


def test_files_of_several_kinds_are_paired_by_name(
    write_folder: WriteFolder, encode: Encode, encode_sound: Encode
) -> None:
    sound = encode_sound(np.zeros((1, 20)))
    pairs = {
        f"{c}/{i}.{e}": d
        for c in "ab"
        for i in "12"
        for e, d in (("png", encode()), ("wav", sound))
    }
    folder = write_folder(pairs)
    source = read_folder(folder).sources["train"]
    assert list(source.parts) == ["image", "audio"]
    assert list(source.names) == ["a/1", "a/2", "b/1", "b/2"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1, 1]
    sample = source.read(3)
    assert set(sample) == {"image", "audio"}
    assert sample["audio"] == Encoded(f"{folder}/b/2.wav", sound, "audio")
    write_folder({"b/2.flac": sound})
    with pytest.raises(
        DataError, match=r"b/2\.wav: has the same name as '2\.flac'; .*one file of each kind"
    ):
        read_folder(folder)
    (folder / "b/2.flac").unlink()
    for name in ("a/1.wav", "a/2.wav", "b/1.png", "b/2.png"):
        (folder / name).unlink()
    with pytest.raises(DataError, match=r"contains 2 images, 2 audio files, and no two of"):
        read_folder(folder)


def test_samples_may_lack_a_file_of_some_kind(
    write_folder: WriteFolder, encode: Encode, encode_sound: Encode
) -> None:
    sound = encode_sound(np.full((1, 20), 0.5))
    files = {
        f"{c}/{n}.{e}": d
        for c in "ab"
        for n in "123456"
        for e, d in (("png", encode(int(n))), ("wav", sound))
    }
    for name in ("a/1.wav", "b/2.png", "b/3.png", "a/5.wav"):
        del files[name]
    folder = write_folder(files)
    dataset = open_data(str(folder), val_share=0.3)
    assert dataset.notes[0] == (
        "files are paired by name, but not all samples have every kind: 8 with images and audio "
        "files, 2 with audio files, 2 with images"
    )
    seen = {}
    for source in dataset.splits.values():
        assert source.present
        for index, name in enumerate(source.names):
            held = {kind for kind, rows in source.present.items() if rows[index]}
            assert set(source.read(index)) == held
            seen[name] = held
    assert seen["a/1"] == seen["a/5"] == {"image"}
    assert seen["b/2"] == seen["b/3"] == {"audio"}
    assert sum(held == {"image", "audio"} for held in seen.values()) == 8
    specs = dataset.specs(size=4)
    assert specs["audio"] == Audio(20, 1, 8000, mean=(0.5,), std=(1.0,))
    (batch,) = make_eval_loader(dataset.splits["train"], specs, batch_size=12)
    names = dataset.splits["train"].names
    for name, held in batch.present.items():
        assert held.tolist() == [name in seen[n] for n in names]
        rows = batch.inputs[name][~held]
        assert not rows.any()
    assert batch.inputs["audio"][batch.present["audio"]].eq(0.5).all()


def test_videos_that_lack_sound_files_and_pictures(
    write_folder: WriteFolder, encode: Encode, encode_video: Encode
) -> None:
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    loud = encode_video(frames, 25, np.zeros((1, 2000)))
    folder = write_folder({"1.mp4": loud, "2.mp4": loud, "2.png": encode(), "3.png": encode()})
    source = read_folder(folder).sources["train"]
    assert source.present
    assert {kind: rows.tolist() for kind, rows in source.present.items()} == {
        "image": [False, True, True],
        "video": [True, True, False],
        "audio": [True, True, False],
    }
    assert [sorted(source.read(index)) for index in range(3)] == [
        ["audio", "video"],
        ["audio", "image", "video"],
        ["image"],
    ]
