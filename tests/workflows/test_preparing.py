"""Every task from data to weights: what is built, what is carried over, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.workflows import making
from tests.workflows.conftest import CLIP, FRAMES, TEXT

import perceivers as pv
from perceivers.errors import ConfigError, DataError
from perceivers.training.config import AutoencodeConfig, FlowTrainConfig, build_config
from perceivers.workflows.by_task.autoencoding import prepare_autoencoding
from perceivers.workflows.by_task.flow import prepare_flow


def weights(run: pv.Run, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run.path / which / "model.safetensors")


def described(run: pv.Run) -> dict[str, Any]:
    return json.loads((run.path / "model" / "config.json").read_text())


# -- one run of every task -------------------------------------------------------------------------


def test_masked_bytes_are_learned_from_texts(mlm_run: pv.Run) -> None:
    assert mlm_run.task == "mlm"
    spec = mlm_run.model().config.inputs["bytes"]
    assert spec == pv.Bytes(32)
    figures = mlm_run.evaluate(split="val")
    assert set(figures) == {"loss", "bits_per_byte", "top1"}
    assert described(mlm_run)["metrics"]["val loss"] == pytest.approx(
        mlm_run.evaluate(split="val")["loss"]
    )
    rows = [json.loads(line) for line in mlm_run.folder.metrics.read_text().splitlines()]
    assert any("loss" in row and row.get("split") == "val" for row in rows)


def test_films_sounds_and_labels_are_auto_encoded(clip_run: pv.Run) -> None:
    config = clip_run.model().config
    assert config.inputs["label"] == pv.Labels(2)
    assert config.inputs["audio"].sample_rate == making.RATE
    assert config.mask_tokens
    assert described(clip_run)["classes"] == ["high", "low"]
    figures = clip_run.evaluate(split="val")
    assert set(figures) == {"loss", "psnr/video", "psnr/audio", "top1"}


def test_a_flat_model_of_pictures_is_auto_encoded_by_itself(picture_run: pv.Run) -> None:
    assert picture_run.task == "autoencode"
    assert set(picture_run.evaluate(split="val")) == {"loss", "psnr/image"}


def test_texts_and_point_sets_are_classified(text_run: pv.Run, cloud_run: pv.Run) -> None:
    assert described(text_run)["classes"] == ["home", "sky", "wood"]
    assert set(text_run.evaluate(split="val")) == {"top1", "macro", "samples"}
    spec = cloud_run.model().config.inputs["points"]
    assert spec.ragged
    assert spec.num_tokens >= 12
    assert cloud_run.model().family == "perceiver"


def test_columns_are_learned_together(multilabel_run: pv.Run, multitask_run: pv.Run) -> None:
    names = described(multilabel_run)["classes"]
    assert names == ["topic=home", "topic=sky", "topic=wood", "mood"]
    assert multilabel_run.model().config.num_classes == 4
    assert {"map", "column_top1", "top1/topic", "top1/mood"} < set(
        multilabel_run.evaluate(split="val")
    )
    outputs = multitask_run.model().config.outputs
    assert {name: output.channels for name, output in outputs.items()} == {"topics": 3, "moods": 2}
    assert described(multitask_run)["columns"] == {
        "topics": ["home", "sky", "wood"],
        "moods": ["glad", "sad"],
    }


def test_one_table_of_two_columns_is_multitask_too(made: Path, tmp_path: Path) -> None:
    run = making.quietly(
        pv.train,
        task="multitask",
        model=making.NANO,
        data=made / "texts.csv",
        out=tmp_path / "run",
        labels=["mood", "topic"],
        inputs=TEXT,
        label_smoothing=0.1,
    )
    assert list(run.model().config.outputs) == ["mood", "topic"]
    assert "top1/mood" in run.evaluate(split="val")


def test_flow_is_learned_from_warped_photographs(flow_run: pv.Run) -> None:
    assert flow_run.model().config.inputs["video"].grid == (2, 16, 20)
    assert flow_run.model().config.trunk.num_latents == 16
    figures = flow_run.evaluate(split="val")
    assert set(figures) == {"epe", "epe_of_zero", "outliers"}
    assert 0 < figures["epe_of_zero"] <= 3.0 * 2**0.5
    assert figures == flow_run.evaluate(split="val")  # validation pairs are always the same


@pytest.mark.slow
def test_a_choice_of_units_is_learned(tmp_path: Path) -> None:
    run = making.quietly(pv.train, model="entity_set_nano", data="selection", out=tmp_path / "run")
    assert run.model().family == "entity_set"
    assert 0.0 <= run.evaluate(split="val")["top1"] <= 1.0


# -- from one task to another ----------------------------------------------------------------------


def carried(run: pv.Run, source: pv.Run) -> bool:
    """Whether everything up to the latents came from the source, give or take two small steps."""
    ours, theirs = weights(run, "model"), weights(source, "model")
    shared = [n for n in ours if n.startswith(("inputs.", "trunk."))]
    return all(torch.allclose(ours[n], theirs[n], atol=1e-4) for n in shared) and len(shared) > 10


@pytest.mark.parametrize("task", ["classify", "multilabel", "multitask"])
def test_masked_bytes_fine_tune_to_every_kind_of_label(
    made: Path, mlm_run: pv.Run, tmp_path: Path, task: str
) -> None:
    labels = ["topic"] if task == "classify" else ["topic", "mood"]
    run = making.quietly(
        pv.finetune,
        task=task,
        model=mlm_run.path,
        data=made / "texts.csv",
        out=tmp_path / "run",
        labels=labels,
        optimizer={"lr": 1e-6},
    )
    assert run.task == task
    assert run.model().config.inputs["bytes"] == pv.Bytes(32)
    assert carried(run, mlm_run)
    sizes = {name: output.channels for name, output in run.model().config.outputs.items()}
    assert (
        sizes
        == {
            "classify": {"classes": 3},
            "multilabel": {"classes": 4},
            "multitask": {"topic": 3, "mood": 2},
        }[task]
    )


@pytest.mark.slow
def test_an_auto_encoder_fine_tunes_to_a_classifier(
    made: Path, clip_run: pv.Run, picture_run: pv.Run, pictures_with_classes: Path, tmp_path: Path
) -> None:
    small = {"optimizer": {"lr": 1e-6}}
    clips = making.quietly(
        pv.finetune, model=clip_run.path, data=made / "clips", out=tmp_path / "a", **small
    )
    assert carried(clips, clip_run)
    assert clips.model().config.num_classes == 2
    assert set(clips.evaluate(split="val")) == {"top1", "macro", "samples"}
    larger = making.quietly(
        pv.finetune,
        model=f"{picture_run.path}@last",
        data=pictures_with_classes,
        out=tmp_path / "b",
        size=12,
    )
    assert larger.model().config.inputs["image"].grid == (12, 12)


@pytest.fixture
def pictures_with_classes(tmp_path: Path) -> Path:
    for name in ("cats", "dogs"):
        making.write_photographs(tmp_path / "classes" / name, 4)
    return tmp_path / "classes"


@pytest.mark.slow
def test_pre_training_continues(
    made: Path, mlm_run: pv.Run, clip_run: pv.Run, tmp_path: Path
) -> None:
    for task, source, data in (("mlm", mlm_run, "texts.csv"), ("autoencode", clip_run, "clips")):
        run = making.quietly(
            pv.pretrain,
            task=task,
            model=source.path,
            data=made / data,
            out=tmp_path / task,
            optimizer={"lr": 1e-7},
        )
        before, after = weights(source, "model"), weights(run)
        assert all(torch.allclose(before[n], after[n], atol=1e-5) for n in before)
        assert any(not torch.equal(before[n], after[n]) for n in before)


def test_a_flow_model_continues_at_another_size(
    made: Path, flow_run: pv.Run, tmp_path: Path
) -> None:
    run = making.quietly(
        pv.finetune,
        task="flow",
        model=flow_run.path,
        data=f"warps:{made / 'photographs'}",
        out=tmp_path / "run",
        inputs={"video": {"height": 20, "width": 24}},
        max_flow=2.0,
    )
    assert run.model().config.inputs["video"].grid == (2, 20, 24)


# -- what does not fit -----------------------------------------------------------------------------


def test_a_task_needs_a_model_that_can_answer_it(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for settings, message in (
        (
            {"task": "pretrain", "data": made / "photographs"},
            r"--task pretrain masks the input of a HiP or a Hiera, but perceiver_io_nano is",
        ),
        (
            {"task": "autoencode", "data": made / "texts.csv"},
            r"to pre-train on text, use --task mlm",
        ),
        ({"task": "mlm", "data": made / "photographs"}, r"needs a model with bytes as input"),
    ):
        with pytest.raises(ConfigError, match=message):
            making.quietly(pv.pretrain, model=making.NANO, out=out, **settings)
    for name in ("perceiver_nano", "hip_nano"):
        with pytest.raises(ConfigError, match=r"num_classes|answers"):
            making.quietly(
                pv.train,
                task="multitask",
                model=name,
                data=made / "texts.csv",
                labels=["topic", "mood"],
                inputs=TEXT,
                out=out,
            )
    assert not out.exists()


def test_labels_that_the_data_lack_are_named(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for settings, message in (
        ({"task": "multitask", "data": made / "topics.csv"}, r"0 label columns; multitask needs"),
        ({"task": "classify", "data": made / "photographs"}, r"one label with at least 2 classes"),
        (
            {"task": "classify", "data": made / "texts.csv", "labels": ["topic", "mood"]},
            r"has \['topic', 'mood'\]; classification needs one label",
        ),
        (
            {"task": "multilabel", "data": made / "photographs"},
            r"has 0 labels; multi-label training",
        ),
        ({"task": "multilabel", "data": made / "moods.csv"}, r"has 1 labels; .* with --labels"),
    ):
        with pytest.raises(DataError, match=message):
            making.quietly(pv.train, model=making.NANO, out=out, **settings)


def test_a_run_of_other_modalities_does_not_fit(
    made: Path, mlm_run: pv.Run, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"reads \['bytes'\], but .* holds \['audio'\]"):
        making.quietly(pv.finetune, model=mlm_run.path, data=made / "sounds", out=tmp_path / "run")


def test_auto_encoding_continues_with_the_same_classes_alone(
    made: Path, clip_run: pv.Run, tmp_path: Path
) -> None:
    making.write_clips(tmp_path / "three", 3)
    (tmp_path / "three" / "high").rename(tmp_path / "three" / "loud")
    (tmp_path / "three" / "mid").mkdir()
    for path in sorted((tmp_path / "three" / "loud").iterdir()):
        (tmp_path / "three" / "mid" / path.name).write_bytes(path.read_bytes())
    settings = {"model": str(clip_run.path), "out": str(tmp_path / "run"), "inputs": CLIP}
    config = build_config(AutoencodeConfig, {**settings, "data": str(tmp_path / "three")})
    with pytest.raises(DataError, match=r"autoencodes a label of 2 classes, but .* has 3; give"):
        prepare_autoencoding(config)


def flow_config(**settings: Any) -> FlowTrainConfig:
    base = {"model": "perceiver_io_flow_tiny", "out": "x", "inputs": FRAMES}
    return build_config(FlowTrainConfig, {**base, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 32}, r"flow reads only frame pairs and does not use size"),
        ({"labels": ["a"]}, r"does not use labels"),
        ({"inputs": {"bytes": {"length": 3}}}, r"does not use inputs \['bytes'\]"),
        ({"inputs": {"video": {"heigth": 3}}}, r"no setting 'heigth'.*did you mean 'height'"),
        ({"inputs": {"video": {"height": "tall"}}}, r"'?height'?.*'tall'"),
        ({"model": "perceiver_io_nano"}, r"perceiver_io_nano is not a flow model; use one of"),
        ({"max_flow": 99.0}, r"max_flow is 99\.0; for frames of 16 x 20 pixels"),
    ],
)
def test_settings_that_flow_does_not_take_are_refused(
    made: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare_flow(flow_config(data=f"warps:{made / 'photographs'}", **settings))


def test_flow_needs_photographs_or_measured_pairs(made: Path, tmp_path: Path) -> None:
    for data, message in (
        ("digits", r"generate pairs from images, use 'warps:digits'"),
        (str(made / "photographs"), r"no flow file .*use 'warps:"),
        ("warps:digits", r"flow pairs are made from image files, not from arrays of images"),
        (f"warps:{tmp_path / 'no'}", r"no such file or folder"),
    ):
        with pytest.raises(DataError, match=message):
            prepare_flow(flow_config(data=data))


def test_generated_pairs_are_for_flow_alone(made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"generated frame pairs, which only --task flow can use"):
        making.quietly(
            pv.train, model=making.NANO, data=f"warps:{made / 'photographs'}", out=tmp_path / "x"
        )


def test_an_array_of_numbers_is_auto_encoded(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((12, 6, 2), np.float32)
    np.savez(tmp_path / "x.npz", array=values)
    run = making.quietly(
        pv.pretrain, model=making.NANO, data=tmp_path / "x.npz", out=tmp_path / "run"
    )
    assert set(run.evaluate(split="val")) == {"loss", "psnr/array"}
