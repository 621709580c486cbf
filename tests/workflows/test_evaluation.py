"""Evaluation: other data, other splits, kept results, and data that a model does not know."""

import json
import shutil
from pathlib import Path

import pytest
from tests.workflows import making

import perceivers as pv
from perceivers.errors import CheckpointError, ConfigError, DataError, RunError


def copied(run: pv.Run, to: Path) -> pv.Run:
    return pv.Run(shutil.copytree(run.path, to))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mlm_run", "clip_run", "multilabel_run", "multitask_run", "flow_run", "text_run"]
)
def test_results_are_kept_beside_the_run(
    request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    run = copied(request.getfixturevalue(name), tmp_path / "run")
    result = pv.evaluate(run.path, split="val")
    kept = json.loads(run.folder.results.read_text())
    assert kept["val"]["figures"] == pytest.approx(result.figures)
    assert result.skipped == []
    assert (result.matrix is None) == (name != "text_run")
    pv.evaluate(run.path, split="train", limit=1)
    pv.evaluate(f"{run.path}@last", split="train")
    assert set(json.loads(run.folder.results.read_text())) == {"val"}


@pytest.mark.slow
def test_the_figures_do_not_depend_on_the_batch(
    clip_run: pv.Run, multitask_run: pv.Run, flow_run: pv.Run
) -> None:
    for run in (clip_run, multitask_run, flow_run):
        whole = pv.evaluate(run.path, split="train", batch_size=64).figures
        parts = pv.evaluate(run.path, split="train", batch_size=3).figures
        # The flow model's pairs and the autoencoder's elements are all the same size.
        assert parts == pytest.approx(whole, rel=1e-4)


@pytest.mark.slow
def test_a_model_folder_is_evaluated_on_stated_data(
    made: Path, mlm_run: pv.Run, multilabel_run: pv.Run, multitask_run: pv.Run, flow_run: pv.Run
) -> None:
    both = f"{made / 'topics.csv'} + {made / 'moods.csv'}"
    for run, data in (
        (mlm_run, made / "texts.csv"),
        (multilabel_run, made / "texts.csv"),
        (multitask_run, both),
        (flow_run, f"warps:{made / 'photographs'}"),
    ):
        with pytest.raises(RunError, match=r"model folder without a run; give a data address"):
            pv.evaluate(run.path / "model", split="val")
        found = pv.evaluate(run.path / "model", data=str(data), split="val").figures
        if run is not flow_run:  # its motions are the run's
            assert found == pytest.approx(pv.evaluate(run.path, split="val").figures)


def test_data_of_other_labels_are_refused(
    made: Path, multitask_run: pv.Run, multilabel_run: pv.Run, clip_run: pv.Run, tmp_path: Path
) -> None:
    swapped = f"{made / 'moods.csv'} + {made / 'topics.csv'}"
    with pytest.raises(DataError, match=r"knows the label columns \{'topics': \['home', .*'moods'"):
        pv.evaluate(multitask_run.path, data=swapped, split="val")
    with pytest.raises(
        DataError, match=r"has \['glad', 'sad'\]; evaluation needs the same columns"
    ):
        pv.evaluate(multitask_run.path, data=str(made / "moods.csv"), split="val")
    with pytest.raises(ConfigError, match=r"'topic'"):
        pv.evaluate(multilabel_run.path, data=str(made / "moods.csv"), split="val")
    other = making.write_clips(tmp_path / "clips", 3)
    (other / "high").rename(other / "loud")
    with pytest.raises(DataError, match=r"classes \['high', 'low'\], but .* has \['loud', 'low'\]"):
        pv.evaluate(clip_run.path, data=str(other), split="val")


def test_a_model_without_a_task_has_nothing_to_evaluate(made: Path, tmp_path: Path) -> None:
    model = pv.create_model(making.NANO, inputs={"bytes": pv.Bytes(32)})
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"saved for task 'none' and cannot be evaluated"):
        pv.evaluate(tmp_path / "model", data=str(made / "texts.csv"), split="val")


def test_unreadable_samples_are_named(made: Path, clip_run: pv.Run, tmp_path: Path) -> None:
    data = shutil.copytree(made / "clips", tmp_path / "clips")
    bad = data / "high" / "1.mp4"
    bad.write_bytes(bad.read_bytes()[:300])
    skipped = [
        text
        for split in ("train", "val")
        for text in pv.evaluate(clip_run.path, data=str(data), split=split).skipped
    ]
    assert len(skipped) == 1
    assert skipped[0].startswith(f"{bad}: ")


def test_class_names_must_be_those_of_the_outputs(
    multilabel_run: pv.Run, multitask_run: pv.Run, tmp_path: Path
) -> None:
    for run, key, value, message in (
        (multilabel_run, "classes", ["a"], r"has 1 class names for a head of 4 outputs"),
        (multitask_run, "columns", {"topics": ["a"]}, r"names the classes \{'topics': 1\} for the"),
        (multitask_run, "columns", 3, r"config\.json"),
    ):
        folder = shutil.copytree(run.path / "model", tmp_path / "model", dirs_exist_ok=True)
        stated = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**stated, key: value}))
        with pytest.raises(CheckpointError, match=message):
            pv.load(folder)
