"""The Linear of every model: on CPUs its products go to the faster of two libraries.

torch multiplies float32 matrices through MKL, which leaves half of some AMD processors idle, while
oneDNN, which comes in the same wheel, does not. ``linear_choice`` measures which is faster here;
``PERCEIVERS_LINEAR=torch`` switches oneDNN off. Convolutions and attention stay with torch.

oneDNN is asked through a private operator of torch. Where a version lacks it, and wherever a graph
is traced, counted or transformed, every product is torch's own.

Legend: N rows, I channels in, O channels out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.nn.linear_choice import Library, choose_library, multiply

# For fewer multiplications than this, the call from Python costs more than oneDNN saves.
LEAST_PRODUCTS = 1 << 20
# Matrices narrower than this are bounded by memory, and torch's own are as fast.
LEAST_WIDTH = 8


class _Chosen:
    """The library of this process; None until the first product that could go either way."""

    library: Library | None = None


class Linear(nn.Linear):
    """``nn.Linear`` whose products go to the faster library."""

    def forward(self, input: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:  # noqa: A002 - torch's
        """Multiply by the weight and add the bias."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias``; ``F.linear`` by the faster library.

    Args:
        x: ``[*B, I]``.
        weight: ``[O, I]``.
        bias: ``[O]``.

    Returns:
        ``[*B, O]``, within 1e-5 of ``F.linear`` relative to the largest value.
    """
    if torch.compiler.is_compiling() or not _is_eligible(x, weight, bias):
        return F.linear(x, weight, bias)
    if _Chosen.library is None:
        _Chosen.library = choose_library()
    if _Chosen.library == "torch":
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        out: Tensor = _Product.apply(x, weight, bias)  # pyright: ignore[reportAssignmentType]
        return out
    return multiply(x, weight, bias)


def _is_eligible(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Tell whether oneDNN may take a product: plain float32 on a CPU, and large enough."""
    rows, width = x.numel() // max(x.shape[-1], 1), min(weight.shape)
    if rows * weight.numel() < LEAST_PRODUCTS or min(width, rows) < LEAST_WIDTH:
        return False
    for tensor in (x, weight, bias):
        if tensor is None:
            continue
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            return False
        # Fake, distributed and transformed tensors are classes of their own.
        if type(tensor) not in (Tensor, nn.Parameter):
            return False
    return not (torch.is_autocast_enabled("cpu") or _is_watched())


def _is_watched() -> bool:
    """Tell whether somebody traces, counts or transforms operators, who must see torch's own."""
    return (
        torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.autograd.forward_ad._current_level >= 0
    )


class _Product(torch.autograd.Function):
    """``linear`` whose gradients are products by the same library."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply."""
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Multiply the gradient by the weight and by the input; ``linear`` can be derived again."""
        (grad,) = grad_outputs
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])  # [N, O]
        return (
            linear(grad, weight.t()) if of_x else None,
            linear(rows.t(), x.reshape(-1, x.shape[-1]).t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def linear_library() -> Library:
    """Return the library in use, choosing one where that has not been done."""
    if _Chosen.library is None:
        _Chosen.library = choose_library()
    return _Chosen.library


@contextmanager
def use_linear(library: Library) -> Iterator[None]:
    """Send products to one library inside the block.

    Args:
        library: ``torch``, or ``onednn`` where this torch offers it.
    """
    before, _Chosen.library = _Chosen.library, library
    try:
        yield
    finally:
        _Chosen.library = before
