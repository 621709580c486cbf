"""The bad-input table of the architecture, row by row, through the command line.

Every row checks the status, the message (values, rule, remedy) and that no traceback appears.
"""

import errno
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.cli.conftest import Outcome, cut, draw_pictures, snapshot

import perceivers as pv
from perceivers.cli.main import VERBS
from perceivers.data import Batch
from perceivers.training.loop import Trainer
from perceivers.training.state import load_state

Call = Callable[..., Outcome]
Refuse = Callable[..., str]
Starting = Callable[..., list[str]]
Npz = Callable[..., Path]
GOLDEN = Path(__file__).parents[1] / "golden"
TRAINING = ("pretrain", "finetune", "train")
quick = pytest.mark.usefixtures("without_report")


# -- data that cannot be read ----------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["pretrain", "train"])
def test_data_that_do_not_exist_are_named(
    refuse: Refuse, starting: Starting, tmp_path: Path, verb: str
) -> None:
    refuse(starting(verb, tmp_path / "nowhere"), r"nowhere': no such file or folder", r"Addresses:")
    assert not (tmp_path / "run").exists()


def test_a_misspelt_built_in_name_is_suggested(refuse: Refuse, starting: Starting) -> None:
    refuse(starting(data="digit"), r"did you mean 'digits'\?")


def test_a_file_of_another_kind_is_no_data(
    refuse: Refuse, starting: Starting, tmp_path: Path
) -> None:
    (tmp_path / "x.docx").write_bytes(b"hello")
    refuse(starting(data=tmp_path / "x.docx"), r"files of type '\.docx' are not supported")


