"""Masked language modelling on bytes: hide whole words, predict their bytes.

Legend: B batch, L bytes, V entries of the vocabulary.
Paper: Perceiver IO (arXiv 2107.14795) Sec. 4.1 and App. F.3: every whitespace-delimited word is
masked independently with probability 0.15. The paper does not state what replaces hidden bytes;
here, as in BERT (arXiv 1810.04805), it is the mask id, a random byte or the byte itself, per word.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import log
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perceivers.draws import Draws, rand_rows, sample_generators
from perceivers.errors import ConfigError
from perceivers.models.masked import byte_errors
from perceivers.settings import Fraction, Part, Settings
from perceivers.tasks.base import (
    Choices,
    Losses,
    Task,
    TaskBatch,
    answer,
    held_modalities,
    shown_modalities,
)
from perceivers.tasks.metrics import add_mean, device_of, new_means, results
from perceivers.types import BYTE_VOCABULARY, FIRST_BYTE, MASK

WHITESPACE = tuple(FIRST_BYTE + byte for byte in b" \t\n\r\x0b\x0c")
# Fixed, so that every evaluation hides the same words.
EVALUATION_SEED = 20210730


@dataclass(frozen=True, kw_only=True)
class MaskedLanguageConfig(Settings, prefix="mlm."):
    """What is hidden."""

    ratio: Part = 0.15
    """Probability of hiding a word (or a byte)."""
    train_ratio: Part | None = None
    """Probability in training, if it differs: with more hidden, a step has more to learn from."""
    unit: Literal["word", "byte"] = "word"
    """word: hide all bytes between whitespace together; byte: hide each byte independently."""
    mask_share: Fraction = 0.8
    """Fraction of hidden words whose bytes are replaced by the mask id."""
    random_share: Fraction = 0.1
    """Fraction of hidden words whose bytes are replaced by random bytes; the rest is unchanged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_share + self.random_share > 1:
            raise ConfigError(
                f"mlm.mask_share={self.mask_share} and mlm.random_share={self.random_share} must "
                f"add up to at most 1"
            )


class Hidden(NamedTuple):
    """Byte ids after masking, and which of them are hidden; both ``[B, L]``."""

    ids: Int[Tensor, "B L"]
    masked: Bool[Tensor, "B L"]


def hide_words(ids: Int[Tensor, "B L"], config: MaskedLanguageConfig, generator: Draws) -> Hidden:
    """Hide words of a batch of texts; whitespace, padding and special ids are never hidden.

    Args:
        ids: Byte ids.
        config: Ratio, unit and replacement.
        generator: Random generator on the CPU; one for all texts or one for each.
    """
    gap = ids < FIRST_BYTE
    for space in WHITESPACE:
        gap = gap | (ids == space)
    # Number words by the gaps before them (0..L): the bytes of a word share a random number.
    unit = (
        gap.long().cumsum(1)
        if config.unit == "word"
        else torch.arange(ids.shape[1]).expand(ids.shape).to(ids.device)
    )
    shape = (ids.shape[0], ids.shape[1] + 1)
    chosen = rand_rows(*shape, generator=generator).to(ids.device).gather(1, unit) < config.ratio
    fate = rand_rows(*shape, generator=generator).to(ids.device).gather(1, unit)
    # Per byte, unlike the numbers above: a scrambled word gets different random bytes.
    noise = rand_rows(*ids.shape, generator=generator) * (BYTE_VOCABULARY - FIRST_BYTE)
    noise = noise.long() + FIRST_BYTE
    masked = chosen & ~gap
    shown = torch.where(masked & (fate < config.mask_share), MASK, ids)
    scrambled = masked & (fate >= config.mask_share)
    scrambled &= fate < config.mask_share + config.random_share
    return Hidden(torch.where(scrambled, noise.to(ids.device), shown), masked)


def text_modality(model: Any) -> str:
    """Return the name of the model's text input, which must also be an output.

    Raises:
        ConfigError: The model has none.
    """
    outputs = getattr(model.config, "outputs", None)
    for name in getattr(model.config, "byte_outputs", ()):
        if outputs is None or outputs[name].modality == name:
            return name
    raise ConfigError(
        "masked language modelling needs a model with bytes as input and output; build a "
        "perceiver_io or hip variant, or a hiera variant with decoder=True, with "
        "inputs={'bytes': Bytes(length)} and without num_classes"
    )


def score_bytes(
    model: Any, inputs: Mapping[str, Tensor], shown: Mapping[str, Tensor]
) -> Float[Tensor, "B L V"]:
    """Return logits over the vocabulary for every byte of the model's text.

    Args:
        model: A model with a ``text_modality``.
        inputs: Raw tensors by name, the text after masking.
        shown: In which samples a modality is visible, bool ``[B]``, by name.
    """
    name = text_modality(model)
    if hasattr(model.config, "outputs"):  # a Perceiver IO: decode no other output
        return answer(model, inputs, shown, outputs=[name]).float()
    return answer(model, inputs, shown)[name].float()


class MaskedLanguage(Task):
    """Predict hidden bytes.

    Args:
        model: A model that returns logits for its byte input: a Perceiver IO, or a HiP or Hiera
            with a decoder.
        config: What is hidden.
    """

    best_metric = "loss"
    higher_is_better = False

    def __init__(self, model: Any, config: MaskedLanguageConfig) -> None:
        super().__init__(model)
        self.name = text_modality(model)
        self.config = config

    def forward(self, batch: TaskBatch, generator: torch.Generator) -> Losses:
        """Hide words and return the cross-entropy of their bytes, in nats per byte."""
        errors, _, masked = self._score(batch, generator)
        return Losses(total=errors.sum() / masked.sum().clamp(min=1), parts={})

    def _score(
        self, batch: TaskBatch, generator: torch.Generator
    ) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L V"], Bool[Tensor, "B L"]]:
        """Return the cross-entropy of every byte (0 if visible), the logits, and what is hidden."""
        ids = batch.inputs[self.name].long()
        config = self.config
        if self.training and config.train_ratio is not None:
            config = replace(config, ratio=config.train_ratio)
        hidden = hide_words(ids, config, sample_generators(generator, batch.position))
        inputs = {**batch.inputs, self.name: hidden.ids}
        shown = shown_modalities(self, batch, generator)
        logits = score_bytes(self.model, inputs, shown)
        errors = byte_errors(logits, ids)
        masked = hidden.masked
        held = held_modalities(self.model, batch)
        if self.name in held:
            masked = masked & held[self.name].unsqueeze(1)
        return errors * masked, logits, masked

    @torch.no_grad()
    def evaluate(self, batches: Iterable[TaskBatch]) -> dict[str, float]:
        """Return loss (nats) and bits per hidden byte, and top1 accuracy on hidden bytes."""
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        self.eval()
        metrics = new_means(["loss", "top1"], device_of(self.model))
        choices = Choices(device_of(self.model))
        for batch in batches:
            errors, logits, masked = self._score(batch, generator)
            found = (choices.of(logits) == batch.inputs[self.name]) & masked
            for name, each in (("loss", errors), ("top1", found)):
                add_mean(metrics[name], each.sum() / masked.sum(), masked.sum())
        loss, top1 = results(metrics).values()
        return {"loss": loss, "bits_per_byte": loss / log(2), **choices.judge({"top1": top1})}
