"""A run as Python holds it."""

import shutil
from pathlib import Path

import pytest
import torch

import perceivers as pv
from perceivers.errors import RunError
from perceivers.training.config import MlmConfig


def test_a_run_knows_its_task_settings_and_models(mlm_run: pv.Run) -> None:
    run = pv.Run(str(mlm_run.path))
    assert run.task == "mlm"
    assert isinstance(run.config, MlmConfig)
    assert run.config.mlm.ratio == 0.15
    assert repr(run) == f"Run({str(mlm_run.path)!r}, task='mlm')"
    best, last = run.model(), run.model("last")
    assert best.state_dict().keys() == last.state_dict().keys()
    assert not best.training


def test_a_folder_that_is_no_run_is_refused(mlm_run: pv.Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run folder: it has no config\.yaml"):
        pv.Run(tmp_path)
    run = shutil.copytree(mlm_run.path, tmp_path / "run")
    (run / "config.yaml").write_text("task: poetry\n")
    with pytest.raises(RunError, match=r"task is 'poetry'; expected one of \['pretrain', 'mlm'"):
        pv.Run(run)


def test_texts_are_predicted_from_python(mlm_run: pv.Run, text_run: pv.Run) -> None:
    assert mlm_run.predict(texts=["a [MASK]"]) == list(pv.predict(mlm_run.path, texts=["a [MASK]"]))
    assert len(text_run.predict(texts=["a", "b"], top=1)[1]["top"]) == 1


def test_a_model_folder_answers_as_the_run_does(mlm_run: pv.Run) -> None:
    ids = torch.randint(6, 262, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (
            pv.load(path)({"bytes": ids}) for path in (mlm_run.path, mlm_run.path / "model")
        )
    assert torch.equal(one, other)
