"""Devices, precision and processes, on top of Lightning Fabric; only this file uses Fabric."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.strategies.strategy import Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from perceivers.errors import ConfigError
from perceivers.models.compiling import check_compiler
from perceivers.tasks import Task
from perceivers.training.config import TrainConfig
from perceivers.training.launching import free_port, next_port, start_processes
from perceivers.training.sharding import check_parts_known, gather_whole, shard_task
from perceivers.training.watchdog import Alarm

Resolved = Literal["float32", "bf16", "bf16-pure"]
FabricPrecision = Literal["32-true", "bf16-mixed", "bf16-true"]
PRECISIONS: dict[Resolved, FabricPrecision] = {
    "float32": "32-true",
    "bf16": "bf16-mixed",
    "bf16-pure": "bf16-true",
}
# Library warnings about choices that are made here on purpose.
EXPECTED_WARNINGS = (".*returned a view tensor", ".*`broadcast_buffers` is deprecated")
NORMS = nn.modules.batchnorm._BatchNorm
MakeOptimizer = Callable[[], torch.optim.Optimizer]


class TaskCopies(DDPStrategy):
    """DDP: every process holds the whole task, and gradients are averaged."""

    def setup_module(self, module: nn.Module) -> DistributedDataParallel:
        """Wrap a task in ``DistributedDataParallel``."""
        assert isinstance(module, Task)
        device = self.root_device
        return DistributedDataParallel(
            module,
            device_ids=None if device.type == "cpu" else [device.index],
            # The search costs time; only batches that may lack a modality leave parameters unused.
            find_unused_parameters=len(module.model.config.inputs) > 1,
            # ``average_norms`` averages batch norms after every step; other buffers are constant.
            broadcast_buffers=False,
        )


class Runtime:
    """Device, precision and processes of a run; starts and connects the processes.

    Args:
        config: Uses its device, devices, nodes, strategy and precision.

    Raises:
        ConfigError: There are too few devices, or they cannot be combined.
    """

    def __init__(self, config: TrainConfig) -> None:
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        precision = config.precision
        if precision == "auto":
            # On a CPU the choice depends on the model: see ``use_precision``.
            precision = "bf16" if device == "cuda" else "float32"
        self.precision: Resolved = precision
        self._own_autocast = False
        alone = config.devices * config.nodes == 1 and config.strategy == "auto"
        self.strategy = "single" if alone else config.strategy.replace("auto", "ddp")
        check_devices(config, device)
        children = start_processes(config)
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        for text in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=text)
        self.fabric = Fabric(
            accelerator=device,
            devices=config.devices,
            num_nodes=config.nodes,
            precision=PRECISIONS[precision],
            strategy=self._make_strategy(config, device),
        )
        processes = config.devices * config.nodes
        self._timeout = timedelta(minutes=config.timeout_minutes)
        self._alarm = Alarm(processes, children) if processes > 1 else None
        self.fabric.launch()
        if self._alarm is not None:
            self._alarm.connect(self.rank)

    def _make_strategy(self, config: TrainConfig, device: str) -> Strategy | str:
        # With gloo, processes can exchange small values on the CPU without waiting for the GPUs.
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        timeout = timedelta(minutes=config.timeout_minutes)
        if self.strategy == "ddp":
            return TaskCopies(timeout=timeout, process_group_backend=backend)
        if self.strategy == "fsdp":

            def parallelise(task: nn.Module, mesh: DeviceMesh) -> nn.Module:
                assert isinstance(task, Task)
                return shard_task(task.to(self.device), mesh["data_parallel"])

            return ModelParallelStrategy(
                parallelise,
                data_parallel_size=config.devices * config.nodes,
                tensor_parallel_size=1,
                timeout=timeout,
                process_group_backend=backend,
            )
        return "auto"

    @property
    def device(self) -> torch.device:
        """This process's device."""
        return self.fabric.device

    @property
    def rank(self) -> int:
        """Index of this process among all processes, over all nodes."""
        return self.fabric.global_rank

    @property
    def world_size(self) -> int:
        """Number of processes over all nodes."""
        return self.fabric.world_size

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which writes files."""
        return self.fabric.is_global_zero

    @property
    def is_sharded(self) -> bool:
        """Whether parameters are sharded over the processes."""
        return self.strategy == "fsdp"

    def setup(self, task: Task, make_optimizer: MakeOptimizer) -> tuple[Any, torch.optim.Optimizer]:
        """Wrap a task for this device and strategy, then build its optimizer."""
        # Not before: sharding replaces the parameters.
        module = self.fabric.setup_module(task)
        optimizer: Any = self.fabric.setup_optimizers(make_optimizer())
        return module, optimizer

    def backward(self, loss: Tensor) -> None:
        """Compute gradients of the loss."""
        self.fabric.backward(loss)

    def without_sync(self, module: Any, *, on: bool) -> AbstractContextManager[Any]:
        """Skip gradient synchronisation inside the block, for all but the last part of a batch."""
        return self.fabric.no_backward_sync(module, enabled=on and self.strategy != "single")

    def clip(self, module: Any, optimizer: Any, norm: float) -> Tensor:
        """Clip gradients to a global norm (0 disables it) and return their norm before clipping."""
        if norm:
            found = self.fabric.clip_gradients(
                module, optimizer, max_norm=norm, error_if_nonfinite=False
            )
            assert isinstance(found, Tensor)
        else:
            found = get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
        return gather_whole(found).to(self.device)

    def use_precision(self, precision: Resolved) -> None:
        """Set the precision chosen by measurement, where ``precision: auto`` started as float32."""
        self._own_autocast = precision == "bf16" and self.precision == "float32"
        self.precision = precision

    def autocast(self) -> AbstractContextManager[Any]:
        """Apply the run's precision inside the block, to wrapped and unwrapped modules."""
        if self._own_autocast:
            return torch.autocast(self.device.type, torch.bfloat16)
        return self.fabric.autocast()

    # -- communication -----------------------------------------------------------------------

    def mean(self, value: Tensor) -> Tensor:
        """Average a tensor over all processes."""
        if self.world_size == 1:
            return value
        reduced = self.fabric.all_reduce(value.clone(), reduce_op="mean")
        assert isinstance(reduced, Tensor)
        return reduced

    def average_norms(self, module: nn.Module) -> None:
        """Average the running statistics of batch norms over all processes."""
        if self.world_size == 1:
            return
        for norm in module.modules():
            if isinstance(norm, NORMS) and norm.running_mean is not None:
                for statistic in (norm.running_mean, norm.running_var):
                    assert statistic is not None
                    statistic.copy_(self.mean(statistic))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set in any process."""
        if self.world_size == 1:
            return flags
        counts = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(counts, op=dist.ReduceOp.MAX)
        return tuple(bool(count) for count in counts.tolist())

    def gather(self, value: Any) -> list[Any]:
        """Gather a small picklable value from all processes, in the order of ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """Return the main process's value, which must be small and picklable."""
        return self.gather(value if self.is_main else None)[0]

    def make_group(self) -> dist.ProcessGroup:
        """Return a separate CPU group of all processes, for communication outside the steps."""
        group = dist.new_group(backend="gloo", timeout=self._timeout)
        assert isinstance(group, dist.ProcessGroup)  # every process is a member
        return group

    def barrier(self) -> None:
        """Wait for all processes."""
        self.fabric.barrier()

    # -- shutdown ----------------------------------------------------------------------------

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """End all processes, with one message, if one raises; then leave the process group."""
        try:
            yield
        except BaseException as error:
            if self._alarm is None:
                self._part()
            else:
                self._alarm.sound(error)
            raise
        if self._alarm is not None:
            self._alarm.stop()
            # The next run of this program must not connect to the store of this one.
            next_port(self.from_main(free_port()))
            self.barrier()
        self._part()

    def _part(self) -> None:
        """Leave the process group: what follows runs in one process."""
        if dist.is_initialized():
            dist.destroy_process_group()


def check_devices(config: TrainConfig, device: str) -> None:
    """Check the devices and their combination before any process is started.

    Raises:
        ConfigError: There are too few, or they do not support the settings.
    """
    if device == "cuda" and torch.cuda.device_count() < config.devices:
        raise ConfigError(
            f"devices is {config.devices}, but this machine has {torch.cuda.device_count()} CUDA "
            f"devices; give fewer, or --device cpu"
        )
    if config.strategy == "fsdp":
        check_parts_known()
    if device == "mps" and (config.devices * config.nodes > 1 or config.strategy != "auto"):
        raise ConfigError("device mps supports one process only; omit devices, nodes and strategy")
    if config.compile:
        check_compilation(config, device)


def check_compilation(config: TrainConfig, device: str) -> None:
    """Check before the run starts that its model can be compiled.

    Raises:
        ConfigError: It cannot be compiled.
    """
    if config.strategy == "fsdp":
        raise ConfigError(
            "compile=True does not work with strategy fsdp, which gathers the weights of a block "
            "while it runs; use strategy ddp, or leave compile out"
        )
    check_compiler(device)
