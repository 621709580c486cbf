"""Optimizers from libraries, with parameter groups by kind and by depth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import torch
from jaxtyping import Float
from pytorch_optimizer import Lamb
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from perceivers.models.base import Model
from perceivers.nn.positions import LearnedPositions
from perceivers.training.config import OptimizerConfig, ScheduleConfig
from perceivers.training.sharding import spread_like

# -- Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore --


def schedule_scale(config: ScheduleConfig, step: int, total: int) -> float:
    """Return the share of the peak learning rate at ``step`` (0 .. total - 1).

    Linear warm-up from 1 / warm-up steps, an optional plateau, then half a cosine to ``final``.
    """
    warmup = round(config.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    plateau = round(config.constant * total) if config.name == "constant-cosine" else 0
    start = max(warmup, plateau)
    if step < start:
        return 1.0
    progress = (step - start) / max(total - 1 - start, 1)
    return config.final + (1.0 - config.final) * 0.5 * (1.0 + cos(pi * min(progress, 1.0)))


# -- Muon for weight matrices and AdamW for everything else, as one optimizer with one state -----
#
# Muon replaces the momentum of a matrix by the nearest orthogonal matrix, so all directions of an
# update are equally long. Paper: arXiv 2502.16982, whose scaling by ``0.2 sqrt(max(rows,
# columns))`` gives updates the size of AdamW's. The libraries' Muons multiply in bf16, which
# takes ten times as long as float32 on a processor without bf16 units: there the optimizer alone
# took eight times as long as the rest of a step. Ours multiplies in float32 on a CPU.

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


# -- Optimizers from libraries, with parameter groups by kind and by depth -----------------------

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

    def _step_foreach(
        self, group: Any, params: list[Tensor], grads: list[Tensor], *rest: Any, **options: Any
    ) -> None:
        """Update one group; where parameters are spread, norms are those of the whole tensors."""
        if not isinstance(params[0], DTensor):
            super()._step_foreach(group, params, grads, *rest, **options)
            return
        named = dict(zip(("grad_norm", "exp_avgs", "exp_avg_sqs", "step_size"), rest, strict=False))
        named |= options
        moments = zip(named["exp_avgs"], named["exp_avg_sqs"], strict=True)
        directions, squares = [], []
        for parameter, gradient, (mean, square) in zip(params, grads, moments, strict=True):
            mine, slope, first, second = (
                tensor.to_local() if isinstance(tensor, DTensor) else tensor
                for tensor in (parameter, gradient, mean, square)
            )
            first.mul_(group["betas"][0]).add_(slope, alpha=1.0 - group["betas"][0])
            second.mul_(group["betas"][1]).addcmul_(slope, slope, value=1.0 - group["betas"][1])
            direction = first / (second.sqrt() + group["eps"])
            direction.add_(mine, alpha=group["weight_decay"])
            directions.append((mine, direction))
            squares.append(torch.stack([mine.square().sum(), direction.square().sum()]))
        norms = torch.stack(squares)
        torch.distributed.all_reduce(norms, group=params[0].device_mesh.get_group())
        weight, update = norms.sqrt().unbind(1)
        ratios = torch.where((weight > 0) & (update > 0), weight / (update + group["eps"]), 1.0)
        for (mine, direction), ratio in zip(directions, ratios.unbind(), strict=True):
            mine.add_(direction * ratio, alpha=-float(named["step_size"]))


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


def muon_matrices(model: nn.Module) -> set[str]:
    """Return the names of the weights that Muon updates: matrices of Linears behind the inputs.

    Input embeddings stay with AdamW: their rows belong to single channels or bytes, which are no
    directions of a common space.
    """
    assert isinstance(model, Model)
    depths = model.layer_depths()
    modules = dict(model.named_modules())
    return {
        name
        for name, parameter in model.named_parameters()
        if isinstance(modules[name.rpartition(".")[0]], nn.Linear)
        and is_matrix(parameter)
        and depths[name] > 0
    }


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Group trainable parameters by decay and by learning-rate scale (``lr_scale``).

    With Muon, groups also say which rule updates them (``use_muon``).
    """
    assert isinstance(model, Model)
    depths: Mapping[str, int] = model.layer_depths()
    deepest = max(depths.values())
    decaying = decays(model, arrays=config.decay_arrays)
    tables = {id(m.table) for m in model.modules() if isinstance(m, LearnedPositions)}
    matrices = muon_matrices(model) if config.name == "muon" else set()
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        scale = config.layer_decay ** (deepest - depths[name])
        if id(parameter) in tables:
            scale *= config.position_lr
        if name in matrices:
            scale *= config.matrix_lr
        decay = config.weight_decay if name in decaying else 0.0
        groups.setdefault((decay, scale, name in matrices), []).append(parameter)
    return [
        {"params": params, "weight_decay": decay, "lr_scale": scale}
        | ({"use_muon": muon} if config.name == "muon" else {})
        for (decay, scale, muon), params in groups.items()
    ]


