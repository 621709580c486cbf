"""Masked autoencoding: reconstruct hidden elements; independent of the model family.

Legend: B batch; the shape of errors depends on the model family.
Paper: HiP (arXiv 2202.10890) Sec. 3.3 hides raw elements (``masked_elements.py``); Hiera (arXiv
2306.00989) Sec. 4 hides mask units (``masked_patches.py``).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from perceivers.draws import sample_generators
from perceivers.errors import ConfigError, suggest
from perceivers.masking import MaskKind, MaskPlan, thin_masked
from perceivers.models.masked import (
    LATENTS,
    AskedTarget,
    MaskedObjective,
    MaskSettings,
    Scored,
    Target,
    Taught,
)
from perceivers.models.registry import FAMILIES, families_with
from perceivers.settings import NonNegative, Part, Positive, Range, Settings, UsedIf
from perceivers.tasks.base import Losses, Task, TaskBatch, held_modalities, shown_modalities
from perceivers.tasks.metrics import add_mean, device_of, new_means, results, total_weight

# These hide the same number of elements in every group, as ``thin_masked`` requires.
THINNED: tuple[MaskKind, ...] = ("groupwise", "independent")
LATENT = UsedIf("target", "latent")
# Fixed, so that every evaluation uses the same masks.
EVALUATION_SEED = 20_220_222


@dataclass(frozen=True, kw_only=True)
class MaskedAutoencodingConfig(Settings, prefix="mask."):
    """What is hidden, and in which space the reconstruction is scored."""

    ratio: Part | None = None
    """Fraction hidden from the encoder, between 0 and 1. Default as in the papers: 0.85 for HiP,
    0.6 for Hiera, 0.9 for Hiera on video."""
    kind: MaskKind | None = None
    """HiP: groupwise (default, as in the paper), independent, groups or uniform; Hiera: units."""
    target: AskedTarget | None = None
    """per-channel: standardised by the input's mean and std (default for HiP and texts); raw: 0..1
    units; group-normalised (HiP): standardised within each group of the sample; patch-normalised
    (default for Hiera): standardised within each patch. Bytes are always scored by cross-entropy
    (per-channel or raw). latent: the default target, plus a teacher's latents of the whole
    input."""
    teacher: Annotated[str, LATENT] = ""
    """Run or model folder of a masked autoencoder of the same variant, used as a frozen teacher;
    empty: the moving average of the weights is the teacher (needs ema)."""
    latent_weight: Annotated[Positive, LATENT] = 1.0
    """Weight of the latent loss, added to the reconstruction loss."""
    weights: dict[str, NonNegative] = field(default_factory=dict)
    """Loss weight per modality; default 1."""
    queried: Annotated[float, Range(above=0, most=1)] = 1.0
    """Fraction of the hidden elements that a training step reconstructs, chosen at random; the rest
    is neither visible nor scored, which saves time. Evaluation scores all. HiP only."""

    def settings(self, model: Any) -> MaskSettings:
        """Return the settings for a model, with the defaults of its family filled in.

        Raises:
            ConfigError: The model's family does not support masking, or not this kind or target.
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
                f"with {self.kind or defaults.kind} masks all hidden elements are scored"
            )
        return MaskSettings(
            ratio=defaults.ratio if self.ratio is None else self.ratio,
            kind=self.kind or defaults.kind,
            target=target or defaults.target,
        )


def objective_of(model: Any) -> MaskedObjective:
    """Return the masked autoencoding objective of a model's family.

    Raises:
        ConfigError: The family has none, or the model was built without a decoder.
    """
    objective = FAMILIES[model.family].objective
    if objective is None:
        able = families_with("objective")
        raise ConfigError(
            f"a {model.family} model has no masked autoencoder; masked autoencoding is for "
            f"{' and '.join(able)}"
        )
    if model.decoder is None:
        raise ConfigError("masked autoencoding needs a model with decoder=True")
    return objective(model)


def is_masked_autoencoder(model: Any) -> bool:
    """Return whether a model has a masked autoencoding objective: by its family and a decoder."""
    return FAMILIES[model.family].objective is not None and model.decoder is not None


def check_teacher(model: Any, teacher: Any) -> None:
    """Raise if a teacher's inputs or the shapes of its latents differ from the model's.

    Raises:
        ConfigError: They differ.
    """
    known, wanted = ((each.family, dict(each.config.inputs)) for each in (teacher, model))
    if known != wanted:
        raise ConfigError(
            f"mask.teacher is a {teacher.family} model of {dict(teacher.config.inputs)}, but the "
            f"model to train is a {model.family} model of {dict(model.config.inputs)}; family and "
            f"inputs must be the same"
        )
    theirs, ours = objective_of(teacher).latent_shapes, objective_of(model).latent_shapes
    if theirs != ours:
        raise ConfigError(
            f"the latents of mask.teacher have shapes {theirs}, those of the model to train have "
            f"{ours}; use a teacher of the same variant"
        )


