"""Start the processes of a run, unless torchrun, Slurm or the user has started them.

Every process runs the same command. If no launcher is used, the program starts its own command
again for every further device, with the usual environment variables for rendezvous: ``LOCAL_RANK``,
``WORLD_SIZE``, ``NODE_RANK``, ``MASTER_ADDR``, ``MASTER_PORT``.
"""

import atexit
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from perceivers.checkpoints.loading import absolute_model, is_model_present
from perceivers.data.address import absolute_address, is_present
from perceivers.errors import ConfigError
from perceivers.foreign import read_int
from perceivers.training.config import TrainConfig

# -- Addresses in settings: absolute in ``config.yaml``; as typed in a separate file -------------
#
# A run can be resumed, evaluated and repeated from any folder, while model cards and titles show
# what the user typed.

C = TypeVar("C", bound=TrainConfig)
# Setting -> function that makes it absolute, and function that tells whether the target exists.
ADDRESSES = {
    "data": (absolute_address, is_present),
    "model": (absolute_model, is_model_present),
}


def make_absolute(config: C) -> C:
    """Return the settings with absolute addresses."""
    return replace(
        config, **{name: make(getattr(config, name)) for name, (make, _) in ADDRESSES.items()}
    )


def describe_addresses(typed: TrainConfig, absolute: TrainConfig) -> dict[str, dict[str, str]]:
    """Return typed and absolute addresses by setting, as stored in a run folder."""
    return {
        name: {"typed": getattr(typed, name), "absolute": getattr(absolute, name)}
        for name in ADDRESSES
    }


def find_addresses(config: C, recorded: Mapping[str, Any]) -> C:
    """Return the settings with addresses that exist, in their absolute or their typed form.

    The typed form finds a project that was moved or is mounted elsewhere, from its folder.

    Args:
        config: Settings read from ``config.yaml``.
        recorded: Result of ``describe_addresses``.
    """
    found: dict[str, str] = {}
    for name, (make, is_there) in ADDRESSES.items():
        address, typed = getattr(config, name), _typed(config, recorded, name)
        if typed != address and not is_there(address) and is_there(typed):
            found[name] = make(typed)
    return replace(config, **found)


def as_typed(config: C, recorded: Mapping[str, Any]) -> C:
    """Return the settings with the addresses as the user typed them."""
    return replace(config, **{name: _typed(config, recorded, name) for name in ADDRESSES})


def _typed(config: TrainConfig, recorded: Mapping[str, Any], name: str) -> str:
    address, entry = getattr(config, name), recorded.get(name)
    # An address that was edited since in ``config.yaml`` has no typed form.
    if not isinstance(entry, Mapping) or entry.get("absolute") != address:
        return address
    typed = entry.get("typed")
    return typed if isinstance(typed, str) else address


# -- Starting processes --------------------------------------------------------------------------

# Variable with the id of the parent process, so that a child can notice when its parent is gone.
PARENT = "PERCEIVERS_PARENT"
# On a broken connection (for instance when the main process was killed) torch prints a page of C++
# stack frames before our message. Errors are still raised and shown.
QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
# Processes started by this program; they take part in all its runs.
_STARTED: list[subprocess.Popen[bytes]] = []
# Names of Slurm's interactive jobs, where SLURM_NTASKS is set but no tasks have been started.
INTERACTIVE = {"bash", "interactive"}


@dataclass(frozen=True)
class Given:
    """Processes per node and nodes started by an external launcher, and the launcher's name."""

    devices: int
    nodes: int
    launcher: str


