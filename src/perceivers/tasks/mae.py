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
from perceivers.settings import NonNegative, Part, Positive, Range, Settings, UsedIf
from perceivers.tasks.base import Losses, Task, TaskBatch
from perceivers.tasks.masked import (
    LATENTS,
    AskedTarget,
    MaskedObjective,
    MaskSettings,
    Scored,
    Target,
    Taught,
)
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
LATENT = UsedIf("target", "latent")
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
    target: AskedTarget | None = None
    """per-channel: standardised by the input's mean and std; raw: 0..1 units; group-normalised
    (HiP): standardised within each group of the sample; patch-normalised (Hiera): within each
    patch. None takes per-channel for HiP and texts, and patch-normalised for Hiera. Bytes have no
    mean: they are scored by cross-entropy, whether per-channel or raw. latent: as None, and the
    latents that a teacher has of the whole input are predicted, too."""
    teacher: Annotated[str, LATENT] = ""
    """Run or model folder of a masked autoencoder of the same variant, which is frozen; empty: the
    average of the weights in training teaches (needs ema)."""
    latent_weight: Annotated[Positive, LATENT] = 1.0
    """Weight of predicted latents in the total, beside reconstruction."""
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
        target = None if self.target == "latent" else self.target
        for name, value, known in (
            ("kind", self.kind, objective.kinds),
            ("target", target, objective.targets),
        ):
            if value is not None and value not in known:
                raise ConfigError(
                    f"mask {name} {value!r} is not for this {model.family} model; use one of "
                    f"{[*known, 'latent'] if name == 'target' else list(known)}"
                    f"{suggest(value, known)}"
                )
        if self.queried < 1 and (self.kind or defaults.kind) not in THINNED:
            raise ConfigError(
                f"mask.queried={self.queried} needs masks of kind {' or '.join(THINNED)} (HiP); "
                f"what {self.kind or defaults.kind} masks hide is scored as a whole"
            )
        return MaskSettings(
            ratio=defaults.ratio if self.ratio is None else self.ratio,
            kind=self.kind or defaults.kind,
            target=target or defaults.target,
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


def check_teacher(model: Any, teacher: Any) -> None:
    """Reject a teacher that reads other inputs than the model, or sees them in other shapes.

    Raises:
        ConfigError: It does.
    """
    if teacher.family != model.family or dict(teacher.config.inputs) != dict(model.config.inputs):
        raise ConfigError(
            f"mask.teacher is a {teacher.family} model of {dict(teacher.config.inputs)}, but the "
            f"model to be taught is a {model.family} model of {dict(model.config.inputs)}; both "
            f"must read the same"
        )
    theirs, ours = objective_of(teacher).latent_shapes, objective_of(model).latent_shapes
    if theirs != ours:
        raise ConfigError(
            f"the latents of mask.teacher have shapes {theirs}, those of the model to be taught "
            f"{ours}; use a teacher of the same variant"
        )


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

    With ``target: latent`` it also predicts the latents that a teacher has of whole inputs; the
    teacher is a frozen, trained model (SALT, arXiv 2509.24317) or the average of the model's own
    weights (data2vec, arXiv 2202.03555). The best weights are chosen by ``loss``, the error of
    hidden elements alone.

    Args:
        model: With a decoder, and a ``latent_head`` for latent targets.
        config: What is hidden and how it is scored.
        teacher: For latent targets; without, the averaged weights teach in training, and latents
            are left out of evaluation.

    Raises:
        ConfigError: The model does not mask in this way, or the teacher's latents are not shaped
            like the model's.
    """

    best_metric = "loss"
    higher_is_better = False

    def __init__(
        self, model: Any, config: MaskedAutoencodingConfig, teacher: Any | None = None
    ) -> None:
        super().__init__(model)
        self.objective = objective_of(model)
        self.settings = config.settings(model)
        check_weights(model, config.weights)
        if config.target == "latent" and not self.objective.predicts_latents:
            raise ConfigError(
                "mask.target=latent trains a model whose decoder predicts latents, and this one "
                "has no latent_head; start from a variant name, with these weights as mask.teacher"
            )
        self.config = config
        self.weights = {**config.weights, LATENTS: config.latent_weight}
        if teacher is not None:
            check_teacher(model, teacher)
        # Inside a tuple it is no part of the module, so it is neither trained nor saved.
        self._teacher = () if teacher is None else (teacher.eval().requires_grad_(False),)

    def forward(self, batch: TaskBatch, generator: torch.Generator) -> Losses:
        """Draw a plan and return its losses."""
        return sum_losses(self._score(batch, generator), self.weights)

    def _teach(self, inputs: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> Taught | None:
        """Return the latents to be predicted, or None where the target is not latent."""
        if self.config.target != "latent":
            return None
        if self._teacher:
            teacher = self._teacher[0].to(device_of(self.model))
            return objective_of(teacher).teach(inputs, held)
        if not self.training:
            return None
        # Before the model is run with its own weights: its graph must not see them change.
        self.model.eval()
        with self.averaged():
            taught = self.objective.teach(inputs, held)
        self.model.train()
        return taught

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
        taught = self._teach(inputs, held)
        scored = self.objective.score(
            inputs, plan, self.settings.target, shown=shown, taught=taught
        )
        return {name: each.only(held, name) for name, each in scored.items()}

    @torch.no_grad()
    def evaluate(self, batches: Iterable[TaskBatch]) -> dict[str, float]:
        """Return mean losses under masks that are the same at every evaluation."""
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        self.eval()
        # Of all that the model reconstructs: processes merge the same figures, whatever they saw.
        names = [*self.model.config.inputs, *([LATENTS] if self._teacher else [])]
        means = new_means(names, device_of(self.model))
        for batch in batches:
            for name, each in self._score(batch, generator).items():
                count = each.weight.expand_as(each.errors).sum()
                add_mean(means[name], weighted_mean(each.errors, each.weight), count)
        seen = {name: int(total_weight(mean)) for name, mean in means.items()}
        figures = {name: value for name, value in results(means).items() if seen[name]}
        weights = self.config.weights
        loss = sum(weights.get(n, 1.0) * value for n, value in figures.items() if n != LATENTS)
        parts = {f"loss/{name}": value for name, value in figures.items()}
        return {"loss": loss, **(parts if len(parts) > 1 else {})}