def weighted_mean(errors: Tensor, weight: Tensor) -> Float[Tensor, ""]:
    """Return the mean over the elements with weight 1; 0 if there are none."""
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
    """Encode the visible elements of a plan, reconstruct the hidden ones, and score those.

    Errors are averaged within each modality before the weighted sum over modalities, so that a
    modality with many elements does not dominate.

    Args:
        model: A model with a decoder.
        inputs: Raw tensors by name.
        plan: From ``draw_mask_plan`` (HiP; every grouped modality of ``inputs``) or
            ``draw_unit_plan`` (Hiera).
        target: Space of the error; see ``MaskedAutoencodingConfig``.
        weights: Loss weight per modality; default 1.
        shown: In which samples the encoder reads a modality, bool ``[B]``, by name; default all.
        held: Which samples have a modality and are scored on it, bool ``[B]``, by name; default
            all.

    Raises:
        ConfigError: A weight names an unknown modality, or the family has no such target.
    """
    weights = weights or {}
    check_weights(model, weights)
    settings = MaskedAutoencodingConfig(target=target).settings(model)
    scored = objective_of(model).score(inputs, plan, settings.target, shown=shown)
    return sum_losses({n: each.only(held or {}, n) for n, each in scored.items()}, weights)


def sum_losses(scored: Mapping[str, Scored], weights: Mapping[str, float]) -> Losses:
    """Return the mean error of every modality, and their weighted sum (default weight 1)."""
    parts = {name: weighted_mean(each.errors, each.weight) for name, each in scored.items()}
    total = torch.stack([loss * weights.get(name, 1.0) for name, loss in parts.items()]).sum()
    return Losses(total=total, parts=parts)


def check_weights(model: Any, weights: Mapping[str, float]) -> None:
    """Raise ``ConfigError`` if a weight names a modality that the model does not have."""
    for name in weights:
        if name not in model.config.inputs:
            raise ConfigError(
                f"loss weight for unknown modality {name!r}; the model has "
                f"{list(model.config.inputs)}{suggest(name, model.config.inputs)}"
            )


class MaskedAutoencoding(Task):
    """Pre-train by masked autoencoding, with a new mask for every sample.

    With ``target: latent`` the model also predicts a teacher's latents of the whole input. The
    teacher is a frozen, trained model (SALT, arXiv 2509.24317) or the moving average of the model's
    own weights (data2vec, arXiv 2202.03555). The best weights are selected by ``loss``, which
    excludes the latents.

    Args:
        model: A model with a decoder, and with a ``latent_head`` for latent targets.
        config: What is hidden and how it is scored.
        teacher: Teacher of latent targets. Without one, the averaged weights are the teacher in
            training, and evaluation skips the latents.

    Raises:
        ConfigError: The model does not support these settings, or the shapes of the teacher's
            latents differ from the model's.
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
                "mask.target=latent needs a decoder that predicts latents, but this model has no "
                "latent_head; start from a variant name, with these weights as mask.teacher"
            )
        self.config = config
        self.weights = {**config.weights, LATENTS: config.latent_weight}
        if teacher is not None:
            check_teacher(model, teacher)
        # The tuple hides it from nn.Module, so it is neither trained nor saved.
        self._teacher = () if teacher is None else (teacher.eval().requires_grad_(False),)

    def forward(self, batch: TaskBatch, generator: torch.Generator) -> Losses:
        """Return the losses under a new random mask."""
        return sum_losses(self._score(batch, generator), self.weights)

    def _teach(self, inputs: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> Taught | None:
        """Return the latents to predict, or None if there are none."""
        if self.config.target != "latent":
            return None
        if self._teacher:
            teacher = self._teacher[0].to(device_of(self.model))
            return objective_of(teacher).teach(inputs, held)
        if not self.training:
            return None
        # Must precede the forward pass: swapping weights in place would break its autograd graph.
        self.model.eval()
        with self.averaged():
            taught = self.objective.teach(inputs, held)
        self.model.train()
        return taught

    def _score(self, batch: TaskBatch, generator: torch.Generator) -> dict[str, Scored]:
        """Return the errors of the hidden elements of present modalities under a new mask."""
        inputs = batch.inputs
        draws = sample_generators(generator, batch.position)
        plan = self.objective.draw(inputs, self.settings, draws)
        if self.training and self.config.queried < 1:
            plan = thin_masked(plan, self.config.queried, generator=draws)
        # HiP can predict the class label from its bottleneck, as one more modality.
        if batch.labels is not None:
            inputs = {**inputs, **dict.fromkeys(self.model.predicted_labels[:1], batch.labels)}
        held = held_modalities(self.model, batch)
        shown = shown_modalities(self, batch, generator)
        taught = self._teach(inputs, held)
        scored = self.objective.score(
            inputs, plan, self.settings.target, shown=shown, taught=taught
        )
        return {name: each.only(held, name) for name, each in scored.items()}

    @torch.no_grad()
    def evaluate(self, batches: Iterable[TaskBatch]) -> dict[str, float]:
        """Return mean losses under masks that are the same in every evaluation."""
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        self.eval()
        # All modalities, even if absent here: every process must merge the same metrics.
        names = [*self.model.config.inputs, *([LATENTS] if self._teacher else [])]
        means = new_means(names, device_of(self.model))
        for batch in batches:
            for name, each in self._score(batch, generator).items():
                count = each.weight.expand_as(each.errors).sum()
                add_mean(means[name], weighted_mean(each.errors, each.weight), count)
        seen = {name: int(total_weight(mean)) for name, mean in means.items()}
        figures = {name: value for name, value in results(means).items() if seen[name]}
        weights = self.config.weights
        # Without latents, so that the best weights are selected by reconstruction alone.
        loss = sum(weights.get(n, 1.0) * value for n, value in figures.items() if n != LATENTS)
        parts = {f"loss/{name}": value for name, value in figures.items()}
        return {"loss": loss, **(parts if len(parts) > 1 else {})}
