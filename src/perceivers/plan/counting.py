"""Count operations and memory of one training step, on tensors that have shapes but no values.

A model is built on the meta device and run, forward and backward, under ``FakeTensorMode``: torch
dispatches every operation as on a CPU, so operations and bytes can be counted for models of any
size. If a step depends on values, which fake tensors do not have, small real steps are counted.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import astuple, dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from perceivers.data import Batch
from perceivers.tasks import Task

# ------------------------------------------------------------------------------------------------
# Floating-point operations and live bytes, operation by operation, on real or fake tensors.
#
# Operations are counted with the formulas of torch's own counter (``FlopCounterMode``). The counter
# itself cannot be used: its module hooks keep tensors alive that a step would free.


class StepRecorder(TorchDispatchMode):
    """Counts floating-point operations and the bytes of live storages.

    Storages count with their requested size; a real allocator rounds sizes up and caches free
    blocks.

    Args:
        known: Tensors that exist already and are not counted, such as weights.

    Attributes:
        flops: Operations so far; a multiply-add counts as two.
        now: Bytes of live storages.
        peak: Maximum of ``now`` so far.
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
        """Run an operation, and count it and its results."""
        result = func(*args, **(kwargs or {}))
        formula = self._formulas.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.now += self._alive[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key).atexit = False

    def _free(self, key: int) -> None:
        """Subtract a freed storage, whose address may be used again."""
        self.now -= self._alive.pop(key)


def fused_attention() -> dict[Any, Any]:
    """Return formulas for fused attention on the CPU, which torch's counter lacks."""

    def forward(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(q.shape, k.shape, v.shape)

    def backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(gradient.shape, q.shape, k.shape, v.shape)

    aten: Any = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }


# -- Tokens and groups of each modality ----------------------------------------------------------


class ModalityTokens(NamedTuple):
    """Tokens of one modality.

    Args:
        name: The modality.
        elements: Raw elements of a sample, such as pixels, audio samples, bytes or points.
        tokens: Tokens that the model's first layer reads; in a HiP, all elements.
        groups: Groups that the tokens are divided into; 1 for models without groups.
    """

    name: str
    elements: int
    tokens: int
    groups: int


def count_tokens(model: Any) -> list[ModalityTokens]:
    """Count the tokens of every modality that the data must contain.

    Args:
        model: Model of any family.
    """
    specs = model.config.data_inputs
    return [
        ModalityTokens(name, specs[name].num_tokens, tokens, groups)
        for name, (tokens, groups) in model.count_tokens().items()
    ]


# -- Operations and memory of one training step --------------------------------------------------

Precision = Literal["float32", "bf16", "bf16-pure"]
# Batch sizes that are computed if a step needs values.
SMALL_BATCHES = (2, 4)
# Moments that the optimizer stores per weight.
STATES_PER_WEIGHT = 2


@dataclass(frozen=True)
class Weights:
    """Number and memory of a model's parameters.

    Args:
        count: Number of parameters.
        trained: Number of trainable parameters.
        bytes: Bytes of all parameters.
        gradient_bytes: Bytes of their gradients.
        optimizer_bytes: Bytes of the optimizer's two moments.
    """

    count: int
    trained: int
    bytes: int
    gradient_bytes: int
    optimizer_bytes: int


@dataclass(frozen=True)
class StepCounts:
    """Counts of one forward and backward pass.

    Args:
        batch_size: Number of samples.
        forward: Floating-point operations of the forward pass; a multiply-add counts as two.
        step: Floating-point operations of both passes, including recomputation.
        kept: Bytes that the forward pass saves for the backward pass.
        peak: Peak bytes including gradients, but without weights and inputs.
    """

    batch_size: int
    forward: int
    step: int
    kept: int
    peak: int


def count_weights(model: nn.Module, precision: Precision) -> Weights:
    """Count the parameters of a model on any device, including meta.

    Args:
        model: Model to count.
        precision: ``bf16-pure`` stores weights, gradients and moments in 2 bytes, others in 4.
    """
    width = 2 if precision == "bf16-pure" else 4
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Weights(
        count, trained, count * width, trained * width, STATES_PER_WEIGHT * trained * width
    )


