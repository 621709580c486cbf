"""Computation over groups in chunks, recomputed in the backward pass, to save memory.

With millions of raw elements, the intermediate results of HiP before its first latents are far
larger than inputs and latents together. Groups do not interact there, so that they can be computed
in chunks with the same result.

Legend: B batch, G groups.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# -- Detection of tracing and function transforms ------------------------------------------------


def is_exporting() -> bool:
    """Return whether ``torch.export`` traces the call (torch 2.6: or ``torch.compile``)."""
    ask = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return ask()


def is_traced() -> bool:
    """Return whether a compiler, an exporter, a tracer or a functorch transform is active."""
    return (
        torch.compiler.is_compiling()
        or is_exporting()
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        or torch._C._are_functorch_transforms_active()
    )


# -- Chunks --------------------------------------------------------------------------------------

Compute = Callable[..., Tensor]


class _Allowed:
    on = True


@contextmanager
def use_chunks(*, on: bool) -> Iterator[None]:
    """Allow or forbid chunks inside the block."""
    # Runs that started before chunks were introduced forbid them to resume bit for bit.
    before, _Allowed.on = _Allowed.on, on
    try:
        yield
    finally:
        _Allowed.on = before


def may_chunk() -> bool:
    """Return whether chunks are allowed, and no tracing or function transform is active."""
    return _Allowed.on and not is_traced()


def map_chunks(
    compute: Compute, pieces: Sequence[Tensor], modules: Sequence[nn.Module], *, length: int
) -> Tensor:
    """Return ``compute(*pieces)``, computed for ``length`` groups at a time.

    Args:
        compute: Called with the same groups of every piece; returns ``[B, g, ...]``. It must treat
            all groups in the same way and use no random numbers.
        pieces: Tensors ``[B, G, ...]`` or ``[1, G, ...]``.
        modules: All modules whose parameters ``compute`` uses.
        length: Number of groups in a chunk.

    Returns:
        ``[B, G, ...]``. The backward pass recomputes each chunk; second derivatives are not
        supported.
    """
    parameters = _parameters(modules)
    if torch.is_grad_enabled():
        out: Any = _Chunks.apply(compute, modules, length, len(pieces), *pieces, *parameters)
        return out
    return torch.cat([compute(*part) for part in _cut(pieces, length)], dim=1)


def _parameters(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters()]


def _cut(pieces: Sequence[Tensor], length: int) -> Iterator[list[Tensor]]:
    for start in range(0, pieces[0].shape[1], length):
        yield [piece[:, start : start + length] for piece in pieces]


class _Chunks(torch.autograd.Function):
    """``map_chunks`` with gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        compute: Compute,
        modules: Sequence[nn.Module],
        length: int,
        count: int,
        *tensors: Tensor,
    ) -> Tensor:
        """Compute all chunks without storing intermediate results."""
        ctx.compute, ctx.modules, ctx.length = compute, modules, length
        # Not among the saved tensors, which hooks may move and copy: compute uses the modules'
        # parameters, and versions detect whether these changed before the backward pass.
        ctx.parameters = [(tensor, tensor._version) for tensor in tensors[count:]]
        ctx.save_for_backward(*tensors[:count])
        device = tensors[0].device.type
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        return torch.cat([compute(*part) for part in _cut(tensors[:count], length)], dim=1)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Recompute every chunk, and compute its gradients."""
        (grad,) = grad_outputs
        pieces, wanted = ctx.saved_tensors, ctx.needs_input_grad[4:]
        parameters = _parameters(ctx.modules)
        used = [(id(tensor), version) for tensor, version in ctx.parameters]
        if used != [(id(tensor), tensor._version) for tensor in parameters]:
            raise RuntimeError("parameters were replaced between the forward and backward pass")
        of_pieces = [
            torch.empty_like(piece) if want else None
            for piece, want in zip(pieces, wanted, strict=False)
        ]
        learned = [p for p, want in zip(parameters, wanted[len(pieces) :], strict=True) if want]
        sums: list[Tensor | None] = [None] * len(learned)
        start = 0
        for part in _cut(pieces, ctx.length):
            stop = start + part[0].shape[1]
            leaves = [
                x.detach().requires_grad_(want) for x, want in zip(part, wanted, strict=False)
            ]
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                out = ctx.compute(*leaves)
            asked = [leaf for leaf in leaves if leaf.requires_grad]
            found = torch.autograd.grad(
                out, [*asked, *learned], grad[:, start:stop], allow_unused=True
            )
            targets = [each[:, start:stop] for each in of_pieces if each is not None]
            for target, value in zip(targets, found, strict=False):
                target.copy_(value) if value is not None else target.zero_()
            for index, value in enumerate(found[len(asked) :]):
                if value is not None:
                    before = sums[index]
                    sums[index] = value if before is None else before + value
            start = stop
        rest = iter(sums)
        of_parameters = [next(rest) if want else None for want in wanted[len(pieces) :]]
        return (None, None, None, None, *of_pieces, *of_parameters)
