"""Mistakes with the newer tasks: status 2, one message that says what to do, no traceback."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import Outcome
from tests.workflows import making

import perceivers as pv

Call = Callable[..., Outcome]
Refuse = Callable[..., str]
Starting = Callable[..., list[str]]
quick = pytest.mark.usefixtures("without_report")


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., list[Any]]:
    """Return the arguments of a training command into ``tmp_path / run``, cheap if it started."""

    def make(verb: str, task: str, data: Any, *more: Any, model: Any = making.NANO) -> list[Any]:
        argv = [verb, "--task", task, "--model", model, "--data", data, "--out", tmp_path / "run"]
        return [*argv, "--limit", "1", "--batch_size", "4", "--device", "cpu", "--quiet", *more]

    return make


# -- tasks and settings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "task", "pattern"),
    [
        ("train", "multitaks", r"not 'multitaks'; did you mean 'multitask'\?"),
        ("train", "mlm", r"not 'mlm'; that is for 'perceivers pretrain'"),
        ("pretrain", "classify", r"not 'classify'; that is for 'perceivers train'"),
        (
            "finetune",
            "xyzzy",
            r"finetune trains classify, multilabel, multitask, flow, segment, regress, not 'xyzzy'",
        ),
    ],
)
@pytest.mark.parametrize("form", ["flag", "joined", "file"])
def test_an_unknown_task_is_refused(
    refuse: Refuse, tmp_path: Path, verb: str, task: str, pattern: str, form: str
) -> None:
    (tmp_path / "x.yaml").write_text(f"task: {task}\n")
    given = {
        "flag": ["--task", task],
        "joined": [f"--task={task}"],
        "file": [f"--config={tmp_path / 'x.yaml'}"],
    }[form]
    refuse([verb, *given, "--model", "x", "--data", "y", "--out", "z"], pattern)


@pytest.mark.parametrize(
    ("verb", "task", "flag", "value"),
    [
        ("pretrain", "mlm", "--autoencode.points", "3"),
        ("pretrain", "autoencode", "--mask.ratio", "0.5"),
        ("train", "multilabel", "--loss.mixup", "0.2"),
        ("train", "classify", "--flow.scale", "3"),
    ],
)
def test_settings_of_another_task_are_refused(
    refuse: Refuse, start: Any, made: Path, verb: str, task: str, flag: str, value: str
) -> None:
    refuse(start(verb, task, made / "texts.csv", flag, value), re.escape(flag), rf"{verb} --help")
    refuse([verb, "--task"], r"expected one argument|--task", rf"{verb} --help")


@pytest.mark.parametrize(
    ("more", "patterns"),
    [
        (["--mlm.ratio", "2"], [r"mlm\.ratio is 2\.0; it must be in \(0, 1\)"]),
        (["--mlm.unit", "letter"], [r"mlm\.unit: expected one of 'word', 'byte', found 'letter'"]),
        (["--mlm.rate", "0.2"], [r"did you mean '--mlm\.ratio'\?"]),
        (["--inputs", '{"txt": {"length": 3}}'], [r"modality 'txt' is asked for, .*\['bytes'\]"]),
        (["--inputs", '{"bytes": {"lenght": 3}}'], [r"'lenght'", r"did you mean 'length'\?"]),
        (["--inputs", '{"bytes": {"length": 0}}'], [r"Bytes\.length is 0; .* at least 1"]),
        (["--inputs", '{"bytes": {"length": "x"}}'], [r"length", r"'x'"]),
        (["--inputs", '{"bytes": 5}'], [r"inputs", r"5"]),
        (["--inputs", "many"], [r"inputs: expected .*dict.*, found 'many'"]),
        (["--modalities", '["audio"]'], [r"modality 'audio' is asked for, but .*\['bytes'\]"]),
        (["--modalities", "bytes"], [r"modalities: expected .*list.*, found 'bytes'"]),
        (["--labels", '["topics"]'], [r"topics", r"did you mean 'topic'\?"]),
        (["--labels", "topic"], [r"labels: expected .*list.*, found 'topic'"]),
        (["--size", "32"], [r"size=32 applies to images, but .*\['bytes'\]"]),
        (["--model_options", '{"trnk": {}}'], [r"has no setting 'trnk'; did you mean 'trunk'\?"]),
        (["--model_options", '{"trunk": 3}'], [r"model_options\.trunk is 3; .* of type dict"]),
        (["--model_options", '{"trunk": {"dept": 3}}'], [r"'dept'; did you mean 'depth'\?"]),
        (["--model_options.trunk", '{"depth": "x"}'], [r"trunk\.depth is 'x'; .* of type int"]),
        (["--model_options", '{"trunk": {"num_heads": 3}}'], [r"3"]),
    ],
)
def test_a_wrong_setting_is_named(
    refuse: Refuse, start: Any, made: Path, tmp_path: Path, more: list[str], patterns: list[str]
) -> None:
    refuse(start("pretrain", "mlm", made / "texts.csv", *more), *patterns)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "pattern"),
    [
        (["--autoencode.weights", '{"vidoe": 1.0}'], r"'vidoe'.*did you mean 'video'\?"),
        (["--autoencode.weights", '{"video": -1.0}'], r"weights\['video'\] is -1\.0"),
        (["--autoencode.weights", '{"video": "much"}'], r"autoencode\.weights"),
        (["--autoencode.mask_ratio", "1"], r"mask_ratio is 1\.0; it must be in \[0, 1\)"),
        (["--autoencode.loss", "l3"], r"autoencode\.loss: expected one of 'l1', 'l2', found 'l3'"),
    ],
)
def test_a_wrong_setting_of_auto_encoding_is_named(
    refuse: Refuse, start: Any, made: Path, tmp_path: Path, more: list[str], pattern: str
) -> None:
    small = ["--inputs", '{"video": {"frames": 2, "height": 8, "width": 8}}']
    refuse(start("pretrain", "autoencode", made / "clips", *small, *more), pattern)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("task: [mlm]\n", r"pretrain trains pretrain, autoencode, mlm"),
        ("- task\n", r"must hold 'setting: value' lines"),
        ("task: mlm\nmlm: 3\n", r"mlm"),
        ("task: mlm\nmlm:\n  ration: 0.3\n", r"did you mean 'mlm\.ratio'\?"),
    ],
)
def test_a_file_of_settings_of_the_wrong_kind_is_refused(
    refuse: Refuse, made: Path, tmp_path: Path, text: str, pattern: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    argv = ["pretrain", f"--config={path}", "--model", making.NANO, "--data", made / "texts.csv"]
    refuse([*argv, "--out", tmp_path / "run"], pattern)
    refuse(
        ["pretrain", "--config", tmp_path / "no.yaml"],
        r"there is no file .*no\.yaml, and no packaged",
    )
    refuse(["pretrain", "--config"], r"config|argument")


# -- data ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_data_of_another_kind_are_refused(
    refuse: Refuse, start: Any, made: Path, tmp_path: Path
) -> None:
    warps = f"warps:{made / 'photographs'}"
    flow = "perceiver_io_flow_tiny"
    for argv, pattern in (
        (start("train", "classify", warps), r"frame pairs, which only --task flow can use"),
        (start("pretrain", "mlm", warps), r"which only --task flow can use"),
        (start("train", "flow", made / "photographs", model=flow), r"no flow file .*'warps:"),
        (start("train", "flow", "digits", model=flow), r"use 'warps:digits'"),
        (start("train", "flow", "warps:digits", model=flow), r"made from image files, not from"),
        (start("train", "flow", warps), r"perceiver_io_nano is not a flow model; use one of"),
        (start("train", "flow", warps, "--size", "32", model=flow), r"does not use size"),
        (start("pretrain", "mlm", made / "sounds"), r"needs a model with bytes as input"),
        (
            start("pretrain", "autoencode", made / "texts.csv"),
            r"to pre-train on text, use --task mlm",
        ),
        (
            start("pretrain", "pretrain", "digits"),
            r"masks the input of a HiP or a Hiera, but perceiver_io_nano",
        ),
        (start("train", "multitask", made / "topics.csv"), r"has 0 label columns; multitask needs"),
        (start("train", "multitask", f"{made / 'topics.csv'} + "), r"no such file or folder"),
        (start("train", "multitask", f"{made / 'topics.csv'} + {made / 'no.csv'}"), r"no\.csv"),
        (
            start("train", "multitask", f"{made / 'topics.csv'} + {made / 'photographs'}"),
            r"only topics of topics, photographs have plain labels",
        ),
        (
            start("train", "classify", f"{made / 'topics.csv'} + {made / 'moods.csv'}"),
            r"has \['topics', 'moods'\]; classification needs one label",
        ),
        (
            start("train", "multitask", made / "texts.csv", "--labels", '["topic", "moood"]'),
            r"did you mean 'mood'\?",
        ),
    ):
        refuse(argv, pattern)
        assert not (tmp_path / "run").exists()


def test_trained_weights_and_other_data_are_refused(
    refuse: Refuse, start: Any, made: Path, mlm_run: pv.Run, flow_run: pv.Run, tmp_path: Path
) -> None:
    for argv, pattern in (
        (
            start("finetune", "classify", made / "sounds", model=mlm_run.path),
            r"reads \['bytes'\], but .* holds \['audio'\]",
        ),
        (
            start("finetune", "flow", f"warps:{made / 'photographs'}", model=mlm_run.path),
            r"an output 'flow' of 2 channels per pixel",
        ),
        (
            start("finetune", "classify", made / "topics.csv", model=flow_run.path),
            r"reads \['video'\], but .* holds \['bytes'\]",
        ),
        (
            start("pretrain", "autoencode", made / "texts.csv", model=mlm_run.path),
            r"to pre-train on text, use --task mlm",
        ),
    ):
        refuse(argv, pattern)
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
@quick
def test_sound_of_another_rate_is_resampled(
    start: Any, call: Call, made: Path, tmp_path: Path
) -> None:
    inputs = ["--inputs", '{"audio": {"samples": 640}}']
    trained = start("train", "classify", made / "sounds", *inputs)
    assert call(*trained).code == 0
    other = making.write_sounds(tmp_path / "other", rate=8000)
    outcome = call("predict", tmp_path / "run", other / "low" / "0.wav", made / "sounds")
    assert outcome.code == 0
    assert outcome.err == ""
    argv = start("finetune", "classify", other, model=tmp_path / "run")
    argv[argv.index("--out") + 1] = tmp_path / "again"
    assert call(*argv).code == 0


# -- models of another task ------------------------------------------------------------------------


def test_a_model_of_another_task_is_refused(
    refuse: Refuse,
    made: Path,
    mlm_run: pv.Run,
    clip_run: pv.Run,
    text_run: pv.Run,
    flow_run: pv.Run,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    film = made / "clips" / "low" / "0.mp4"
    for argv, pattern in (
        (
            ["predict", clip_run.path, "--text", "x"],
            r"passes files through an autoencoder",
        ),
        (["predict", clip_run.path, film, "--text", "x"], r"give files, not texts"),
        (
            ["reconstruct", mlm_run.path, film, "--out", out],
            r"task mlm\) does not reconstruct its input",
        ),
        (
            ["reconstruct", text_run.path, film, "--out", out],
            r"task classify\) does not reconstruct",
        ),
        (
            ["reconstruct", flow_run.path, film, "--out", out],
            r"task flow\) does not reconstruct its input",
        ),
        (
            ["predict", flow_run.path, "--text", "x"],
            r"two images; give files, not texts",
        ),
        (["predict", flow_run.path, film], r"give exactly two files, got 1"),
        (["predict", flow_run.path, film, film, film], r"give exactly two files, got 3"),
    ):
        refuse(argv, pattern)
        assert not out.exists()


# -- texts -----------------------------------------------------------------------------------------


def test_texts_that_cannot_be_read_are_refused(
    refuse: Refuse, mlm_run: pv.Run, text_run: pv.Run, cloud_run: pv.Run, tmp_path: Path
) -> None:
    long = "x" * 40
    for argv, pattern in (
        (
            ["predict", text_run.path, "--text", long],
            r"takes 40 ids, but the model reads 32; cut it",
        ),
        (["predict", text_run.path, "--text", ""], r"text '' is empty; there is nothing to read"),
        (["predict", text_run.path], r"nothing to predict; give files, folders or texts"),
        (["predict", mlm_run.path], r"nothing to predict; give files, folders or texts"),
        (["predict", mlm_run.path, "--text", "no mask"], r"'no mask' has no \[MASK\]; write one"),
        (["predict", mlm_run.path, "--text", f"[MASK]{long}"], r"takes 41 ids, .* reads 32"),
        (["predict", cloud_run.path, "--text", "x"], r"reads \['points'\]; give files"),
    ):
        refuse(argv, pattern)
    (tmp_path / "long.txt").write_text(long)
    refuse(["predict", text_run.path, tmp_path / "long.txt"], r"none of 1 samples", r"32")


def test_files_that_cannot_be_filled_in_end_with_a_record_each(
    call: Call, mlm_run: pv.Run, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("no mask")
    outcome = call("predict", mlm_run.path, tmp_path / "a.txt")
    assert outcome.code == 2
    assert json.loads(outcome.out)["error"].startswith("has no [MASK]")
    assert outcome.err.count("skipped ") == 1


# -- flow ------------------------------------------------------------------------------------------


def test_pictures_that_are_no_pair_are_refused(
    refuse: Refuse, call: Call, flow_run: pv.Run, tmp_path: Path
) -> None:
    sizes = {"a": (30, 30), "b": (30, 31), "small": (19, 15), "least": (19, 15)}
    paths = {}
    for name, size in sizes.items():
        paths[name] = tmp_path / f"{name}.png"
        pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths[name])
    out = ["--out", tmp_path / "flow"]
    run = flow_run.path
    refuse(["predict", run, paths["a"], paths["b"], *out], r"30x30 pixels and .* 31x30; both")
    small = ["predict", run, paths["small"], paths["least"], *out]
    refuse(small, r"15", r"16", r"pad")
    refuse(["predict", run, paths["a"], tmp_path / "no.png", *out], r"no\.png")
    (tmp_path / "file").write_text("x")
    refuse(["predict", run, paths["a"], paths["a"], "--out", tmp_path / "file"], r"is a file; give")
    assert not (tmp_path / "flow").exists()
    assert call(*small, "--pad").code == 0
    assert sorted(path.name for path in (tmp_path / "flow").iterdir()) == ["small.flo", "small.png"]


# -- reconstruct and recipes -----------------------------------------------------------------------


def test_files_that_cannot_be_given_back_are_refused(
    refuse: Refuse, clip_run: pv.Run, made: Path, tmp_path: Path
) -> None:
    out = ["--out", tmp_path / "out"]
    refuse(["reconstruct", clip_run.path, tmp_path / "no.mp4", *out], r"no\.mp4: no such file")
    refuse(["reconstruct", clip_run.path, made / "photographs", *out], r"no videos|no .*among 8")
    (tmp_path / "file").write_text("x")
    film = made / "clips" / "low" / "0.mp4"
    refuse(
        ["reconstruct", clip_run.path, film, "--out", tmp_path / "file"], r"file is a file; give"
    )


def test_recipes_that_do_not_exist_are_answered_with_the_nearest(
    refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refuse(["recipes", "masked_byte"], r"'masked_byte' is unknown", r"did you mean 'masked_bytes'")
    refuse(["recipes", "masked_byte", "--copy"], r"did you mean 'masked_bytes'\?")
    refuse(["recipes", "--copy"], r"--copy needs the name of a recipe")
    (tmp_path / "masked_bytes.yaml").write_text("mine")
    refuse(["recipes", "masked_bytes", "--copy"], r"masked_bytes\.yaml exists; pass --overwrite")
    assert (tmp_path / "masked_bytes.yaml").read_text() == "mine"


# -- evaluation ------------------------------------------------------------------------------------


def test_data_that_a_model_does_not_know_are_refused(
    refuse: Refuse, made: Path, multitask_run: pv.Run, flow_run: pv.Run, mlm_run: pv.Run
) -> None:
    swapped = f"{made / 'moods.csv'} + {made / 'topics.csv'}"
    val = ["--split", "val"]
    refuse(["evaluate", multitask_run.path, "--data", swapped, *val], r"in the same order")
    refuse(["evaluate", multitask_run.path, "--data", made / "topics.csv", *val], r"same columns")
    refuse(["evaluate", flow_run.path, "--data", made / "texts.csv"], r"'warps:")
    refuse(
        ["evaluate", mlm_run.path, "--data", made / "sounds", *val],
        r"'bytes' is requested, but the data contain audio;",
    )
    refuse(["evaluate", mlm_run.path], r"no 'test' split; it has \['train', 'val'\]")


def test_a_damaged_run_of_a_newer_task_is_refused(
    refuse: Refuse, mlm_run: pv.Run, tmp_path: Path
) -> None:
    run = shutil.copytree(mlm_run.path, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("task: mlm", "task: flow"))
    refuse(["resume", run], r"unknown setting mlm", r"FlowTrainConfig")
    (run / "config.yaml").write_text(text.replace("ratio: 0.15", "ratio: 7.0"))
    refuse(["resume", run], r"mlm\.ratio is 7\.0")
    (run / "config.yaml").write_text(text.replace("task: mlm", "task: poetry"))
    refuse(["report", run], r"task is 'poetry'; expected one of")
