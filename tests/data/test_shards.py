"""WebDataset tars as data addresses."""

import gzip
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from perceivers.data import open_data
from perceivers.data.pictures import read_picture
from perceivers.data.shards import expand_braces, read_shards
from perceivers.data.sound_tracks import add_sound
from perceivers.data.sources import Encoded
from perceivers.errors import ConfigError, DataError

WriteTar = Callable[[Path, Mapping[str, bytes]], Path]
Encode = Callable[..., bytes]


def members(encode: Encode, first: int = 0, count: int = 4) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for i in range(first, first + count):
        found[f"s{i}.png"] = encode(i)
        found[f"s{i}.cls"] = str(i % 2).encode()
    return found


def test_a_folder_of_tars_has_splits_and_class_names(
    tmp_path: Path, write_tar: WriteTar, encode: Encode
) -> None:
    write_tar(tmp_path / "train-0.tar", members(encode, 0))
    write_tar(tmp_path / "train-1.tar", members(encode, 4))
    write_tar(tmp_path / "val.tar", members(encode, 8, 2))
    write_tar(tmp_path / "trainer.tar", members(encode, 8, 2))
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    dataset = open_data(str(tmp_path))
    assert dataset.classes == ("ant", "bee")
    assert {k: len(v) for k, v in dataset.splits.items()} == {"train": 8, "val": 2}
    train = dataset.splits["train"]
    assert list(train.names)[3:5] == ["train-0.tar/s3", "train-1.tar/s4"]
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1] * 4
    assert dataset.notes == (
        "1 tars were ignored: their names do not start with train, val or test",
    )


def test_members_are_read_at_random_as_they_are_stored(
    tmp_path: Path, write_tar: WriteTar, encode: Encode
) -> None:
    path = write_tar(tmp_path / "x.tar", members(encode))
    dataset = open_data(str(path), val_share=0.4)
    source = pickle.loads(pickle.dumps(dataset.splits["train"]))
    expected = {f"x.tar/s{i}": np.asarray(read_picture(encode(i), "a")) for i in range(4)}
    for index in reversed(range(len(source))):
        found = np.asarray(source.read(index)["image"])
        assert np.array_equal(found, expected.pop(source.names[index]))
        assert not any(np.array_equal(found, other) for other in expected.values())
    assert "no classes.txt: 2 classes, named by their numbers" in dataset.notes
    assert dataset.classes == ("0", "1")


def test_a_range_of_tars_is_expanded_with_leading_zeros(
    tmp_path: Path, write_tar: WriteTar, encode: Encode
) -> None:
    for i in (8, 9, 10):
        write_tar(tmp_path / f"x-{i:03d}.tar", members(encode, 2 * i, 2))
    dataset = open_data(f"{tmp_path}/x-{{008..010}}.tar")
    assert sum(len(split) for split in dataset.splits.values()) == 6
    assert expand_braces("{0..1}-{08..09}") == ["0-08", "0-09", "1-08", "1-09"]
    with pytest.raises(DataError, match=r"x-011\.tar: cannot be read \(No such file"):
        open_data(f"{tmp_path}/x-{{008..011}}.tar")
    with pytest.raises(DataError, match=r"the range 9\.\.8 is descending"):
        open_data(f"{tmp_path}/x-{{9..8}}.tar")
    with pytest.raises(DataError, match=r"braces that are not a range .*'x-\{000\.\.012\}\.tar'"):
        open_data(f"{tmp_path}/x-{{a,b}}.tar")


def test_labels_may_come_from_json_or_be_missing(
    tmp_path: Path, write_tar: WriteTar, encode: Encode
) -> None:
    write_tar(
        tmp_path / "json.tar",
        {
            f"{i}.{e}": d
            for i in range(4)
            for e, d in (("png", encode(i)), ("json", b'{"label":1}'))
        },
    )
    labels = open_data(str(tmp_path / "json.tar")).splits["train"].labels
    assert labels is not None
    assert set(labels.tolist()) == {0}  # of the only class, which is called 1
    write_tar(tmp_path / "bare.tar", {f"a/{i}.png": encode(i) for i in range(4)})
    dataset = open_data(str(tmp_path / "bare.tar"))
    assert (dataset.classes, dataset.splits["train"].labels) == ((), None)


def test_what_is_not_read_is_noted(tmp_path: Path, write_tar: WriteTar, encode: Encode) -> None:
    extra = {"s0.jpg": encode(0, kind="JPEG"), "clip.mp4": b"x", "s1.seg.png": b"x"}
    dataset = open_data(str(write_tar(tmp_path / "x.tar", members(encode) | extra)))
    assert any("1 samples without image were ignored" in note for note in dataset.notes)
    assert any("1 samples have several images" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"2", r"x\.tar/s1\.cls: label 2 is out of range; labels are 0\.\.1 \(classes\.txt has 2"),
        (b"-1", r"s1\.cls: label -1 is out of range"),
        (b"bee", r"s1\.cls: the label is 'bee'; it must be a whole number"),
        (b"1.5", r"the label is '1\.5'"),
        (b"\xff", r"s1\.cls: line 1 is not UTF-8"),
    ],
)
def test_a_wrong_label_is_refused_by_member(
    tmp_path: Path, write_tar: WriteTar, encode: Encode, label: bytes, message: str
) -> None:
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    path = write_tar(tmp_path / "x.tar", members(encode))
    assert open_data(str(path)).classes == ("ant", "bee")
    write_tar(path, members(encode) | {"s1.cls": label})
    with pytest.raises(DataError, match=message):
        open_data(str(path))


