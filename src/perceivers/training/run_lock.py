"""One process trains in a run folder, and it notices when the folder is no longer its own.

The lock is the system's (``flock`` by ``filelock``): it ends with the process, however that ends.
Linux passes it on to the server of an NFS share, so that it holds between hosts, unless the share
is mounted with ``nolock`` or ``local_lock``; some file systems have none. So the owner also leaves
a small file with host, process and start time, and touches it every few seconds: a process on
another host that gives no sign of life for ``PATIENCE`` seconds is gone.
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
# Seconds between two signs of life, and without one until an owner elsewhere counts as gone.
BEAT, PATIENCE = 10.0, 40.0
# Past this nobody waits for another sign of life, in seconds.
LONG_GONE = 600.0
# How long the children of a killed process may take to let go of what they inherited, in seconds.
DYING = 10.0


@dataclass(frozen=True)
class Owner:
    """Who holds a run folder.

    Attributes:
        host: Name of the machine.
        pid: Number of the process there.
        started: When that process started, to tell it from a later one of the same number.
        since: When it took the folder, for people.
        token: Drawn at random, so that no other owner has it.
        path: The folder as this owner names it.
        inode: Of the lock; a copied folder has another.
    """

    host: str
    pid: int
    started: str
    since: str
    token: str
    path: str
    inode: int

    def __str__(self) -> str:
        """Name the process, for messages."""
        return f"process {self.pid} on {self.host}, which has held it since {self.since}"


def read_owner(folder: Path) -> Owner | None:
    """Return who holds a folder; None where the file is missing or says nothing."""
    try:
        data: Any = read_json_file(folder / OWNER)
        owner = Owner(**data)
    except (CheckpointError, TypeError):
        return None
    kinds = {name: type(value) for name, value in asdict(owner).items()}
    return owner if kinds == Owner.__annotations__ else None


def process_start(pid: int) -> str:
    """Return when a process of this machine started, boots told apart; empty where it is gone."""
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


# Of the locks that this process holds now.
_TOKENS: set[str] = set()
# Descriptors of locks. A worker that is forked shares them, and would keep the lock of a process
# that is killed, so every child closes them.
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
        The descriptor, and whether it is locked: None where the file system has no locks.
    """
    while True:
        # Not for writing, so that the disk can still be made read-only; NFS insists on it.
        descriptor, locked = _try_lock(path, os.O_RDONLY)
        if locked is None:
            os.close(descriptor)
            descriptor, locked = _try_lock(path, os.O_RDWR)
        try:
            same = os.path.samestat(path.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            same = False
        # Who held it may have removed the file in between.
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
    """Close a descriptor of ``open_locked``; this unlocks it."""
    _HELD_DESCRIPTORS.discard(descriptor)
    with suppress(OSError):
        os.close(descriptor)


@contextmanager
def short_lock(path: Path, seconds: float = 30.0) -> Iterator[None]:
    """Wait for others to read, change and write a file; where there are no locks, go on."""
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
    """The lock of a run folder that exists.

    Args:
        folder: The run folder.
        note: Told what a person should know: that one waits, or took over.
    """

    def __init__(self, folder: Path, note: Callable[[str], None] | None = None) -> None:
        self.folder = Path(os.path.abspath(folder))  # noqa: PTH100 - links stay links
        self.shown = folder
        self.note = note or (lambda text: None)
        self._descriptor = -1
        self._owner: Owner | None = None
        self._over = threading.Event()

    def __enter__(self) -> "RunLock":
        """Take the lock.

        Raises:
            RunError: Another process has it; names that process.
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
        """Release the lock, and remove its files where they are still ours."""
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
        """Whether its process was killed, and only children hold what they inherited."""
        return owner.host == socket.gethostname() and not _runs(owner)

    def _still_holds(self, owner: Owner, lock: os.stat_result) -> bool:
        """Whether an owner is there although the lock is free, as where locks do not work."""
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
        os.utime(self.folder / LOCK)  # the clock is the server's, whatever the hosts' clocks say
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
            # Opening the file makes NFS ask the server for its times.
            with (self.folder / OWNER).open("rb") as file:
                return os.fstat(file.fileno()).st_mtime
        except OSError:
            return None

    def _in_use(self, owner: Owner | None) -> RunError:
        who = str(owner) if owner else "another process"
        stop = f", stop it (kill {owner.pid} on {owner.host})" if owner else ""
        return RunError(
            f"{self.shown} is in use by {who}. Wait until that has ended{stop}, or choose another "
            f"folder; two processes in one would mix their records"
        )

    # -- our own -----------------------------------------------------------------------------

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
            # Without locks, two may have signed at once: the later signature stands.
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
        """Find out whether the folder is still there and still this process's.

        Raises:
            FolderLostError: It was moved, removed, or taken over.
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
            return True  # a disk that does not answer has lost nothing yet
        owner = read_owner(self.folder)
        if here is not None and os.path.samestat(here, os.fstat(self._descriptor)):
            return owner is None or owner == self._owner
        return owner is not None and owner == self._owner

    def _place(self) -> Path | None:
        """Return where the folder is now, on systems that tell."""
        try:
            found = Path(os.readlink(f"/proc/self/fd/{self._descriptor}"))  # noqa: PTH115
        except OSError:
            return None
        return found.parent if found.name == LOCK and found.exists() else None


def _runs(owner: Owner) -> bool:
    """Whether an owner's process runs; this one counts while it holds the lock."""
    if owner.pid == os.getpid() and owner.token not in _TOKENS:
        return False
    return bool(owner.started) and process_start(owner.pid) == owner.started


def refuse_if_in_use(folder: Path) -> None:
    """Find out early whether another process trains in a folder.

    Raises:
        RunError: One does; names it.
    """
    if (folder / LOCK).is_file():
        with RunLock(folder):
            pass
