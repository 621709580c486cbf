"""Name tables that map our weights to the names and layouts of third-party files.

A file format is described as a list of parts (one per module), expanded to one entry per tensor.
The same entries are used for import and export, so that imported weights are exported bit for bit.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from perceivers.errors import CheckpointError
from perceivers.models import PerceiverConfig, PerceiverIOConfig
from perceivers.models.flat.trunk import TrunkConfig
from perceivers.models.saving import ModelInfo
from perceivers.settings import change
from perceivers.types import Array, Audio, Bytes, Image, Labels, Video

# -- Kinds of released models, and the two flavours of their computation -------------------------
#
# The same weights exist as DeepMind's Haiku files and as Hugging Face folders, but the two
# libraries compute slightly different outputs with them; see docs/checkpoints.md.

Kind = Literal["language", "text_classes", "image_classes", "flow", "multimodal", "classic"]
Flavour = Literal["official", "hf"]
FLAVOURS: tuple[Flavour, ...] = ("official", "hf")


def kind_of(config: Any) -> Kind:
    """Return the kind of released model that a configuration matches.

    Raises:
        CheckpointError: It matches none, so that no released format can store its weights.
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
        f"a {type(config).__name__} of inputs {list(config.inputs)} does not match any released "
        f"model (masked bytes, classes of texts or images, flow, video with audio and label, the "
        f"classic Perceiver); only those can be stored in another library's layout"
    )


TASKS_OF_KINDS: Mapping[Kind, str] = {
    "language": "mlm",
    "text_classes": "classify",
    "image_classes": "classify",
    "classic": "classify",
    "flow": "flow",
    "multimodal": "autoencode",
}


def with_task(model: Any, info: ModelInfo) -> ModelInfo:
    """Add the task of a released model, which ``predict`` and ``reconstruct`` need."""
    if info.task:
        return info
    try:
        task = TASKS_OF_KINDS[kind_of(model.config)]
    except CheckpointError:  # no released model
        return info
    classes = info.classes
    if task == "classify" and not classes:
        # The published files contain no class names, so classes are numbered.
        classes = tuple(str(number) for number in range(model.config.num_classes))
    return replace(info, task=task, classes=classes)


def modality_role(spec: Any) -> str:
    """Return the name of a modality in the released multimodal model; "" if it has no such one."""
    if isinstance(spec, Video):
        return "image"
    if isinstance(spec, Audio):
        return "audio"
    return "label" if isinstance(spec, Labels | Array) else ""


