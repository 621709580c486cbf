"""Masked auto-encoding: reconstruct what the encoder was not shown, whatever the system.

Legend: B batch; the shape of errors is the system's own.
Paper: HiP (arXiv 2202.10890) Sec. 3.3 hides raw elements (``masked_elements.py``); Hiera (arXiv
2306.00989) Sec. 4 hides mask units (``masked_patches.py``).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from perceivers.draws import sample_generators
from perceivers.errors import ConfigError, suggest
from perceivers.masking import MaskKind, MaskPlan, thin_masked
from perceivers.settings import NonNegative, Part, Range, Settings
from perceivers.tasks.base import Losses, Task, TaskBatch
from perceivers.tasks.masked import MaskedObjective, MaskSettings, Scored, Target
from perceivers.tasks.masked_elements import ElementObjective
from perceivers.tasks.masked_patches import PatchObjective
from perceivers.tasks.metrics import add_mean, device_of, new_means, results, total_weight
from perceivers.tasks.presence import held_modalities, shown_modalities

# How each system masks; those that are not here have no masked auto-encoder.
OBJECTIVES: Mapping[str, Callable[[Any], MaskedObjective]] = {
    "hip": ElementObjective,
    "hiera": PatchObjective,
}
# Masks that hide the same number of elements in every group, so that some may be left out.
THINNED: tuple[MaskKind, ...] = ("groupwise", "independent")
# Evaluation draws the same masks every time.
EVALUATION_SEED = 20_220_222


@dataclass(frozen=True, kw_only=True)
class MaskedAutoencodingConfig(Settings, prefix="mask."):
    """What is hidden, and in which space the reconstruction is scored."""

    ratio: Part | None = None
    """Share hidden from the encoder, between 0 and 1; None takes the paper's: 0.85 for HiP, 0.6 for
    Hiera, 0.9 for its clips."""
    kind: MaskKind | None = None
    """HiP: groupwise (the paper's), independent, groups or uniform; Hiera: units. None takes the
    paper's."""
    target: Target | None = None
    """per-channel: standardised by the input's mean and std; raw: 0..1 units; group-normalised
    (HiP): standardised within each group of the sample; patch-normalised (Hiera): within each
    patch. None takes per-channel for HiP and texts, and patch-normalised for Hiera. Bytes have no
    mean: they are scored by cross-entropy, whether per-channel or raw."""
    weights: dict[str, NonNegative] = field(default_factory=dict)
    """Weight per modality in the total; 1 where not given."""
    queried: Annotated[float, Range(above=0, most=1)] = 1.0
    """Fraction of the hidden elements that a training step reconstructs, drawn at random; the rest
    is neither shown nor scored, which saves time. Evaluation scores all. HiP only."""

    def settings(self, model: Any) -> MaskSettings:
        """Return the settings for a model, its system's own where none are given.

        Raises:
            ConfigError: The model's system does not mask, or not in this way.
        """
        objective = objective_of(model)
        defaults = objective.defaults
        for name, value, known in (
            ("kind", self.kind, objective.kinds),
            ("target", self.target, objective.targets),
        ):
            if value is not None and value not in known:
                raise ConfigError(
                    f"mask {name} {value!r} is not for this {model.family} model; use one of "
                    f"{list(known)}{suggest(value, known)}"
                )
        if self.queried < 1 and (self.kind or defaults.kind) not in THINNED:
            raise ConfigError(
                f"mask.queried={self.queried} needs masks of kind {' or '.join(THINNED)} (HiP); "
                f"what {self.kind or defaults.kind} masks hide is scored as a whole"
            )
        return MaskSettings(
            ratio=defaults.ratio if self.ratio is None else self.ratio,
            kind=self.kind or defaults.kind,
            target=self.target or defaults.target,
        )


def objective_of(model: Any) -> MaskedObjective:
    """Return how a model masks.

    Raises:
        ConfigError: Its system has no masked auto-encoder, or the model was built without decoder.
    """
    if model.family not in OBJECTIVES:
        raise ConfigError(
            f"a {model.family} model does not mask what it reads; masked auto-encoding is for "
            f"{' and '.join(OBJECTIVES)}"
        )
    if model.decoder is None:
        raise ConfigError("masked auto-encoding needs a model with decoder=True")
    return OBJECTIVES[model.family](model)


def weighted_mean(errors: Tensor, weight: Tensor) -> Float[Tensor, ""]:
    """Mean over the elements that count; 0 when none does."""
    weight = weight.to(errors.dtype).expand_as(errors)
    return (errors * weight).sum() / weight.sum().clamp(min=1.0)


def mae_losses(
    model: Any,
    inputs: Mapping[str, Tensor],
    plan: MaskPlan,
    *,
    target: Target | None = None,
    weights: Mapping[str, float] | None = None,
    shown: Mapping[str, Tensor] | None = None,
    held: Mapping[str, Tensor] | None = None,
) -> Losses:
    """Encode what the plan keeps, reconstruct what it hides, and score that alone.

    The mean is taken within a modality, then the weighted sum over modalities, so that many pixels
    do not drown few samples.

    Args:
        model: With a decoder.
        inputs: Raw tensors by name.
        plan: From ``draw_mask_plan`` (HiP; every grouped modality of ``inputs``) or
            ``draw_unit_plan`` (Hiera).
        target: Space of the error; see ``MaskedAutoencodingConfig``.
        weights: Per modality, 1 where not given.
        shown: Which samples show a modality to the encoder, bool ``[B]``, by name; all where not
            given.
        held: Which samples hold a modality, and are scored on it.

    Raises:
        ConfigError: A weight names an unknown modality, or the system has no such target.
    """
    weights = weights or {}
    check_weights(model, weights)
    settings = MaskedAutoencodingConfig(target=target).settings(model)
    scored = objective_of(model).score(inputs, plan, settings.target, shown=shown)
    return sum_losses({n: each.only(held or {}, n) for n, each in scored.items()}, weights)


def sum_losses(scored: Mapping[str, Scored], weights: Mapping[str, float]) -> Losses:
    """Return the mean error of every modality, and their weighted sum (1 where not given)."""
    parts = {name: weighted_mean(each.errors, each.weight) for name, each in scored.items()}
    total = torch.stack([loss * weights.get(name, 1.0) for name, loss in parts.items()]).sum()
    return Losses(total=total, parts=parts)


def check_weights(model: Any, weights: Mapping[str, float]) -> None:
    """Reject weights of modalities that the model does not have."""
    for name in weights:
        if name not in model.config.inputs:
            raise ConfigError(
                f"loss weight for unknown modality {name!r}; the model has "
                f"{list(model.config.inputs)}{suggest(name, model.config.inputs)}"
            )


class MaskedAutoencoding(Task):
    """Pre-training: a fresh mask for every batch.

    Args:
        model: With a decoder.
        config: What is hidden and how it is scored.
    """

    best_metric = "loss"
    higher_is_better = False

    def __init__(self, model: Any, config: MaskedAutoencodingConfig) -> None:
        super().__init__(model)
        self.objective = objective_of(model)
        self.settings = config.settings(model)
        check_weights(model, config.weights)
        self.config = config

    def forward(self, batch: TaskBatch, generator: torch.Generator) -> Losses:
        """Draw a plan and return its losses."""
        return sum_losses(self._score(batch, generator), self.config.weights)

    def _score(self, batch: TaskBatch, generator: torch.Generator) -> dict[str, Scored]:
        """Errors of what a fresh plan hides, of the modalities that samples hold."""
        inputs = batch.inputs
        draws = sample_generators(generator, batch.position)
        plan = self.objective.draw(inputs, self.settings, draws)
        if self.training and self.config.queried < 1:
            plan = thin_masked(plan, self.config.queried, generator=draws)
        if batch.labels is not None and self.model.family == "hip":
            inputs = {**inputs, **dict.fromkeys(self.model.config.labels[:1], batch.labels)}
        held = held_modalities(self.model, batch)
        shown = shown_modalities(self, batch, generator)
        scored = self.objective.score(inputs, plan, self.settings.target, shown=shown)
        return {name: each.only(held, name) for name, each in scored.items()}

    @torch.no_grad()
    def evaluate(self, batches: Iterable[TaskBatch]) -> dict[str, float]:
        """Return mean losses under masks that are the same at every evaluation."""
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        self.eval()
        # Of all that the model reconstructs: processes merge the same figures, whatever they saw.
        means = new_means(self.model.config.inputs, device_of(self.model))
        for batch in batches:
            for name, each in self._score(batch, generator).items():
                count = each.weight.expand_as(each.errors).sum()
                add_mean(means[name], weighted_mean(each.errors, each.weight), count)
        seen = {name: int(total_weight(mean)) for name, mean in means.items()}
        figures = {name: value for name, value in results(means).items() if seen[name]}
        weights = self.config.weights
        loss = sum(weights.get(name, 1.0) * value for name, value in figures.items())
        parts = {f"loss/{name}": value for name, value in figures.items()}
        return {"loss": loss, **(parts if len(parts) > 1 else {})}
