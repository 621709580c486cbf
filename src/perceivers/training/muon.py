"""Muon for weight matrices and AdamW for everything else, as one optimizer with one state.

Muon replaces the momentum of a matrix by the nearest orthogonal matrix, so all directions of an
update are equally long. Both rules are library code: ``torch.optim.Muon`` where torch has it
(2.9 and later), else pytorch-optimizer's. Paper: arXiv 2502.16982, whose scaling by
``0.2 sqrt(max(rows, columns))`` gives updates the size of AdamW's.
"""

from collections.abc import Sequence
from typing import Any

import pytorch_optimizer
import torch
from torch import Tensor

Group = dict[str, Any]

# Smaller matrices hardly gain: embeddings of a few channels, heads of a few classes.
FEWEST_CHANNELS = 16


def is_matrix(parameter: Tensor) -> bool:
    """Return whether Muon may update a weight: at least 16 rows and 16 columns."""
    return parameter.ndim == 2 and min(parameter.shape) >= FEWEST_CHANNELS


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
            self.parts.append(_make_muon(matrices, lr, momentum))
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


def _make_muon(groups: list[Group], lr: float, momentum: float) -> torch.optim.Optimizer:
    """Build the library's optimizer of matrices."""
    if hasattr(torch.optim, "Muon"):
        return torch.optim.Muon(groups, lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
    return pytorch_optimizer.Muon(groups, lr=lr, momentum=momentum, use_adjusted_lr=True)
