"""Optimizers (AdamW, LAMB, Muon), parameter groups, learning-rate schedules, and their state."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import torch
from jaxtyping import Float
from pytorch_optimizer import Lamb
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from perceivers.errors import CheckpointError
from perceivers.models.base import Model
from perceivers.nn.positions import LearnedPositions
from perceivers.training.config import OptimizerConfig, ScheduleConfig
from perceivers.training.sharding import own_part, spread_like

# -- Learning-rate schedules: pure functions of the step, so there is no state to save -----------


def schedule_scale(config: ScheduleConfig, step: int, total: int) -> float:
    """Return the fraction of the peak learning rate at ``step`` (0 .. total - 1).

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
# Muon replaces the momentum of a matrix by the nearest orthogonal matrix, so that an update is
# equally large in all directions. Paper: arXiv 2502.16982, whose scaling by ``0.2 sqrt(max(rows,
# columns))`` gives updates of the size of AdamW's. Library implementations multiply in bf16, which
# takes ten times as long as float32 on a CPU without bf16 units: there the optimizer alone took
# eight times as long as the rest of a step. This implementation uses float32 on a CPU.

Group = dict[str, Any]

# Smaller matrices gain little: embeddings of a few channels, heads of a few classes.
FEWEST_CHANNELS = 16
# Number of iterations and coefficients as in the first publication of Muon (Keller Jordan, 2024).
ITERATIONS = 5
LINEAR, CUBIC, QUINTIC = 3.4445, -4.775, 2.0315


def is_matrix(parameter: Tensor) -> bool:
    """Return whether Muon may update a weight: a matrix of at least 16 rows and 16 columns."""
    return parameter.ndim == 2 and min(parameter.shape) >= FEWEST_CHANNELS


