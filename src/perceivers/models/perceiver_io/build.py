"""From a variant, inputs and what is asked of the model to a complete configuration.

Paper: Perceiver IO (arXiv 2107.14795) Fig. 3: which queries answer which task.
"""

from collections.abc import Mapping
from typing import Any

from perceivers.adapters.config import (
    PositionConfig,
    TokenConfig,
    build_nested,
    change_fields,
)
from perceivers.errors import ConfigError
from perceivers.models.flat.config import choose_tokens
from perceivers.models.flat.trunk import TrunkConfig
from perceivers.models.perceiver_io.config import DecoderConfig, Output, PerceiverIOConfig
from perceivers.settings import change, named, settle
from perceivers.types import Labels, ModalitySpec, Points

# Name of the output that says what every element belongs to, and sides of its patches.
SEGMENTS = "segments"
SEGMENT_PATCHES = (4, 2, 1)


def configure(
    settings: Mapping[str, Any],
    *,
    inputs: Mapping[str, ModalitySpec] | None,
    num_classes: int | Mapping[str, int] | None,
    head: str,
    overrides: Mapping[str, Any],
) -> PerceiverIOConfig:
    """Complete a variant.

    Args:
        settings: The variant's.
        inputs: Modalities; the variant's own when not given.
        num_classes: One learned query that answers so many logits, or one per name, each with the
            paper's two-layer head (multitask). Without it the variant's own outputs, or where it
            has none every modality is reconstructed.
        head: Must be ``query``.
        overrides: Fields of ``PerceiverIOConfig``; ``trunk`` and ``decoder`` may name single
            fields.

    Raises:
        ConfigError: There are no inputs, the head is another, or settings contradict one another.
    """
    inputs = inputs or settings.get("inputs")
    if inputs is None:
        raise ConfigError("this variant reads anything; say what with inputs={name: spec}")
    if head != "query":
        raise ConfigError(
            f"head={head!r}: Perceiver IO answers with queries; the family 'perceiver' has the mean"
        )
    values: dict[str, Any] = {**settings, **overrides, "inputs": inputs}
    for name, kind in (("trunk", TrunkConfig), ("decoder", DecoderConfig)):
        asked = overrides.get(name)
        if isinstance(asked, Mapping):
            own = settings.get(name)
            values[name] = change_fields(own, asked) if own else build_nested(kind, asked)
    values["tokens"] = choose_tokens(inputs, settings, overrides)
    if "outputs" in overrides:
        if num_classes is not None:
            raise ConfigError("num_classes and outputs both say what is answered; give one of them")
        table = overrides["outputs"].items()
        values["outputs"] = {key: build_nested(Output, entry) for key, entry in table}
    else:
        values["outputs"] = _outputs(values, settings, num_classes)
        if isinstance(num_classes, Mapping):
            # Queries of one width need no vectors to pad them.
            decoder = values.get("decoder", DecoderConfig())
            values["decoder"] = change(decoder, (), min_padding=0, project=0)
    return settle(PerceiverIOConfig, values, named(overrides))


def as_classifier(
    config: PerceiverIOConfig, num_classes: int | Mapping[str, int], head: str
) -> PerceiverIOConfig:
    """Return the config of a classifier with the same inputs and latents.

    Raises:
        ConfigError: The head is not ``query``.
    """
    settings = {"trunk": config.trunk, "tokens": config.tokens, "init": config.init}
    settings |= {"min_padding": config.min_padding, "mask_tokens": config.mask_tokens}
    return configure(
        settings, inputs=config.inputs, num_classes=num_classes, head=head, overrides={}
    )


def as_segmenter(
    config: PerceiverIOConfig, num_classes: int, modality: str, head: str
) -> PerceiverIOConfig:
    """Return the config of a Perceiver IO that answers with classes for every element.

    A query stands for a patch of the modality's grid, of the largest side that divides the grid
    among ``SEGMENT_PATCHES``, and for one point of a set of points.

    Args:
        config: Whose inputs and latents stay.
        num_classes: Logits per element.
        modality: Whose elements.
        head: ``family`` or ``queries``.

    Raises:
        ConfigError: Another head, or a modality that is not read.
    """
    if head not in {"family", "queries"} or modality not in config.inputs:
        raise ConfigError(
            f"head={head!r} for {modality!r}: Perceiver IO answers with 'queries' for every "
            f"element of one of {list(config.inputs)}"
        )
    spec, tokens = config.inputs[modality], config.tokens[modality]
    if isinstance(spec, Points):
        # The place of a point is what it holds, so a point asks with its own token.
        output = Output(queries="tokens", modality=modality, channels=num_classes)
        return change(config, given=(), outputs={SEGMENTS: output})
    side = next(n for n in SEGMENT_PATCHES if all(size % n == 0 for size in spec.grid))
    output = Output(
        queries="positions",
        modality=modality,
        positions=PositionConfig(kind="fourier", num_bands=tokens.positions.num_bands),
        patch=(side,) * len(spec.grid),
        channels=num_classes,
    )
    return change(config, given=(), outputs={SEGMENTS: output})


def _outputs(
    values: Mapping[str, Any],
    settings: Mapping[str, Any],
    num_classes: int | Mapping[str, int] | None,
) -> dict[str, Output]:
    """What the model is to answer."""
    dim = values["trunk"].latent_dim
    if isinstance(num_classes, Mapping):
        return {
            name: Output(dim=dim, channels=count, head="tanh_mlp")
            for name, count in num_classes.items()
        }
    if num_classes is not None:
        return {"classes": Output(dim=dim, channels=num_classes)}
    own, inputs = settings.get("outputs"), values["inputs"]
    if own and all(not output.modality or output.modality in inputs for output in own.values()):
        return {
            name: change(output, (), length=inputs[output.modality].num_tokens)
            if output.queries == "learned" and output.modality
            else output
            for name, output in own.items()
        }
    return {
        name: reconstruction(name, spec, values["tokens"][name], dim)
        for name, spec in inputs.items()
    }


def reconstruction(name: str, spec: ModalitySpec, tokens: TokenConfig, dim: int) -> Output:
    """Return the output that gives a modality back, element by element.

    The queries are placed as the tokens are; audio is answered a patch at a time, as in the paper.
    """
    if spec.kind == "bytes":
        # A Linear of its own starts at even odds; a tied embedding of deviation 1 does not.
        return Output(length=spec.num_tokens, dim=tokens.dim, modality=name, channels=spec.channels)
    if isinstance(spec, Labels):
        return Output(length=spec.length, dim=dim, channels=spec.num_classes)
    if isinstance(spec, Points):
        positions = PositionConfig(kind="learned", dim=dim)
    elif tokens.content == "elements" and not tokens.stride:
        positions = change(tokens.positions, (), combine="concat")
        if positions.kind == "none":
            positions = PositionConfig(kind="learned", dim=dim)
    else:
        positions = PositionConfig(kind="fourier", num_bands=tokens.positions.num_bands)
    patch = tokens.patch if spec.kind == "audio" else ()
    return Output(
        queries="positions", modality=name, positions=positions, patch=patch, channels=spec.channels
    )