@quick
def test_a_truncated_picture_is_skipped_counted_and_reported_in_training(
    call: Call, starting: Starting, pictures: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(pictures, tmp_path / "data")
    bad = [cut(path) for path in sorted((data / "cats").iterdir())[:3]]
    changes = {"size": 8, "limit": 3, "max_bad_share": 0.5}
    outcome = call(*starting("train", data, **changes))
    assert outcome.code == 0, outcome.err
    for path in bad:  # whether they fall to training or to validation
        assert outcome.err.count(f"skipped an unreadable sample: {path}: cannot be decoded") == 1
    counted = load_state(tmp_path / "run" / "checkpoints" / "last.pt")[0]
    assert counted.samples_bad > 0
    assert f"{counted.samples_bad} of {counted.samples_read} samples could not be" in outcome.err


@pytest.mark.slow
def test_a_quiet_run_keeps_its_unreadable_samples_in_record_and_report(
    call: Call, starting: Starting, pictures: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(pictures, tmp_path / "data")
    bad = {str(cut(path)) for path in sorted((data / "cats").iterdir())[:3]}
    changes = {"size": 8, "limit": 3, "max_bad_share": 0.5}
    outcome = call(*starting("train", data, **changes), "--quiet")
    assert (outcome.code, outcome.err) == (0, "")
    lines = (tmp_path / "run" / "unreadable.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["sample"] for line in lines) == sorted(bad)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "3 samples could not be read" in page
    assert all(path in page for path in bad)


@quick
def test_more_than_the_set_share_of_bad_pictures_stops_a_run(
    refuse: Refuse, starting: Starting, pictures: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(pictures, tmp_path / "data")
    for path in sorted(data.rglob("*.png"))[::3]:
        cut(path)
    argv = [*starting("train", data, size=8, limit=9), "--quiet"]
    refuse(argv, r"\d+ of \d+ samples could not be read, more than max_bad_share=0\.05; the last w")


@quick
def test_data_without_one_readable_picture_stop_before_training(
    refuse: Refuse, starting: Starting, pictures: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(pictures, tmp_path / "data")
    for path in data.rglob("*.png"):
        cut(path, 0)
    refuse(starting("train", data), r"none of the \d+ inspected training", r"empty \(0 bytes\)")
    assert not (tmp_path / "run").exists()


def test_a_bad_picture_does_not_end_a_prediction(
    call: Call, classifier: Path, pictures: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(pictures, tmp_path / "data")
    bad = cut(data / "cats" / "3.png")
    outcome = call("predict", classifier, data)
    records = [json.loads(line) for line in outcome.out.splitlines()]
    assert outcome.code == 0
    assert len(records) == 24
    assert [r["file"] for r in records if "error" in r] == [str(bad)]
    assert f"skipped {bad}: cannot be decoded" in outcome.err


def test_a_prediction_of_bad_pictures_alone_is_an_error(
    refuse: Refuse, call: Call, classifier: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "b.png").write_bytes(b"")
    refuse(
        ["predict", classifier, tmp_path],
        r"none of 2 samples could be read; the first: .*a\.png: the content is not an image",
    )


def test_paths_to_predict_that_do_not_exist_are_named(
    refuse: Refuse, classifier: Path, tmp_path: Path
) -> None:
    refuse(["predict", classifier, tmp_path / "x.png"], r"x\.png: no such file or folder")
    refuse(["predict", classifier, tmp_path], r"no images among 0 files", r"\.jpg")


def test_a_prediction_is_written_as_jsonl_or_csv_alone(
    refuse: Refuse, classifier: Path, pictures: Path, tmp_path: Path
) -> None:
    refuse(
        ["predict", classifier, pictures, "--out", tmp_path / "x.txt"],
        r"x\.txt: predictions are written as \.jsonl or \.csv",
    )
    refuse(["predict", classifier, pictures, "--top", 0], r"top is 0; it must be at least 1")
    refuse(["predict", classifier, pictures, "--top", "few"], r"top: expected int, found 'few'")


# -- data that do not fit --------------------------------------------------------------------------


def test_channels_that_the_data_cannot_give_are_refused(
    refuse: Refuse, starting: Starting, pictures: Path, npz: Npz
) -> None:
    refuse(
        starting(data=pictures, channels=5), r"5 channels are read; counts other than 1, 3 and 4"
    )
    data = npz(image=np.zeros((6, 3, 8, 8), np.uint8))
    refuse(starting(data=data, channels=4), r"arrays of 3 channels, but channels=4", "leave it out")


@quick
def test_data_of_other_channels_do_not_fit_trained_weights(
    refuse: Refuse, starting: Starting, pretrained: Path, npz: Npz, tmp_path: Path
) -> None:
    labels = np.arange(12) % 2
    data = npz(image=np.zeros((12, 3, 8, 8), np.uint8), label=labels)
    refuse(starting("finetune", data, model=pretrained), r"shape \(3, 8, 8\)", r"1 channel")
    assert not (tmp_path / "run").exists()


def test_more_modalities_than_groups_are_refused(
    refuse: Refuse, starting: Starting, npz: Npz, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    shapes = {"image": (1, 4, 4), "video": (1, 2, 4, 4), "audio": (1, 9), "points": (5, 3)}
    shapes["array"] = (4, 2)
    data = npz(**{kind: rng.random((8, *shape), np.float32) for kind, shape in shapes.items()})
    refuse(
        starting(data=data),
        r"5 modalities \['image', 'video', 'audio', 'points', 'array'\] cannot share 4 groups",
        r"use a model with at least 5 groups",
    )
    assert not (tmp_path / "run").exists()


def test_an_unknown_modality_is_named_with_the_nearest(
    refuse: Refuse, starting: Starting, npz: Npz
) -> None:
    refuse(
        starting(data=npz(images=np.zeros((6, 1, 8, 8)))),
        r"key 'images' is unknown; keys are image, .*did you mean 'image'\?",
    )


def test_modalities_other_than_those_of_trained_weights_are_refused(
    refuse: Refuse, starting: Starting, pretrained: Path, npz: Npz
) -> None:
    data = npz(audio=np.random.default_rng(0).random((6, 1, 20)), label=np.arange(6) % 2)
    refuse(starting("finetune", data, model=pretrained), r"reads \['image'\], but .*\['audio'\]")


@quick
def test_an_input_too_small_to_be_masked_is_refused_before_anything_is_written(
    refuse: Refuse, starting: Starting, npz: Npz, tmp_path: Path
) -> None:
    data = npz(image=np.random.default_rng(0).random((8, 1, 2, 2)))
    refuse(starting(data=data), r"a group of 1 element cannot be partly masked; use fewer groups")
    assert not (tmp_path / "run").exists()


def test_a_size_of_nothing_is_refused(refuse: Refuse, starting: Starting, pictures: Path) -> None:
    refuse(starting(data=pictures, size=0), r"0", r"at least 1")


def test_an_empty_class_folder_is_refused(
    refuse: Refuse, starting: Starting, pictures: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(pictures, tmp_path / "data")
    (data / "emus").mkdir()
    refuse(starting("train", data), r"emus: class folder without images, .*or remove")


def write_tar(path: Path, labels: list[int], classes: str = "") -> Path:
    """One shard of pictures with these labels."""
    with tarfile.open(path, "w:") as tar:
        for number, label in enumerate(labels):
            buffer = io.BytesIO()
            Image.new("L", (8, 8), 9 * number).save(buffer, "PNG")
            for name, content in (("png", buffer.getvalue()), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{number}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    if classes:
        (path.parent / "classes.txt").write_text(classes)
    return path


@pytest.mark.parametrize(("label", "rule"), [(7, r"0\.\.1 \(classes"), (-1, r"0\.\.1 \(classes")])
def test_a_label_out_of_range_in_a_tar_is_refused(
    refuse: Refuse, starting: Starting, tmp_path: Path, label: int, rule: str
) -> None:
    data = write_tar(tmp_path / "x.tar", [0, 1, 0, 1, label], "a\nb\n")
    refuse(starting("train", data), rf"4\.cls: label {label} is out of range; labels are {rule}")


@pytest.mark.parametrize("label", [2, -1])
def test_a_label_out_of_range_in_an_npz_is_refused(
    refuse: Refuse, starting: Starting, npz: Npz, label: int
) -> None:
    labels = np.array([0, 1, 0, 1, label])
    data = npz(image=np.zeros((5, 1, 8, 8), np.uint8), label=labels, classes=["a", "b"])
    refuse(starting("train", data), rf"\.npz/4: label '{label}' is not a class", r"the 2 classes")


@pytest.mark.parametrize("kind", ["npz", "tar"])
def test_a_label_that_would_make_a_billion_classes_is_refused(
    refuse: Refuse, starting: Starting, npz: Npz, tmp_path: Path, kind: str
) -> None:
    labels = [0, 1, 0, 1, 2_000_000_000]
    if kind == "npz":
        data = npz(image=np.zeros((5, 1, 8, 8), np.uint8), label=np.array(labels))
    else:
        data = write_tar(tmp_path / "x.tar", labels)
    indices = ["--integer_labels", "indices"]
    refuse([*starting("train", data), *indices], r"2000000000", r"classes")


@pytest.mark.parametrize("kind", ["npz", "folder", "tar", "unlabelled"])
def test_one_class_alone_cannot_be_told_apart(
    refuse: Refuse, starting: Starting, npz: Npz, tmp_path: Path, kind: str
) -> None:
    pixels = np.zeros((8, 1, 8, 8), np.uint8)
    if kind == "npz":
        data = npz(image=pixels, label=np.zeros(8, int))
    elif kind == "unlabelled":
        data = npz(image=pixels)
    elif kind == "tar":
        data = write_tar(tmp_path / "x.tar", [0] * 8)
    else:
        data = tmp_path / "data"
        draw_pictures(data, ("cats",), 4)
    count = 0 if kind in {"folder", "unlabelled"} else 1
    refuse(
        starting("train", data),
        rf"has {count} classes; classification needs one label",
        r"least 2 classes",
        r"sub-f",
    )


def test_a_truncated_npz_is_refused(refuse: Refuse, starting: Starting, npz: Npz) -> None:
    data = cut(npz(image=np.zeros((8, 1, 8, 8), np.uint8)), 400)
    refuse(starting(data=data), r"data\.npz: not an \.npz file of plain arrays", r"numpy\.savez")


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "wanted"),
    [
        ("--stpes", "--steps"),
        ("--optimizer.lrr", "--optimizer.lr"),
        ("--mask.ration", "--mask.ratio"),
        ("--overwrit", "--overwrite"),
    ],
)
def test_a_flag_misspelt_or_abbreviated_is_answered_with_the_nearest(
    refuse: Refuse, starting: Starting, tmp_path: Path, flag: str, wanted: str
) -> None:
    value = [] if flag == "--overwrit" else ["1"]
    message = refuse(
        [*starting(), flag, *value], re.escape(f"did you mean '{wanted}'?"), r"pretrain --help"
    )
    assert flag in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "key", "wanted"),
    [
        ("stpes: 3\n", "stpes", "steps"),
        ("optimizer:\n  lrr: 0.1\n", "lrr", "optimizer.lr"),
        ("mask:\n  ration: 0.5\n", "ration", "mask.ratio"),
    ],
)
def test_a_key_misspelt_in_yaml_is_answered_with_the_nearest(
    refuse: Refuse, starting: Starting, tmp_path: Path, text: str, key: str, wanted: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    refuse([*starting(), "--config", path], key, re.escape(f"did you mean '{wanted}'?"))


@pytest.mark.parametrize(
    ("changes", "patterns"),
    [
        ({"steps": "many"}, [r"steps: expected int, found 'many'"]),
        ({"ema": "high"}, [r"ema: expected float, found 'high'"]),
        (
            {"optimizer.name": "sgd"},
            [r"optimizer\.name: expected one of 'adamw', 'lamb', 'muon', found 'sgd'"],
        ),
        ({"mask.kind": "diagonal"}, [r"mask\.kind", r"diagonal", r"groupwise"]),
        ({"steps": 0}, [r"steps is 0; it must be at least 1"]),
        ({"mask.ratio": 1.5}, [r"mask\.ratio is 1\.5; it must be in \(0, 1\)"]),
        ({"optimizer.lr": -1}, [r"optimizer\.lr is -1\.0; it must be positive"]),
        ({"augment.rotate": 999}, [r"augment\.rotate is 999", r"it must be in \[0, 180\]"]),
        ({"val_share": 0}, [r"val_share is 0\.0; it must be in \(0, 1\)"]),
        (
            {"model": "hip_nona"},
            [r"hip_nona is neither a model name nor a folder", r"did you mean 'hip_nano'"],
        ),
        ({"model_options": '{"drop_pth_rate": 0.1}'}, [r"drop_pth_rate", r"drop_path_rate"]),
        ({"model_options": '{"drop_path_rate": 7}'}, [r"drop_path_rate is 7", r"\[0, 1\)"]),
        ({"model_options": '{"drop_path_rate": "x"}'}, [r"drop_path_rate is 'x'; .*type float"]),
        ({"model_options": '{"levels": 3}'}, [r"no setting 'levels'"]),
        ({"model_options": "x"}, [r"model_options: expected dict, found 'x'"]),
        (
            {"mask.weights": '{"imagee": 2}'},
            [r"unknown modality 'imagee'", r"did you mean 'image'"],
        ),
    ],
)
@quick
def test_a_setting_of_the_wrong_type_or_out_of_range_is_named(
    refuse: Refuse,
    starting: Starting,
    tmp_path: Path,
    changes: dict[str, Any],
    patterns: list[str],
) -> None:
    refuse(starting(**changes), *patterns)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("steps: many\n", r"many"),
        ("- a\n- b\n", r"must hold 'setting: value' lines"),
        ("a: [\n", r"while parsing a flow node"),
        ("optimizer: 3\n", r"optimizer"),
    ],
)
def test_yaml_of_the_wrong_kind_is_refused(
    refuse: Refuse, starting: Starting, tmp_path: Path, text: str, pattern: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    refuse([*starting(), "--config", path], pattern)


def test_a_config_file_that_does_not_exist_is_named(
    refuse: Refuse, starting: Starting, tmp_path: Path
) -> None:
    refuse([*starting(), "--config", tmp_path / "no.yaml"], r"no\.yaml")


@pytest.mark.parametrize("verb", TRAINING)
def test_what_a_training_verb_requires_is_named(refuse: Refuse, verb: str) -> None:
    refuse(
        [verb], r"required: --model, --data, --out|model.*required", rf"perceivers {verb} --help"
    )


@pytest.mark.parametrize("verb", ["resume", "evaluate", "predict", "reconstruct", "report"])
def test_what_the_other_verbs_require_is_named(refuse: Refuse, verb: str) -> None:
    refuse([verb], r"required: run|run.*required", rf"perceivers {verb} --help")


def test_what_export_and_convert_require_is_named(refuse: Refuse) -> None:
    refuse(["export"], r"run", r"export --help")
    refuse(["convert"], r"source, out", r"convert --help")


@pytest.mark.parametrize("verb", ["bakeoff", "shuffle"])
def test_what_a_verb_that_compares_refuses_is_named(
    refuse: Refuse, tmp_path: Path, verb: str
) -> None:
    refuse([verb], r"required: data|data.*required", rf"perceivers {verb} --help")
    start = [verb, "digits", "--out", tmp_path / "a"]
    refuse([*start, "--stps", "3"], r"did you mean '--steps'")
    start += ["--steps", "3"]
    refuse([*start, "--settings", '{"seed": 3}'], r"settings hold 'seed'")
    refuse([*start, "--task", "clasify"], r"did you mean 'classify'")
    refuse([verb, tmp_path / "none", *start[2:]], r"none")
    assert not (tmp_path / "a" / f"{verb}.json").exists()


def test_an_unknown_verb_is_answered_with_the_nearest(call: Call) -> None:
    outcome = call("finetun")
    assert outcome.code == 2
    assert "unknown verb 'finetun'; did you mean 'finetune'?" in outcome.err
    assert call("xyzzy").code == 2


# -- checkpoints -----------------------------------------------------------------------------------


class Canary:
    """Pickles as a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def haiku_config(path: Path) -> Path:
    """The JSON that a pickle needs beside it."""
    with np.load(GOLDEN / "io_two.npz") as archive:
        path.write_text(str(archive["config_json"]))
    return path


def test_code_in_a_pickle_is_refused_and_never_runs(refuse: Refuse, tmp_path: Path) -> None:
    source, canary = tmp_path / "x.pkl", tmp_path / "canary"
    source.write_bytes(pickle.dumps({"m": {"w": Canary(canary)}}))
    config = haiku_config(tmp_path / "x.json")
    refuse(
        ["convert", source, tmp_path / "out", "--config", config],
        r"x\.pkl: the pickle asks for posix\.system, .*; nothing was executed",
    )
    assert not canary.exists()
    assert not (tmp_path / "out").exists()
    pickle.loads(source.read_bytes())  # control: our own bytes, which sing
    assert canary.exists()


def test_a_truncated_pickle_or_bundle_is_refused(refuse: Refuse, tmp_path: Path) -> None:
    source, out = tmp_path / "x.pkl", tmp_path / "out"
    source.write_bytes(pickle.dumps({"m": {"w": np.zeros(99, np.float32)}})[:80])
    config = haiku_config(tmp_path / "x.json")
    refuse(["convert", source, out, "--config", config], r"x\.pkl is not a readable pickle")
    bundle = tmp_path / "x.npz"
    bundle.write_bytes((GOLDEN / "io_two.npz").read_bytes()[:5000])
    refuse(["convert", bundle, out], r"x\.npz: not an \.npz file of plain arrays")
    assert not out.exists()


def test_convert_names_what_is_missing(refuse: Refuse, tmp_path: Path) -> None:
    out, source = tmp_path / "out", tmp_path / "x.pkl"
    source.write_bytes(pickle.dumps({"m": {"w": np.zeros(3, np.float32)}}))
    refuse(["convert", tmp_path / "no.npz", out], r"no\.npz does not exist or is not a file")
    refuse(["convert", source, out], r"give --config with a JSON file holding 'model'")
    refuse(["convert", source, out, "--config", tmp_path / "no.json"], r"no\.json does not exist")
    refuse(["convert", source, out, "--verify"], r"holds no outputs to verify against")
    config = tmp_path / "x.json"
    config.write_text('{"modle": "HiP"}')
    refuse(["convert", source, out, "--config", config], r"lacks 'model', .*did you mean 'modle'")
    refuse(
        ["convert", source, out, "--config", haiku_config(config)], r"missing|unexpected|no param"
    )
    (tmp_path / "x.dat").write_bytes(b"")
    refuse(["convert", tmp_path / "x.dat", out], r"cannot convert '\.dat' files; give a parity")
    assert not out.exists()


@pytest.fixture
def model_folder(classifier: Path, tmp_path: Path) -> Path:
    """A copy of a model folder, to be damaged."""
    return shutil.copytree(classifier / "model", tmp_path / "model")


@pytest.mark.parametrize("size", [0, 5, 300, 50_000])
def test_truncated_weights_are_refused(
    refuse: Refuse, model_folder: Path, pictures: Path, size: int
) -> None:
    cut(model_folder / "model.safetensors", size)
    refuse(
        ["predict", model_folder, pictures],
        r"model\.safetensors is not a complete safetensors file \(.+\); copy it again",
    )


def test_a_pickle_in_place_of_weights_is_refused(
    refuse: Refuse, model_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    (model_folder / "model.safetensors").write_bytes(pickle.dumps(Canary(canary)))
    refuse(["predict", model_folder, pictures], r"is not a complete safetensors file")
    assert not canary.exists()


@pytest.mark.slow
def test_weights_of_another_architecture_are_listed(
    refuse: Refuse, model_folder: Path, pictures: Path
) -> None:
    path = model_folder / "model.safetensors"
    weights = load_file(path)
    weights["head.logits.weight"] = torch.zeros(3, 7)
    del weights["head.logits.bias"]
    weights["backbone.conv1"] = torch.zeros(2)
    save_file(weights, path)
    refuse(
        ["predict", model_folder, pictures],
        r"does not fit the model",
        r"missing: head\.logits\.bias",
        r"unexpected: backbone\.conv1",
        r"another shape: head\.logits\.weight \(file \(3, 7\), model \(10, 128\)\)",
    )


def edit_config(folder: Path, **changes: Any) -> None:
    """Change entries of a model folder's description."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        (
            {"format_version": 99, "library_version": "7.1"},
            r"has format version 99; this library reads .*1\. Install .*wrote it \(7\.1\)",
        ),
        ({"format_version": None}, r"config.json has format version None"),
        (
            {"family": "transformer"},
            r"family 'transformer' is unknown; expected one of \['hip', 'perceiver",
        ),
        ({"family": ["hip"]}, r"family \['hip'\] is unknown"),
        ({"config": {"layers": 3}}, r"config\.json: .*unknown fields \['layers'\]"),
        ({"config": {}}, r"config\.json: HiP config is incomplete or malformed"),
        ({"config": 3}, r"config\.json"),
        ({"classes": 3}, r"config\.json"),
        ({"classes": ["a", "b"]}, r"2 class names.*10|10.*2 class"),
    ],
)
def test_a_description_from_elsewhere_is_refused(
    refuse: Refuse, model_folder: Path, pictures: Path, changes: dict[str, Any], pattern: str
) -> None:
    edit_config(model_folder, **changes)
    refuse(["predict", model_folder, pictures], pattern)


def test_a_description_that_is_no_json_or_missing_is_refused(
    refuse: Refuse, model_folder: Path, pictures: Path
) -> None:
    (model_folder / "config.json").write_text("{")
    refuse(["predict", model_folder, pictures], r"config\.json is not JSON")
    (model_folder / "config.json").unlink()
    refuse(["predict", model_folder, pictures], r"holds no model: looked for .*config\.json")
    refuse(["predict", model_folder / "no", pictures], r"neither a model name nor a folder")


def test_data_of_other_classes_cannot_be_evaluated(
    refuse: Refuse, classifier: Path, pictures: Path, npz: Npz
) -> None:
    refuse(
        ["evaluate", classifier, "--data", pictures, "--split", "val"],
        r"knows the classes \['0', '1', .*, but .* has \['cats', 'dogs'\]; .*same names in",
    )
    pixels = np.random.default_rng(0).integers(0, 255, (40, 1, 8, 8), dtype=np.uint8)
    # Numbers that are some of the model's are its classes; a name that it lacks is not.
    names = [*(str(number) for number in range(9)), "nine"]
    data = npz(image=pixels, label=np.arange(40) % 10, classes=names)
    refuse(["evaluate", classifier, "--data", data, "--split", "val"], r"'nine'")
    refuse(["evaluate", classifier, "--data", npz(image=pixels), "--split", "val"], r"has \[\]")


def test_a_split_that_the_data_lack_is_named(
    refuse: Refuse, classifier: Path, npz: Npz, call: Call
) -> None:
    refuse(
        ["evaluate", classifier, "--split", "tset"], r"no 'tset' split; it has \['test', 'train'"
    )
    refuse(["evaluate", classifier / "model"], r"model folder without a run; give a data address")


# -- verbs and runs that do not go together --------------------------------------------------------


def test_finetuning_needs_trained_weights(refuse: Refuse, starting: Starting) -> None:
    refuse(starting("finetune"), r"'hip_nano' is a variant name; give a run", r"use 'train'")


def test_training_from_scratch_needs_a_variant(
    refuse: Refuse, starting: Starting, pretrained: Path
) -> None:
    refuse(starting("train", model=pretrained), r"not one \('perceivers models'", r"use 'finetune'")


def test_a_pretrained_run_cannot_classify(refuse: Refuse, pretrained: Path, pictures: Path) -> None:
    refuse(
        ["predict", pretrained, pictures],
        r"only reconstructs hidden parts of its input \(its task is pretrain\)",
        r"perceivers reconstruct .* fine-tune it for a task: perceivers finetune",
    )


def test_a_classifier_cannot_reconstruct_nor_pretrain_further(
    refuse: Refuse, classifier: Path, pictures: Path, starting: Starting, tmp_path: Path
) -> None:
    out = tmp_path / "pictures"
    refuse(
        ["reconstruct", classifier, pictures, "--out", out],
        r"does not reconstruct its input",
        r"pre-training run",
    )
    assert not out.exists()
    refuse(starting(model=classifier), r"no decoder, so it cannot reconstruct; pre-training cont")
    refuse(["export", classifier, "--part", "autoencoder"], r"no decoder")


@pytest.mark.parametrize("verb", ["evaluate", "report", "resume", "export"])
def test_what_is_no_run_is_refused(refuse: Refuse, tmp_path: Path, verb: str) -> None:
    refuse([verb, tmp_path / "nowhere"], r"nowhere", r"is not a run folder|neither a model name")
    (tmp_path / "file").write_text("x")
    refuse([verb, tmp_path / "file"], r"file", r"is not a run folder|holds no model")


def test_a_run_without_a_checkpoint_cannot_be_resumed(
    refuse: Refuse, pretrained: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(pretrained, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    refuse(["resume", run], r"stopped before its first checkpoint; start it again with --overwrite")
    shutil.rmtree(run / "model")
    refuse(["report", run], r"holds no model: looked for")


@pytest.mark.parametrize(
    "verb", ["predict", "evaluate", "embed", "export", "finetune", "resume", "convert"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    refuse: Refuse, starting: Starting, classifier: Path, tmp_path: Path, verb: str, value: float
) -> None:
    run = shutil.copytree(classifier, tmp_path / "spoiled")
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    path = run / "model" / "model.safetensors"
    weights = load_file(path)
    name = list(weights)[3]
    for tensors in (weights, state["model"]):
        tensors[name].view(-1)[-1] = value
    save_file(weights, path, metadata={"format": "pt"})
    torch.save(state, run / "checkpoints" / "last.pt")
    out = ["--out", tmp_path / "out"]
    line = {
        "predict": ["predict", run, tmp_path],
        "evaluate": ["evaluate", run],
        "embed": ["embed", run, "digits", "--out", tmp_path / "out.npz"],
        "export": ["export", run, *out],
        "finetune": starting("finetune", model=run),
        "resume": ["resume", run],
        "convert": ["convert", run, tmp_path / "out", "--to", "haiku"],
    }[verb]
    said = (rf"1 of {len(weights)} tensors hold NaN or infinity \({name}\)", r"must be finite")
    if verb == "resume":
        said = (rf"last\.pt.*model entry {name} holds values that are not finite",)
    refuse(line, *said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_a_damaged_checkpoint_is_refused(
    refuse: Refuse, pretrained: Path, tmp_path: Path, size: int
) -> None:
    run = shutil.copytree(pretrained, tmp_path / "run")
    cut(run / "checkpoints" / "last.pt", size)
    refuse(["resume", run], r"last\.pt is not a complete training checkpoint")


def test_code_in_a_training_checkpoint_never_runs(
    refuse: Refuse, pretrained: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(pretrained, tmp_path / "run")
    canary = tmp_path / "canary"
    torch.save({"progress": Canary(canary)}, run / "checkpoints" / "last.pt")
    refuse(["resume", run], r"last\.pt is not a complete training checkpoint")
    assert not canary.exists()


def test_a_checkpoint_of_another_run_is_refused(
    refuse: Refuse, pretrained: Path, classifier: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(pretrained, tmp_path / "run")
    shutil.copy(classifier / "checkpoints" / "last.pt", run / "checkpoints" / "last.pt")
    refuse(["resume", run], r"last\.pt", r"missing|does not fit")


def test_after_the_at_sign_come_best_or_last(
    refuse: Refuse, classifier: Path, pictures: Path
) -> None:
    refuse(
        ["predict", f"{classifier}@foo", pictures], r"expected 'best' or 'last' after @, not 'foo'"
    )
    refuse(["evaluate", f"{classifier}@foo"], r"expected 'best' or 'last' after @, not 'foo'")


# -- run folders -----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["pretrain", "train"])
def test_a_run_is_never_overwritten_silently(
    refuse: Refuse, starting: Starting, pretrained: Path, tmp_path: Path, verb: str
) -> None:
    run = shutil.copytree(pretrained, tmp_path / "run")
    before = snapshot(run)
    refuse(starting(verb), r"already holds a run .*'perceivers resume .*--overwrite, or choose")
    assert snapshot(run) == before


def test_overwrite_does_not_delete_what_is_no_run(
    refuse: Refuse, starting: Starting, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("ten years")
    refuse([*starting(), "--overwrite"], r"is not a run folder, so --overwrite does not delete it")
    assert snapshot(tmp_path / "run") == {"thesis.tex": b"ten years"}


def test_overwriting_a_run_with_wrong_settings_leaves_it_untouched(
    refuse: Refuse, starting: Starting, pretrained: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(pretrained, tmp_path / "run")
    before = snapshot(run)
    refuse([*starting(data=tmp_path / "no"), "--overwrite"], r"no such file")
    refuse([*starting(steps=0), "--overwrite"], r"steps is 0")
    assert snapshot(run) == before


@pytest.mark.slow
def test_continuing_from_the_run_that_would_be_overwritten_is_refused(
    refuse: Refuse, starting: Starting, pretrained: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(pretrained, tmp_path / "run")
    before = snapshot(run)
    for verb in ("pretrain", "finetune"):
        for model in (run, f"{run}@last", run / "model"):
            refuse([*starting(verb, model=model), "--overwrite"], r"--out .*holds the model")
    assert snapshot(run) == before


@pytest.mark.slow
@quick
def test_overwrite_replaces_a_run(call: Call, starting: Starting, tmp_path: Path) -> None:
    assert call(*starting(), "--quiet").code == 0
    (tmp_path / "run" / "old.txt").write_text("old")
    assert call(*starting(), "--quiet", "--overwrite").code == 0
    assert not (tmp_path / "run" / "old.txt").exists()


@pytest.mark.slow
def test_a_file_in_place_of_the_run_folder_is_refused(
    refuse: Refuse, starting: Starting, tmp_path: Path
) -> None:
    (tmp_path / "run").write_text("x")
    refuse(starting(), r"--out .*run is a file; give a folder")
    refuse(starting(out=tmp_path / "run" / "below"), r"[Nn]ot a directory|is a file")
    assert (tmp_path / "run").read_text() == "x"


def test_a_demo_does_not_delete_what_is_no_demo(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years")
    argv = ["demo", "--out", tmp_path, "--limit", 1, "--quiet"]
    refuse(argv, r"already holds files; pass --overwrite or another --out")
    assert snapshot(tmp_path) == {"thesis.tex": b"ten years"}


def test_a_model_folder_and_an_export_are_never_overwritten_silently(
    refuse: Refuse, call: Call, classifier: Path, tmp_path: Path
) -> None:
    out = tmp_path / "converted"
    assert call("convert", GOLDEN / "io_two.npz", out).code == 0
    before = snapshot(out)
    refuse(["convert", GOLDEN / "io_single.npz", out], r"already holds a model", r"--overwrite")
    assert snapshot(out) == before
    path = tmp_path / "x.onnx"
    path.write_text("x")
    refuse(["export", classifier, "--out", path], r"x\.onnx exists; pass --overwrite or another")
    refuse(["export", classifier, "--out", tmp_path / "x.bin"], r"x\.bin must end in \.onnx")
    refuse(["export", classifier, "--format", "tflite"], r"tflite", r"onnx")


# -- a machine that fails --------------------------------------------------------------------------


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], Any]) -> None:
    """Do something when the loop has done so many steps."""
    original = Trainer._log

    def spy(self: Trainer, *args: Any) -> None:
        original(self, *args)
        if self.progress.step == step:
            act()

    monkeypatch.setattr(Trainer, "_log", spy)


@pytest.fixture
def whole(call: Call, starting: Starting, tmp_path: Path, without_report: None) -> dict[str, Any]:
    """The weights of a run that nothing disturbed."""
    outcome = call(*eight_steps(starting, out=tmp_path / "whole"))
    assert outcome.code == 0
    return load_file(tmp_path / "whole" / "last" / "model.safetensors")


def eight_steps(starting: Starting, **changes: Any) -> list[str]:
    """A run of eight steps with a checkpoint every two."""
    settings = {"steps": 8, "limit": 0, "checkpoint_every": 2, "eval_every": 8, **changes}
    return [*starting(**settings), "--quiet"]


def resumes(call: Call, run: Path, whole: dict[str, Any]) -> None:
    """Resume a run and compare it with the one that nothing disturbed."""
    assert call("resume", run, "--quiet").code == 0
    found = load_file(run / "last" / "model.safetensors")
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_a_full_disk_is_said_and_the_last_checkpoint_survives(
    call: Call,
    starting: Starting,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    whole: dict[str, Any],
    place: str,
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    owner: Any = os if place == "fsync" else Path
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: patch.setattr(owner, place, full))
        outcome = call(*eight_steps(starting))
    run = tmp_path / "run"
    assert outcome.code == 2
    assert "No space left on device" in outcome.err
    assert f"'perceivers resume {run}' continues" in outcome.err
    # What was being written beside the steps, after step 4, may have met the full disk.
    assert load_state(run / "checkpoints" / "last.pt")[0].step in {2, 4}
    assert not list(run.rglob("*.tmp"))
    resumes(call, run, whole)


def test_a_folder_that_cannot_be_written_is_said(
    refuse: Refuse, starting: Starting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = Path.mkdir

    def deny(self: Path, *args: Any, **kwargs: Any) -> None:
        if self == tmp_path / "run":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", deny)
    message = refuse(starting(), r"Permission denied: '.*run'")
    assert "resume" not in message  # there is nothing to resume


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_saves_its_state_and_resumes_exactly(
    call: Call,
    starting: Starting,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    whole: dict[str, Any],
    number: int,
) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), number))
        outcome = call(*eight_steps(starting))
    run = tmp_path / "run"
    assert outcome.code == 130
    assert f"stopped at step 3; continue with: perceivers resume {run}" in outcome.err
    assert load_state(run / "checkpoints" / "last.pt")[0].step == 3
    resumes(call, run, whole)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_the_last_checkpoint_survives(
    call: Call,
    starting: Starting,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    whole: dict[str, Any],
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        at_step(patch, 5, twice)
        outcome = call(*eight_steps(starting))
    run = tmp_path / "run"
    assert outcome.code == 130
    assert "interrupted" in outcome.err
    assert load_state(run / "checkpoints" / "last.pt")[0].step == 4
    assert signal.getsignal(signal.SIGINT) is handler
    resumes(call, run, whole)


def test_ctrl_c_while_nothing_trains_is_a_message(
    call: Call, starting: Starting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("perceivers.workflows.opening.open_data", press)
    outcome = call(*starting())
    assert outcome.code == 130
    assert outcome.err == "perceivers: interrupted\n"


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_with_the_batch_saved(
    refuse: Refuse, starting: Starting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = Batch.split
    calls: list[int] = []

    def poison(batch: Any, parts: int) -> Any:
        calls.append(1)
        if len(calls) == 3:
            batch.inputs["image"] = torch.full(batch.inputs["image"].shape, float("nan"))
        return original(batch, parts)

    monkeypatch.setattr(Batch, "split", poison)
    refuse(
        eight_steps(starting),
        r"the loss is nan at step 2; .*saved in .*checkpoints.*indices in .*\.json\. Look at",
        r"lower optimizer\.lr \(now 0\.001\)",
    )
    saved = json.loads((tmp_path / "run" / "bad_batch_step_2.json").read_text())
    assert len(saved["indices"]) == 8


def test_our_own_mistakes_keep_their_traceback(
    call: Call, starting: Starting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("perceivers.workflows.opening.open_data", fail)
    with pytest.raises(ZeroDivisionError, match="ours"):
        call(*starting())


# -- help ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_helps(call: Call, verb: str) -> None:
    outcome = call(verb, "--help")
    assert outcome.code == 0
    assert f"usage: perceivers {verb}" in outcome.out
    assert outcome.err == ""
    wanted = {
        "pretrain": ["--model", "--data", "--out", "--mask.ratio", "--optimizer.lr", "--config"],
        "finetune": ["--model", "--data", "--out", "--head", "--loss.mixup", "--overwrite"],
        "train": ["--model", "--data", "--out", "--augment.flip", "--ema", "--print_config"],
        "demo": ["--out", "--compare", "--seed", "--limit", "--overwrite", "--quiet"],
        "resume": ["run", "--quiet", "--devices", "--strategy"],
        "evaluate": ["run", "--data", "--split", "--batch_size", "--limit", "--subsets"],
        "predict": ["run", "files", "--out", "--top"],
        "reconstruct": ["run", "files", "--out", "--seed"],
        "explain": ["run", "files", "--out"],
        "report": ["run", "--out", "--overwrite"],
        "embed": ["run", "--out", "--split", "--pool"],
        "probe": ["run", "--data", "--out", "--pool"],
        "anomaly": ["run", "--out", "--reference", "--normal", "--repeats"],
        "plan": ["--model", "--data", "--inputs", "--device", "--hourly_cost"],
        "bench": ["--models", "--sizes", "--rounds", "--no-peers", "--memory_limit", "--out"],
        "bakeoff": ["data", "--minutes", "--steps", "--models", "--out", "--overwrite"],
        "shuffle": ["data", "--model", "--steps", "--seeds", "--batch_size", "--out"],
        "data": ["address", "--labels", "--limit", "--json"],
        "export": ["run", "--format", "--part", "--out", "--overwrite"],
        "convert": ["source", "out", "--verify", "--config", "--overwrite"],
        "models": ["pattern", "--weights"],
        "recipes": ["name", "--copy", "--overwrite"],
        "doctor": [],
    }[verb]
    for option in wanted:
        assert option in outcome.out, option


def test_the_top_level_help_lists_every_verb(call: Call) -> None:
    for argv in ([], ["--help"], ["-h"], ["help"]):
        outcome = call(*argv)
        assert outcome.code == 0
        assert all(f"  {verb} " in outcome.out for verb in VERBS)
    assert call("--version").out == f"perceivers {pv.__version__}\n"


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_do_not_import_torch(flag: str) -> None:
    code = (
        "import sys; from perceivers.cli.main import main; code = main([sys.argv[1]]); "
        "heavy = {'torch', 'numpy', 'jsonargparse', 'rich'} & set(sys.modules); "
        "sys.exit(code or (f'imported {heavy}' if heavy else 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, flag], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "perceivers" in done.stdout
