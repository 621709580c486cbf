"""Muon for weight matrices and AdamW for everything else, as one optimizer with one state.

Muon replaces the momentum of a matrix by the nearest orthogonal matrix, so all directions of an
update are equally long. Paper: arXiv 2502.16982, whose scaling by ``0.2 sqrt(max(rows, columns))``
gives updates the size of AdamW's. The libraries' Muons multiply in bf16, which takes ten times as
long as float32 on a processor without bf16 units: there the optimizer alone took eight times as
long as the rest of a step. Ours multiplies in float32 on a CPU.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Group = dict[str, Any]

# Smaller matrices hardly gain: embeddings of a few channels, heads of a few classes.
FEWEST_CHANNELS = 16
# Of the iteration, as in Muon's first publication (Keller Jordan, 2024).
ITERATIONS = 5
LINEAR, CUBIC, QUINTIC = 3.4445, -4.775, 2.0315


def is_matrix(parameter: Tensor) -> bool:
    """Return whether Muon may update a weight: at least 16 rows and 16 columns."""
    return parameter.ndim == 2 and min(parameter.shape) >= FEWEST_CHANNELS


class Muon(torch.optim.Optimizer):
    """Nesterov momentum of matrices, made orthogonal.

    Args:
        groups: Parameter groups of matrices.
        lr: Learning rate of all groups until it is set.
        momentum: Decay rate of the momentum.
        weight_decay: Decoupled, where a group has none of its own.
    """

    def __init__(
        self, groups: Sequence[Group], *, lr: float, momentum: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every matrix that has a gradient once."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            lr, momentum = float(group["lr"]), group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
                update = orthogonalise(parameter.grad.lerp(buffer, momentum))
                size = 0.2 * max(parameter.shape) ** 0.5
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.add_(update, alpha=-lr * size)
        return loss


def orthogonalise(matrix: Float[Tensor, "N M"]) -> Float[Tensor, "N M"]:
    """Return nearly U V' of the singular value decomposition U S V': singular values near one.

    Newton and Schulz's iteration with Muon's coefficients, which brings small singular values up
    fast and leaves all but the smallest between 0.7 and 1.2.
    """
    x = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=CUBIC, alpha=QUINTIC), x, beta=LINEAR)
    return (x.T if tall else x).to(matrix.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """Update groups with ``use_muon`` by Muon, the others by AdamW.

    Args:
        groups: Parameter groups with ``params``, ``weight_decay`` and ``use_muon``; those with
            ``use_muon`` hold matrices only.
        lr: Learning rate of all groups until it is set.
        betas: Decay rates of AdamW's moments.
        momentum: Decay rate of Muon's momentum (Nesterov).
        eps: Added to the root of AdamW's second moment.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        lr: float,
        betas: tuple[float, float],
        momentum: float,
        eps: float,
    ) -> None:
        matrices = [group for group in groups if group["use_muon"]]
        others = [group for group in groups if not group["use_muon"]]
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(Muon(matrices, lr=lr, momentum=momentum))
        if others:
            self.parts.append(torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps, fused=True))
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> Any:
        """Update every parameter once."""
        loss = None if closure is None else closure()
        for part, muon in zip(self.parts, self._kinds(), strict=True):
            # Loading a state replaces both objects, so they are handed on at every step.
            part.param_groups = [g for g in self.param_groups if g["use_muon"] == muon]
            part.state = self.state
            part.step()
        return loss

    def _kinds(self) -> list[bool]:
        return [not isinstance(part, torch.optim.AdamW) for part in self.parts]
