"""Optimizers from libraries, with parameter groups by kind and by depth."""

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_optimizer import Lamb
from torch import nn

from perceivers.models.base import Model
from perceivers.nn.positions import LearnedPositions
from perceivers.training.config import OptimizerConfig

# nn has no common base of its norms; all models together use these two.
NORMS = (nn.LayerNorm, nn.BatchNorm2d)
MAPS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class UnclampedLamb(Lamb):
    """LAMB as the Perceiver recipes have it: bias-corrected moments, weight norms not clamped.

    Differs from pytorch-optimizer's, which has no bias correction and clamps weight norms at 10. A
    corrected moment is a running mean whose rate starts at 0, so the rates are set step by step.
    """

    clamp = float("inf")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter once."""
        for group in self.param_groups:
            rates = group.setdefault("moment_rates", tuple(group["betas"]))
            count = group.get("step", 0) + 1
            group["betas"] = tuple(unbiased_rate(rate, count) for rate in rates)
        return super().step(closure)


def unbiased_rate(rate: float, step: int) -> float:
    """Return the rate at which a running mean is its bias-corrected self; steps count from 1."""
    return rate * (1.0 - rate ** (step - 1)) / (1.0 - rate**step)


def decays(model: nn.Module, *, arrays: bool = False) -> set[str]:
    """Return the names of parameters that weight decay applies to.

    Weights of Linears and convolutions decay, biases and norms never do. Latents, queries and
    tables are not maps, and position tables receive small gradients that decay would overwhelm.

    Args:
        model: Whose parameters.
        arrays: Decay those too, as the released Perceiver recipes do.
    """
    modules = dict(model.named_modules())
    chosen = set()
    for name, _ in model.named_parameters():
        owner, _, kind = name.rpartition(".")
        is_map = isinstance(modules[owner], MAPS)
        is_array = arrays and not isinstance(modules[owner], NORMS)
        if kind != "bias" and (is_map or is_array):
            chosen.add(name)
    return chosen


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Group trainable parameters by decay and by learning-rate scale (``lr_scale``)."""
    assert isinstance(model, Model)
    depths: Mapping[str, int] = model.layer_depths()
    deepest = max(depths.values())
    decaying = decays(model, arrays=config.decay_arrays)
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


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer; learning rates are set at every step by ``set_learning_rate``."""
    groups = parameter_groups(model, config)
    settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas}
    if config.eps is not None:
        settings["eps"] = config.eps
    if config.name == "lamb":
        # Decay enters the update before the trust ratio, as in the Perceiver recipes. 'adam_debias'
        # keeps the library from dividing the step by 1 - beta1^t, which would multiply the first
        # steps, already scaled by the trust ratio, by up to ten.
        return UnclampedLamb(groups, weight_decouple=False, adam_debias=True, **settings)
    return torch.optim.AdamW(groups, fused=True, **settings)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate to ``lr`` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
