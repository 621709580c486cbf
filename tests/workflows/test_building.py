"""Options of a model: they reach fresh and trained weights, and mistakes in them are named."""

from pathlib import Path
from typing import Any

import pytest
from tests.workflows import making
from tests.workflows.conftest import TEXT

import perceivers as pv
from perceivers.errors import CheckpointError, ConfigError
from perceivers.training.config import MlmConfig, build_config
from perceivers.workflows.by_task.mlm import prepare_mlm


@pytest.mark.slow
def test_options_reach_fresh_and_trained_models(
    made: Path, mlm_run: pv.Run, tmp_path: Path
) -> None:
    dropout = {"trunk": {"dropout_rate": 0.25}}
    for number, (verb, task) in enumerate(
        ((pv.pretrain, "mlm"), (pv.finetune, "classify")), start=1
    ):
        run = making.quietly(
            verb,
            task=task,
            model=mlm_run.path,
            data=made / "texts.csv",
            out=tmp_path / str(number),
            labels=["topic"],
            model_options=dropout,
        )
        trunk = run.model().config.trunk
        assert trunk.dropout_rate == 0.25
        assert trunk.num_latents == mlm_run.model().config.trunk.num_latents


def test_options_that_trained_weights_do_not_fit_are_refused(
    made: Path, mlm_run: pv.Run, tmp_path: Path
) -> None:
    settings = {"data": made / "texts.csv", "out": tmp_path / "run", "model": mlm_run.path}
    deeper = {"trunk": {"depth": 3}}
    with pytest.raises(
        CheckpointError, match=r"with model_options .*'depth': 3.* missing: trunk\."
    ):
        making.quietly(pv.pretrain, task="mlm", model_options=deeper, **settings)
    with pytest.raises(CheckpointError, match=r"the encoders differ at trunk\."):
        making.quietly(pv.finetune, labels=["topic"], model_options=deeper, **settings)
    other = {"tokens": {"byte": {"mask_rate": 0.5}}}
    with pytest.raises(ConfigError, match=r"contains 'byte', .*\['bytes'\]; did you mean 'bytes'"):
        making.quietly(pv.pretrain, task="mlm", model_options=other, **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trnk": {}}, r"model_options has no setting 'trnk'; did you mean 'trunk'\?"),
        ({"inputs": {}}, r"model_options has no setting 'inputs'"),
        ({"trunk": 3}, r"model_options\.trunk is 3; it must be of type dict"),
        (
            {"trunk": {"dept": 3}},
            r"model_options\.trunk has no setting 'dept'; did you mean 'depth",
        ),
        ({"trunk": {"depth": "four"}}, r"model_options\.trunk\.depth is 'four'; .* type int"),
        ({"trunk": {"depth": 2.5}}, r"model_options\.trunk\.depth is 2\.5; it must be of type int"),
        ({"trunk": {"depth": True}}, r"model_options\.trunk\.depth is True; .* type int"),
        ({"trunk": {"qk_dim": "x"}}, r"model_options\.trunk\.qk_dim is 'x'; .* type int"),
        ({"trunk": {"reads": "never"}}, r"trunk\.reads is 'never'; choose from \['interleaved"),
        ({"trunk": {"num_heads": 0}}, r"trunk\.num_heads is 0; it must be at least 1"),
        ({"trunk": {"dropout_rate": 1}}, r"dropout_rate is 1\.0; it must be in \[0, 1\)"),
        ({"mask_tokens": 3}, r"model_options\.mask_tokens is 3; it must be of type bool"),
        ({"tokens": {"bytes": {"patch": ["a"]}}}, r"tokens\.bytes\.patch\[0\] is 'a'; .* type int"),
        ({"decoder": {"chunk": 0}}, r"decoder\.chunk is 0; it must be at least 1"),
    ],
)
def test_wrong_options_are_named(made: Path, options: dict[str, Any], message: str) -> None:
    config = build_config(
        MlmConfig,
        {
            "model": making.NANO,
            "data": str(made / "texts.csv"),
            "out": "x",
            "inputs": TEXT,
            "model_options": options,
        },
    )
    with pytest.raises(ConfigError, match=message):
        prepare_mlm(config)
