"""Devices, precision and processes: the one place that knows Lightning Fabric."""

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from perceivers.training.config import TrainConfig

FabricPrecision = Literal["32-true", "bf16-mixed", "bf16-true"]
PRECISIONS: dict[str, FabricPrecision] = {
    "float32": "32-true",
    "bf16": "bf16-mixed",
    "bf16-pure": "bf16-true",
}


class Runtime:
    """Where a run computes.

    Args:
        config: Gives device, number of devices and precision.
    """

    def __init__(self, config: TrainConfig) -> None:
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        precision = config.precision
        if precision == "auto":
            # Most CPUs emulate bf16, several times slower than float32.
            precision = "bf16" if device == "cuda" else "float32"
        self.precision = precision
        self.fabric = Fabric(
            accelerator=device, devices=config.devices, precision=PRECISIONS[precision]
        )
        self.fabric.launch()

    @property
    def device(self) -> torch.device:
        """This process's device."""
        return self.fabric.device

    @property
    def rank(self) -> int:
        """This process among all."""
        return self.fabric.global_rank

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.fabric.world_size

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.fabric.is_global_zero

    def setup(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """Wrap a module and its optimizer for this device and precision."""
        return self.fabric.setup(module, optimizer)

    def backward(self, loss: Tensor) -> None:
        """Compute gradients."""
        self.fabric.backward(loss)

    def clip(self, module: Any, optimizer: Any, norm: float) -> Tensor:
        """Clip the global gradient norm and return it; non-finite norms do not raise here."""
        found = self.fabric.clip_gradients(
            module, optimizer, max_norm=norm, error_if_nonfinite=False
        )
        assert isinstance(found, Tensor)
        return found

    def autocast(self) -> AbstractContextManager[Any]:
        """Precision for code that does not go through a wrapped module."""
        return self.fabric.autocast()

    def mean(self, value: Tensor) -> Tensor:
        """Average a scalar over all processes."""
        if self.world_size == 1:
            return value
        reduced = self.fabric.all_reduce(value, reduce_op="mean")
        assert isinstance(reduced, Tensor)
        return reduced

    def barrier(self) -> None:
        """Wait for all processes."""
        self.fabric.barrier()
