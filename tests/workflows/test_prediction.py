"""Predictions: records of every task, texts as they are given, masks filled in, tables."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.workflows import making

import perceivers as pv
from perceivers.data.byte_codec import text_ids
from perceivers.errors import ConfigError, DataError
from perceivers.models.saving import ModelInfo
from perceivers.types import CLS, FIRST_BYTE, MASK, PAD, SEP
from perceivers.workflows.prediction import check_out, write_predictions


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with three texts, one longer than the model reads and one empty."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("green tree")
    (folder / "b.txt").write_text("blue " * 20)
    (folder / "c.txt").write_text("")
    return folder


def test_texts_are_classified_as_they_are_given(text_run: pv.Run) -> None:
    records = list(pv.predict(text_run.path, texts=["green tree", "Grün ☂"], top=2))
    assert [record["text"] for record in records] == ["green tree", "Grün ☂"]
    for record in records:
        assert record["class"] == record["top"][0]["class"]
        assert record["class"] in {"home", "sky", "wood"}
        assert len(record["top"]) == 2
    every = next(iter(pv.predict(text_run.path, texts="green tree", top=9)))
    assert sum(entry["probability"] for entry in every["top"]) == pytest.approx(1.0, abs=1e-5)


def test_a_text_in_a_file_is_the_same_text(text_run: pv.Run, texts: Path) -> None:
    (given,) = pv.predict(text_run.path, texts=["green tree"])
    records = {record["file"]: record for record in pv.predict(text_run.path, [texts])}
    found = records[str(texts / "a.txt")]
    assert {**found, "text": "green tree"} == {**given, "file": found["file"]}
    assert "32" in records[str(texts / "b.txt")]["error"]
    assert "empty" in records[str(texts / "c.txt")]["error"]
    assert pv.Run(text_run.path).predict([texts / "a.txt"]) == [found]


def test_several_labels_are_told_apart(multilabel_run: pv.Run) -> None:
    (record,) = pv.predict(multilabel_run.path, texts=["green tree"], top=4)
    names = {entry["class"]: entry["probability"] for entry in record["top"]}
    assert set(names) == {"topic=home", "topic=sky", "topic=wood", "mood"}
    assert set(record["labels"]) == {name for name, share in names.items() if share > 0.5}


def test_several_tasks_answer_each_for_itself(multitask_run: pv.Run) -> None:
    (record,) = pv.predict(multitask_run.path, texts=["green tree"])
    assert set(record) == {"text", "topics", "moods"}
    assert record["topics"]["class"] in {"home", "sky", "wood"}
    assert record["moods"]["class"] in {"glad", "sad"}
    assert 0.5 <= record["moods"]["probability"] <= 1.0


@pytest.mark.slow
def test_films_are_classified_with_their_sound(
    made: Path, clip_run: pv.Run, tmp_path: Path
) -> None:
    run = making.quietly(
        pv.finetune, model=clip_run.path, data=made / "clips", out=tmp_path / "run"
    )
    records = list(pv.predict(run.path, [made / "clips"]))
    assert len(records) == 10
    assert all(record["class"] in {"high", "low"} for record in records)


# -- files of several kinds ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and sounds in one folder, and manifests: of all, and of single pictures and sounds.

    Of six samples ``pairs/N``, 4 has no sound and 5 no picture.
    """
    root = tmp_path_factory.mktemp("pairs")
    folder = making.write_photographs(root / "pairs", 5)
    for number, sound in enumerate(sorted(making.write_sounds(root / "sounds").rglob("*.wav"))[:6]):
        sound.rename(folder / f"{number}.wav")
    (folder / "4.wav").unlink()
    images = [f"pairs/{n}.png" for n in range(5)] + [""]
    sounds = ["" if n == 4 else f"pairs/{n}.wav" for n in range(6)]
    rows = {
        "all": zip(images, sounds, strict=True),
        "images": ((image, "") for image in images[:5]),
        "sounds": (("", sound) for sound in sounds if sound),
    }
    for name, cells in rows.items():
        # The first row holds both, as a column must not be empty.
        lines = ["image,audio,label", f"{images[0]},{sounds[0]},x"]
        lines += [f"{image},{sound},{'xy'[i % 2]}" for i, (image, sound) in enumerate(cells)]
        (root / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def pair_run(pairs: Path, runs: Path) -> pv.Run:
    """A classifier of pictures and sounds, either of which a sample may lack."""
    inputs = {"image": {"height": 8, "width": 8}, "audio": {"samples": 64}}
    return making.quietly(
        pv.train, model=making.NANO, data=pairs / "all.csv", out=runs / "pairs", inputs=inputs
    )


def by_manifest(run: pv.Run, table: Path) -> list[dict[str, Any]]:
    """Predictions of the rows of a manifest after the first, in the order of the rows."""
    records = {record.pop("file"): record for record in pv.predict(run.path, [table])}
    return [records[name] for name in sorted(records, key=_row_number)[1:]]


def _row_number(name: str) -> int:
    return int(Path(name).name)


def assert_same_answers(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [record["class"] for record in found] == [record["class"] for record in expected]
    shares = [[record["probability"] for record in records] for records in (found, expected)]
    assert shares[0] == pytest.approx(shares[1], abs=2e-6)


def test_one_file_of_a_pair_is_answered_without_the_other(pair_run: pv.Run, pairs: Path) -> None:
    for ending, name, places in (("png", "images", range(5)), ("wav", "sounds", (0, 1, 2, 3, 5))):
        files = [pairs / "pairs" / f"{place}.{ending}" for place in places]
        found = [record for file in files for record in pv.predict(pair_run.path, [file])]
        assert [record["file"] for record in found] == [str(file) for file in files]
        assert not any("files" in record for record in found)
        assert_same_answers(found, by_manifest(pair_run, pairs / f"{name}.csv"))
    both = by_manifest(pair_run, pairs / "all.csv")[0]
    alone = by_manifest(pair_run, pairs / "sounds.csv")[0]
    assert both["probability"] != pytest.approx(alone["probability"], abs=1e-4)


def test_two_files_of_one_name_are_one_sample(pair_run: pv.Run, pairs: Path) -> None:
    picture, sound = pairs / "pairs" / "1.png", pairs / "pairs" / "1.wav"
    (record,) = pv.predict(pair_run.path, [sound, picture])
    first, *_ = inputs = list(pair_run.model().config.data_inputs)
    expected = {"image": str(picture), "audio": str(sound)}
    assert record["file"] == expected[first]
    assert record["files"] == [expected[name] for name in inputs]
    assert_same_answers([record], by_manifest(pair_run, pairs / "all.csv")[1:2])
    assert len(list(pv.predict(pair_run.path, [sound, pairs / "pairs" / "2.png"]))) == 2


def test_a_folder_of_pairs_is_answered_like_a_manifest_of_them(
    pair_run: pv.Run, pairs: Path
) -> None:
    found = list(pv.predict(pair_run.path, [pairs / "pairs"]))
    assert [Path(record["file"]).stem for record in found] == list("012345")
    assert [len(record.get("files", [1])) for record in found] == [2, 2, 2, 2, 1, 1]
    assert_same_answers(found, by_manifest(pair_run, pairs / "all.csv"))


def test_a_file_that_no_modality_is_read_from_is_named(pair_run: pv.Run, pairs: Path) -> None:
    (pairs / "note.txt").write_text("x")
    good, bad = pv.predict(pair_run.path, [pairs / "pairs" / "0.png", pairs / "note.txt"])
    assert "class" in good
    assert bad["file"] == str(pairs / "note.txt")
    assert bad["error"].startswith("belongs to the texts, but the model reads")


def test_features_are_of_pairs_too(pair_run: pv.Run, pairs: Path) -> None:
    found = pv.embed(pair_run.path, [str(pairs / "pairs" / "0.png"), str(pairs / "pairs")])
    assert [Path(name).stem for name in found.names] == list("012345")
    expected = pv.embed(pair_run.path, str(pairs / "all.csv"))
    rows = dict(zip(expected.names, expected.features, strict=True))
    features = [rows[name] for name in sorted(rows, key=_row_number)[1:]]
    torch.testing.assert_close(torch.tensor(found.features), torch.tensor(np.stack(features)))


def test_a_data_set_without_a_modality_is_embedded_without_it(
    pair_run: pv.Run, pairs: Path, tmp_path: Path
) -> None:
    for number in range(5):
        picture = tmp_path / "photos" / "xy"[number % 2] / f"{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes((pairs / "pairs" / f"{number}.png").read_bytes())
    found = pv.embed(pair_run.path, str(tmp_path / "photos"))
    assert found.classes == ("x", "y")
    expected = pv.embed(pair_run.path, str(pairs / "images.csv"))
    rows = dict(zip(expected.names, expected.features, strict=True))
    features = [rows[name] for name in sorted(rows, key=_row_number)[1:]]
    order = np.argsort([Path(name).stem for name in found.names])
    torch.testing.assert_close(
        torch.tensor(found.features[order]), torch.tensor(np.stack(features))
    )


# -- filling in ------------------------------------------------------------------------------------


def test_every_mask_is_filled_with_the_likeliest_byte(mlm_run: pv.Run) -> None:
    text = "the [MASK][MASK]n is [MASK]lue"
    (record,) = pv.predict(mlm_run.path, texts=[text])
    model, ids = mlm_run.model(), text_ids(text, pv.Bytes(32), "x", parse_masks=True)
    with torch.no_grad():
        scores = model({"bytes": ids}).float()[..., FIRST_BYTE:].softmax(-1)[0]
    hidden = ids[0] == MASK
    assert int(hidden.sum()) == 3
    best = bytes(scores[hidden].argmax(-1).tolist())
    expected = text.encode().split(b"[MASK]")
    whole = b"".join(p + best[i : i + 1] for i, p in enumerate(expected))
    assert record["text"] == text
    assert record["answer"] == best.decode("utf-8", "replace")
    assert record["filled"] == whole.decode("utf-8", "replace")
    probability = float(scores[hidden].max(-1).values.mean())
    assert record["probability"] == pytest.approx(probability, abs=1e-6)


def test_special_ids_are_no_answers(mlm_run: pv.Run, tmp_path: Path) -> None:
    model = mlm_run.model()
    bias = torch.zeros(FIRST_BYTE + 256)
    bias[FIRST_BYTE + ord("q")] = 200.0
    bias[:FIRST_BYTE] = 400.0  # likelier, but no byte
    model.decoder.heads["bytes"].bias.data = bias
    model.save_pretrained(tmp_path / "model", info=ModelInfo(task="mlm"))
    (record,) = pv.predict(tmp_path / "model", texts=["[MASK]uick, [MASK]"])
    assert record["filled"] == "quick, q"
    assert record["answer"] == "qq"
    assert record["probability"] == pytest.approx(1.0)


def test_one_bad_text_file_does_not_end_the_job(mlm_run: pv.Run, texts: Path) -> None:
    (texts / "d.txt").write_text("a [MASK] of tea")
    records = {Path(record["file"]).name: record for record in pv.predict(mlm_run.path, [texts])}
    assert "filled" in records["d.txt"]
    assert "has no [MASK]; write one for every byte" in records["a.txt"]["error"]
    assert "takes 100 ids, but the model reads 32" in records["b.txt"]["error"]
    assert "is empty" in records["c.txt"]["error"]
    assert pv.Run(mlm_run.path).predict([texts / "d.txt"]) == [records["d.txt"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no mask here", r"text 'no mask here' has no \[MASK\]; write one"),
        ("[MASK]" + "x" * 40, r"takes 41 ids, but the model reads 32; cut it, or train a model"),
        ("", r"text '' is empty; there is nothing to read"),
    ],
)
def test_a_text_that_cannot_be_filled_in_is_refused(
    mlm_run: pv.Run, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        list(pv.predict(mlm_run.path, texts=[text]))


def test_ids_are_wrapped_and_padded_as_the_model_reads_them() -> None:
    plain = text_ids("ab", pv.Bytes(4), "x")
    assert plain.tolist() == [[FIRST_BYTE + 97, FIRST_BYTE + 98, PAD, PAD]]
    wrapped = text_ids(b"ab", pv.Bytes(5, wrap="cls_sep"), "x")
    assert wrapped.tolist() == [[CLS, FIRST_BYTE + 97, FIRST_BYTE + 98, SEP, PAD]]
    with pytest.raises(DataError, match=r"x takes 4 ids, but the model reads 3; .*length: 4"):
        text_ids("ab", pv.Bytes(3, wrap="cls_sep"), "x")


# -- what does not fit -----------------------------------------------------------------------------


def test_what_a_model_does_not_read_is_refused(
    text_run: pv.Run, cloud_run: pv.Run, made: Path
) -> None:
    with pytest.raises(ConfigError, match=r"texts were given, but the model reads \['points'\]"):
        list(pv.predict(cloud_run.path, texts=["x"]))
    with pytest.raises(ConfigError, match="nothing to predict; give files, folders or texts"):
        list(pv.predict(text_run.path))
    with pytest.raises(
        DataError, match=r"none of 1 samples could be read; .*belongs to the audio files"
    ):
        list(pv.predict(text_run.path, [made / "sounds" / "low" / "0.wav"]))


# -- tables ----------------------------------------------------------------------------------------


def test_a_table_has_a_column_per_entry(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"text": "a, b", "topics": {"class": "sky", "probability": 0.25}, "labels": ["x", "y"]},
        {"file": "c.txt", "error": "is empty"},
    ]
    out = tmp_path / "x.csv"
    write_predictions(records, out)
    with out.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert list(rows[0]) == ["text", "topics", "labels", "file", "error"]
    assert rows[0] == {
        "text": "a, b",
        "topics": "sky 0.2500",
        "labels": "x; y",
        "file": "",
        "error": "",
    }
    assert rows[1]["error"] == "is empty"
    lines = write_predictions(records, tmp_path / "x.jsonl").splitlines()
    assert [json.loads(line) for line in lines] == records
    assert (tmp_path / "x.jsonl").read_text().splitlines() == lines
    assert write_predictions(records, None).splitlines() == lines
    assert write_predictions([{"filled": "ü"}], None) == '{"filled": "ü"}\n'


def test_a_table_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("old")
    with pytest.raises(ConfigError, match=r"x\.csv exists; pass --overwrite"):
        check_out(tmp_path / "x.csv", overwrite=False)
    check_out(tmp_path / "x.csv", overwrite=True)
    with pytest.raises(ConfigError, match=r"written as \.jsonl or \.csv"):
        check_out(tmp_path / "x.txt", overwrite=True)