@dataclass(frozen=True)
class StateLayout:
    """What an optimizer keeps, so that a saved state can be checked before it is used.

    Attributes:
        moments: Tensors of a parameter that have its shape.
        counter: A parameter's scalar that counts its steps; empty where groups count.
        scalars: Further scalars of a parameter, which the next step overwrites.
        group_counter: A group's whole number that counts steps; empty where parameters count.
        group_rates: Settings of a group that follow from its counter.
    """

    moments: tuple[str, ...]
    counter: str = ""
    scalars: tuple[str, ...] = ()
    group_counter: str = ""
    group_rates: tuple[str, ...] = ()


def state_layout(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> StateLayout:
    """Return the layout of a parameter group of what ``make_optimizer`` makes."""
    if group.get("use_muon"):
        return StateLayout(moments=("momentum_buffer",))
    if isinstance(optimizer, UnclampedLamb):
        return StateLayout(
            moments=("exp_avg", "exp_avg_sq"),
            scalars=("weight_norm", "adam_norm", "trust_ratio"),
            group_counter="step",
            group_rates=("betas", "moment_rates"),
        )
    assert isinstance(optimizer, torch.optim.AdamW | MuonAdamW)
    return StateLayout(moments=("exp_avg", "exp_avg_sq"), counter="step")


def group_rates(optimizer: torch.optim.Optimizer, betas: Any, step: int) -> dict[str, Any]:
    """Return the settings of a group that follow from its step; none where nothing does."""
    if not isinstance(optimizer, UnclampedLamb) or not step:
        return {}
    return {
        "moment_rates": tuple(betas),
        "betas": tuple(unbiased_rate(rate, step) for rate in betas),
    }


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
    if config.name == "muon":
        settings.setdefault("eps", 1e-8)
        return MuonAdamW(groups, momentum=config.momentum, **settings)
    return torch.optim.AdamW(groups, fused=True, **settings)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate to ``lr`` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


# -- The optimizer's state by parameter name, so that any number of processes can take it over ---

Named = dict[str, dict[str, Any]]


def state_by_name(optimizer: torch.optim.Optimizer, model: nn.Module) -> tuple[Named, list[Any]]:
    """Return the state of each parameter by name, and the groups with names for parameters."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    groups = [
        {**group, "params": [names[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    states = {names[parameter]: dict(state) for parameter, state in optimizer.state.items()}
    return states, groups


def load_by_name(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    states: Mapping[str, Mapping[str, Any]],
    groups: list[dict[str, Any]],
) -> None:
    """Take over what ``state_by_name`` returned and ``StateChecker`` accepted.

    Tensors are spread as the parameters are.
    """
    parameters = dict(model.named_parameters())
    places = {name: place for place, name in enumerate(n for g in groups for n in g["params"])}
    optimizer.load_state_dict(
        {
            "state": {
                places[name]: {
                    key: _spread(value, parameters[name]) for key, value in state.items()
                }
                for name, state in states.items()
            },
            "param_groups": [
                # Settings that an older library did not save are this run's.
                {**mine, **group, "params": [places[name] for name in group["params"]]}
                for mine, group in zip(optimizer.param_groups, groups, strict=True)
            ],
        }
    )


def _spread(value: Any, parameter: Tensor) -> Any:
    return spread_like(value, parameter) if isinstance(value, Tensor) else value
