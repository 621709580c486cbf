"""Ensure that only one process trains in a run folder, and that it notices losing the folder.

The lock is the operating system's (``flock``, through ``filelock``), which ends with the process,
however that exits. Linux forwards it to the server of an NFS share, so that it works between hosts,
unless the share is mounted with ``nolock`` or ``local_lock``; some file systems have no locks.
Therefore the owner also writes a small file with host, process and start time, and touches it every
few seconds: an owner on another host that has not done so for ``PATIENCE`` seconds counts as gone.
"""

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from filelock import lock_descriptor

from perceivers import files
from perceivers.errors import CheckpointError, FolderLostError, RunError
from perceivers.files import read_json_file, write_json

LOCK, OWNER = ".lock", ".lock.json"
LOCK_FILES = (LOCK, OWNER)
# Seconds between two heartbeats, and after which an owner on another host without one is gone.
BEAT, PATIENCE = 10.0, 40.0
# After this many seconds without a heartbeat, nobody waits for another one.
LONG_GONE = 600.0
# Seconds that the children of a killed process may take to close the descriptors they inherited.
DYING = 10.0


@dataclass(frozen=True)
class Owner:
    """The process that holds a run folder.

    Attributes:
        host: Host name.
        pid: Process id on that host.
        started: Start time of the process, to distinguish it from a later one with the same id.
        since: When it took the lock, for messages.
        token: Random token that no other owner has.
        path: Path of the folder, as seen by the owner.
        inode: Inode of the lock file; a copied folder has another one.
    """

    host: str
    pid: int
    started: str
    since: str
    token: str
    path: str
    inode: int

    def __str__(self) -> str:
        """Describe the process, for messages."""
        return f"process {self.pid} on {self.host}, which has held it since {self.since}"


def read_owner(folder: Path) -> Owner | None:
    """Return the owner of a folder; None if its file is missing or not readable."""
    try:
        data: Any = read_json_file(folder / OWNER)
        owner = Owner(**data)
    except (CheckpointError, TypeError):
        return None
    kinds = {name: type(value) for name, value in asdict(owner).items()}
    return owner if kinds == Owner.__annotations__ else None


