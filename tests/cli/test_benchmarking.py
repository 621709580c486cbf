"""The verb bench."""

import json
from pathlib import Path

import pytest
import torch

from perceivers.bench.settings import PERCEIVER_IO, BenchSettings
from perceivers.cli.main import main, open_command


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_lists_are_separated_by_spaces_or_commas() -> None:
    words = "--models hip_16,hip_256 hip_nano --sizes 224 384,512 --passes forward,step"
    words += " --memory_limit 4,16 --no-peers --rounds 3 --threads 2 --precision bf16 --out x"
    argv: list[str] = [*words.split()]
    given = open_command("bench", argv).parse()
    assert given["settings"] == BenchSettings(
        models=("hip_16", "hip_256", "hip_nano"),
        sizes=(224, 384, 512),
        memory_limit=(4.0, 16.0),
        peers=False,
        rounds=3,
        threads=2,
        precision="bf16",
    )
    assert (given["out"], given["overwrite"], given["quiet"]) == ("x", False, False)
    assert given["command"] == f"perceivers bench {words}"


def test_defaults_compare_hip_with_perceiver_io() -> None:
    settings = open_command("bench", []).parse()["settings"]
    assert settings == BenchSettings()
    assert settings.models == ("hip_16", "hip_256", PERCEIVER_IO)
    assert settings.peers
    assert open_command("bench", ["--peers"]).parse()["settings"] == settings
    assert (settings.computes_on, settings.computes_in) == ("cpu", "float32")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--sizes 224,x", "sizes: 'x' is not a whole number"),
        ("--sizes 0", "sizes[0] is 0; it must be at least 1"),
        ("--memory_limit four", "memory_limit: 'four' is not a number"),
        ("--memory_limit 0", "memory_limit[0] is 0.0; it must be positive"),
        ("--passes backward", "passes: 'backward' is unknown; choose from ['forward', 'step']"),
        ("--models ,", "models is empty; give at least one"),
        ("--sizes 64 64", "sizes names 64 twice; name it once"),
        ("--rounds 0", "rounds is 0; it must be at least 1"),
        ("--models hip_15", "model 'hip_15' is unknown"),
        ("--models hip_nano --reference hip_16 --no-peers", "reference 'hip_16' is not measured"),
        ("--models hiera_nano --sizes 33 --no-peers", "hiera_nano cannot be measured"),
        ("--device cuda", "torch finds no GPU here"),
        ("--memory_limits 4", "did you mean '--memory_limit'?"),
        ("--out /proc/x --models hip_nano --sizes 8 --no-peers", "/proc/x"),
    ],
)
def test_mistakes_are_one_message(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words.split()]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.slow
def test_a_bench_of_tiny_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = "--models hip_nano --sizes 16 32 --rounds 1 --threads 1 --no-peers"
    words += f" --memory_limit 0.35 --timeout 120 --out {out}"
    assert main(["bench", *words.split()]) == 0
    captured = capsys.readouterr()
    table = (out / "table.md").read_text()
    assert table in captured.out
    assert "| 32 (1,024) | " in table
    assert "round 1 of 1, 16 px, hip_nano: forward" in captured.err
    record = json.loads((out / "bench.json").read_text())
    assert {m["status"] for m in record["measurements"]} == {"measured"}
    for each in record["largest"]:
        assert each["peak_bytes"] <= 0.35e9
        assert each["next_status"] == "out of memory"
    assert (out / "bench.png").is_file()
    assert main(["bench", *words.split()]) == 2
    assert "holds an earlier bench" in capsys.readouterr().err
