"""The graphs that can be exported: tensors in, tensors out, no dictionaries and no plans.

Legend: B batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from perceivers.errors import ConfigError, suggest
from perceivers.models.entity_set import EntitySet
from perceivers.models.hip import HiP
from perceivers.models.perceiver import Perceiver
from perceivers.models.perceiver_io import PerceiverIO
from perceivers.types import FIRST_BYTE, PAD, ModalitySpec, Points

Part = Literal["model", "encoder", "decoder", "autoencoder"]
PARTS: tuple[Part, ...] = ("model", "encoder", "decoder", "autoencoder")
BATCH = "batch"


@dataclass(frozen=True)
class Graph:
    """A module with positional tensors, and what they are called.

    Attributes:
        module: Its ``forward`` takes ``*tensors`` and returns a tuple.
        inputs: Names of the tensors.
        outputs: Names of the results.
        raw: The modalities among the inputs.
        sample: Draws the inputs for a batch size, from a generator.
        free: Sizes that a caller may choose, by axis, for each input.
        largest: The largest value of a free size, where there is one.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    raw: Mapping[str, ModalitySpec]
    sample: Callable[[int, torch.Generator], tuple[Tensor, ...]]
    free: tuple[Mapping[int, str], ...]
    largest: Mapping[str, int]

    def example(self, batch: int, seed: int) -> tuple[Tensor, ...]:
        """Draw random inputs of the right kinds."""
        return self.sample(batch, torch.Generator().manual_seed(seed))


def random_raw(spec: ModalitySpec, batch: int, generator: torch.Generator) -> Tensor:
    """Random raw samples: bytes for pictures, indices for labels and texts, normal floats else.

    Texts end in padding, and clouds that may be ragged in absent points, another number for every
    sample.
    """
    shape = (batch, *spec.raw_shape)
    if spec.kind in {"image", "video"}:
        return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    if spec.kind == "labels":
        return torch.randint(0, spec.channels, shape, generator=generator)
    # How many elements a text or a cloud has: at least one.
    length = torch.randint(1, spec.num_tokens + 1, (batch, 1), generator=generator)
    absent = torch.arange(spec.num_tokens) >= length  # [B, N]
    if spec.kind == "bytes":
        ids = torch.randint(FIRST_BYTE, spec.channels, shape, generator=generator)
        return torch.where(absent, PAD, ids)
    values = torch.randn(shape, generator=generator)
    if isinstance(spec, Points) and spec.ragged:
        return torch.where(absent.unsqueeze(-1), torch.nan, values)
    return values


class WholeModel(nn.Module):
    """What calling the model returns; several outputs in the order of the model.

    Args:
        model: Of any family.
        names: The modalities that it is given.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return logits, dense values or reconstructions."""
        result = self.model(dict(zip(self.names, tensors, strict=True)))
        return tuple(result.values()) if isinstance(result, dict) else (result,)


class EncoderOnly(WholeModel):
    """Latents ``[B, N, D]``; of a hierarchy those of the processor."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the features."""
        raw = dict(zip(self.names, tensors, strict=True))
        model = self.model.body if isinstance(self.model, EntitySet) else self.model
        if isinstance(model, HiP):
            return (model.encode(raw).processor.squeeze(1),)
        return (cast(Perceiver | PerceiverIO, model).forward_features(raw).latents,)


def make_graph(model: Any, part: Part, *, mask: Any = None, output: str | None = None) -> Graph:
    """Wrap one part of a model.

    Args:
        model: Of any family.
        part: ``model`` or ``encoder``; ``decoder`` of a Perceiver IO; ``autoencoder`` of a HiP.
        mask: ``MaskedAutoencodingConfig`` of the auto-encoder.
        output: Which output a decoder answers; may be left out when there is one.

    Raises:
        ConfigError: The part is unknown, or the model has no such part or output.
    """
    from perceivers.exporting.autoencoder import autoencoder_graph
    from perceivers.exporting.decoder import decoder_graph

    if part not in PARTS:
        raise ConfigError(
            f"part {part!r} is unknown; use one of {PARTS}" + suggest(str(part), PARTS)
        )
    if output is not None and part != "decoder":
        raise ConfigError(f"output={output!r} goes with part 'decoder'; part {part!r} has no such")
    if part == "decoder":
        return decoder_graph(model, output)
    if part == "autoencoder":
        return autoencoder_graph(model, mask)
    raw = graph_inputs(model)
    names = tuple(raw)
    whole = part == "model"
    return Graph(
        module=(WholeModel if whole else EncoderOnly)(model, names),
        inputs=names,
        outputs=output_names(model) if whole else ("latents",),
        raw=raw,
        sample=lambda batch, generator: draw_raw(raw, batch, generator),
        free=({0: BATCH},) * len(names),
        largest={},
    )