def process_start(pid: int) -> str:
    """Return the start time and boot of a process on this machine; empty if it is gone."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return ""
        return "" if fields[0] in "ZX" else f"{boot}/{fields[19]}"
    try:
        found = subprocess.run(
            ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return found.stdout.strip()


# Tokens of the locks that this process holds.
_TOKENS: set[str] = set()
# Descriptors of locks. A forked worker shares them and would keep the lock of a killed process, so
# every child closes them.
_HELD_DESCRIPTORS: set[int] = set()


def _let_go_in_child() -> None:
    for descriptor in _HELD_DESCRIPTORS:
        with suppress(OSError):
            os.close(descriptor)
    _HELD_DESCRIPTORS.clear()
    _TOKENS.clear()
    files.HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def open_locked(path: Path) -> tuple[int, bool | None]:
    """Open a lock file and try to lock it.

    Returns:
        The descriptor, and whether it is locked; None if the file system has no locks.
    """
    while True:
        # Read-only, so that the disk can still be remounted read-only; NFS requires write access.
        descriptor, locked = _try_lock(path, os.O_RDONLY)
        if locked is None:
            os.close(descriptor)
            descriptor, locked = _try_lock(path, os.O_RDWR)
        try:
            same = os.path.samestat(path.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            same = False
        # The previous holder may have removed the file in between; then open the new one.
        if same or (locked is None and path.exists()):
            _HELD_DESCRIPTORS.add(descriptor)
            return descriptor, locked
        os.close(descriptor)


def _try_lock(path: Path, access: int) -> tuple[int, bool | None]:
    descriptor = os.open(path, access | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        return descriptor, lock_descriptor(descriptor, blocking=False)
    except OSError:  # ENOSYS, ENOLCK, EOPNOTSUPP: no locks here; EBADF: not open for writing
        return descriptor, None


def close_locked(descriptor: int) -> None:
    """Close a descriptor from ``open_locked``, which releases the lock."""
    _HELD_DESCRIPTORS.discard(descriptor)
    with suppress(OSError):
        os.close(descriptor)


@contextmanager
def short_lock(path: Path, seconds: float = 30.0) -> Iterator[None]:
    """Hold a lock for a short read-change-write; without locks on the file system, do nothing.

    Raises:
        RunError: Another process has held the lock for ``seconds``.
    """
    deadline = time.monotonic() + seconds
    descriptor, locked = open_locked(path)
    while locked is False:
        close_locked(descriptor)
        if time.monotonic() > deadline:
            raise RunError(f"another process has held {path} for {seconds:g} seconds; try again")
        time.sleep(0.02)
        descriptor, locked = open_locked(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        close_locked(descriptor)


class RunLock:
    """Lock of an existing run folder, as a context manager.

    Args:
        folder: The run folder.
        note: Called with messages for the user: the lock is waited for, or was taken over.
    """

    def __init__(self, folder: Path, note: Callable[[str], None] | None = None) -> None:
        self.folder = Path(os.path.abspath(folder))  # noqa: PTH100 - keeps symbolic links
        self.shown = folder
        self.note = note or (lambda text: None)
        self._descriptor = -1
        self._owner: Owner | None = None
        self._over = threading.Event()

    def __enter__(self) -> "RunLock":
        """Take the lock.

        Raises:
            RunError: Another process holds it; the message names that process.
        """
        descriptor, locked = open_locked(self.folder / LOCK)
        try:
            deadline = time.monotonic() + DYING
            while locked is False:
                owner = read_owner(self.folder)
                if owner is None or not self._is_dying(owner) or time.monotonic() > deadline:
                    raise self._in_use(owner)
                close_locked(descriptor)
                time.sleep(0.2)
                descriptor, locked = open_locked(self.folder / LOCK)
            owner = read_owner(self.folder)
            if owner is not None and self._still_holds(owner, os.fstat(descriptor)):
                raise self._in_use(owner)
            self._sign(descriptor, settle=locked is None)
        except BaseException:
            self._forget()
            close_locked(descriptor)
            raise
        self._descriptor = descriptor
        files.HELD[str(self.folder)] = self.check
        threading.Thread(target=self._beat, name="run lock", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        """Release the lock, and remove its files if they still belong to this process."""
        self._over.set()
        files.HELD.pop(str(self.folder), None)
        if self._is_ours():
            with suppress(OSError):
                (self.folder / OWNER).unlink(missing_ok=True)
                (self.folder / LOCK).unlink(missing_ok=True)
        self._forget()
        close_locked(self._descriptor)

    def _forget(self) -> None:
        if self._owner is not None:
            _TOKENS.discard(self._owner.token)

    # -- another owner -----------------------------------------------------------------------

    def _is_dying(self, owner: Owner) -> bool:
        """Return whether the owner was killed and only its children still hold the lock."""
        return owner.host == socket.gethostname() and not _runs(owner)

    def _still_holds(self, owner: Owner, lock: os.stat_result) -> bool:
        """Return whether an owner exists although the lock is free, as without working locks."""
        if owner.inode != lock.st_ino and owner.path != str(self.folder):
            return False  # the folder was copied while it was in use
        if owner.host == socket.gethostname():
            return _runs(owner)
        if self._gives_sign_of_life():
            return True
        self.note(
            f"the last owner of {self.shown} was {owner}; it gave no sign of life, so this process "
            f"takes over"
        )
        return False

    def _gives_sign_of_life(self) -> bool:
        os.utime(self.folder / LOCK)  # gives the server's time, whatever the hosts' clocks say
        now = (self.folder / LOCK).stat().st_mtime
        first = self._last_sign()
        if first is None or now - first > LONG_GONE:
            return False
        self.note(f"waiting up to {PATIENCE:g} seconds: does {read_owner(self.folder)}, still run?")
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            time.sleep(min(1.0, BEAT / 4))
            latest = self._last_sign()
            if latest != first:
                return latest is not None
        return False

    def _last_sign(self) -> float | None:
        try:
            # Opening the file makes NFS fetch its times from the server.
            with (self.folder / OWNER).open("rb") as file:
                return os.fstat(file.fileno()).st_mtime
        except OSError:
            return None

    def _in_use(self, owner: Owner | None) -> RunError:
        who = str(owner) if owner else "another process"
        stop = f", stop it (kill {owner.pid} on {owner.host})" if owner else ""
        return RunError(
            f"{self.shown} is in use by {who}. Wait until it has ended{stop}, or choose another "
            f"folder; two processes in one folder would mix their records"
        )

    # -- this process as owner ---------------------------------------------------------------

    def _sign(self, descriptor: int, *, settle: bool) -> None:
        self._owner = Owner(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=process_start(os.getpid()),
            since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
            token=token_hex(8),
            path=str(self.folder),
            inode=os.fstat(descriptor).st_ino,
        )
        write_json(self.folder / OWNER, asdict(self._owner))
        _TOKENS.add(self._owner.token)
        if settle:
            # Without locks, two processes may write the file at once; the later one is the owner.
            time.sleep(min(2.0, BEAT / 4))
            found = read_owner(self.folder)
            if found != self._owner:
                raise self._in_use(found)

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            owner = read_owner(self.folder)
            if owner is not None and owner == self._owner:
                with suppress(OSError):
                    os.utime(self.folder / OWNER)

    def check(self) -> None:
        """Check that the folder still exists and still belongs to this process.

        Raises:
            FolderLostError: It was moved, removed or taken over.
        """
        if self._is_ours():
            return
        owner = read_owner(self.folder)
        if owner is not None:
            raise FolderLostError(f"{self.shown} was taken over by {owner}")
        place = self._place()
        where = f"moved to {place}" if place is not None else "moved or removed"
        raise FolderLostError(f"{self.shown} was {where} while a process was training in it")

    def _is_ours(self) -> bool:
        try:
            here = (self.folder / LOCK).stat()
        except (FileNotFoundError, NotADirectoryError):
            here = None
        except OSError:
            return True  # a disk that does not respond has not lost anything yet
        owner = read_owner(self.folder)
        if here is not None and os.path.samestat(here, os.fstat(self._descriptor)):
            return owner is None or owner == self._owner
        return owner is not None and owner == self._owner

    def _place(self) -> Path | None:
        """Return the current path of the folder, on systems that provide it (``/proc``)."""
        try:
            found = Path(os.readlink(f"/proc/self/fd/{self._descriptor}"))  # noqa: PTH115
        except OSError:
            return None
        return found.parent if found.name == LOCK and found.exists() else None


def _runs(owner: Owner) -> bool:
    """Return whether an owner's process runs; this process counts while it holds the lock."""
    if owner.pid == os.getpid() and owner.token not in _TOKENS:
        return False
    return bool(owner.started) and process_start(owner.pid) == owner.started


def refuse_if_in_use(folder: Path) -> None:
    """Check early that no other process is training in a folder.

    Raises:
        RunError: One is; the message names it.
    """
    if (folder / LOCK).is_file():
        with RunLock(folder):
            pass
