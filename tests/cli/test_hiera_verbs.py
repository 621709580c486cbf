"""Hiera through every verb, on folders of pictures and of video files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import SMALL, Outcome

import perceivers as pv
from perceivers.data import open_data
from perceivers.data.writing import write_clip
from perceivers.models.saving import ModelInfo
from perceivers.workflows import run as run_module

Call = Callable[..., Outcome]
KINDS = ("pictures", "clips")
MODELS = {"pictures": "hiera_nano", "clips": "hiera_nano_video"}
SIZES: dict[str, list[str]] = {
    "pictures": ["--size", "32"],
    "clips": ["--inputs", '{"video": {"frames": 4, "height": 32, "width": 32}}'],
}
SUFFIX = {"pictures": ".png", "clips": ".mp4"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of each kind, dark and light, with a validation and a test split."""
    root = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    for split, number in (("train", 6), ("val", 2), ("test", 2)):
        for label, light in (("dark", 40), ("light", 200)):
            for index in range(number):
                pixels = draw.integers(light, light + 50, (3, 6, 40, 48)).astype(np.uint8)
                path = root / "pictures" / split / label / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.moveaxis(pixels[:, 0], 0, -1)).save(path)
                path = root / "clips" / split / label / f"{index}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_clip(path, pixels, 10)
    return root


@pytest.fixture(scope="module")
def masked(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training run of either kind."""
    out = tmp_path_factory.mktemp("masked")
    sizes: dict[str, dict[str, Any]] = {
        "pictures": {"size": 32},
        "clips": {"inputs": {"video": {"frames": 4, "height": 32, "width": 32}}},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "write_run_report", lambda folder: folder.report)
        for kind in KINDS:
            pv.pretrain(
                model=MODELS[kind],
                data=str(data / kind),
                out=str(out / kind),
                steps=1,
                batch_size=4,
                device="cpu",
                quiet=True,
                **sizes[kind],
            )
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line_pretrains(call: Call, data: Path, tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    argv = ["--model", MODELS[kind], "--data", data / kind, "--out", run, *SIZES[kind], *SMALL]
    outcome = call("pretrain", *argv, "--limit", "1", "--quiet")
    assert outcome.code == 0, outcome.err
    config = json.loads((run / "model" / "config.json").read_text())
    assert (config["family"], config["target"]) == ("hiera", "patch-normalised")
    assert config["config"]["decoder"] is not None
    assert "reconstructions.png" in {path.name for path in (run / "figures").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_reconstruct_writes_what_was_seen_and_says_what_was_borrowed(
    call: Call, data: Path, masked: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"
    outcome = call("reconstruct", masked / kind, data / kind / "test", "--out", out)
    assert outcome.code == 0, outcome.err
    assert "borrowed from the original" in outcome.out
    written = {path.name for path in out.iterdir()}
    assert "overview.png" in written
    for what in ("original", "masked", "reconstructed"):
        # Both classes hold a file 0; the second one is numbered.
        for stem in ("0", "1", "0-2", "1-2"):
            assert f"{stem}_{what}{SUFFIX[kind]}" in written
    if kind == "clips":
        (out / "overview.png").unlink()
        assert open_data(str(out)).specs()["video"].grid == (4, 32, 32)


@pytest.mark.slow
@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("kind", KINDS)
def test_pretrained_weights_become_a_classifier_that_evaluates_and_predicts(
    call: Call, data: Path, masked: Path, tmp_path: Path, kind: str
) -> None:
    run = tmp_path / "run"
    argv = ["--model", masked / kind, "--data", data / kind, "--out", run, *SMALL, "--limit", "1"]
    argv += ["--model_options.unit_drop_rate", "0.5", "--model_options.drop_path_rate", "0.1"]
    argv += ["--optimizer.layer_decay", "0.75", "--augment.copies", "2", "--augment.erase", "0.25"]
    outcome = call("finetune", *argv, "--loss.mixup", "0.8", "--loss.cutmix", "true")
    assert outcome.code == 0, outcome.err
    assert "tensors copied" in outcome.out + outcome.err
    assert "dropped (decoder)" in outcome.out + outcome.err
    config = json.loads((run / "model" / "config.json").read_text())["config"]
    assert (config["decoder"], config["num_pools"], config["unit_drop_rate"]) == (None, 2, 0.5)

    views = ["--temporal_views", "2"] if kind == "clips" else ["--spatial_views", "2"]
    outcome = call("evaluate", run, *views)
    assert outcome.code == 0, outcome.err
    assert "samples: 4" in outcome.out
    files = sorted((data / kind / "test").rglob(f"*{SUFFIX[kind]}"))
    outcome = call("predict", run, *files)
    assert outcome.code == 0, outcome.err
    records = [json.loads(line) for line in outcome.out.splitlines()]
    assert len(records) == 4
    assert {record["class"] for record in records} <= {"dark", "light"}


def test_data_of_another_rank_and_sizes_of_broken_units_are_refused(
    refuse: Callable[..., str], data: Path, tmp_path: Path
) -> None:
    start = ["pretrain", "--out", tmp_path / "run", *SMALL]
    refuse(
        [*start, "--model", "hiera_nano_video", "--data", data / "pictures", "--size", "32"],
        r"this Hiera has 3 axes",
    )
    refuse(
        [*start, "--model", "hiera_nano", "--data", data / "pictures", "--size", "40"],
        r"\(40, 40\) is not made of whole mask units of \(16, 16\)",
        r"\(32, 32\) and \(48, 48\)",
        r"pad=True",
    )
    refuse(
        [*start, "--model", "hiera_nano", "--data", data / "pictures", "--size", "16"],
        r"one mask unit cannot be partly hidden",
    )
    refuse(
        [*start, "--model", "hiera_nano", "--data", data / "pictures", "--mask.kind", "groupwise"],
        r"mask kind 'groupwise' is not for this hiera model; use one of \['units'\]",
    )
    assert not (tmp_path / "run").exists()


def test_explain_says_which_models_it_is_for(
    refuse: Callable[..., str], data: Path, masked: Path, tmp_path: Path
) -> None:
    picture = data / "pictures" / "test" / "dark" / "0.png"
    refuse(
        ["explain", masked / "pictures", picture, "--out", tmp_path / "maps"],
        r"a hiera model has no latents",
    )


def test_a_licence_that_forbids_commercial_use_is_a_note(
    call: Call, data: Path, tmp_path: Path
) -> None:
    model = pv.create_model("hiera_nano", inputs={"image": pv.Image(32, 32)}, num_classes=2)
    picture = data / "pictures" / "test" / "dark" / "0.png"
    for name, licence in (("free", "Apache-2.0"), ("bound", "CC-BY-NC-4.0")):
        info = ModelInfo(task="classify", classes=("dark", "light"), license=licence)
        model.save_pretrained(tmp_path / name, info=info)
        outcome = call("predict", tmp_path / name, picture)
        assert outcome.code == 0, outcome.err
        said = f"perceivers: note: {tmp_path / name}: the weights' licence forbids commercial use"
        assert (said in outcome.err) == (name == "bound")
        assert "UserWarning" not in outcome.err