def with_flavour(config: PerceiverIOConfig, flavour: Flavour) -> PerceiverIOConfig:
    """Return the configuration under which one of the two libraries computes its outputs.

    | | official | hf |
    |---|---|---|
    | GELU | tanh approximation | exact |
    | convolutional stem | padded as in TensorFlow: 224 becomes 56 | symmetric: 224 becomes 55 |
    | learned pixel positions: query residual | off | on |
    | queries of padded bytes | attend to nothing | attend like others |
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


# Settings that may differ between flavours (last component of the path).
FLAVOURED = {"activation", "padding", "mask_padding", "wrap", "residual"}
# Settings that do not affect the outputs of a converted model.
SILENT = {"init", "chunk", "mean", "std", "sample_rate", "frame_rate", "dropout_rate"}


def describe_differences(ours: Any, theirs: Any, library: str) -> list[str]:
    """Return notes on what another library computes differently with the same weights.

    Args:
        ours: Configuration of the model.
        theirs: Our configuration as that library's files can express it.
        library: Its name, for messages.

    Raises:
        CheckpointError: That library does not support a setting of the model.
    """
    mine, its = (_flatten(_plain(config).to_json()) for config in (ours, theirs))
    differing = [
        path
        for path in sorted(mine.keys() | its.keys())
        if mine.get(path) != its.get(path) and path.rpartition(".")[2] not in SILENT
    ]
    lines = [f"{path} is {mine.get(path)!r} here and {its.get(path)!r} there" for path in differing]
    if any(path.rpartition(".")[2] not in FLAVOURED for path in differing):
        raise CheckpointError(f"{library} does not support this model: {'; '.join(lines)}")
    return [f"{library} runs these weights differently: {line}" for line in lines]


def _plain(config: Any) -> Any:
    # Sharing makes no difference with a single read or block; compare such configs as equal.
    trunk = config.trunk
    if trunk.num_blocks == 1:
        trunk = change(trunk, (), share_blocks=True)
    if trunk.num_reads == 1:
        trunk = change(trunk, (), share_reads="all", reads="at_start")
    return change(config, (), trunk=trunk)


def _flatten(data: Any, path: str = "") -> dict[str, Any]:
    """Return values by dotted path; names chosen by users are replaced by their index."""
    if not isinstance(data, Mapping):
        return {path: list(data) if isinstance(data, tuple) else data}
    named = path in {"inputs", "tokens", "outputs"}
    found = {}
    for place, (key, value) in enumerate(data.items()):
        if key != "modality":
            step = str(place) if named else str(key)
            found |= _flatten(value, f"{path}.{step}" if path else step)
    return found


# -- Name tables ---------------------------------------------------------------------------------

Layout = Literal["same", "turned", "row", "cell", "channel", "pixel", "turned_pixel", "kernel"]
What = Literal["array", "row", "linear", "pixel", "conv", "batch_norm", "read", "layers"]


class Turn(NamedTuple):
    """Conversion from a foreign layout to ours (``into``) and back."""

    into: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


# Layouts that do not depend on a model's sizes: conversion from foreign to ours, and back.
LAYOUTS: Mapping[Layout, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "same": (lambda x: x, lambda x: x),
    # Linear weights of Haiku are [in, out].
    "turned": (lambda x: x.T, lambda x: x.T),
    # Learned vectors are stored as [1, C], learned position embeddings as [1, N, C].
    "row": (lambda x: x.squeeze(0), lambda x: x.unsqueeze(0)),
    # A single token is stored as [1, 1, C].
    "cell": (lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, -1)),
    # Vectors of Haiku's batch norm are [1, 1, 1, C].
    "channel": (lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, 1, -1)),
    # A 1x1 convolution is a Linear: [O, I, 1, 1], or [1, 1, I, O] in Haiku.
    "pixel": (lambda x: x[:, :, 0, 0], lambda x: x[:, :, None, None]),
    "turned_pixel": (lambda x: x[0, 0].T, lambda x: x.T[None, None]),
    # Kernels of Haiku are [H, W, I, O].
    "kernel": (lambda x: x.permute(3, 2, 0, 1), lambda x: x.permute(2, 3, 1, 0)),
}


def grid_layout(grid: Sequence[int]) -> Turn:
    """Return the conversion of position embeddings from ``[1, C, *grid]`` to our ``[N, C]``."""
    return Turn(lambda x: x[0].flatten(1).T, lambda x: x.T.reshape(1, -1, *grid))


Rows = tuple[int, int]


class Part(NamedTuple):
    """A module or array of ours (a prefix of names) and its name in the foreign file."""

    what: What
    ours: str
    theirs: str


@dataclass(frozen=True)
class Entry:
    """One tensor of ours, or a range of its rows, with its foreign name and layout."""

    ours: str
    theirs: str
    layout: Layout | Turn = "same"
    rows: Rows | None = None

    @property
    def turn(self) -> Turn:
        """Conversion between the foreign layout and ours."""
        return self.layout if isinstance(self.layout, Turn) else Turn(*LAYOUTS[self.layout])


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Naming conventions of a foreign library.

    Attributes:
        parameter: Separator between module and parameter name.
        linear: Names of weight and bias of a Linear.
        norm: Names of weight and bias of a norm.
        weight: Layout of a Linear's weight.
        read: Our names to theirs inside a cross-attention block.
        layer: Our names to theirs inside a self-attention layer; ``qkv#0`` to ``qkv#2`` are query,
            key and value.
        index: Formats the number of a layer, which replaces ``{}`` in its name.
        pixel: Layout of a 1x1 convolution's weight.
        kernel: Layout of a convolution's weight.
        vector: Layout of a batch norm's vectors.
        averages: Names of the running mean and variance of a batch norm.
    """

    parameter: str
    linear: tuple[str, str]
    norm: tuple[str, str]
    weight: Layout
    read: Mapping[str, str]
    layer: Mapping[str, str]
    index: Callable[[int], str]
    pixel: Layout = "same"
    kernel: Layout = "same"
    vector: Layout = "same"
    averages: tuple[str, str] = ("", "")


def expand(parts: Iterable[Part], scheme: Scheme, depth: int, fused: Sequence[Rows]) -> list[Entry]:
    """Expand parts to one entry per tensor.

    Args:
        parts: The modules and arrays of the model.
        scheme: Naming conventions of the foreign library.
        depth: Number of self-attention layers in a part of kind ``layers``.
        fused: Row ranges of query, key and value in a layer's fused projection.
    """
    entries: list[Entry] = []
    for what, ours, theirs in parts:
        if what in {"array", "row"}:
            entries.append(Entry(ours, theirs, "same" if what == "array" else "row"))
        elif what in {"linear", "pixel"}:
            weight = scheme.weight if what == "linear" else scheme.pixel
            entries += _pair(scheme, scheme.linear, weight, ours, theirs)
        elif what == "conv":
            name = f"{theirs}{scheme.parameter}{scheme.linear[0]}"
            entries.append(Entry(f"{ours}.weight", name, scheme.kernel))
        elif what == "batch_norm":
            entries += _batch_norm(scheme, ours, theirs)
        elif what == "read":
            entries += _block(scheme, scheme.read, ours, theirs, fused)
        else:
            for i in range(depth):
                layer = theirs.format(scheme.index(i))
                entries += _block(scheme, scheme.layer, f"{ours}.{i}", layer, fused)
    return entries


