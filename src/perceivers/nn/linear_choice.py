"""Which of two libraries multiplies float32 matrices faster on this machine."""

import os
import time
from collections.abc import Callable, Mapping
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.errors import ConfigError
from perceivers.machine import remembered

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
