"""kill -9 at random moments, dozens of times in one small run: the same bits as without a kill.

A server process imports everything once and forks a child for each command, so that a life of the
run costs no start-up; every kill is a real SIGKILL of a process that runs the command line.
"""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SEED = 20
STEPS = 300
EVERY = 5
SERVER = """
import os, shlex, sys, time
from perceivers.cli.main import main
import perceivers.cli.training, sklearn.datasets, lightning_fabric, torch.optim
def flush(file, wait=float(os.environ["DISK_SECONDS"]), flush=os.fsync):
    time.sleep(wait)
    flush(file)
os.fsync = flush
for line in sys.stdin:
    child = os.fork()
    if not child:
        status = 1
        try:
            status = main(shlex.split(line))
        finally:
            os._exit(status)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@dataclass
class Server:
    """Runs one command at a time, each in a fresh child."""

    process: subprocess.Popen[str]
    child: int = 0
    errors: Path = field(default_factory=Path)

    def start(self, *arguments: str) -> None:
        """Fork a child that runs a command."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(shlex.join([*arguments, "--quiet"]) + "\n")
        self.process.stdin.flush()
        self.child = int(self.process.stdout.readline())

    def kill(self) -> None:
        """Kill -9; a child that has ended is a zombie until it is waited for."""
        os.kill(self.child, signal.SIGKILL)

    def wait(self) -> int:
        """Exit status of the child; its words on the way are dropped."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip().lstrip("-").isdigit():
                return int(line)
        raise AssertionError(self.errors.read_text())


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server whose disk takes so many seconds longer for each file."""
    errors = tmp_path / "errors.txt"
    with errors.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
                "DISK_SECONDS": str(request.param),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    yield Server(process, errors=errors)
    process.kill()
    process.communicate()


@dataclass
class Tally:
    """Where the kills fell."""

    starting: int = 0
    stepping: int = 0
    writing: int = 0

    @property
    def total(self) -> int:
        """All kills."""
        return self.starting + self.stepping + self.writing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "kills", "least"),
    [
        (0.0, 24, Tally(starting=2, stepping=5, writing=3)),
        # The steps run on while a file waits for the disk, and most kills meet a half-done save.
        (0.1, 10, Tally(writing=6)),
    ],
    indirect=["server"],
    ids=["fast disk", "slow disk"],
)
def test_kills_leave_no_trace_in_the_weights(
    tmp_path: Path, server: Server, kills: int, least: Tally
) -> None:
    settings = ["--model", "hip_nano", "--data", "digits", "--steps", str(STEPS)]
    settings += ["--batch_size", "4", "--ema", "0.9", "--workers", "0", "--eval_every", "50"]
    settings += ["--checkpoint_every", str(EVERY), "--log_every", "3", "--augment.shift", "0.1"]
    settings += ["--model_options.drop_path_rate", "0.2", "--limit", str(STEPS)]
    server.start("pretrain", *settings, "--out", str(tmp_path / "whole"))
    assert server.wait() == 0, server.errors.read_text()

    cut = tmp_path / "cut"
    tally = torture(server, cut, settings, kills)
    assert tally.total >= min(kills, 20)
    assert tally.starting >= least.starting
    assert tally.stepping >= least.stepping
    assert tally.writing >= least.writing
    for name in ("model", "last"):
        whole, resumed = (
            load_file(path / name / "model.safetensors") for path in (tmp_path / "whole", cut)
        )
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), name
    assert figures(tmp_path / "whole") == figures(cut)
    assert not list(cut.rglob("*.tmp")), "what killed writers left is removed"


def torture(server: Server, run: Path, settings: list[str], kills: int) -> Tally:
    """Start or resume the run and kill it, until it has been killed often enough; then finish."""
    draw = random.Random(SEED)
    tally = Tally()
    while True:
        begin(server, run, settings)
        if tally.total >= kills:
            assert server.wait() == 0, server.errors.read_text()
            return tally
        before = mark(run)
        aim = draw.choice(("starting", "stepping", "stepping", "writing"))
        if aim == "starting":
            time.sleep(draw.uniform(0.0, 0.3))
        else:
            # One life must get as far as its first checkpoint, or there would be no progress.
            wait_until(lambda before=before: mark(run) != before, server)
            if aim == "writing":
                wait_until(lambda: bool(unfinished(run)), server)
            else:
                time.sleep(draw.uniform(0.0, 0.3))
        server.kill()
        status = server.wait()
        if status == 0:
            return tally  # it was done before the kill
        assert status == -signal.SIGKILL, server.errors.read_text()
        if unfinished(run):
            tally.writing += 1
        elif mark(run) == before:
            tally.starting += 1
        else:
            tally.stepping += 1


def begin(server: Server, run: Path, settings: list[str]) -> None:
    """Resume, or start again where there is no checkpoint yet."""
    if (run / "checkpoints" / "last.pt").is_file():
        server.start("resume", str(run))
    else:
        server.start("pretrain", *settings, "--out", str(run), "--overwrite")


def wait_until(happened: object, server: Server) -> None:
    """Look as often as the machine allows."""
    assert callable(happened)
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, server.errors.read_text()
        if Path(f"/proc/{server.child}/stat").exists() and is_zombie(server.child):
            return


def is_zombie(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def mark(run: Path) -> int:
    """When the checkpoint was last written."""
    path = run / "checkpoints" / "last.pt"
    return path.stat().st_mtime_ns if path.exists() else 0


def unfinished(run: Path) -> list[Path]:
    """Files that are being written, or were when their writer was killed."""
    folders = (run / "checkpoints", run / "last", run / "model", run)
    return [path for folder in folders for path in folder.glob(".*.tmp")]


def figures(run: Path) -> list[dict[str, float]]:
    """Everything in metrics.jsonl but times."""
    timed = {"seconds", "samples_per_second", "data_wait"}
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: record[key] for key in record if key not in timed} for record in records]
