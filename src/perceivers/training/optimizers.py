"""Optimizers from libraries, with parameter groups by kind and by depth."""

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_optimizer import Lamb
from torch import nn

from perceivers.models.hip import HiP
from perceivers.nn.positions import LearnedPositions
from perceivers.training.config import OptimizerConfig


class UnclampedLamb(Lamb):
    """LAMB without the clamp of weight norms at 10, which the Perceiver recipes do not have."""

    clamp = float("inf")


def decays(model: nn.Module) -> set[str]:
    """Return the names of parameters that weight decay applies to: the weights of Linears.

    Biases, norms, latents, queries and position tables do not decay: they are not maps, and
    position tables receive small gradients that decay would overwhelm.
    """
    return {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def parameter_groups(model: HiP, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Group trainable parameters by decay and by learning-rate scale (``lr_scale``)."""
    depths: Mapping[str, int] = model.layer_depths()
    deepest = max(depths.values())
    decaying = decays(model)
    tables = {id(m.table) for m in model.modules() if isinstance(m, LearnedPositions)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        scale = config.layer_decay ** (deepest - depths[name])
        if id(parameter) in tables:
            scale *= config.position_lr
        decay = config.weight_decay if name in decaying else 0.0
        groups.setdefault((decay, scale), []).append(parameter)
    return [
        {"params": params, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), params in groups.items()
    ]


def make_optimizer(model: HiP, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer; learning rates are set at every step by ``set_learning_rate``."""
    groups = parameter_groups(model, config)
    if config.name == "lamb":
        # Decay enters the update before the trust ratio, as in the Perceiver recipes. 'adam_debias'
        # keeps the library from dividing the step by 1 - beta1^t, which would multiply the first
        # steps, already scaled by the trust ratio, by up to ten.
        options = {"weight_decouple": False, "adam_debias": True}
        return UnclampedLamb(groups, lr=config.lr, betas=config.betas, **options)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate to ``lr`` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
