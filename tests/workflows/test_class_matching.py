"""Data without a training split are evaluated with the classes of the model."""

import shutil
from pathlib import Path

import pytest

import perceivers as pv
from perceivers.errors import DataError


def test_a_test_table_is_evaluated_as_the_whole_data_are(
    text_run: pv.Run, made: Path, tmp_path: Path
) -> None:
    lines = (made / "topics.csv").read_text().splitlines()
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "train.csv").write_text("\n".join(lines) + "\n")
    # The last class alone: numbered 0 within the table, and otherwise by the model.
    last = pv.open_data(str(made / "topics.csv")).classes[-1]
    kept = [line for line in lines[1:] if line.endswith(f",{last}")]
    (whole / "test.csv").write_text("\n".join([lines[0], *kept]) + "\n")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(whole / "test.csv", alone)
    wanted = pv.evaluate(text_run.path, data=str(whole))
    found = pv.evaluate(text_run.path, data=str(alone))
    assert found.figures == wanted.figures
    assert found.matrix is not None
    assert wanted.matrix is not None
    assert found.matrix.tolist() == wanted.matrix.tolist()
    assert found.matrix.sum(1).tolist() == [0, 0, len(kept)]


@pytest.mark.slow
def test_a_test_tar_folder_is_evaluated(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "images" / "trashnet-256"
    shutil.copy(root / "test.tar", tmp_path)
    (tmp_path / "classes.txt").write_text((root / "classes.txt").read_text())
    wanted = pv.evaluate("hiera_trashnet", data=str(root), limit=1).figures
    assert pv.evaluate("hiera_trashnet", data=str(tmp_path), limit=1).figures == wanted


def test_classes_that_the_model_does_not_know_are_refused(text_run: pv.Run, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("text,label\ncat,sky\ndog,sea\n")
    with pytest.raises(DataError, match=r"the model knows the classes .* but .* has"):
        pv.evaluate(text_run.path, data=str(tmp_path))


def test_several_label_columns_are_numbered_by_the_model(
    multilabel_run: pv.Run, made: Path, tmp_path: Path
) -> None:
    lines = (made / "texts.csv").read_text().splitlines()
    kept = [line for line in lines[1:] if line.endswith("wood,sad")]
    whole, alone = tmp_path / "whole", tmp_path / "alone"
    for folder in (whole, alone):
        folder.mkdir()
        (folder / "test.csv").write_text("\n".join([lines[0], *kept]) + "\n")
    (whole / "train.csv").write_text("\n".join(lines) + "\n")
    wanted = pv.evaluate(multilabel_run.path, data=str(whole)).figures
    assert pv.evaluate(multilabel_run.path, data=str(alone)).figures == pytest.approx(
        wanted, nan_ok=True
    )
