"""The kinds of released models, and the two flavours in which their weights are run.

The same weights exist twice, as DeepMind's Haiku files and as Hugging Face folders, and the two
libraries compute slightly different things with them; docs/checkpoints.md lists how.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from perceivers.errors import CheckpointError
from perceivers.models import PerceiverConfig, PerceiverIOConfig
from perceivers.settings import change
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
    tokens = {
        name: change(how, (), padding="hf" if hf else "same") if how.content == "conv" else how
        for name, how in config.tokens.items()
    }
    inputs = {
        name: replace(spec, wrap="cls_sep" if hf else "none") if isinstance(spec, Bytes) else spec
        for name, spec in config.inputs.items()
    }
    outputs = {
        name: change(output, (), mask_padding=not hf) if output.head == "tied" else output
        for name, output in config.outputs.items()
    }
    decoder = config.decoder
    if kind_of(config) == "image_classes" and any(
        t.positions.kind == "learned" for t in tokens.values()
    ):
        decoder = change(decoder, (), residual=hf)
    trunk = change(config.trunk, (), activation="gelu" if hf else "gelu_tanh")
    return change(
        config, (), inputs=inputs, tokens=tokens, outputs=outputs, decoder=decoder, trunk=trunk
    )


# What each flavour may do differently with the same weights, by the last word of its path.
FLAVOURED = {"activation", "padding", "mask_padding", "wrap", "residual"}
# What changes no output of a converted model.
SILENT = {"init", "chunk", "mean", "std", "sample_rate", "frame_rate", "dropout_rate"}


def describe_differences(ours: Any, theirs: Any, library: str) -> list[str]:
    """Return what another library computes otherwise with the same weights.

    Args:
        ours: Configuration of the model.
        theirs: What that library's files can say of it, in our terms.
        library: Its name, for messages.

    Raises:
        CheckpointError: Something has no place in its files.
    """
    mine, its = (_flatten(_plain(config).to_json()) for config in (ours, theirs))
    differing = [
        path
        for path in sorted(mine.keys() | its.keys())
        if mine.get(path) != its.get(path) and path.rpartition(".")[2] not in SILENT
    ]
    lines = [f"{path} is {mine.get(path)!r} here and {its.get(path)!r} there" for path in differing]
    if any(path.rpartition(".")[2] not in FLAVOURED for path in differing):
        raise CheckpointError(f"{library} has no place for this model: {'; '.join(lines)}")
    return [f"{library} runs these weights differently: {line}" for line in lines]


def _plain(config: Any) -> Any:
    """Without sharing among reads or blocks of which there is one."""
    trunk = config.trunk
    if trunk.num_blocks == 1:
        trunk = change(trunk, (), share_blocks=True)
    if trunk.num_reads == 1:
        trunk = change(trunk, (), share_reads="all", reads="at_start")
    return change(config, (), trunk=trunk)


def _flatten(data: Any, path: str = "") -> dict[str, Any]:
    """Values by dotted path; the names that users give are replaced by their places."""
    if not isinstance(data, Mapping):
        return {path: list(data) if isinstance(data, tuple) else data}
    named = path in {"inputs", "tokens", "outputs"}
    found = {}
    for place, (key, value) in enumerate(data.items()):
        if key != "modality":
            step = str(place) if named else str(key)
            found |= _flatten(value, f"{path}.{step}" if path else step)
    return found