@pytest.mark.parametrize("ids", [(1007, 2007, 3007), (-1, 1, 1), (1, 2, 3)])
def test_ids_in_tars_are_classes_without_class_names(
    tmp_path: Path, write_tar: WriteTar, encode: Encode, ids: tuple[int, ...]
) -> None:
    for split in ("train", "val"):
        pictures = {f"{i}.png": encode(i) for i in range(6)}
        labels = {f"{i}.cls": str(ids[i % 3]).encode() for i in range(6)}
        write_tar(tmp_path / f"{split}.tar", pictures | labels)
    dataset = open_data(str(tmp_path))
    names = sorted(set(ids))
    assert dataset.classes == tuple(map(str, names))
    for source in dataset.splits.values():
        assert source.labels is not None
        assert [names[label] for label in source.labels] == [ids[i % 3] for i in range(6)]
    assert any("each distinct value is a class" in note for note in dataset.notes)
    write_tar(tmp_path / "val.tar", {"0.png": encode(0), "0.cls": b"4007"})
    with pytest.raises(DataError, match=r"val\.tar/0: label 4007 is not one of the \d training"):
        open_data(str(tmp_path))


def test_tars_that_break_the_format_are_refused(
    tmp_path: Path, write_tar: WriteTar, encode: Encode
) -> None:
    path = tmp_path / "x.tar"
    good = members(encode)
    without_label = {name: data for name, data in good.items() if name != "s2.cls"}
    write_tar(path, without_label)
    with pytest.raises(DataError, match=r"x\.tar/s2\.png: has no label, but 3 other samples have"):
        open_data(str(path))
    write_tar(path, {"a.seg": b"", "a.cls": b"0"})
    with pytest.raises(DataError, match=r"no images, .*; extensions found .*: 'seg', 'cls'; supp"):
        open_data(str(path))
    write_tar(path, good | {"s1.PNG": b""})
    with pytest.raises(DataError, match=r"contains 's1\.PNG' twice"):
        open_data(str(path))
    write_tar(path, good)
    data = path.read_bytes()
    path.write_bytes(data[:700])
    with pytest.raises(DataError, match=r"x\.tar: not a complete uncompressed tar"):
        open_data(str(path))
    path.write_bytes(gzip.compress(data))
    with pytest.raises(DataError, match=r"x\.tar: not a complete uncompressed tar"):
        open_data(str(path))
    write_tar(path, {"a.png": encode(1), "b.png": encode(2)})
    source = open_data(str(path)).splits["train"]
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"\.png: the tar ends after 0 of the member's \d+ bytes"):
        source.read(0)


def test_class_names_must_be_unique_and_splits_alike(
    tmp_path: Path, write_tar: WriteTar, encode: Encode
) -> None:
    write_tar(tmp_path / "train.tar", members(encode))
    write_tar(tmp_path / "test.tar", {"a.png": encode(0)})
    with pytest.raises(DataError, match="'train': 'labelled', 'test': 'unlabelled'"):
        open_data(str(tmp_path))
    (tmp_path / "classes.txt").write_text("ant\nant\n")
    with pytest.raises(DataError, match=r"classes\.txt: 2 class names, repeated: \['ant'\]"):
        open_data(str(tmp_path))


def test_a_folder_of_tars_without_train_is_refused(
    tmp_path: Path, write_tar: WriteTar, encode: Encode
) -> None:
    write_tar(tmp_path / "part.tar", members(encode))
    with pytest.raises(
        DataError, match=r"1 tars, such as 'part\.tar', but none called train\*\.tar"
    ):
        open_data(str(tmp_path))


def test_sounds_pictures_and_texts_of_one_key_are_one_sample(
    tmp_path: Path, write_tar: WriteTar, encode: Encode, encode_sound: Encode
) -> None:
    sounds = {f"{i}.flac": encode_sound(np.full((1, 20), i / 8)) for i in range(3)}
    texts = {f"{i}.txt": f"text {i}".encode() for i in range(3)}
    labels = {f"{i}.cls": b"1" for i in range(3)}
    path = write_tar(tmp_path / "x.tar", sounds | labels)
    source, _, notes = read_shards([path], ())
    assert (list(source.parts), notes) == (["audio"], [])
    source = pickle.loads(pickle.dumps(source)).subset(np.array([2, 0]))
    assert (source.names, source.labels.tolist()) == (["x.tar/2", "x.tar/0"], [1, 1])
    assert source.read(0) == {"audio": Encoded(f"{path}/2.flac", sounds["2.flac"], "audio")}

    pictures = {f"{i}.png": encode(i) for i in range(3)}
    source, _, notes = read_shards([write_tar(path, sounds | pictures | texts)], ())
    sample = source.read(1)
    assert set(sample) == {"image", "audio", "bytes"}
    assert bytes(np.asarray(sample["bytes"])) == b"text 1"
    assert np.array_equal(np.asarray(sample["image"]), np.asarray(read_picture(encode(1), "a")))

    alone, *_ = read_shards([write_tar(path, texts)], ())
    assert set(alone.read(0)) == {"bytes"}


