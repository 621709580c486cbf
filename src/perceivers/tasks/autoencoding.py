"""Autoencoding through the latents: encode all modalities of a sample and reconstruct them.

Training decodes random queries of each modality; queries do not attend to each other, so the
gradient is unbiased. The label token is masked at random in training and always in evaluation, so
the model is also a classifier.

Legend: B batch, N tokens, O queries, C channels.
Paper: Perceiver IO (arXiv 2107.14795) Sec. 4.3 and App. I: loss weights, 512 points per modality.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from perceivers.adapters import ElementAdapter
from perceivers.adapters.elements import is_point
from perceivers.draws import Draws, rand_rows, sample_generators
from perceivers.errors import ConfigError, DataError, suggest
from perceivers.masking import count_kept
from perceivers.models.flat.trunk import TrunkEncoded
from perceivers.models.perceiver_io import Output, PerceiverIO
from perceivers.models.perceiver_io.decoder import pick_rows
from perceivers.nn.patches import space_to_depth
from perceivers.settings import Fraction, Natural, NonNegative, Rate, Settings
from perceivers.tasks.base import (
    Choices,
    Losses,
    Task,
    TaskBatch,
    held_modalities,
    shown_modalities,
)
from perceivers.tasks.metrics import (
    PERFECT_PSNR,
    add_mean,
    device_of,
    new_means,
    new_metric,
    result,
    results,
    total_weight,
    update,
)
from perceivers.types import Labels

if TYPE_CHECKING:
    from torchmetrics import Metric

# Fixed, so that every evaluation hides the same tokens.
EVALUATION_SEED = 20210731
# As in the paper: audio has the largest weight, the label has almost none.
PAPER_WEIGHTS = {"video": 0.03, "audio": 1.0, "labels": 0.0001}


@dataclass(frozen=True, kw_only=True)
class AutoencodingConfig(Settings, prefix="autoencode."):
    """What is hidden, decoded and scored."""

    points: Natural = 512
    """Elements (audio: patches) of each modality that a training step decodes; 0 decodes all."""
    mask_ratio: Rate = 0.0
    """Fraction of tokens hidden from the encoder; if above 0, only hidden elements are scored."""
    loss: Literal["l1", "l2"] = "l1"
    """Absolute error (as in the paper) or squared error, of normalised values."""
    weights: dict[str, NonNegative] = field(default_factory=dict)
    """Loss weight per modality; default 0.03 for video, 0.0001 for labels, 1 for others."""
    label_mask: Fraction = 0.5
    """Probability of hiding a sample's label in training; evaluation always hides it."""


def is_autoencoder(model: Any) -> bool:
    """Return whether the outputs of a model are its own inputs, and none is a text."""
    outputs = getattr(model.config, "outputs", {})
    texts = getattr(model.config, "byte_outputs", ())
    return bool(outputs) and all(n in model.config.inputs and n not in texts for n in outputs)


def element_targets(model: PerceiverIO, name: str, raw: Tensor) -> Float[Tensor, "B O C"]:
    """Return the normalised values that each query should decode, in patches if the output has any.

    Args:
        model: A model with an output of the modality's name.
        name: The modality.
        raw: Raw tensor ``[B, ...]``.
    """
    adapter, patch = model.adapter(name), model.config.outputs[name].patch
    values = _elements(adapter, raw)
    if patch and prod(patch) > 1:
        grid = adapter.spec.grid
        return space_to_depth(values.transpose(1, 2).unflatten(2, grid), patch)
    return values


def _elements(adapter: ElementAdapter, raw: Tensor) -> Float[Tensor, "B N C"]:
    """Return normalised values; every channel of a missing point is NaN."""
    values = adapter.normalise(adapter.flatten(raw), torch.float32)
    if not adapter.may_lack:
        return values
    return values.where(is_point(values).unsqueeze(-1), torch.nan)


def as_floats(model: PerceiverIO, name: str, raw: Tensor) -> Float[Tensor, "B ..."]:
    """Return a raw tensor as floats in its raw layout: images in 0..1, audio in -1..1."""
    return model.adapter(name).to_floats(raw)