def given_processes() -> Given | None:
    """Return the processes started by torchrun or Slurm; None without such a launcher.

    Raises:
        ConfigError: Slurm does not report the number of tasks per node.
    """
    environment = os.environ
    if torch.distributed.is_torchelastic_launched():
        local, world = _read_count("LOCAL_WORLD_SIZE"), _read_count("WORLD_SIZE")
        return Given(local, world // local, "torchrun")
    tasks = environment.get("SLURM_NTASKS")
    if tasks is None or environment.get("SLURM_JOB_NAME") in INTERACTIVE:
        return None
    local_tasks = environment.get("SLURM_NTASKS_PER_NODE")
    count = _read_count("SLURM_NTASKS")
    if local_tasks is None and count > 1:
        raise ConfigError(
            f"Slurm started {tasks} tasks but does not report how many run on a node; give sbatch "
            f"or srun --ntasks-per-node instead of --ntasks"
        )
    devices = _read_count("SLURM_NTASKS_PER_NODE") if local_tasks else 1
    return Given(devices, max(count // devices, 1), "Slurm")


def _read_count(variable: str) -> int:
    where = f"the environment variable {variable}, which a launcher sets,"
    return read_int(os.environ[variable], where, low=1, high=1_000_000, error=ConfigError)


def fit_to_launcher(config: C) -> C:
    """Set ``devices`` and ``nodes`` to the numbers that an external launcher has started.

    Raises:
        ConfigError: ``devices`` or ``nodes`` was set to another number.
    """
    given = given_processes()
    if given is None:
        return config
    for name in ("devices", "nodes"):
        asked, found = getattr(config, name), getattr(given, name)
        if asked not in {1, found}:
            raise ConfigError(
                f"{name} is {asked}, but {given.launcher} started {found}; omit --{name}, or start "
                f"that many"
            )
    return replace(config, devices=given.devices, nodes=given.nodes)


def is_main_process() -> bool:
    """Return whether this is the main process of those started together (global rank 0)."""
    environment = os.environ
    if torch.distributed.is_torchelastic_launched():
        return environment["RANK"] == "0"
    if given_processes() is not None:
        return environment.get("SLURM_PROCID", "0") == "0"
    return {environment.get(name, "0") for name in ("LOCAL_RANK", "NODE_RANK")} == {"0"}


def start_processes(config: TrainConfig) -> list[subprocess.Popen[bytes]]:
    """Start this node's other processes unless a launcher did; return the processes started.

    Also sets the environment of a single process with an explicit strategy, such as fsdp.

    Raises:
        ConfigError: The program has no command that can be run again, or the addresses of other
            nodes are unknown.
    """
    alone = config.devices * config.nodes == 1
    if given_processes() is not None or "LOCAL_RANK" in os.environ:
        return _STARTED
    if alone and config.strategy == "auto":
        return []
    if config.nodes > 1 and not os.environ.keys() >= {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK"}:
        raise ConfigError(
            f"nodes is {config.nodes}, but the other nodes are unknown; start with torchrun or "
            f"Slurm, or set MASTER_ADDR, MASTER_PORT and NODE_RANK on every node"
        )
    command = own_command() if config.devices > 1 else []
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(free_port()))
    os.environ.setdefault("NODE_RANK", "0")
    os.environ["WORLD_SIZE"] = str(config.devices * config.nodes)
    os.environ["LOCAL_RANK"] = "0"
    # By default every process would use as many threads as there are cores.
    if config.devices > 1 and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, (os.cpu_count() or 1) // config.devices)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    for rank in range(1, config.devices):
        environment = {**QUIET, **os.environ, "LOCAL_RANK": str(rank), PARENT: str(os.getpid())}
        _STARTED.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    atexit.register(_wait_for, _STARTED)
    return _STARTED


def _wait_for(processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait for the processes to exit; kill those that do not."""
    for process in processes:
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()


def own_command() -> list[str]:
    """Return the command line that started this process.

    Raises:
        ConfigError: The process was not started from a file or a module.
    """
    spec = sys.modules["__main__"].__spec__
    if spec is not None:
        name = spec.name.removesuffix(".__main__")
        return [sys.executable, "-m", name, *sys.argv[1:]]
    script = Path(sys.argv[0])
    if not script.is_file():
        raise ConfigError(
            "several devices need a command that can be run once per device, but this program was "
            "not started from a file; use the command line, a script or torchrun"
        )
    return [sys.executable, str(script.resolve()), *sys.argv[1:]]


def free_port() -> int:
    """Return a free TCP port of this machine."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def next_port(port: int) -> None:
    """Use another port for the next rendezvous; under torchrun its own port stays."""
    if not torch.distributed.is_torchelastic_launched():
        os.environ["MASTER_PORT"] = str(port)
