"""A model folder without its run is used with the settings it was trained with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.workflows import making

import perceivers as pv
from perceivers.checkpoints.loading import load_with_info
from perceivers.errors import CheckpointError
from perceivers.tasks import AutoencodingConfig, FlowConfig, MaskedLanguageConfig
from perceivers.workflows.anomaly import error_maps
from perceivers.workflows.reconstructing import describe_target
from perceivers.workflows.task_table import (
    find_masking,
    find_settings,
    recorded_settings,
    tasks,
)

# Task, model, data and settings far from the defaults.
CASES: dict[str, tuple[Any, str, str, dict[str, Any]]] = {
    "hip": (
        pv.pretrain,
        "hip_nano",
        "photographs",
        {"size": 8, "mask": {"ratio": 0.3, "kind": "uniform", "target": "raw"}},
    ),
    "hiera": (
        pv.pretrain,
        "hiera_nano",
        "photographs",
        {"size": 32, "mask": {"ratio": 0.25, "target": "per-channel", "weights": {"image": 3.0}}},
    ),
    "mlm": (
        pv.pretrain,
        making.NANO,
        "texts.csv",
        {
            "task": "mlm",
            "inputs": {"bytes": {"length": 32}},
            "mlm": {"ratio": 0.7, "unit": "byte", "random_share": 0.0, "mask_share": 1.0},
        },
    ),
    "autoencode": (
        pv.pretrain,
        making.NANO,
        "photographs",
        {"task": "autoencode", "size": 8, "autoencode": {"mask_ratio": 0.75, "loss": "l2"}},
    ),
}


@pytest.fixture(scope="module", params=CASES)
def trained(
    request: pytest.FixtureRequest, made: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pv.Run, str]:
    verb, model, data, settings = CASES[request.param]
    out = tmp_path_factory.mktemp("objectives") / request.param
    return making.quietly(verb, model=model, data=made / data, out=out, **settings), str(
        made / data
    )


def edit(folder: Path, **changes: Any) -> None:
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, **changes}))


def test_a_model_folder_alone_is_evaluated_as_its_run_is(
    trained: tuple[pv.Run, str], tmp_path: Path
) -> None:
    run, data = trained
    wanted = pv.evaluate(run.path, split="val").figures
    alone = shutil.copytree(run.path / "model", tmp_path / "alone")
    assert pv.evaluate(alone, data=data, split="val").figures == pytest.approx(wanted, rel=1e-6)
    # Without the record there are only the defaults, which are others.
    edit(alone, objective={}, target="")
    assert pv.evaluate(alone, data=data, split="val").figures != pytest.approx(wanted, rel=1e-3)


def test_folders_of_earlier_versions_use_their_run(
    trained: tuple[pv.Run, str], tmp_path: Path
) -> None:
    run, _ = trained
    wanted = pv.evaluate(run.path, split="val").figures
    old = shutil.copytree(run.path, tmp_path / "old")
    stated = json.loads((old / "model" / "config.json").read_text())
    del stated["objective"]
    (old / "model" / "config.json").write_text(json.dumps(stated))
    assert pv.evaluate(old, split="val").figures == pytest.approx(wanted, rel=1e-6)


def test_packaged_masking_is_that_of_the_card() -> None:
    loaded = load_with_info("hiera_trashnet_mae")
    settings = find_masking(loaded, None)
    assert (settings.ratio, settings.target) == (0.6, "per-channel")
    assert find_masking(load_with_info("hip_digits_mae"), None).ratio == 0.75
    assert "per-channel" in describe_target("hiera_trashnet_mae")
    assert describe_target("hip_digits") == ""


def test_what_later_versions_add_is_ignored_and_what_is_impossible_refused(
    mlm_run: pv.Run, tmp_path: Path
) -> None:
    folder = shutil.copytree(mlm_run.path / "model", tmp_path / "model")
    edit(folder, objective={"ratio": 0.4, "invented_later": 1})
    found = find_settings(MaskedLanguageConfig, load_with_info(folder), None)
    assert found == MaskedLanguageConfig(ratio=0.4)
    for wrong in ({"ratio": 4.0}, {"ratio": "most"}, {"unit": "page"}):
        edit(folder, objective=wrong)
        with pytest.raises(CheckpointError, match=r"config\.json: objective: "):
            find_settings(MaskedLanguageConfig, load_with_info(folder), None)


def test_anomaly_of_an_autoencoder_without_a_record_asks_for_the_ratio(
    picture_run: pv.Run, tmp_path: Path
) -> None:
    folder = shutil.copytree(picture_run.path / "model", tmp_path / "model")
    loaded = load_with_info(folder)
    assert find_settings(AutoencodingConfig, loaded, None).mask_ratio == 0.75
    assert error_maps(loaded, None, repeats=1, ratio=None, seed=0).passes >= 1
    edit(folder, objective={})
    loaded = load_with_info(folder)
    assert recorded_settings(AutoencodingConfig, loaded, None) is None
    with pytest.raises(CheckpointError, match=r"does not record which fraction .* --ratio"):
        error_maps(loaded, None, repeats=1, ratio=None, seed=0)
    assert error_maps(loaded, None, repeats=1, ratio=0.5, seed=0).passes >= 1


def test_the_scale_of_flow_is_the_trained_one(flow_run: pv.Run, tmp_path: Path) -> None:
    folder = shutil.copytree(flow_run.path / "model", tmp_path / "model")
    edit(folder, objective={"scale": 3.0})
    assert find_settings(FlowConfig, load_with_info(folder), None).scale == 3.0


def test_every_task_with_settings_records_them() -> None:
    assert {row.name for row in tasks().values() if row.settings} == {
        "pretrain",
        "mlm",
        "autoencode",
        "classify",
        "multilabel",
        "segment",
        "regress",
        "flow",
    }