def _pair(
    scheme: Scheme,
    names: tuple[str, str],
    weight: Layout,
    ours: str,
    theirs: str,
    *,
    bias: Layout = "same",
    rows: Rows | None = None,
) -> list[Entry]:
    own = (f"{ours}.weight", f"{ours}.bias")
    foreign = tuple(f"{theirs}{scheme.parameter}{name}" for name in names)
    return [Entry(own[i], foreign[i], (weight, bias)[i], rows) for i in range(2)]


def _batch_norm(scheme: Scheme, ours: str, theirs: str) -> list[Entry]:
    averages = zip(("running_mean", "running_var"), scheme.averages, strict=True)
    vectors = _pair(scheme, scheme.norm, scheme.vector, ours, theirs, bias=scheme.vector)
    return vectors + [
        Entry(f"{ours}.{own}", f"{theirs}{foreign}", scheme.vector) for own, foreign in averages
    ]


def _block(
    scheme: Scheme, names: Mapping[str, str], ours: str, theirs: str, fused: Sequence[Rows]
) -> list[Entry]:
    entries = []
    for own, foreign in names.items():
        name, _, third = own.partition("#")
        rows = fused[int(third)] if third else None
        is_norm = name.startswith("norm")
        parameters = scheme.norm if is_norm else scheme.linear
        weight: Layout = "same" if is_norm else scheme.weight
        entries += _pair(
            scheme, parameters, weight, f"{ours}.{name}", f"{theirs}{foreign}", rows=rows
        )
    return entries


def fused_rows(trunk: TrunkConfig) -> list[Rows]:
    """Return the row ranges of query, key and value in a fused self-attention projection."""
    qk = trunk.qk_dim or trunk.latent_dim
    value = trunk.v_dim or trunk.qk_dim or trunk.latent_dim
    return [(0, qk), (qk, 2 * qk), (2 * qk, 2 * qk + value)]


def fill_model(
    model: nn.Module,
    entries: Sequence[Entry],
    found: Mapping[str, Tensor],
    *,
    source: str,
    besides: Collection[str] = (),
) -> None:
    """Load the tensors of a foreign file into a model; the names must be exactly those expected.

    The step counter of a batch norm is optional, because it does not affect outputs.

    Args:
        model: The model, changed in place.
        entries: Name table with one entry per tensor.
        found: Tensors by foreign name.
        source: File name for error messages.
        besides: Our names of tensors that the format does not store; they are not changed.

    Raises:
        CheckpointError: Tensors are missing, unexpected or have another shape (listed by foreign
            name).
    """
    state = model.state_dict()  # shares the model's memory
    _check_complete(state, entries, besides)
    named = {entry.theirs for entry in entries}
    problems = {
        "missing": sorted(named - found.keys()),
        "unexpected": sorted(found.keys() - named),
        "another shape": [],
    }
    targets = []
    for entry in entries:
        target = state[entry.ours]
        target = target if entry.rows is None else target[slice(*entry.rows)]
        # Compare in the foreign layout: converting a tensor of another shape could fail, or result
        # in the right shape by chance.
        expected = tuple(entry.turn.back(target).shape)
        shape = tuple(found[entry.theirs].shape) if entry.theirs in found else expected
        if shape != expected:
            problems["another shape"].append(f"{entry.theirs} (file {shape}, model {expected})")
        targets.append(target)
    if any(problems.values()):
        raise CheckpointError(
            f"{source} does not fit the model: {'; '.join(list_problems(problems))}"
        )
    for entry, target in zip(entries, targets, strict=True):
        target.copy_(entry.turn.into(found[entry.theirs]))


def list_problems(problems: Mapping[str, Sequence[str]]) -> list[str]:
    """Format problems for an error message, with the first eight names of each kind."""
    return [
        f"{kind}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for kind, names in problems.items()
        if names
    ]


def take_from_model(
    model: nn.Module, entries: Sequence[Entry], *, besides: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return a model's weights with foreign names and layouts, on the CPU.

    Args:
        model: The model.
        entries: Name table with one entry per tensor.
        besides: Our names of tensors that the format does not store; they are skipped.

    Raises:
        CheckpointError: The model has weights without an entry in the table.
    """
    state = model.state_dict()
    _check_complete(state, entries, besides)
    taken = {}
    for entry in entries:
        tensor = state[entry.ours].detach().cpu()
        if entry.rows is not None:
            tensor = tensor[slice(*entry.rows)]
        taken[entry.theirs] = entry.turn.back(tensor).contiguous()
    return taken


def _check_complete(
    state: Mapping[str, Any], entries: Sequence[Entry], besides: Collection[str]
) -> None:
    # Without this check, an incomplete table would lose weights silently.
    named = {entry.ours for entry in entries}
    known = named.union(besides)
    nameless = [n for n in state if n not in known and not n.endswith(".num_batches_tracked")]
    absent = sorted(named - state.keys())
    if nameless or absent:
        raise CheckpointError(
            f"this layout has no name for {nameless[:8] or 'nothing'} of the model, and the model "
            f"lacks {absent[:8] or 'nothing'}; it does not match any released model"
        )
