"""Masked language modelling on bytes: hide whole words, predict their bytes.

Legend: B batch, L bytes, V entries of the vocabulary.
Paper: Perceiver IO (arXiv 2107.14795) Sec. 4.1 and App. F.3: every whitespace-delimited word is
masked on its own with probability 0.15. What replaces a hidden byte is not stated; the shares here
are BERT's (arXiv 1810.04805), drawn per word.
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
from perceivers.settings import Fraction, Part, Settings
from perceivers.tasks.base import Choices, Losses, Task, TaskBatch
from perceivers.tasks.masked import byte_errors
from perceivers.tasks.metrics import add_mean, device_of, new_means, results
from perceivers.tasks.presence import answer, held_modalities, shown_modalities
from perceivers.types import BYTE_VOCABULARY, FIRST_BYTE, MASK

WHITESPACE = tuple(FIRST_BYTE + byte for byte in b" \t\n\r\x0b\x0c")
EVALUATION_SEED = 20210730


@dataclass(frozen=True, kw_only=True)
class MaskedLanguageConfig(Settings, prefix="mlm."):
    """What is hidden."""

    ratio: Part = 0.15
    """Probability with which a word (or a byte) is hidden."""
    train_ratio: Part | None = None
    """The same in training, where it differs: hiding more gives a step more to learn from."""
    unit: Literal["word", "byte"] = "word"
    """word: all bytes between whitespace together; byte: each on its own."""
    mask_share: Fraction = 0.8
    """Share of hidden words whose bytes become the mask id."""
    random_share: Fraction = 0.1
    """Share of hidden words whose bytes become random bytes; the rest stay as they are."""

    def __post_init__(self) -> None:
        """Reject impossible shares."""
        super().__post_init__()
        if self.mask_share + self.random_share > 1:
            raise ConfigError(
                f"mlm.mask_share={self.mask_share} and mlm.random_share={self.random_share} must "
                f"add up to at most 1"
            )


class Hidden(NamedTuple):
    """Ids as the model sees them, and which are to be predicted; both ``[B, L]``."""

    ids: Int[Tensor, "B L"]
    masked: Bool[Tensor, "B L"]


def hide_words(ids: Int[Tensor, "B L"], config: MaskedLanguageConfig, generator: Draws) -> Hidden:
    """Hide words of a batch of texts; whitespace, padding and special ids are never hidden.

    Args:
        ids: Byte ids.
        config: How many, and what replaces them.
        generator: On the CPU, one for all texts or one for each; all randomness comes from it.
    """
    gap = ids < FIRST_BYTE
    for space in WHITESPACE:
        gap = gap | (ids == space)
    # A word's number is the count of gaps before it, so its bytes share one draw.
    unit = (
        gap.long().cumsum(1)
        if config.unit == "word"
        else torch.arange(ids.shape[1]).expand(ids.shape).to(ids.device)
    )
    shape = (ids.shape[0], ids.shape[1] + 1)
    chosen = rand_rows(*shape, generator=generator).to(ids.device).gather(1, unit) < config.ratio
    fate = rand_rows(*shape, generator=generator).to(ids.device).gather(1, unit)
    noise = rand_rows(*ids.shape, generator=generator) * (BYTE_VOCABULARY - FIRST_BYTE)
    noise = noise.long() + FIRST_BYTE
    masked = chosen & ~gap
    shown = torch.where(masked & (fate < config.mask_share), MASK, ids)
    scrambled = masked & (fate >= config.mask_share)
    scrambled &= fate < config.mask_share + config.random_share
    return Hidden(torch.where(scrambled, noise.to(ids.device), shown), masked)


def text_modality(model: Any) -> str:
    """Return the model's text input, which must also be an output.

    Raises:
        ConfigError: There is none.
    """
    outputs = getattr(model.config, "outputs", None)
    for name in getattr(model.config, "byte_outputs", ()):
        if outputs is None or outputs[name].modality == name:
            return name
    raise ConfigError(
        "masked language modelling needs a model that reads bytes and answers them; build a "
        "perceiver_io or hip variant, or a hiera one for texts with decoder=True, with "
        "inputs={'bytes': Bytes(length)} and without num_classes"
    )


def score_bytes(
    model: Any, inputs: Mapping[str, Tensor], shown: Mapping[str, Tensor]
) -> Float[Tensor, "B L V"]:
    """Return a score per entry of the vocabulary for every byte of the model's text.

    Args:
        model: One with a ``text_modality``.
        inputs: Raw tensors by name; hidden bytes are mask ids.
        shown: Which samples show a modality, bool ``[B]``, by name.
    """
    name = text_modality(model)
    if hasattr(model.config, "outputs"):  # such a model is asked for one of its outputs
        return answer(model, inputs, shown, outputs=[name]).float()
    return answer(model, inputs, shown)[name].float()


class MaskedLanguage(Task):
    """Predict hidden bytes.

    Args:
        model: One that answers its byte input with a score per entry: a Perceiver IO, or a HiP or
            Hiera with its decoder.
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
        """Cross-entropy of every byte (0 where it was shown), logits, and what was hidden."""
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
        """Return loss (nats), bits per hidden byte and the share of hidden bytes found."""
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
