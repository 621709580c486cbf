"""Exportable parts of a model, as modules that take and return tensors instead of dictionaries.

Legend: B batch, N latents, D their channels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from perceivers.adapters.multimodal import Tokens
from perceivers.errors import ConfigError, suggest
from perceivers.masking import MaskAxis, MaskPlan
from perceivers.models.entity_set import EntitySet
from perceivers.models.flat.trunk import Encoded
from perceivers.models.hiera import Hiera
from perceivers.models.hiera_det import HieraDet
from perceivers.models.hip import HiP
from perceivers.models.perceiver_io import PerceiverIO
from perceivers.tasks import MaskedAutoencodingConfig
from perceivers.tasks.mae import OBJECTIVES, objective_of
from perceivers.types import FIRST_BYTE, PAD, ModalitySpec, Points

# -- Graphs, and random inputs to trace and compare them -----------------------------------------
#
# Legend: B batch, N elements.


BATCH = "batch"


@dataclass(frozen=True)
class Graph:
    """A module with positional tensor inputs, and their names and sizes.

    Attributes:
        module: Module whose ``forward`` takes ``*tensors`` and returns a tuple.
        inputs: Names of the input tensors.
        outputs: Names of the output tensors.
        raw: Modalities among the inputs.
        sample: Creates random inputs from a batch size and a generator.
        free: Names of dynamic sizes by axis, for each input.
        largest: Maximum of a dynamic size by name, if it has one.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    raw: Mapping[str, ModalitySpec]
    sample: Callable[[int, torch.Generator], tuple[Tensor, ...]]
    free: tuple[Mapping[int, str], ...]
    largest: Mapping[str, int] = field(default_factory=dict)

    def example(self, batch: int, seed: int) -> tuple[Tensor, ...]:
        """Create random inputs of the right types and shapes."""
        return self.sample(batch, torch.Generator().manual_seed(seed))


def inputs_of(model: Any) -> Mapping[str, ModalitySpec]:
    """Return the modalities that a graph reads; excludes labels that a HiP only predicts."""
    return model.config.grouped_inputs if isinstance(model, HiP) else model.config.inputs


def random_raw(spec: ModalitySpec, batch: int, generator: torch.Generator) -> Tensor:
    """Return random raw samples of a modality.

    Images and videos are uint8, labels and text are indices, all others normal floats. Texts end in
    padding and ragged point clouds in absent points (NaN); their lengths vary by sample.
    """
    shape = (batch, *spec.raw_shape)
    if spec.kind in {"image", "video"}:
        return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    if spec.kind == "labels":
        return torch.randint(0, spec.channels, shape, generator=generator)
    # Number of elements of a text or a cloud: at least one.
    length = torch.randint(1, spec.num_tokens + 1, (batch, 1), generator=generator)
    absent = torch.arange(spec.num_tokens) >= length  # [B, N]
    if spec.kind == "bytes":
        ids = torch.randint(FIRST_BYTE, spec.channels, shape, generator=generator)
        return torch.where(absent, PAD, ids)
    values = torch.randn(shape, generator=generator)
    if isinstance(spec, Points) and spec.ragged:
        return torch.where(absent.unsqueeze(-1), torch.nan, values)
    return values