class Muon(torch.optim.Optimizer):
    """Muon: SGD with orthogonalised Nesterov momentum, for matrices (arXiv 2502.16982).

    Args:
        groups: Parameter groups of matrices.
        lr: Initial learning rate of all groups.
        momentum: Decay rate of the momentum.
        weight_decay: Decoupled weight decay of groups that do not set their own.
    """

    def __init__(
        self, groups: Sequence[Group], *, lr: float, momentum: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Perform one optimizer step."""
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
    """Return approximately U V' of the singular value decomposition U S V'.

    Newton-Schulz iteration with Muon's coefficients, which raise small singular values quickly and
    leave all but the smallest between 0.7 and 1.2.
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
    """Muon for groups with ``use_muon``, AdamW for the others.

    Args:
        groups: Parameter groups with ``params``, ``weight_decay`` and ``use_muon``; those with
            ``use_muon`` must contain matrices only.
        lr: Initial learning rate of all groups.
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
        """Perform one optimizer step."""
        loss = None if closure is None else closure()
        for part, muon in zip(self.parts, self._kinds(), strict=True):
            # ``load_state_dict`` replaces both objects, so they are passed on at every step.
            part.param_groups = [g for g in self.param_groups if g["use_muon"] == muon]
            part.state = self.state
            part.step()
        return loss

    def _kinds(self) -> list[bool]:
        return [not isinstance(part, torch.optim.AdamW) for part in self.parts]


# -- LAMB, and parameter groups by kind and depth ------------------------------------------------

# torch.nn has no common base class of norms; our models use only these two.
NORMS = (nn.LayerNorm, nn.BatchNorm2d)
MAPS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class UnclampedLamb(Lamb):
    """LAMB as in the Perceiver recipes: bias-corrected moments, weight norms not clamped.

    pytorch-optimizer's LAMB has no bias correction and clamps weight norms at 10. A bias-corrected
    moment equals a running mean whose decay rate starts at 0, so the rates are set at every step.
    """

    clamp = float("inf")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Perform one optimizer step."""
        for group in self.param_groups:
            rates = group.setdefault("moment_rates", tuple(group["betas"]))
            count = group.get("step", 0) + 1
            group["betas"] = tuple(unbiased_rate(rate, count) for rate in rates)
        return super().step(closure)

    def _step_foreach(
        self, group: Any, params: list[Tensor], grads: list[Tensor], *rest: Any, **options: Any
    ) -> None:
        """Update one group; for sharded parameters, use the norms of the whole tensors."""
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
        # One all-reduce of the local sums of squares gives the norms of all whole tensors.
        norms = torch.stack(squares)
        torch.distributed.all_reduce(norms, group=params[0].device_mesh.get_group())
        weight, update = norms.sqrt().unbind(1)
        ratios = torch.where((weight > 0) & (update > 0), weight / (update + group["eps"]), 1.0)
        for (mine, direction), ratio in zip(directions, ratios.unbind(), strict=True):
            mine.add_(direction * ratio, alpha=-float(named["step_size"]))


def unbiased_rate(rate: float, step: int) -> float:
    """Return the decay rate at ``step`` (from 1) that makes a running mean bias-corrected."""
    return rate * (1.0 - rate ** (step - 1)) / (1.0 - rate**step)


def decays(model: nn.Module, *, arrays: bool = False) -> set[str]:
    """Return the names of the parameters that weight decay applies to.

    Weights of linear layers and convolutions decay; biases and norms never do. Latents, queries and
    embeddings do not by default: position embeddings have small gradients, which decay would
    overwhelm.

    Args:
        model: Model whose parameters are trained.
        arrays: Apply decay to latents, queries and embeddings too, as in the released Perceiver
            recipes.
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
    """Return the names of the weights that Muon updates: matrices of linear layers past the inputs.

    Input embeddings are left to AdamW: their rows belong to single channels or bytes, which are not
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
    """Group parameters by weight decay and learning-rate multiplier (``lr_scale``).

    With Muon, groups also have ``use_muon``, which selects the update rule.
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
    """Names in an optimizer's state, so that a saved state can be checked before it is loaded.

    Attributes:
        moments: State tensors with the shape of the parameter.
        counter: Scalar tensor that counts a parameter's steps; empty if groups count steps.
        scalars: Further scalar tensors of a parameter, which the next step overwrites.
        group_counter: Integer of a group that counts steps; empty if parameters count steps.
        group_rates: Settings of a group that depend on its step count.
    """

    moments: tuple[str, ...]
    counter: str = ""
    scalars: tuple[str, ...] = ()
    group_counter: str = ""
    group_rates: tuple[str, ...] = ()


def state_layout(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> StateLayout:
    """Return the state layout of a parameter group of an optimizer from ``make_optimizer``."""
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
    """Return the settings of a group that depend on the step count; empty if none do."""
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
        # Weight decay is added before the trust ratio, as in the Perceiver recipes. Without
        # 'adam_debias' the library divides the step by 1 - beta1^t, which would multiply the first
        # steps, already scaled by the trust ratio, by up to ten.
        return UnclampedLamb(groups, weight_decouple=False, adam_debias=True, **settings)
    if config.name == "muon":
        settings.setdefault("eps", 1e-8)
        return MuonAdamW(groups, momentum=config.momentum, **settings)
    return torch.optim.AdamW(groups, fused=True, **settings)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate to ``lr`` times its ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


# -- The optimizer's state by parameter name, so that any number of processes can load it --------

Named = dict[str, dict[str, Any]]


def state_by_name(optimizer: torch.optim.Optimizer, model: nn.Module) -> tuple[Named, list[Any]]:
    """Return the state by parameter name, and the groups with names in place of parameters."""
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
    """Load the result of ``state_by_name`` after ``StateChecker`` has accepted it.

    Tensors are sharded like their parameters.
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
                # Settings that an older library version did not save keep this run's values.
                {**mine, **group, "params": [places[name] for name in group["params"]]}
                for mine, group in zip(optimizer.param_groups, groups, strict=True)
            ],
        }
    )


def _spread(value: Any, parameter: Tensor) -> Any:
    return spread_like(value, parameter) if isinstance(value, Tensor) else value


# -- Averages of the weights ---------------------------------------------------------------------


class WeightAverage:
    """Exponential moving average of a model's parameters; buffers are not averaged.

    Args:
        model: Model to average, already on its device and sharded.
        decay: Weight of the average so far at each update, 0..1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.parameters: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters()
        }

    @torch.no_grad()
    def update(self, *, first: bool) -> None:
        """Move the average towards the parameters; the first update copies them."""
        mine = [own_part(tensor) for tensor in self.parameters.values()]
        current = [own_part(tensor.detach()) for tensor in self.model.parameters()]
        if first:
            torch._foreach_copy_(mine, current)  # pyright: ignore[reportPrivateImportUsage]
        else:
            # The same call as in torch.optim.swa_utils.
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                mine, current, 1.0 - self.decay
            )

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Swap the average into the model inside the block, to evaluate or save it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.model.named_parameters():
            inside, outside = own_part(parameter.detach()), own_part(self.parameters[name])
            held = inside.clone()
            inside.copy_(outside)
            outside.copy_(held)

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Load a saved average.

        Raises:
            CheckpointError: A parameter is missing or has another shape.
        """
        for name, mine in self.parameters.items():
            if name not in parameters or parameters[name].shape != mine.shape:
                found = tuple(parameters[name].shape) if name in parameters else "missing"
                raise CheckpointError(
                    f"the saved average does not fit the model: {name} is {found}, expected "
                    f"{tuple(mine.shape)}"
                )
            own_part(mine).copy_(own_part(spread_like(parameters[name], mine)))
