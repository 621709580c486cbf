"""Operations and live bytes of what runs, operation by operation, on real tensors and fake ones.

Operations are counted with the formulas of torch's own counter (``FlopCounterMode``), which cannot
be used beside: its hooks on modules keep tensors alive that a step would free.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


class StepRecorder(TorchDispatchMode):
    """Counts floating-point operations, and the bytes of storages that are alive.

    Storages are counted as they were asked for; an allocator rounds them up, and keeps some that
    are free.

    Args:
        known: Tensors that were there before, such as weights.

    Attributes:
        flops: So far; a multiplication and an addition are two.
        now: Bytes alive.
        peak: The most so far.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.flops = self.now = self.peak = 0
        self._formulas: dict[Any, Any] = {**flop_registry, **fused_attention()}
        self._alive: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and count it and what it makes."""
        result = func(*args, **(kwargs or {}))
        formula = self._formulas.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.now += self._alive[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key).atexit = False

    def _free(self, key: int) -> None:
        """Take off a storage that is gone; its address may be used again."""
        self.now -= self._alive.pop(key)


def fused_attention() -> dict[Any, Any]:
    """Return formulas of what torch's counter leaves out: fused attention on the CPU."""

    def forward(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(q.shape, k.shape, v.shape)

    def backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(gradient.shape, q.shape, k.shape, v.shape)

    aten: Any = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