@torch.no_grad()
def decode_raw(model: PerceiverIO, encoded: TrunkEncoded, name: str) -> Float[Tensor, "B ..."]:
    """Return the decoded modality in the units of ``as_floats``, not clipped."""
    adapter = model.adapter(name)
    return adapter.restore(adapter.flatten(model.decode(encoded, name).float()))


class Autoencoding(Task):
    """Reconstruct every modality that the model has an output for.

    Args:
        model: A Perceiver IO with an output for each input to be reconstructed.
        config: What is hidden, decoded and scored.

    Raises:
        ConfigError: The outputs are not inputs, a weight names an unknown modality, or a modality
            has too few tokens for masking.
    """

    best_metric = "loss"
    higher_is_better = False

    def __init__(self, model: Any, config: AutoencodingConfig) -> None:
        super().__init__(model)
        outputs: Mapping[str, Output] = getattr(model.config, "outputs", {})
        inputs = model.config.inputs
        if not is_autoencoder(model):
            raise ConfigError(
                f"autoencoding needs a perceiver_io model whose outputs are its own inputs; this "
                f"one has outputs {list(outputs)} and inputs {list(inputs)} (to pre-train on text, "
                f"use --task mlm)"
            )
        for name in config.weights:
            if name not in outputs:
                raise ConfigError(
                    f"loss weight for unknown modality {name!r}; the model has outputs "
                    f"{list(outputs)}{suggest(name, outputs)}"
                )
        self.config = config
        self.labels = [n for n in outputs if isinstance(inputs[n], Labels)]
        self.signals = [n for n in outputs if n not in self.labels]
        for name in self.signals if config.mask_ratio else ():
            if model.inputs.reader(name).num_tokens < 2:
                raise ConfigError(
                    f"{name!r} is read as a single token, which cannot be partly hidden; use "
                    f"mask_ratio 0, or longer inputs"
                )
        self.weights = {
            n: config.weights.get(n, PAPER_WEIGHTS.get(inputs[n].kind, 1.0)) for n in outputs
        }

    def forward(self, batch: TaskBatch, generator: torch.Generator) -> Losses:
        """Return the weighted loss and the loss of each modality."""
        inputs = self._inputs(batch)
        size = next(iter(inputs.values())).shape[0]
        # Every call below advances the generators, so their order is part of reproducibility.
        draws = sample_generators(generator, batch.position)
        kept = self._draw_kept(size, draws)
        asked = self._draw_asked(size, kept, draws)
        drawn = rand_rows(size, 1, generator=draws) < self.config.label_mask
        held = held_modalities(self.model, batch)
        encoded = self._encode(inputs, kept, drawn, shown_modalities(self, batch, generator))
        parts = {}
        for name in self.signals:
            truth = _only_held(element_targets(self.model, name, inputs[name]), held.get(name))
            ids = asked.get(name)
            if ids is None:
                ids = torch.arange(truth.shape[1], device=truth.device)
            if name in kept:
                # NaN excludes visible values from the error.
                truth = torch.where(self._seen_patches(name, kept[name], size), torch.nan, truth)
            truth = pick_rows(truth, ids)
            parts[name] = self._error(self.model.decode(encoded, name, ids=ids).float(), truth)
        for name in self.labels:
            logits = self.model.decode(encoded, name).float()
            parts[name] = _label_error(logits, inputs[name].long())
        total = torch.stack([loss * self.weights[name] for name, loss in parts.items()]).sum()
        return Losses(total=total, parts=parts)

    def _inputs(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Return the inputs, with the labels as a modality if the model has an output for them."""
        inputs = dict(batch.inputs)
        if self.labels and batch.labels is None:
            raise DataError(
                f"the model autoencodes the label {self.labels[0]!r}, but the data has no labels"
            )
        if batch.labels is not None:
            inputs |= dict.fromkeys(self.labels[:1], batch.labels)
        return inputs

    def _encode(
        self,
        inputs: Mapping[str, Tensor],
        kept: Mapping[str, Tensor],
        drawn: Bool[Tensor, "B 1"],
        shown: Mapping[str, Tensor],
    ) -> TrunkEncoded:
        """Encode with the ``drawn`` labels hidden: by the mask token if it exists, else as -1."""
        given = {n: x for n, x in inputs.items() if n in self.model.config.inputs}
        hidden = {}
        for name in self.labels:
            drawn = drawn.to(given[name].device)
            if name in self.model.inputs.mask:
                hidden[name] = drawn
            else:
                given[name] = torch.where(drawn.squeeze(1), -1, given[name])
        return self.model.encode(given, hidden=hidden, kept=kept, present=shown)

    def encode_whole(
        self, inputs: Mapping[str, Tensor], shown: Mapping[str, Tensor]
    ) -> TrunkEncoded:
        """Encode all tokens of the visible modalities, with every label hidden.

        Args:
            inputs: Raw tensors by name, including the label if the model has an output for it.
            shown: In which samples a modality is visible, bool ``[B]``; default all.
        """
        size = next(iter(inputs.values())).shape[0]
        return self._encode(inputs, {}, torch.ones(size, 1, dtype=torch.bool), shown)

    def encode_for_display(
        self, batch: TaskBatch, generator: torch.Generator
    ) -> tuple[TrunkEncoded, dict[str, Bool[Tensor, "B ..."]]]:
        """Encode as in evaluation; also return visible elements by modality, ``[B, 1, ...]``."""
        inputs = self._inputs(batch)
        first = next(iter(inputs.values()))
        size = first.shape[0]
        kept = self._draw_kept(size, sample_generators(generator, batch.position))
        blind = torch.ones(size, 1, dtype=torch.bool)
        visible = {name: self._seen(name, kept.get(name), size) for name in self.signals}
        held = held_modalities(self.model, batch)
        return self._encode(inputs, kept, blind, held), visible

    def _seen(self, name: str, kept: Tensor | None, size: int) -> Bool[Tensor, "B 1 ..."]:
        """Return which elements of a modality are visible, in its raw layout."""
        reader, spec = self.model.inputs.reader(name), self.model.config.inputs[name]
        seen = torch.ones(size, reader.num_tokens, dtype=torch.bool)
        if kept is not None:
            seen = torch.zeros_like(seen).scatter(1, kept.cpu(), value=True)
        # A token covers a block of elements; the last block of an axis may be incomplete.
        grid = seen.unflatten(1, reader.grid)
        for axis, (tokens, length) in enumerate(zip(reader.grid, spec.grid, strict=True), 1):
            grid = grid.repeat_interleave(-(-length // tokens), dim=axis).narrow(axis, 0, length)
        return grid.unsqueeze(1)

    def _seen_patches(self, name: str, kept: Tensor, size: int) -> Bool[Tensor, "B O C"]:
        """Return which values of each query are visible, in the order of ``element_targets``."""
        spec, patch = self.model.config.inputs[name], self.model.config.outputs[name].patch
        seen = space_to_depth(self._seen(name, kept, size), patch or (1,) * len(spec.grid))
        return seen.repeat_interleave(spec.channels, -1).to(self._place)

    def _draw_kept(self, size: int, generator: Draws) -> dict[str, Tensor]:
        """Sample the visible tokens ``[B, K]`` of each modality; empty if all are visible."""
        kept: dict[str, Tensor] = {}
        if self.config.mask_ratio:
            for name in self.signals:
                tokens = self.model.inputs.reader(name).num_tokens
                order = rand_rows(size, tokens, generator=generator).argsort(-1)
                count = count_kept(tokens, self.config.mask_ratio)
                kept[name] = order[:, :count].sort(-1).values.to(self._place)
        return kept

    def _draw_asked(
        self, size: int, kept: Mapping[str, Tensor], generator: Draws
    ) -> dict[str, Tensor]:
        """Sample the queries ``[B, O]`` of each modality; no entry if all are decoded."""
        asked: dict[str, Tensor] = {}
        for name in self.signals:
            total = self.model.num_queries(name)
            wanted = self.config.points or total
            if name in kept:
                seen = self._seen_patches(name, kept[name], size).all(-1).cpu()  # [B, O]
                # One count for the batch: the sample with the fewest hidden queries limits it.
                count = min(wanted, int((~seen).sum(1).min()))
                draws = rand_rows(size, total, generator=generator).masked_fill(seen, -1.0)
                asked[name] = draws.topk(count, dim=1).indices.to(self._place)
            elif wanted < total:
                # With replacement: a permutation of all elements would cost far more.
                ids = (rand_rows(size, wanted, generator=generator) * total).long()
                asked[name] = ids.clamp(max=total - 1).to(self._place)
        return asked

    @property
    def _place(self) -> torch.device:
        return self.model.trunk.latents.device

    def _error(self, prediction: Tensor, truth: Tensor) -> Float[Tensor, ""]:
        """Mean error over the valid values; NaN in ``truth`` marks the others."""
        real = ~truth.isnan()
        error = torch.where(real, prediction - truth, 0.0)
        error = error.abs() if self.config.loss == "l1" else error.square()
        return error.sum() / real.sum().clamp(min=1)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[TaskBatch]) -> dict[str, float]:
        """Return losses, PSNR in decibels per signal, and top1 if the model classifies.

        Labels are always hidden. PSNR is taken over all elements of the split, with the peak in
        raw units: 1 for images, 2 for audio (-1..1).
        """
        self.eval()
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        device = device_of(self.model)
        means = new_means([*self.signals, *self.labels, "top1"], device)
        noise = {name: self._new_psnr(name, device) for name in self.signals}
        choices = Choices(device)
        for batch in batches:
            inputs, held = self._inputs(batch), held_modalities(self.model, batch)
            size = next(iter(inputs.values())).shape[0]
            kept = self._draw_kept(size, sample_generators(generator, batch.position))
            blind = torch.ones(size, 1, dtype=torch.bool)
            encoded = self._encode(inputs, kept, blind, held)
            for name in self.signals:
                adapter = self.model.adapter(name)
                made = adapter.flatten(self.model.decode(encoded, name).float())
                truth = _only_held(_elements(adapter, inputs[name]), held.get(name))
                real = ~truth.isnan()
                add_mean(means[name], self._error(made, truth), real.sum())
                # PSNR is in raw units; the mean cancels in the difference.
                std = adapter.std.expand_as(truth)
                update(noise[name], (made * std)[real], (truth * std)[real])
            for name in self.labels:
                logits, truth = self.model.decode(encoded, name).float(), inputs[name].long()
                known = truth >= 0
                add_mean(means[name], _label_error(logits, truth), known.sum())
                hits = ((choices.of(logits) == truth) & known).sum() / known.sum()
                add_mean(means["top1"], hits, known.sum())
        known = {name: total_weight(mean) for name, mean in means.items()}
        figures = results(means)
        top1 = choices.judge({"top1": figures.pop("top1")})
        loss = sum(self.weights[name] * figures[name] for name in figures if known[name])
        shares = {f"psnr/{name}": min(float(result(m)), PERFECT_PSNR) for name, m in noise.items()}
        return {"loss": loss, **shares, **(top1 if known["top1"] else {})}

    def _new_psnr(self, name: str, device: torch.device) -> "Metric":
        peak = self.model.config.inputs[name].value_range
        return new_metric("image.PeakSignalNoiseRatio", device, data_range=peak)


def _label_error(logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the known labels (not -1); 0 (not NaN) if a batch has none."""
    total = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    return total / (labels != -1).sum().clamp(min=1)


def _only_held(truth: Tensor, held: Tensor | None) -> Tensor:
    """Set the targets of samples that lack the modality to NaN, so that they are not scored."""
    if held is None:
        return truth
    return torch.where(held.reshape(-1, *[1] * (truth.ndim - 1)), truth, torch.nan)
