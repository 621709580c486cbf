"""kill -9 at random moments, then resume: the weights equal those of a run left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

KILLS = 4
STEPS = 160


def start(*arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "perceivers", *arguments, "--quiet"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    settings = ["--model", "hip_nano", "--data", "digits", "--steps", str(STEPS)]
    settings += ["--batch_size", "16", "--eval_every", "40", "--checkpoint_every", "10"]
    settings += ["--ema", "0.9", "--augment.rotate", "10", "--workers", "1"]
    settings += ["--model_options.drop_path_rate", "0.2"]
    finish(start("pretrain", *settings, "--out", str(tmp_path / "whole")))

    cut = tmp_path / "cut"
    moments = random.Random(time.time_ns())
    process = start("pretrain", *settings, "--out", str(cut))
    kills = 0
    while kills < KILLS:
        deadline = time.monotonic() + 120
        mark = checkpoint_mark(cut)
        while checkpoint_mark(cut) == mark and process.poll() is None:
            assert time.monotonic() < deadline, "no checkpoint within two minutes"
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 1.0))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        process = start("resume", str(cut))
    finish(process)
    assert kills >= 2, "the run ended before it could be killed often enough"
    for name in ("model", "last"):
        whole, resumed = (
            load_file(p / name / "model.safetensors") for p in (tmp_path / "whole", cut)
        )
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    fresh = load_file(cut / "last" / "model.safetensors")
    best = load_file(cut / "model" / "model.safetensors")
    assert fresh.keys() == best.keys()


def checkpoint_mark(run: Path) -> int:
    """When the checkpoint was last written."""
    path = run / "checkpoints" / "last.pt"
    return path.stat().st_mtime_ns if path.exists() else 0
