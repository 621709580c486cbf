"""Computing many groups a few at a time, and again in the backward pass, so that little is kept.

What a HiP makes of millions of raw elements before its first latents is far larger than inputs and
latents together. Groups do not see one another there, so a few of them at a time give the same
results and leave nothing behind.

Legend: B batch, G groups.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# -- Whether somebody records or transforms what is computed, instead of just computing it -------


def is_exporting() -> bool:
    """Return whether ``torch.export`` traces the call; torch 2.6 cannot tell it from compiling."""
    ask = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return ask()


def is_traced() -> bool:
    """Return whether a compiler, an exporter, a tracer or a functorch transform is at work."""
    return (
        torch.compiler.is_compiling()
        or is_exporting()
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        or torch._C._are_functorch_transforms_active()
    )


# -- Computing many groups a few at a time -------------------------------------------------------

Compute = Callable[..., Tensor]


class _Allowed:
    """Whether this process computes in chunks at all."""

    on = True


@contextmanager
def use_chunks(*, on: bool) -> Iterator[None]:
    """Allow or forbid chunks inside the block; runs from before there were any forbid them."""
    before, _Allowed.on = _Allowed.on, on
    try:
        yield
    finally:
        _Allowed.on = before


def may_chunk() -> bool:
    """Tell whether chunks are allowed, and nobody traces or transforms what is computed."""
    return _Allowed.on and not is_traced()


def map_chunks(
    compute: Compute, pieces: Sequence[Tensor], modules: Sequence[nn.Module], *, length: int
) -> Tensor:
    """Return ``compute(*pieces)``, computed for ``length`` groups at a time.

    Args:
        compute: Called with the same groups of every piece; returns ``[B, g, ...]``. It must treat
            groups alike and draw nothing at random.
        pieces: Tensors ``[B, G, ...]`` or ``[1, G, ...]``.
        modules: All whose parameters ``compute`` uses.
        length: Groups at a time.

    Returns:
        ``[B, G, ...]``. Its backward pass computes each chunk again; it cannot be derived twice.
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
        """Compute all chunks and keep nothing of them."""
        ctx.compute, ctx.modules, ctx.length = compute, modules, length
        # Not among the saved tensors, which hooks may move and copy: compute finds its own.
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
        """Compute every chunk again, and its gradients."""
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
