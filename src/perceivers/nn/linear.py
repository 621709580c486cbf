"""The Linear of every model: on CPUs its products go to the faster of two libraries."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.errors import ConfigError
from perceivers.machine import remembered

# -- Which of two libraries multiplies float32 matrices faster on this machine -------------------

Library = Literal["torch", "onednn"]
VARIABLE = "PERCEIVERS_LINEAR"
# (rows, inputs, outputs): projections and perceptrons as the smaller variants have them.
SHAPES = ((784, 192, 576), (1024, 256, 1024), (256, 768, 768))
ROUNDS = 7
# oneDNN must be faster by this much, so that noise does not choose it.
LEAST_GAIN = 1.05


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x @ weight.T + bias`` by oneDNN: ``[*B, I]``, ``[O, I]``, ``[O]`` to ``[*B, O]``."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def choose_library() -> Library:
    """Return what ``PERCEIVERS_LINEAR`` says, or what was measured to be the faster library.

    Raises:
        ConfigError: The variable holds something else, or asks for what this torch lacks.
    """
    asked = os.environ.get(VARIABLE, "").strip() or "auto"
    if asked not in ("auto", *get_args(Library)):
        raise ConfigError(
            f"the environment variable {VARIABLE} is {asked[:40]!r}; it chooses the library of "
            f"matrix products on CPUs, and must be auto (the faster one), "
            f"{' or '.join(get_args(Library))}"
        )
    if asked == "torch":
        return "torch"
    works = onednn_works()
    if asked == "onednn":
        if not works:
            raise ConfigError(
                f"{VARIABLE} is onednn, but this torch ({torch.__version__}) does not offer its "
                f"products; unset the variable, or set it to torch"
            )
        return "onednn"
    if not works:
        return "torch"
    found = remembered("linear", lambda: "onednn" if measure_gain() >= LEAST_GAIN else "torch")
    return "onednn" if found == "onednn" else "torch"


def onednn_works() -> bool:
    """Tell whether this torch offers oneDNN's product, with a right result.

    The operator is private, and so are the questions that ``nn.linear`` asks before using it: all
    may vanish.
    """
    try:
        torch._C._are_functorch_transforms_active()
        torch._C._len_torch_dispatch_stack()
        _ = torch.autograd.forward_ad._current_level
        with torch.no_grad():
            x, weight, bias = torch.ones(2, 3, 8), torch.full((4, 8), 0.5), torch.ones(4)
            out = multiply(x.mT.contiguous().mT, weight.t().contiguous().t(), bias)
            return torch.equal(out, torch.full((2, 3, 4), 5.0))
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False


def measure_gain() -> float:
    """Return how many times as fast as torch's own product oneDNN's is."""
    speeds = measure_speeds({"torch": F.linear, "onednn": multiply})
    return speeds["onednn"] / speeds["torch"]


def measure_speeds(products: Mapping[str, Callable[..., Tensor]]) -> dict[str, float]:
    """Return how fast each way to multiply is, in operations per second; some tens of milliseconds.

    The best of seven interleaved rounds counts, so that other work on the machine does not.

    Args:
        products: Called with ``x`` ``[N, I]``, ``weight`` ``[O, I]`` and ``bias`` ``[O]``.
    """
    seconds = dict.fromkeys(products, 0.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for rows, inputs, outputs in SHAPES:
            sizes = ((rows, inputs), (outputs, inputs), (outputs,))
            operands = [torch.randn(size, generator=generator) for size in sizes]
            best = dict.fromkeys(products, float("inf"))
            for _ in range(ROUNDS):
                for name, product in products.items():
                    best[name] = min(best[name], _seconds(product, *operands))
            for name, value in best.items():
                seconds[name] += value
    operations = 2 * sum(map(prod, SHAPES))
    return {name: operations / value for name, value in seconds.items()}


def multiply_half(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.linear`` as bf16 autocast computes it, conversions included."""
    with torch.autocast("cpu", torch.bfloat16):
        return F.linear(x, weight, bias)


def _seconds(product: Callable[..., Tensor], *operands: Tensor) -> float:
    began = time.perf_counter()
    product(*operands)
    return time.perf_counter() - began


# -- The Linear of every model: on CPUs its products go to the faster of two libraries -----------
#
# torch multiplies float32 matrices through MKL, which leaves half of some AMD processors idle,
# while oneDNN, which comes in the same wheel, does not. ``measure_gain`` measures which is
# faster here; ``PERCEIVERS_LINEAR=torch`` switches oneDNN off. Convolutions and attention stay
# with torch.
#
# oneDNN is asked through a private operator of torch. Where a version lacks it, and wherever a
# graph is traced, counted or transformed, every product is torch's own.
#
# Legend: N rows, I channels in, O channels out.

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


# -- Parameter initialisers, named as the papers use them ----------------------------------------
#
# Legend: fan_in is the number of inputs of a Linear, or the number of rows of a learned array.

# A normal cut at two standard deviations has this standard deviation; dividing restores one.
TRUNCATED_STD = 0.87962566103423978
PART = 1 << 26


def truncated_normal_(weight: Tensor, deviation: float) -> Tensor:
    """Fill with a normal cut at two deviations, scaled so that ``deviation`` is what remains."""
    std = deviation / TRUNCATED_STD
    # Drawing takes three times the memory of what is drawn, so a table of gigabytes is drawn in
    # parts.
    parts = weight.detach().view(-1).split(PART) if weight.numel() > PART else (weight,)
    for part in parts:
        nn.init.trunc_normal_(part, std=std, a=-2 * std, b=2 * std)
    return weight


@torch.no_grad()
def init_linears_(model: nn.Module) -> None:
    """Initialise every Linear by fan-in with zero bias, and every LayerNorm to the identity."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            truncated_normal_(module.weight, module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
