"""A device like Apple's GPU, made of CPU tensors: no float64, and nothing mixes with the CPU's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# The name of a device that every build of torch knows; there is no other to borrow.
DEVICE = torch.device("meta")
aten = torch.ops.aten
# What moves values between devices, or reads them.
MOVES = {aten._to_copy.default, aten.copy_.default, aten._local_scalar_dense.default}


class OnDevice(Tensor):
    """A tensor that says it is on the device; its values are on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls: type["OnDevice"], held: Tensor) -> "OnDevice":
        """Wrap values."""
        if held.dtype == torch.float64:
            raise TypeError("the device has no float64")
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute on the values."""
        return compute(function, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        """Show the values."""
        return f"OnDevice({self.held})"


def compute(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation where its tensors are, as the device would."""
    leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    inside = [x for x in leaves if isinstance(x, OnDevice)]
    outside = [x for x in leaves if not isinstance(x, OnDevice) and x.ndim]
    target = kwargs.get("device")
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    there = bool(inside) if target is None else torch.device(target).type == DEVICE.type
    if function in MOVES:
        # The device converts before it sends.
        if function is aten._to_copy.default and inside and kwargs.get("dtype") == torch.float64:
            raise TypeError("the device has no float64")
        if function is aten.copy_.default:
            there = isinstance(args[0], OnDevice)
    elif inside and outside:
        raise RuntimeError(f"{function} mixes tensors of the device with others")
    result = function(
        *tree_map(lambda x: x.held if isinstance(x, OnDevice) else x, args),
        **tree_map(lambda x: x.held if isinstance(x, OnDevice) else x, kwargs),
    )
    if function._schema.name.endswith("_") and args and isinstance(args[0], Tensor):
        return args[0]
    return tree_map(lambda x: OnDevice(x) if there and isinstance(x, Tensor) else x, result)


class _Factories(TorchDispatchMode):
    """Makes tensors on the device where that is asked for."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return compute(function, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Puts numbers written out in Python on the device, which torch does beneath the modes."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.new_tensor and isinstance(args[0], OnDevice):
            return OnDevice(args[0].held.new_tensor(*args[1:], **kwargs))
        wanted = kwargs.get("device")
        literal = function in {torch.tensor, torch.as_tensor}
        if literal and wanted is not None and torch.device(wanted) == DEVICE:
            return function(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return function(*args, **kwargs)


@contextmanager
def single_precision() -> Iterator[None]:
    """Let the device exist in this block."""
    with _Literals(), _Factories():
        yield


def move_model(module: nn.Module) -> None:
    """Put parameters and buffers on the device."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                wrapped = OnDevice(parameter.detach())
                each._parameters[name] = nn.Parameter(wrapped, parameter.requires_grad)
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = OnDevice(buffer)
