"""Reports of the newer tasks: their sections, their figures, and commands that work."""

import re
import shutil
from pathlib import Path

import pytest

import perceivers as pv

SECTIONS = {
    "mlm_run": ("Masked bytes", "bits_per_byte", ["hidden |", "filled |", "truth  |"]),
    "clip_run": (
        "Autoencoding",
        "psnr/video",
        ["clips (their middle frames)", "from the latent array alone"],
    ),
    "picture_run": ("Autoencoding", "psnr/image", ["Validation images"]),
    "multilabel_run": ("Multi-label", "top1/mood", []),
    "multitask_run": ("Several tasks", "top1/topics", []),
    "flow_run": ("Optical flow", "epe_of_zero", ["Validation pairs, not used in training"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SECTIONS)
def test_a_report_shows_the_task(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    made = request.getfixturevalue(name)
    run = pv.Run(shutil.copytree(made.path, tmp_path / "run"))
    run.evaluate(split="val")
    page = run.write_report().read_text()
    title, figure, texts = SECTIONS[name]
    assert title in page
    for text in ("Metrics", "Curves", "Configuration", figure, *texts):
        assert text in page, text
    assert "Not evaluated on a test split yet" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")


VERBS = {
    "mlm_run": {"pretrain", "predict", "finetune"},
    "clip_run": {"pretrain", "reconstruct", "finetune"},
    "multitask_run": {"train", "evaluate", "predict", "export"},
    "flow_run": {"train", "evaluate", "predict", "export"},
    "text_run": {"train", "evaluate", "predict", "export"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VERBS)
def test_the_commands_of_a_report_are_those_of_its_task(
    request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    made = request.getfixturevalue(name)
    run = pv.Run(shutil.copytree(made.path, tmp_path / "run"))
    page = run.write_report().read_text()
    commands = re.findall(r"perceivers (\w+) ", page[page.index("# next") :])
    assert set(commands) - {"evaluate"} == VERBS[name] - {"evaluate"}
    assert ("evaluate" in commands) >= ("evaluate" in VERBS[name])
