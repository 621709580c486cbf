"""Linear layers that use the faster of two CPU libraries, and weight initialisers."""

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

# -- Choice of the library for float32 matrix products on this machine ---------------------------

Library = Literal["torch", "onednn"]
VARIABLE = "PERCEIVERS_LINEAR"
# (rows, inputs, outputs): projections and MLPs of the small variants.
SHAPES = ((784, 192, 576), (1024, 256, 1024), (256, 768, 768))
ROUNDS = 7
# Minimum speed-up for which oneDNN is chosen, so that noise does not decide.
LEAST_GAIN = 1.05


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``x @ weight.T + bias`` with oneDNN; shapes as in ``linear``."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def choose_library() -> Library:
    """Return the library set in ``PERCEIVERS_LINEAR``, by default the faster one.

    Raises:
        ConfigError: The variable has an unknown value, or this torch lacks the library.
    """
    asked = os.environ.get(VARIABLE, "").strip() or "auto"
    if asked not in ("auto", *get_args(Library)):
        raise ConfigError(
            f"the environment variable {VARIABLE} is {asked[:40]!r}; it chooses the library for "
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
    """Return whether this torch has oneDNN products with correct results."""
    # The operator and the functions that linear() calls before using it are private to torch, and
    # may disappear in any version.
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
    """Return the speed of oneDNN relative to torch."""
    speeds = measure_speeds({"torch": F.linear, "onednn": multiply})
    return speeds["onednn"] / speeds["torch"]


def measure_speeds(products: Mapping[str, Callable[..., Tensor]]) -> dict[str, float]:
    """Measure matrix products in operations per second; takes some tens of milliseconds.

    The best of several interleaved rounds is used, so that other processes have little influence.

    Args:
        products: Functions of ``x`` ``[N, I]``, ``weight`` ``[O, I]`` and ``bias`` ``[O]`` by name.
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
    """Compute ``F.linear`` under bf16 autocast, including conversions."""
    with torch.autocast("cpu", torch.bfloat16):
        return F.linear(x, weight, bias)


def _seconds(product: Callable[..., Tensor], *operands: Tensor) -> float:
    began = time.perf_counter()
    product(*operands)
    return time.perf_counter() - began


# -- Linear layer --------------------------------------------------------------------------------
#
# torch multiplies float32 matrices with MKL, which leaves half of some AMD processors idle. oneDNN,
# which is part of the same wheel, does not. ``measure_gain`` measures which one is faster;
# ``PERCEIVERS_LINEAR=torch`` switches oneDNN off. Convolutions and attention always use torch.
#
# oneDNN is called through a private operator of torch. Versions without it, and graphs that are
# traced, counted or transformed, use the products of torch.
#
# Legend: N rows, I input channels, O output channels.

# For fewer multiplications than this, the call from Python costs more than oneDNN saves.
LEAST_PRODUCTS = 1 << 20
# Products of narrower matrices are bounded by memory, and torch is as fast.
LEAST_WIDTH = 8


class _Chosen:
    """The library of this process; None before the first eligible product."""

    library: Library | None = None


class Linear(nn.Linear):
    """``nn.Linear`` that uses the faster library."""

    def forward(self, input: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:  # noqa: A002 - torch's
        """Return ``input @ weight.T + bias``."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``x @ weight.T + bias`` with the faster library, as ``F.linear``.

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
    """Return whether oneDNN may compute a product: plain float32 on CPU, and large enough."""
    rows, width = x.numel() // max(x.shape[-1], 1), min(weight.shape)
    if rows * weight.numel() < LEAST_PRODUCTS or min(width, rows) < LEAST_WIDTH:
        return False
    for tensor in (x, weight, bias):
        if tensor is None:
            continue
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            return False
        # Fake, distributed and transformed tensors are subclasses.
        if type(tensor) not in (Tensor, nn.Parameter):
            return False
    return not (torch.is_autocast_enabled("cpu") or _is_watched())


def _is_watched() -> bool:
    """Return whether operators are traced, counted or transformed, which needs those of torch."""
    return (
        torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.autograd.forward_ad._current_level >= 0
    )


class _Product(torch.autograd.Function):
    """``linear`` with gradients computed by the same library."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply."""
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients with ``linear``, so that second derivatives exist."""
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
    """Return the library in use, and choose one if necessary."""
    if _Chosen.library is None:
        _Chosen.library = choose_library()
    return _Chosen.library


@contextmanager
def use_linear(library: Library) -> Iterator[None]:
    """Use one library inside the block.

    Args:
        library: ``torch``, or ``onednn`` if this torch has it.
    """
    before, _Chosen.library = _Chosen.library, library
    try:
        yield
    finally:
        _Chosen.library = before


# -- Parameter initialisers ----------------------------------------------------------------------

# Standard deviation of a standard normal distribution truncated at two standard deviations.
TRUNCATED_STD = 0.87962566103423978
PART = 1 << 26


def truncated_normal_(weight: Tensor, deviation: float) -> Tensor:
    """Fill with a normal truncated at two sigma, with standard deviation ``deviation``."""
    std = deviation / TRUNCATED_STD
    # Sampling takes three times the memory of the result, so a table of gigabytes is filled in
    # parts.
    parts = weight.detach().view(-1).split(PART) if weight.numel() > PART else (weight,)
    for part in parts:
        nn.init.trunc_normal_(part, std=std, a=-2 * std, b=2 * std)
    return weight


@torch.no_grad()
def init_linears_(model: nn.Module) -> None:
    """Initialise linear layers with variance 1 / fan_in and zero bias, and reset LayerNorms."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            truncated_normal_(module.weight, module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
