"""Errors of the system: one that names a file is one message, whatever its kind."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import perceivers as pv
from perceivers.errors import is_users
from perceivers.files import write_atomic
from perceivers.workflows import inspection

Call = Callable[..., Any]
START = ["train", "--model", "hip_nano", "--data", "digits", "--steps", "2", "--batch_size", "4"]
START += ["--device", "cpu", "--quiet"]


@pytest.mark.parametrize("number", [errno.EFBIG, errno.EEXIST, errno.ELOOP, errno.ENOENT, 9999])
def test_every_error_that_names_a_file_is_the_users(
    call: Call, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(number, "is wrong", "here.bin")

    monkeypatch.setattr(inspection, "list_models", fail)
    outcome = call("models")
    assert outcome.code == 2
    assert outcome.err == f"perceivers: [Errno {number}] is wrong: 'here.bin'\n"


def test_an_error_without_a_file_is_ours() -> None:
    assert not is_users(OSError(errno.EBADF, "bad descriptor"))
    assert is_users(OSError(errno.EFBIG, "too large"))


def test_a_writer_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"File too large: '.*a\.bin'"):
        write_atomic(tmp_path / "a.bin", b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_leads_to_itself_is_said(call: Call, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    outcome = call(*START, "--out", tmp_path / "loop" / "run")
    assert outcome.code == 2
    assert "symbolic links" in outcome.err


def test_in_python_a_run_raises_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(pv.UserError, match="Not a directory"):
        pv.train(
            model="hip_nano",
            data="digits",
            out=str(tmp_path / "file" / "run"),
            device="cpu",
            steps=1,
        )