class StepCounter:
    """Counts operations and memory of a task's training steps at any batch size.

    Args:
        build: Builds the task on torch's current default device.
        make_batch: Builds a batch of the given number of samples.
        precision: Precision of a step; with ``bf16``, the memory includes autocast's copies of
            weights.
        recompute: Whether layers are recomputed in the backward pass.
        may_compute: Compute two small steps if steps cannot be counted without values.

    Attributes:
        exact: Whether every step is counted directly; otherwise, if steps need values, counts are
            extrapolated from two small steps.
    """

    def __init__(
        self,
        build: Callable[[], Task],
        make_batch: Callable[[int], Batch],
        *,
        precision: Precision = "float32",
        recompute: bool = False,
        may_compute: bool = True,
    ) -> None:
        self._may_compute = may_compute
        self._build, self._make_batch = build, make_batch
        self._precision: Precision = precision
        self._recompute = recompute
        self._counted: dict[int, StepCounts] = {}
        self.exact = True

    def count(self, batch_size: int) -> StepCounts:
        """Count a training step.

        Args:
            batch_size: Number of samples, at least 1.

        Raises:
            RuntimeError: The step needs values, and ``may_compute`` is off.
        """
        if self.exact and batch_size not in self._counted:
            try:
                self._counted[batch_size] = self._count_fake(batch_size)
            except RuntimeError:
                if not self._may_compute:
                    raise
                # The step depends on values. Any other error is raised again by the real steps.
                self.exact = False
                self._counted = {size: self._count_real(size) for size in SMALL_BATCHES}
        if batch_size in self._counted:
            return self._counted[batch_size]
        low, high = (self._counted[size] for size in SMALL_BATCHES)
        return extrapolate(low, high, batch_size)

    def largest_batch(self, room: float, near: int) -> int:
        """Return the largest batch whose peak memory fits; 0 if not even one sample does.

        The peak is the maximum over several points of a step, each of which grows linearly with the
        batch size. So it is convex: between two counts it lies below the line through them.

        Args:
            room: Available bytes, without weights and optimizer state.
            near: Batch size to start from.
        """
        low, high = self.count(near), self.count(2 * near)
        found = _solve(low, high, room)
        if found < 1 or not self.exact:
            return found
        there = self.count(found)
        return found if there.peak <= room else _solve(low, there, room)

    def _count_fake(self, batch_size: int) -> StepCounts:
        with torch.device("meta"):
            task = self._build().train()
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with mode:
            _make_fake(task)
        # Without positions, whose values would select a random generator per sample.
        batch = replace(_change(self._make_batch(batch_size), mode.from_tensor), position=None)
        return self._run(task, batch, mode)

    def _count_real(self, batch_size: int) -> StepCounts:
        return self._run(self._build().train(), self._make_batch(batch_size), nullcontext())

    def _run(self, task: Task, batch: Batch, mode: AbstractContextManager[Any]) -> StepCounts:
        task.model.set_recompute(self._recompute)
        with mode:
            if self._precision == "bf16-pure":
                task.to(torch.bfloat16)
                batch = _change(batch, _halve)
            with StepRecorder(
                [*task.parameters(), *task.buffers(), *batch.inputs.values()]
            ) as seen:
                with torch.autocast("cpu", torch.bfloat16, enabled=self._precision == "bf16"):
                    losses = task(batch, torch.Generator().manual_seed(0))
                forward, kept = seen.flops, seen.now
                losses.total.backward()
        return StepCounts(len(batch), forward, seen.flops, kept, seen.peak)


def extrapolate(low: StepCounts, high: StepCounts, batch_size: int) -> StepCounts:
    """Extrapolate counts linearly from two batch sizes.

    Args:
        low: Counts at one batch size.
        high: Counts at another batch size.
        batch_size: Batch size to extrapolate to.
    """
    share = (batch_size - low.batch_size) / (high.batch_size - low.batch_size)
    pairs = zip(astuple(low)[1:], astuple(high)[1:], strict=True)
    return StepCounts(batch_size, *(round(a + (b - a) * share) for a, b in pairs))


def _solve(low: StepCounts, high: StepCounts, room: float) -> int:
    """Return the batch size at which the line through two peaks reaches ``room`` bytes."""
    slope = (high.peak - low.peak) / (high.batch_size - low.batch_size)
    return max(0, int(low.batch_size + (room - low.peak) / max(slope, 1.0)))


def meta_copy(task: Task, *, model: nn.Module | None = None) -> Task:
    """Copy a task, with parameters and buffers on the meta device.

    Args:
        task: Task to copy, except for its values.
        model: Model to use in the copy instead of the task's own.
    """
    memo: dict[int, Any] = {} if model is None else {id(task.model): model}
    for parameter in task.parameters():
        empty = torch.empty_strided(
            parameter.shape, parameter.stride(), dtype=parameter.dtype, device="meta"
        )
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in task.buffers():
        memo[id(buffer)] = torch.empty_strided(
            buffer.shape, buffer.stride(), dtype=buffer.dtype, device="meta"
        )
    return deepcopy(task, memo)


def _make_fake(task: nn.Module) -> None:
    """Replace a module's meta tensors by fake CPU tensors; shared parameters stay shared."""
    made: dict[int, Any] = {}

    def fake(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")

    for module in task.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                if id(parameter) not in made:
                    made[id(parameter)] = (
                        parameter,
                        nn.Parameter(fake(parameter), requires_grad=parameter.requires_grad),
                    )
                module._parameters[name] = made[id(parameter)][1]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = fake(buffer)


def _change(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Apply a function to all tensors of a batch that a task reads."""
    return replace(
        batch,
        inputs={name: change(tensor) for name, tensor in batch.inputs.items()},
        labels=None if batch.labels is None else change(batch.labels),
        targets=None if batch.targets is None else change(batch.targets),
        present={name: change(tensor) for name, tensor in batch.present.items()},
    )


def _halve(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
