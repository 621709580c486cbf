"""The parts of a model that can be exported: tensors in, tensors out, no dictionaries.

Legend: B batch, N latents, D their channels.
"""

from typing import Any, Literal

from torch import Tensor, nn

from perceivers.errors import ConfigError, suggest
from perceivers.exporting.autoencoder import autoencoder_graph
from perceivers.exporting.decoder import decoder_graph
from perceivers.exporting.tensors import BATCH, Graph, draw_raw, inputs_of
from perceivers.models.entity_set import EntitySet
from perceivers.models.hiera import Hiera
from perceivers.models.hiera_det import HieraDet
from perceivers.models.hip import HiP
from perceivers.models.perceiver_io import PerceiverIO
from perceivers.tasks import MaskedAutoencodingConfig

Part = Literal["model", "encoder", "decoder", "autoencoder"]
# Their features are a map per stage.
PYRAMIDS = (Hiera, HieraDet)
PARTS: tuple[Part, ...] = ("model", "encoder", "decoder", "autoencoder")


class WholeModel(nn.Module):
    """What calling the model returns; several outputs in the order of the model.

    Args:
        model: Of any family.
        names: The modalities that it is given.
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
    """Latents ``[B, N, D]``, of a HiP those of the processor; or all maps of a pyramid."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the features."""
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
    """Wrap one part of a model.

    Args:
        model: Of any family.
        part: ``model`` or ``encoder``; ``decoder`` of a Perceiver IO; ``autoencoder`` of a HiP or
            a Hiera.
        mask: Masking of the auto-encoder.
        output: Which output a decoder answers; may be left out when there is one.

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
    """Return what the features of a model are called."""
    if isinstance(model, PYRAMIDS):
        return tuple(f"stage_{stage}" for stage in range(len(model.config.depths)))
    return ("latents",)


def output_names(model: Any) -> tuple[str, ...]:
    """Return what the results of calling a model are called; never what an input is called."""
    if isinstance(model, HiP) and model.config.head.kind == "none":
        names = (*inputs_of(model), *model.config.labels)
        return tuple(f"{name}_reconstruction" for name in names)
    if isinstance(model, Hiera) and model.decoder is not None:
        return tuple(f"{name}_reconstruction" for name in inputs_of(model))
    if isinstance(model, PerceiverIO) and len(model.config.outputs) > 1:
        return tuple(f"{name}_output" for name in model.config.outputs)
    return ("output",)
