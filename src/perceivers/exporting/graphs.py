"""The parts of a model that can be exported: tensors in, tensors out, no dictionaries.

Legend: B batch, N latents, D channels of a latent.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from perceivers.errors import ConfigError, suggest
from perceivers.masking import MaskAxis, MaskPlan
from perceivers.models.graphs import BATCH, Graph, draw_raw
from perceivers.models.registry import FAMILIES, families_with
from perceivers.tasks import MaskedAutoencodingConfig
from perceivers.tasks.mae import objective_of

Part = Literal["model", "encoder", "decoder", "autoencoder"]
PARTS: tuple[Part, ...] = ("model", "encoder", "decoder", "autoencoder")


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
    if FAMILIES[model.family].objective is None:
        able = families_with("objective")
        raise ConfigError(
            f"part 'autoencoder' belongs to the families {' and '.join(able)}, this model is a "
            f"{model.family}; export part 'model'"
        )
    if model.decoder is None:
        raise ConfigError("this model has no decoder; export part 'model' or 'encoder'")
    raw, settings, objective = model.encoded_inputs, mask.settings(model), objective_of(model)
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
    predicted = (*names, *model.predicted_labels)
    return Graph(
        module=module,
        inputs=(*names, *plans),
        outputs=tuple(f"{n}_prediction" for n in predicted),
        raw=raw,
        sample=sample,
        free=tuple({0: BATCH} for _ in (*names, *plans)),
    )


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
    """Features: latents ``[B, N, D]`` (for HiP those of the processor), or all maps of a Hiera."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the features."""
        raw = dict(zip(self.names, tensors, strict=True))
        return tuple(self.model.features(raw).values())


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
        decoder_graph = FAMILIES[model.family].decoder_graph
        if decoder_graph is None:
            able = families_with("decoder_graph")
            raise ConfigError(
                f"part 'decoder' belongs to the family {' or '.join(able)}, this model is a "
                f"{model.family}; export part 'model' or 'encoder'"
            )
        return decoder_graph(model, output)
    if part == "autoencoder":
        return autoencoder_graph(model, mask or MaskedAutoencodingConfig())
    if part not in PARTS:
        raise ConfigError(f"part {part!r} is unknown; use one of {PARTS}" + suggest(part, PARTS))
    raw = model.encoded_inputs
    names = tuple(raw)
    kind, outputs = EncoderOnly, model.feature_names
    if part == "model":
        kind, outputs = WholeModel, model.result_names
    return Graph(
        module=kind(model, names),
        inputs=names,
        outputs=outputs,
        raw=raw,
        sample=lambda batch, generator: draw_raw(raw, batch, generator),
        free=tuple({0: BATCH} for _ in names),
    )
