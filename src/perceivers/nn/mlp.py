"""The two-layer perceptron of every block, and its activations.

Legend: C channels.
Paper: squared ReLU is Primer's (arXiv 2109.08668), used by the released HiP code.
"""

from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.errors import ConfigError, suggest
from perceivers.nn.linear import Linear


def squared_relu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return max(x, 0) squared."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "squared_relu": squared_relu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


def get_activation(name: str) -> Callable[[Tensor], Tensor]:
    """Look an activation up.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"activation {name!r} is unknown; choose from {sorted(ACTIVATIONS)}"
            + suggest(name, ACTIVATIONS)
        )
    return ACTIVATIONS[name]


class Mlp(nn.Module):
    """Linear, activation, Linear.

    Args:
        dim: Channels in and out.
        ratio: Hidden channels per channel.
        activation: A key of ``ACTIVATIONS``.
    """

    def __init__(self, *, dim: int, ratio: int, activation: str) -> None:
        super().__init__()
        self.hidden = Linear(dim, ratio * dim)
        self.out = Linear(ratio * dim, dim)
        self.activation = get_activation(activation)

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Transform every token on its own."""
        return self.out(self.activation(self.hidden(x)))
