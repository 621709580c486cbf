"""The kinds of released models, and the two flavours in which their weights are run.

The same weights exist twice, as DeepMind's Haiku files and as Hugging Face folders, and the two
libraries compute slightly different things with them; docs/checkpoints.md lists how.
"""

from dataclasses import replace
from typing import Any, Literal

from perceivers.errors import CheckpointError
from perceivers.models import PerceiverConfig, PerceiverIOConfig
from perceivers.types import Array, Audio, Bytes, Image, Labels, Video

Kind = Literal["language", "text_classes", "image_classes", "flow", "multimodal", "classic"]
Flavour = Literal["official", "hf"]
FLAVOURS: tuple[Flavour, ...] = ("official", "hf")


def kind_of(config: Any) -> Kind:
    """Return the released kind that a configuration is of.

    Raises:
        CheckpointError: It is of none; no released layout could hold its weights.
    """
    if isinstance(config, PerceiverConfig):
        return "classic"
    if isinstance(config, PerceiverIOConfig):
        specs, outputs = list(config.inputs.values()), list(config.outputs.values())
        first = outputs[0]
        if len(specs) == len(outputs) == 1:
            if isinstance(specs[0], Bytes) and first.head == "tied":
                return "language"
            if isinstance(specs[0], Video) and first.queries == "tokens":
                return "flow"
            if config.num_classes and first.head == "linear":
                if isinstance(specs[0], Bytes):
                    return "text_classes"
                if isinstance(specs[0], Image):
                    return "image_classes"
        if sorted(map(modality_role, specs)) == ["audio", "image", "label"]:
            return "multimodal"
    raise CheckpointError(
        f"a {type(config).__name__} of inputs {list(config.inputs)} is of no released kind (masked "
        f"bytes, classes of texts or images, flow, video with sound and label, the classic "
        f"Perceiver); only those have a foreign layout"
    )


def modality_role(spec: Any) -> str:
    """Return what the multimodal release calls a modality."""
    if isinstance(spec, Video):
        return "image"
    if isinstance(spec, Audio):
        return "audio"
    return "label" if isinstance(spec, Labels | Array) else ""


def with_flavour(config: PerceiverIOConfig, flavour: Flavour) -> PerceiverIOConfig:
    """Return the configuration with which one of the two libraries runs the same weights.

    | | official | hf |
    |---|---|---|
    | GELU | tanh approximation | exact |
    | convolutional stem | padded as in TensorFlow | evenly, and one row and column less |
    | learned pixel positions: query residual | off | on |
    | queries of padded bytes | attend to nothing | are answered |
    | CLS and SEP around a text | no | yes |
    """
    hf = flavour == "hf"
    outputs = {n: replace(output, mask_padding=not hf) for n, output in config.outputs.items()}
    tokens = {n: replace(t, padding="hf" if hf else "same") for n, t in config.tokens.items()}
    inputs = {
        name: replace(spec, wrap="cls_sep" if hf else "none") if isinstance(spec, Bytes) else spec
        for name, spec in config.inputs.items()
    }
    decoder = config.decoder
    if kind_of(config) == "image_classes" and any(
        t.positions.kind == "learned" for t in tokens.values()
    ):
        decoder = replace(decoder, residual=hf)
    trunk = replace(config.trunk, activation="gelu" if hf else "gelu_tanh")
    return replace(
        config, inputs=inputs, tokens=tokens, outputs=outputs, decoder=decoder, trunk=trunk
    )