def draw_raw(
    raw: Mapping[str, ModalitySpec], batch: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Return random raw samples of every modality."""
    return tuple(random_raw(spec, batch, generator) for spec in raw.values())


# -- The masked autoencoder as a graph: raw tensors and a mask plan in, predictions out ----------
#
# The form of the plan depends on the model: indices of visible and masked elements, per group (HiP)
# or of mask units (Hiera), or booleans that mark what is visible.
#
# Legend: B batch.


class Autoencoder(nn.Module):
    """Masked autoencoder: takes raw inputs and a plan, returns normalised predictions.

    Args:
        model: Model with a decoder.
        names: Input modalities.
        like: A plan of the form that the graph takes.
    """

    def __init__(self, model: Any, names: tuple[str, ...], like: MaskPlan) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.axis: MaskAxis = like.axis
        self.forms = ("kept", "masked") if like.is_packed else ("keep",)

    def tensors_of(self, plan: MaskPlan) -> tuple[Tensor, ...]:
        """Return the tensors of a plan in the order of the inputs: by form, then by modality."""
        return tuple(getattr(plan, form)[n].contiguous() for form in self.forms for n in self.names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the prediction of every modality, in the order of the model's ``reconstruct``."""
        count = len(self.names)
        parts = (tensors[at : at + count] for at in range(0, len(tensors), count))
        raw, *forms = (dict(zip(self.names, part, strict=True)) for part in parts)
        plan = MaskPlan(**dict(zip(self.forms, forms, strict=True)), axis=self.axis)
        values = self.model.reconstruct(self.model.encode(raw, plan), plan)
        return tuple(values.values()) if isinstance(values, dict) else (values,)


def autoencoder_graph(model: Any, mask: MaskedAutoencodingConfig) -> Graph:
    """Return the graph of a masked autoencoder.

    Args:
        model: Model with a decoder, of a family that supports masking.
        mask: Ratio and kind of the masks; the graph takes plans of this form.

    Raises:
        ConfigError: The model has no masked autoencoder, or does not support this masking.
    """
    if model.family not in OBJECTIVES:
        raise ConfigError(
            f"part 'autoencoder' belongs to the families {' and '.join(OBJECTIVES)}, this model is "
            f"a {model.family}; export part 'model'"
        )
    if model.decoder is None:
        raise ConfigError("this model has no decoder; export part 'model' or 'encoder'")
    raw, settings, objective = inputs_of(model), mask.settings(model), objective_of(model)
    names = tuple(raw)

    def draw(batch: int, generator: torch.Generator) -> tuple[tuple[Tensor, ...], MaskPlan]:
        tensors = draw_raw(raw, batch, generator)
        given = dict(zip(names, tensors, strict=True))
        return tensors, objective.draw(given, settings, generator)

    _, like = draw(1, torch.Generator().manual_seed(0))
    module = Autoencoder(model, names, like)

    def sample(batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        tensors, plan = draw(batch, generator)
        return (*tensors, *module.tensors_of(plan))

    plans = tuple(f"{n}_{form}" for form in module.forms for n in names)
    predicted = (*names, *model.config.labels) if isinstance(model, HiP) else names
    return Graph(
        module=module,
        inputs=(*names, *plans),
        outputs=tuple(f"{n}_prediction" for n in predicted),
        raw=raw,
        sample=sample,
        free=tuple({0: BATCH} for _ in (*names, *plans)),
    )


# ------------------------------------------------------------------------------------------------
# The decoder of a Perceiver IO as a separate graph: encode once, then decode any number of queries.
#
# Legend: B batch, N latents, D their channels, O queries. Paper: Perceiver IO (arXiv 2107.14795)
# Sec. 3.2.


QUERIES = "queries"


class DecoderOnly(nn.Module):
    """Decoder: takes latents ``[B, N, D]`` and flat query indices ``[O]``, returns ``[B, O, K]``.

    A raw tensor comes between the two if the queries are built from its tokens, and ``keep``
    ``[B, O]`` comes last if some queries may belong to padding.

    Args:
        model: A Perceiver IO.
        output: Name of the output to compute.
        keep: Whether ``keep`` is among the inputs.
    """

    def __init__(self, model: PerceiverIO, output: str, *, keep: bool) -> None:
        super().__init__()
        self.model = model
        self.output = output
        self.keep = keep

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the decoder output of the queries."""
        latents, *raw, ids = tensors[:-1] if self.keep else tensors
        modality = self.model.config.outputs[self.output].modality
        parts = {}
        if raw:
            parts[modality] = self.model.inputs.reader(modality)(raw[0], latents.dtype)
        # A placeholder for the input tokens: of these, decoding uses only ``parts``.
        tokens = Tokens(array=latents, valid=None, parts=parts, real={})
        encoded = Encoded(latents=latents, tokens=tokens)
        keep = tensors[-1] if self.keep else None
        return (self.model.decode(encoded, self.output, ids=ids, keep=keep),)


def decoder_graph(model: Any, output: str | None) -> Graph:
    """Return the graph of a decoder, for at most as many queries as the model decodes in a chunk.

    Args:
        model: A Perceiver IO.
        output: Output to compute; may be omitted if the model has only one.

    Raises:
        ConfigError: The model is not a Perceiver IO or has no such output.
    """
    if not isinstance(model, PerceiverIO):
        raise ConfigError(
            f"part 'decoder' belongs to the family perceiver_io, this model is a {model.family}; "
            f"export part 'model' or 'encoder'"
        )
    names = list(model.config.outputs)
    name = names[0] if output is None and len(names) == 1 else output
    if name not in names:
        raise ConfigError(
            f"output {output!r} is unknown; choose one of {names} for the decoder"
            + suggest(str(output), names)
        )
    config = model.config.outputs[name]
    spec = model.config.inputs.get(config.modality)
    raw = {config.modality: spec} if spec is not None and config.queries == "tokens" else {}
    absent = spec is not None and (
        spec.kind == "bytes" or (isinstance(spec, Points) and spec.ragged)
    )
    keep = absent and config.mask_padding
    total, trunk = model.num_queries(name), model.config.trunk

    def sample(batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        latents = torch.randn(batch, trunk.num_latents, trunk.latent_dim, generator=generator)
        asked = min(batch + 2, model.config.decoder.chunk)  # differs between batch sizes
        ids = torch.randint(total, (asked,), generator=generator)
        kept = torch.rand(batch, asked, generator=generator) < 0.7
        return (latents, *draw_raw(raw, batch, generator), ids, *([kept] if keep else []))

    return Graph(
        module=DecoderOnly(model, name, keep=keep),
        inputs=("latents", *raw, "ids", *(["keep"] if keep else [])),
        outputs=("output",),
        raw=raw,
        sample=sample,
        free=(
            *({0: BATCH} for _ in ("latents", *raw)),
            {0: QUERIES},
            *([{0: BATCH, 1: QUERIES}] if keep else []),
        ),
        largest={QUERIES: model.config.decoder.chunk},
    )


# -- Parts of a model that can be exported -------------------------------------------------------

Part = Literal["model", "encoder", "decoder", "autoencoder"]
# Models whose features are one map per stage.
PYRAMIDS = (Hiera, HieraDet)
PARTS: tuple[Part, ...] = ("model", "encoder", "decoder", "autoencoder")


class WholeModel(nn.Module):
    """The whole model: returns the outputs of calling it, in the model's order.

    Args:
        model: Model of any family.
        names: Input modalities.
    """

    def __init__(self, model: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return logits, scores, dense values or reconstructions."""
        result = self.model(dict(zip(self.names, tensors, strict=True)))
        return tuple(result.values()) if isinstance(result, dict) else (result,)


class EncoderOnly(WholeModel):
    """Encoder: returns latents ``[B, N, D]`` (of a HiP, the processor's) or all pyramid maps."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the latents or feature maps."""
        raw = dict(zip(self.names, tensors, strict=True))
        if isinstance(self.model, PYRAMIDS):
            return self.model.forward_features(raw).maps
        if isinstance(self.model, HiP):
            return (self.model.encode(raw).processor.squeeze(1),)
        body = self.model.body if isinstance(self.model, EntitySet) else self.model
        return (body.forward_features(raw).latents,)


def make_graph(
    model: Any,
    part: Part,
    *,
    mask: MaskedAutoencodingConfig | None = None,
    output: str | None = None,
) -> Graph:
    """Return the graph of one part of a model.

    Args:
        model: Model of any family.
        part: ``model`` or ``encoder``; ``decoder`` of a Perceiver IO; ``autoencoder`` of a HiP or
            a Hiera.
        mask: Masking of the autoencoder.
        output: Output that a decoder computes; may be omitted if the model has only one.

    Raises:
        ConfigError: The part is unknown, or the model has no such part or output.
    """
    if output is not None and part != "decoder":
        raise ConfigError(f"output={output!r} is for part 'decoder', not for part {part!r}")
    if part == "decoder":
        return decoder_graph(model, output)
    if part == "autoencoder":
        return autoencoder_graph(model, mask or MaskedAutoencodingConfig())
    if part not in PARTS:
        raise ConfigError(f"part {part!r} is unknown; use one of {PARTS}" + suggest(part, PARTS))
    raw = inputs_of(model)
    names = tuple(raw)
    kind, outputs = EncoderOnly, feature_names(model)
    if part == "model":
        kind, outputs = WholeModel, output_names(model)
    return Graph(
        module=kind(model, names),
        inputs=names,
        outputs=outputs,
        raw=raw,
        sample=lambda batch, generator: draw_raw(raw, batch, generator),
        free=tuple({0: BATCH} for _ in names),
    )


def feature_names(model: Any) -> tuple[str, ...]:
    """Return the names of a model's features."""
    if isinstance(model, PYRAMIDS):
        return tuple(f"stage_{stage}" for stage in range(len(model.config.depths)))
    return ("latents",)


def output_names(model: Any) -> tuple[str, ...]:
    """Return the names of a model's outputs, which always differ from those of its inputs."""
    if isinstance(model, HiP) and model.config.head.kind == "none":
        names = (*inputs_of(model), *model.config.labels)
        return tuple(f"{name}_reconstruction" for name in names)
    if isinstance(model, Hiera) and model.decoder is not None:
        return tuple(f"{name}_reconstruction" for name in inputs_of(model))
    if isinstance(model, PerceiverIO) and len(model.config.outputs) > 1:
        return tuple(f"{name}_output" for name in model.config.outputs)
    return ("output",)
