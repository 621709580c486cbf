"""Data sets of Hugging Face's library, from folders on this machine."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import datasets.exceptions
import numpy as np
import pytest
from PIL.Image import Image as Picture

from perceivers.data import hugging_face, make_eval_loader, open_data
from perceivers.data.sources import Encoded
from perceivers.errors import ConfigError, DataError
from perceivers.types import Bytes

Save = Callable[..., str]
CLASSES = datasets.ClassLabel(names=["dog", "cat"])


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ask no server, and cache nothing outside the test."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save columns, all of them or by split, and return the address."""

    def save(features: dict[str, Any], **splits: dict[str, Any]) -> str:
        folder = tmp_path / "saved"
        # Encoding sounds, which are bytes already, would need a further library.
        stored = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        plain = {n: stored if isinstance(f, datasets.Audio) else f for n, f in features.items()}
        held = {
            name: datasets.Dataset.from_dict(columns, features=datasets.Features(plain)).cast(
                datasets.Features(features)
            )
            for name, columns in splits.items()
        }
        datasets.DatasetDict(list(held.items())).save_to_disk(folder)
        return f"hf:{folder}"

    return save


def test_pictures_with_classes(save: Save, encode: Any) -> None:
    columns = {
        "img": [{"bytes": encode(i, (8, 8)), "path": None} for i in range(6)],
        "animal": [0, 1] * 3,
    }
    hidden = {"img": columns["img"][:2], "animal": [-1, -1]}
    features = {"img": datasets.Image(), "animal": CLASSES}
    address = save(features, train=columns, validation=columns, test=hidden, extra=columns)
    dataset = open_data(address)
    # The order of the classes is the data set's own.
    assert dataset.classes == ("dog", "cat")
    assert set(dataset.splits) == {"train", "val"}
    assert "the label is the column 'animal'" in dataset.notes
    assert "test: has no labels, so it is left out" in dataset.notes
    assert "splits that are left out: extra" in dataset.notes
    train = dataset.splits["train"]
    assert train.is_pictures
    assert train.encoded(3).data == encode(3, (8, 8))
    assert list(train.names[:2]) == ["train/0", "train/1"]
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1] * 3
    assert len(pickle.dumps(train)) < 30_000
    (batch,) = make_eval_loader(train, dataset.specs(size=8), batch_size=8, workers=1)
    assert batch.inputs["image"].shape == (6, 3, 8, 8)


def test_what_is_missing_and_targets(save: Save, encode: Any, encode_sound: Any) -> None:
    sound = encode_sound(np.zeros((1, 9)), kind="WAV")
    columns = {
        "image": [{"bytes": encode(0), "path": None}, None] * 3,
        "audio": [None, {"bytes": sound, "path": None}, None] * 2,
        "text": ["one", None, ""] * 2,
        "age": [1.0, None, 3.0, 4.0, 5.0, 6.0],
    }
    columns["text"][5] = "six"
    features = {
        "image": datasets.Image(),
        "audio": datasets.Audio(),
        "text": datasets.Value("string"),
        "age": datasets.Value("float32"),
    }
    address = save(features, train=columns, test={k: v[:2] for k, v in columns.items()})
    dataset = open_data(f"{address}", targets=("age",), val_share=0.5)
    test = dataset.splits["test"]
    assert test.present
    assert {name: held.tolist() for name, held in test.present.items()} == {
        "image": [True, False],
        "audio": [False, True],
        "bytes": [True, False],
    }
    sample = test.read(0)
    assert isinstance(sample["image"], Picture)
    assert bytes(sample["bytes"]) == b"one"  # pyright: ignore[reportArgumentType]
    (name,) = test.read(1)
    clip = test.read(1)[name]
    assert isinstance(clip, Encoded)
    assert clip.data == sound
    assert test.targets is not None  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_array_equal(test.targets, [[1.0], [np.nan]])  # pyright: ignore[reportAttributeAccessIssue]


