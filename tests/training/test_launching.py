"""Who starts processes: torchrun, Slurm, a person, or this program."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from perceivers.errors import ConfigError, RunError
from perceivers.training.checkpoints import flatten, unflatten
from perceivers.training.config import PretrainConfig
from perceivers.training.launching import (
    Given,
    fit_to_launcher,
    given_processes,
    is_main_process,
    own_command,
    start_processes,
)
from perceivers.training.optimizers import load_by_name, state_by_name
from perceivers.training.runtime import check_devices
from perceivers.training.watchdog import is_lost_connection
from perceivers.workflows.training import change_processes, note_on_batches

CONFIG = PretrainConfig(model="hip_nano", data="digits", out="x")
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "LOCAL_WORLD_SIZE": "4",
    "WORLD_SIZE": "8",
    "RANK": "5",
}
SLURM = {
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NNODES": "2",
    "SLURM_JOB_NAME": "train",
    "SLURM_PROCID": "0",
}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*TORCHRUN, *SLURM, "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"]:
        monkeypatch.delenv(name, raising=False)


def put(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "launcher", "main"), [(TORCHRUN, "torchrun", False), (SLURM, "Slurm", True)]
)
def test_what_a_launcher_started_is_taken_over(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], launcher: str, main: bool
) -> None:
    assert given_processes() is None
    assert fit_to_launcher(CONFIG) is CONFIG
    assert is_main_process()
    put(monkeypatch, environment)
    assert given_processes() == Given(4, 2, launcher)
    config = fit_to_launcher(CONFIG)
    assert (config.devices, config.nodes) == (4, 2)
    assert fit_to_launcher(config) == config
    assert is_main_process() is main
    assert start_processes(config) == []
    wrong = PretrainConfig(model="hip_nano", data="digits", out="x", devices=3)
    with pytest.raises(ConfigError, match=f"devices is 3, but {launcher} started 4"):
        fit_to_launcher(wrong)
    # A run that is resumed has the processes that there are now.
    assert change_processes(wrong, {}).devices == 4


def test_fabric_reads_slurms_variables_as_we_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    put(monkeypatch, {**SLURM, "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"})
    put(monkeypatch, {"SLURM_NODELIST": "host[3-4]", "SLURM_JOB_ID": "1234"})
    assert SLURMEnvironment.detect()
    found = SLURMEnvironment()
    ranks = (found.world_size(), found.global_rank(), found.local_rank(), found.node_rank())
    assert ranks == (8, 5, 1, 1)
    assert found.main_address == "host3"
    assert found.creates_processes_externally
    config = fit_to_launcher(CONFIG)
    found.validate_settings(num_devices=config.devices, num_nodes=config.nodes)
    with pytest.raises(ValueError, match="does not match"):
        found.validate_settings(num_devices=3, num_nodes=2)


def test_slurm_must_say_how_many_tasks_a_node_has(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, {"SLURM_NTASKS": "8"})
    with pytest.raises(ConfigError, match=r"Slurm started 8 tasks .*--ntasks-per-node"):
        given_processes()
    # A shell inside an allocation is no task.
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert given_processes() is None


def test_nodes_need_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PretrainConfig(model="hip_nano", data="digits", out="x", nodes=2)
    with pytest.raises(ConfigError, match=r"nodes is 2, .*MASTER_ADDR, MASTER_PORT and NODE_RANK"):
        start_processes(config)


def test_a_command_that_can_be_repeated_is_a_module_or_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Main:
        __spec__ = None

    script = tmp_path / "mine.py"
    script.write_text("")
    monkeypatch.setitem(sys.modules, "__main__", Main)
    monkeypatch.setattr(sys, "argv", [str(script), "--devices", "2"])
    assert own_command() == [sys.executable, str(script), "--devices", "2"]
    monkeypatch.setattr(sys, "argv", ["-c", "x"])
    with pytest.raises(ConfigError, match="not started from a file"):
        own_command()


def test_devices_that_are_not_there_are_refused() -> None:
    config = PretrainConfig(model="hip_nano", data="digits", out="x", devices=999)
    with pytest.raises(ConfigError, match=r"devices is 999, but this machine has \d+ CUDA"):
        check_devices(config, "cuda")
    with pytest.raises(ConfigError, match="device mps supports one process only"):
        check_devices(config, "mps")
    check_devices(config, "cpu")


def test_another_batch_is_said_when_a_run_is_resumed() -> None:
    now = change_processes(CONFIG, {"devices": 2})
    assert note_on_batches(CONFIG, CONFIG) == []
    (note,) = note_on_batches(CONFIG, now)
    assert "was 64 samples and is 128" in note
    assert "--batch_size 32" in note
    assert note_on_batches(CONFIG, change_processes(CONFIG, {"devices": 2, "batch_size": 32})) == []
    with pytest.raises(ConfigError, match=r"resume cannot change steps; it may change devices"):
        change_processes(CONFIG, {"steps": 3})


def test_errors_that_follow_anothers_end_are_known() -> None:
    lost = RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]")
    assert is_lost_connection(lost)
    assert is_lost_connection(torch.distributed.DistBackendError("NCCL error"))
    assert not is_lost_connection(RuntimeError("shapes differ"))
    assert not is_lost_connection(RunError("lost connection of a reader"))


def stepped(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    groups = [{"params": [p for n, p in model.named_parameters() if n.endswith("bias")]}]
    groups.append({"params": [p for n, p in model.named_parameters() if n.endswith("weight")]})
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, float(seed + number + 1))
    optimizer.step()
    return model, optimizer


def test_optimizer_state_is_kept_by_name() -> None:
    model, optimizer = stepped(1)
    states, groups = state_by_name(optimizer, model)
    assert groups[0]["params"] == ["0.bias", "1.bias"]
    assert float(states["1.weight"]["exp_avg"].mean()) == pytest.approx(0.1 * 4)
    tensors, numbers = flatten(model.state_dict(), states, None)
    assert set(tensors) >= {"model/0.weight", "optimizer/exp_avg/0.weight"}
    weights, again, average = unflatten(tensors, numbers)
    assert weights.keys() == model.state_dict().keys()
    assert average == {}
    other, fresh = stepped(7)
    load_by_name(fresh, other, again, groups)
    taken = fresh.state[other.get_parameter("1.weight")]["exp_avg"]
    assert torch.equal(taken, states["1.weight"]["exp_avg"])
