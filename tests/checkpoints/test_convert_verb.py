"""What the verbs convert and models say about released weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import perceivers as pv
from perceivers.cli.main import main
from perceivers.errors import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden"


def test_weights_are_listed_by_name_or_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--weights"]) == 0
    everything = capsys.readouterr().out
    assert everything.count("perceiver_io_flow") == 2
    for fact in ("deepmind/language-perceiver", "201,108,230", "CC-BY-4.0", "Apache-2.0"):
        assert fact in everything
    assert main(["models", "--weights", "*_flow"]) == 0
    some = capsys.readouterr().out
    assert "optical_flow_checkpoint.pystate" in some
    assert "language" not in some


def test_differences_and_notes_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, ours = str(GOLDEN / "dmr_mlm.npz"), str(tmp_path / "ours")
    assert main(["convert", source, ours, "--verify"]) == 0
    assert "out: largest difference" in capsys.readouterr().out
    target = str(tmp_path / "params.npz")
    assert main(["convert", ours, target, "--to", "haiku"]) == 0
    assert "note:" not in capsys.readouterr().out
    assert main(["convert", target, str(tmp_path / "again")]) == 0


def test_unknown_formats_and_flavours_are_refused(tmp_path: Path) -> None:
    source = GOLDEN / "dmr_flow.npz"
    with pytest.raises(ConfigError, match=r"to is 'tf'; choose from \['perceivers', 'hf', 'haiku'"):
        pv.convert(source, tmp_path / "x", to="tf")
    with pytest.raises(ConfigError, match=r"flavour is 'deepmind'; choose from \['official', 'hf'"):
        pv.convert(source, tmp_path / "x", flavour="deepmind")  # pyright: ignore[reportArgumentType]
    pv.convert(source, tmp_path / "x")
    with pytest.raises(ConfigError, match=r"cannot be run here; convert the file back"):
        pv.convert(tmp_path / "x", tmp_path / "y.npz", to="haiku", verify=True)


def test_a_description_beside_a_source_that_describes_itself_is_refused(tmp_path: Path) -> None:
    source, stated = GOLDEN / "dmr_flow.npz", tmp_path / "x.json"
    stated.write_text("{}")
    with pytest.raises(ConfigError, match=r"dmr_flow\.npz contains its own config; leave out"):
        pv.convert(source, tmp_path / "a", config=stated)
    ours = pv.convert(source, tmp_path / "ours").folder
    options: list[dict[str, Any]] = [{"config": stated}, {"flavour": "hf"}, {"weights": "ema"}]
    for given in options:
        with pytest.raises(ConfigError, match=rf"leave out {next(iter(given))}="):
            pv.convert(ours, tmp_path / "b.npz", to="haiku", **given)
    assert pv.convert(ours, tmp_path / "b.npz", to="haiku").folder.is_file()


def test_a_hiera_is_converted_verified_and_written_for_other_libraries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, ours = str(GOLDEN / "hiera_official_image.npz"), str(tmp_path / "ours")
    assert main(["convert", source, ours, "--verify", "--positions", "window"]) == 0
    out = capsys.readouterr().out
    assert "logits: largest difference" in out
    assert "positions: largest difference" in out
    target = tmp_path / "x.safetensors"
    assert main(["convert", ours, str(target), "--to", "timm"]) == 0
    assert target.is_file()
    assert main(["convert", ours, str(tmp_path / "x.pth"), "--to", "official"]) == 2
    assert "does not support 'encoder.positions.window'" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_not_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, target = tmp_path / "ours", tmp_path / "params.npz"
    assert main(["convert", str(GOLDEN / "dmr_mlm.npz"), str(ours)]) == 0
    assert main(["convert", str(ours), str(target), "--to", "haiku"]) == 0
    arrays = dict(np.load(target, allow_pickle=False))
    # The first array of numbers; others describe the model.
    name = next(n for n, a in arrays.items() if a.dtype == np.float32 and a.ndim == 2)
    arrays[name][-1, -1] = np.nan
    np.savez(target, **arrays)
    capsys.readouterr()
    assert main(["convert", str(target), str(tmp_path / "again")]) == 2
    assert "params.npz: 1 of" in (said := capsys.readouterr().err)
    assert "tensors hold NaN or infinity" in said
    assert not (tmp_path / "again").exists()