def test_numbers_of_points_and_arrays(save: Save) -> None:
    features = {
        "points": datasets.List(datasets.List(datasets.Value("float32"))),
        "array": datasets.Array2D((2, 2), "float32"),
        "label": datasets.Value("int64"),
    }
    clouds = [[[1, 2, 3]] * (i + 1) for i in range(4)]
    columns = {"points": clouds, "array": [[[1, 2], [3, 4]]] * 4, "label": [0, 1, 0, 1]}
    dataset = open_data(save(features, train=columns, validation=columns))
    sample = dataset.splits["train"].read(2)
    np.testing.assert_array_equal(sample["points"], [[1, 2, 3]] * 3)
    np.testing.assert_array_equal(sample["array"], [[1, 2], [3, 4]])
    assert dataset.specs()["array"].raw_shape == (2, 2)
    assert dataset.specs()["points"].raw_shape == (8, 3)


def test_the_only_column_of_texts_is_the_text(save: Save) -> None:
    features = {"sentence": datasets.Value("string"), "label": CLASSES}
    columns = {"sentence": ["café", "b", "c", "d"], "label": [0, 1, 1, 0]}
    dataset = open_data(save(features, train=columns, dev=columns))
    assert len(dataset.splits["val"]) == 4
    assert "the text is the column 'sentence'" in dataset.notes
    assert dataset.specs() == {"bytes": Bytes(512)}
    assert {
        bytes(source.read(i)["bytes"]).decode()  # pyright: ignore[reportArgumentType]
        for source in dataset.splits.values()
        for i in range(len(source))
    } == {"café", "b", "c", "d"}


def test_a_part_of_a_split(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"text": [str(i) for i in range(20)]}
    address = save({"text": datasets.Value("string")}, other=columns, test=columns)
    # An existing path is a path; names of the hub are loaded by the library.
    loaded = datasets.load_from_disk(address.removeprefix("hf:"))
    calls = []

    def load(*names: str) -> Any:
        calls.append(names)
        if names == ("short/plain",):
            raise datasets.exceptions.DatasetNotFoundError("no such")
        return loaded

    monkeypatch.setattr(datasets, "load_dataset", load)

    def count(split: str) -> list[str]:
        dataset = open_data(f"hf:owner/name/config{split}", val_share=0.5)
        return sorted(
            (
                bytes(source.read(i)["bytes"]).decode()  # pyright: ignore[reportArgumentType]
                for source in dataset.splits.values()
                for i in range(len(source))
            ),
            key=int,
        )

    assert count(":other[:4]") == ["0", "1", "2", "3"]
    assert count(":test[90%:]") == ["18", "19"]
    assert count(":other[-3:]") == ["17", "18", "19"]
    assert set(calls) == {("owner/name", "config")}
    with pytest.raises(ConfigError, match=r"split 'othr' is asked for.*did you mean 'other'\?"):
        count(":othr")
    with pytest.raises(ConfigError, match=r"'other\[30:\]' is empty; the split has 20 rows"):
        count(":other[30:]")
    with pytest.raises(DataError, match=r"splits are other, test, and none is 'train'"):
        count("")
    open_data("hf:short/plain:other")
    assert calls[-1] == ("short", "plain")


def test_a_folder_of_files_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 0}\n')
    dataset = open_data(f"hf:{folder}", val_share=0.5)
    assert [len(source) for source in dataset.splits.values()] == [1, 1]
    assert dataset.classes == ("0",)


def test_what_cannot_be_had_is_one_sentence(save: Save) -> None:
    with pytest.raises(DataError) as caught:
        open_data("hf:nobody/nothing")
    assert "it is not on this machine: load it once where there is a network" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="data address 'hf:' has no name"):
        open_data("hf:")
    address = save({"n": datasets.Value("int64")}, train={"n": [1, 2]})
    with pytest.raises(DataError, match=r"no column is a modality; the columns are \['n'\]"):
        open_data(address)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(hugging_face, "import_module", fail)
    with pytest.raises(DataError, match=r'pip install "perceivers\[hub\]"'):
        open_data("hf:owner/name")
