"""Settings that the data or the model make idle; recorded ones are accepted, and said."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import perceivers as pv
from perceivers.cli.main import main
from perceivers.errors import ConfigError

SMALL: dict[str, Any] = {
    "model": "hip_nano",
    "data": "digits",
    "batch_size": 8,
    "device": "cpu",
    "quiet": True,
}
TEXTS: dict[str, Any] = {"task": "autoencode", "model": "perceiver_io_tiny", "limit": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_share": 0.2}, r"val_share=0\.2 has no effect on digits, which has a val split"),
        ({"timeout_minutes": 5.0}, r"timeout_minutes=5\.0 has no effect with a single process"),
        (
            {"patience": 3, "steps": 5},
            r"patience=3 has no effect in 5 steps with 1",
        ),
        (
            {"size": 16, "inputs": {"image": {"height": 8, "width": 8}}},
            r"size=16 has no effect because inputs set the image size to",
        ),
        ({**TEXTS, "optimizer": {"position_lr": 2.0}}, r"position_lr=2\.0 has no effect on percei"),
        ({"augment": {"gain": (-6.0, 6.0)}}, r"augment\.gain changes audio, but the modalities"),
    ],
)
def test_what_the_run_would_ignore_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pv.pretrain(**{**SMALL, "out": str(tmp_path / "run"), **changes})
    assert not (tmp_path / "run").exists()


def test_channels_of_another_model_are_refused(tmp_path: Path) -> None:
    """A trained model reads what it reads."""
    with pytest.raises(ConfigError, match=r"channels=3 has no effect on .*, which reads \{'image'"):
        pv.finetune(**{**SMALL, "model": "hip_digits", "channels": 3, "out": str(tmp_path / "run")})


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A stopped run whose record holds settings without effect, as before they were refused."""
    out = tmp_path / "old"
    pv.pretrain(**SMALL, out=str(out), steps=4, limit=0, eval_every=2, checkpoint_every=2)
    settings = yaml.safe_load((out / "config.yaml").read_text())
    settings["schedule"]["constant"] = 0.3
    settings["augment"]["magnitude"] = 7
    settings["val_share"] = 0.2
    (out / "config.yaml").write_text(yaml.safe_dump(settings))
    return out


@pytest.mark.slow
def test_a_record_with_idle_settings_loads_resumes_and_runs_again(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pv.Run(recorded)
    assert run.config.schedule.constant == 0.3
    assert "loss" in run.evaluate(split="val")
    assert main(["resume", str(recorded)]) == 0
    said = capsys.readouterr().err
    assert "schedule.constant=0.3 has no effect" in said
    again = ["pretrain", "--config", str(recorded / "config.yaml"), "--limit", "1"]
    assert main([*again, "--out", str(tmp_path / "new")]) == 0
    said = capsys.readouterr().err
    assert "augment.magnitude=7 has no effect" in said
    assert "val_share=0.2 has no effect" in said
    # What a flag says is given today.
    code = main([*again, "--schedule.constant", "0.4", "--out", str(tmp_path / "other")])
    assert code == 2
    assert "schedule.constant=0.4 has no effect" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_record_out_of_range_is_shown_but_not_resumed(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = yaml.safe_load((recorded / "config.yaml").read_text())
    settings["optimizer"]["clip"] = -1.0
    (recorded / "config.yaml").write_text(yaml.safe_dump(settings))
    assert pv.Run(recorded).config.optimizer.clip == -1.0
    assert main(["resume", str(recorded)]) == 2
    assert "optimizer.clip is -1.0; it must not be negative" in capsys.readouterr().err


def test_a_model_folder_with_idle_settings_loads(tmp_path: Path) -> None:
    image = {"image": pv.Image(8, 8, 1)}
    pv.create_model("hip_nano", inputs=image).save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    stored = json.loads(path.read_text())
    found = next(
        each
        for each in (stored, stored.get("model"), stored.get("config"))
        if each and "num_bands" in each
    )
    found["num_bands"] = 5
    found["head"] = {"kind": "none", "num_outputs": 5}
    path.write_text(json.dumps(stored))
    model = pv.load(tmp_path / "m")
    assert model.config.head.num_outputs == 5
    assert model.resized({"image": pv.Image(16, 16, 1)}).config.num_bands == 5
    with pytest.raises(ConfigError, match=r"num_bands=4 has no effect with positions='learned'"):
        pv.create_model("hip_nano", inputs=image, num_bands=4)
