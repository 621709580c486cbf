"""The graphs that can be exported: tensors in, tensors out, no dictionaries and no plans.

Legend: B batch, U units, K kept and Q masked slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from perceivers.errors import ConfigError
from perceivers.masking import MaskPlan, draw_mask_plan
from perceivers.models.hip import HiP
from perceivers.tasks import MaskedAutoencodingConfig
from perceivers.types import ModalitySpec

Part = Literal["model", "encoder", "autoencoder"]
PARTS: tuple[Part, ...] = ("model", "encoder", "autoencoder")


@dataclass(frozen=True)
class Graph:
    """A module with positional tensors, and what they are called."""

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    mask: MaskedAutoencodingConfig | None = None

    def example(self, model: HiP, batch: int, seed: int) -> tuple[Tensor, ...]:
        """Draw random inputs of the right kinds."""
        generator = torch.Generator().manual_seed(seed)
        raw = tuple(
            random_raw(spec, batch, generator) for spec in model.config.grouped_inputs.values()
        )
        if self.mask is None:
            return raw
        plan = draw_mask_plan(
            model.layout(), batch, ratio=self.mask.ratio, kind=self.mask.kind, generator=generator
        )
        names = list(model.config.grouped_inputs)
        if plan.is_packed:
            return (*raw, *(plan.kept[n] for n in names), *(plan.masked[n] for n in names))
        return (*raw, *(plan.keep[n].contiguous() for n in names))


def random_raw(spec: ModalitySpec, batch: int, generator: torch.Generator) -> Tensor:
    """Random raw samples: bytes for pictures, class indices for labels, normal floats else."""
    shape = (batch, *spec.raw_shape)
    if spec.kind in {"image", "video"}:
        return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    if spec.kind == "labels":
        return torch.randint(0, spec.channels, shape, generator=generator)
    return torch.randn(shape, generator=generator)


class WholeModel(nn.Module):
    """What calling the model returns; several outputs in the order of the inputs."""

    def __init__(self, model: HiP) -> None:
        super().__init__()
        self.model = model

    def forward(self, *raw: Tensor) -> tuple[Tensor, ...]:
        """Return logits, dense values or reconstructions."""
        names = self.model.config.grouped_inputs
        result = self.model(dict(zip(names, raw, strict=True)))
        return tuple(result.values()) if isinstance(result, dict) else (result,)


class EncoderOnly(nn.Module):
    """Latents of the processor, ``[B, N, C]``."""

    def __init__(self, model: HiP) -> None:
        super().__init__()
        self.model = model

    def forward(self, *raw: Tensor) -> tuple[Tensor, ...]:
        """Return the features."""
        names = self.model.config.grouped_inputs
        return (self.model.encode(dict(zip(names, raw, strict=True))).processor.squeeze(1),)


class Autoencoder(nn.Module):
    """The whole masked auto-encoder: raw inputs and a plan in, normalised predictions out."""

    def __init__(self, model: HiP, *, packed: bool) -> None:
        super().__init__()
        self.model = model
        self.packed = packed

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the prediction of every modality, as ``HiP.reconstruct`` does."""
        names = list(self.model.config.grouped_inputs)
        count = len(names)
        inputs = dict(zip(names, tensors[:count], strict=True))
        second = dict(zip(names, tensors[count : 2 * count], strict=True))
        if self.packed:
            masked = dict(zip(names, tensors[2 * count :], strict=True))
            plan = MaskPlan(kept=second, masked=masked)
        else:
            plan = MaskPlan(keep=second)
        encoded = self.model.encode(inputs, plan)
        return tuple(self.model.reconstruct(encoded, plan).values())


def make_graph(model: HiP, part: Part, mask: MaskedAutoencodingConfig) -> Graph:
    """Wrap one part of a model.

    Raises:
        ConfigError: The part is unknown, or needs a decoder that the model does not have.
    """
    names: Sequence[str] = tuple(model.config.grouped_inputs)
    if part == "model":
        outputs = ("output",)
        if model.config.head.kind == "none":
            outputs = tuple(f"{n}_reconstruction" for n in (*names, *model.config.labels))
        return Graph(WholeModel(model), tuple(names), outputs)
    if part == "encoder":
        return Graph(EncoderOnly(model), tuple(names), ("latents",))
    if part != "autoencoder":
        raise ConfigError(f"part {part!r} is unknown; use one of {PARTS}")
    if model.decoder is None:
        raise ConfigError("this model has no decoder; export part 'model' or 'encoder'")
    packed = mask.kind in {"groupwise", "independent"}
    plans = [f"{n}_{form}" for form in (("kept", "masked") if packed else ("keep",)) for n in names]
    outputs = tuple(f"{n}_prediction" for n in (*names, *model.config.labels))
    return Graph(Autoencoder(model, packed=packed), (*names, *plans), outputs, mask)
