"""A full disk and a read-only folder: one message, status 2, and a checkpoint that resumes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from perceivers.files import remove_leftovers, write_atomic

SETTINGS = ["--model", "hip_nano", "--data", "digits", "--steps", "24", "--batch_size", "4"]
SETTINGS += ["--eval_every", "24", "--checkpoint_every", "4", "--log_every", "4"]
SETTINGS += ["--workers", "0", "--device", "cpu", "--quiet"]

# A disk of its own, in name spaces that any user may make; what runs in it leaves nothing behind.
DISK = """
mount -t tmpfs -o size={size}k tmpfs {place} || exit 77
run() {{ "$@" 2>> {place}.err; echo "status $?" >> {place}.err; }}
{script}
mount -o remount,rw,size=1000000k {place}
run {python} -m perceivers resume {place}/run --quiet
cp -r {place}/run {place}.kept
"""
# 15 MB hold the first checkpoint (10 MB with the model), but not the second one beside it.
FULL = "run {python} -m perceivers pretrain {settings} --out {place}/run"
READ_ONLY = """
run {python} -m perceivers pretrain {settings} --out {place}/run &
until [ -f {place}/run/checkpoints/last.pt ]; do sleep 0.02; done
until mount -o remount,ro {place}; do :; done
wait
"""


def on_a_disk(tmp_path: Path, script: str, size: int) -> str:
    """Run a script on a small disk; return what its commands said."""
    place = tmp_path / "disk"
    place.mkdir()
    words = {"place": place, "python": sys.executable, "settings": " ".join(SETTINGS)}
    text = DISK.format(size=size, script=script.format(**words), **words)
    try:
        done = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", text],
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=300,
        )
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode in {1, 77} and not (tmp_path / "disk.err").exists():
        pytest.skip(f"no disk of one's own here: {done.stderr}")
    return (tmp_path / "disk.err").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(
        [sys.executable, "-m", "perceivers", "pretrain", *SETTINGS, "--out", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
        capture_output=True,
    )
    return out


def same_weights(a: Path, b: Path) -> bool:
    first, second = (load_file(path / "last" / "model.safetensors") for path in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "size", "words"),
    [(FULL, 15_000, "No space left on device"), (READ_ONLY, 60_000, "Read-only file system")],
    ids=["full", "read-only"],
)
def test_a_real_disk_that_cannot_be_written(
    tmp_path: Path, whole: Path, script: str, size: int, words: str
) -> None:
    said = on_a_disk(tmp_path, script, size)
    lines = said.splitlines()
    assert [line for line in lines if line.startswith("status")] == [
        "status 2",
        "status 0",
    ], said
    assert "Traceback" not in said
    messages = [line for line in lines if line.startswith("perceivers:")]
    assert len(messages) == 1, said
    assert words in messages[0]
    assert "the last complete checkpoint is kept" in messages[0]
    assert same_weights(whole, tmp_path / "disk.kept")
    assert not list((tmp_path / "disk.kept").rglob("*.tmp"))


def test_only_unfinished_files_are_removed(tmp_path: Path) -> None:
    write_atomic(tmp_path / "last" / "model.safetensors", b"weights")
    torn = tmp_path / "last" / ".model.safetensors.4711.tmp"
    mine = [tmp_path / "notes.tmp", tmp_path / ".notes.tmp", tmp_path / "a.4711.tmp"]
    for path in (torn, *mine):
        path.write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert not torn.exists()
    assert all(path.exists() for path in mine)
    assert (tmp_path / "last" / "model.safetensors").read_bytes() == b"weights"