def test_sounds_beside_videos_are_their_sound(
    tmp_path: Path, write_tar: WriteTar, encode_video: Encode, encode_sound: Encode
) -> None:
    loud = encode_video(np.zeros((3, 16, 16, 3), np.uint8), 25, np.zeros((1, 2000)))
    sound = encode_sound(np.zeros((1, 20)))
    members = {"a.mp4": loud, "b.mp4": loud, "a.wav": sound, "b.wav": sound}
    path = write_tar(tmp_path / "x.tar", members)
    source = read_shards([path], ()).source
    found, notes = add_sound({"train": source.parts})
    assert (found, notes) == ({"train": source.parts}, [])
    assert source.read(0)["audio"] == Encoded(f"{path}/a.wav", sound, "audio")


def test_samples_without_what_most_have_are_left_out_and_noted(
    tmp_path: Path, write_tar: WriteTar, encode: Encode, encode_sound: Encode
) -> None:
    sound = encode_sound(np.zeros((1, 20)))
    members = {f"{i}.wav": sound for i in range(3)} | {f"{i}.png": encode(i) for i in range(5)}
    source, _, notes = read_shards([write_tar(tmp_path / "x.tar", members)], ())
    assert source.names == [f"x.tar/{i}" for i in range(3)]
    assert notes == [f"{tmp_path}/x.tar: 2 samples without image and audio file were ignored: 3, 4"]
    texts = {"0.txt": b"a", "1.txt": b"b"}
    pictures = {f"{i}.png": encode(i) for i in range(3)}
    source, _, notes = read_shards([write_tar(tmp_path / "y.tar", pictures | texts)], ())
    assert source.is_pictures
    assert notes == [f"{tmp_path}/y.tar: only 2 of 3 samples have texts, so these are ignored"]


def test_label_columns_come_from_json(tmp_path: Path, write_tar: WriteTar, encode: Encode) -> None:
    values = [{"who": "cat", "digit": 2}, {"who": "ant", "digit": 10}, {"who": "cat"}]
    files = {f"{i}.json": json.dumps(value).encode() for i, value in enumerate(values)}
    pictures = {f"{i}.png": encode(i) for i in range(3)}
    path = write_tar(tmp_path / "x.tar", files | pictures | {f"{i}.cls": b"0" for i in range(3)})
    source, columns, notes = read_shards([path], (), ["who", "digit"])
    assert columns == {"who": ("ant", "cat"), "digit": ("2", "10")}
    assert source.labels is not None
    assert source.labels.tolist() == [[1, 0], [0, 1], [1, -1]]
    assert notes == [
        f"{path}: digit is unknown (-1) in 1 of 3 samples: missing, or not a training class"
    ]
    part = source.subset(np.array([1]))
    assert part.labels is not None
    assert part.labels.tolist() == [[0, 1]]
    one, *_ = read_shards([path], (), ["who"], {"who": ("cat", "dog")})
    assert one.labels is not None
    assert one.labels.tolist() == [0, -1, 0]
    plain, columns, _ = read_shards([path], ())
    assert plain.labels is not None
    assert (plain.labels.tolist(), columns) == ([0, 0, 0], {})
    with pytest.raises(ConfigError, match="label column 'where' is asked for"):
        read_shards([path], (), ["where"])
    dataset = open_data(str(path), val_share=0.4, labels=["who"])
    assert dataset.classes == ("ant", "cat")


def test_masks_of_some_pictures_alone_are_left_out_and_noted(
    tmp_path: Path, write_tar: WriteTar, encode: Encode
) -> None:
    pictures = {f"{n}.jpg": encode(n, kind="JPEG") for n in range(4)}
    masks = {f"{n}.png": encode(n, mode="L") for n in range(4)}
    whole, _, notes = read_shards([write_tar(tmp_path / "x.tar", {**pictures, **masks})], ())
    assert (list(whole.parts), notes) == (["image", "mask"], [])
    # A damaged first mask does not make pictures of the others.
    damaged = {**pictures, **masks, "0.png": b"x"}
    found, *_ = read_shards([write_tar(tmp_path / "y.tar", damaged)], ())
    assert list(found.parts) == ["image", "mask"]
    del masks["2.png"]
    some, _, notes = read_shards([write_tar(tmp_path / "z.tar", {**pictures, **masks})], ())
    assert some.is_pictures
    assert "only 3 of 4 images have a mask" in notes[0]
    assert notes[0].endswith("one without a mask is z.tar/2")
