"""Tables of names: which entry of our weights is which entry of a foreign file, and in what layout.

A foreign file is described once, as a list of parts ("this Linear of ours is that module of
theirs"), and expanded to one entry per tensor. The same entries import and export, so what was
imported can be written back bit by bit.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from perceivers.errors import CheckpointError
from perceivers.models import PerceiverConfig, PerceiverIOConfig
from perceivers.models.flat.trunk import TrunkConfig
from perceivers.settings import change
from perceivers.types import Array, Audio, Bytes, Image, Labels, Video

# -- The kinds of released models, and the two flavours in which their weights are run -----------
#
# The same weights exist twice, as DeepMind's Haiku files and as Hugging Face folders, and the two
# libraries compute slightly different things with them; docs/checkpoints.md lists how.

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


# -- Tables of names -----------------------------------------------------------------------------

Layout = Literal["same", "turned", "row", "cell", "channel", "pixel", "turned_pixel", "kernel"]
What = Literal["array", "row", "linear", "pixel", "conv", "batch_norm", "read", "layers"]


class Turn(NamedTuple):
    """A foreign layout to ours, and back; for layouts that depend on a model's sizes."""

    into: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


# Foreign layout to ours, and back.
LAYOUTS: Mapping[Layout, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "same": (lambda x: x, lambda x: x),
    # Linear weights of Haiku are [in, out].
    "turned": (lambda x: x.T, lambda x: x.T),
    # Learned vectors are [1, C], learned tables [1, N, C].
    "row": (lambda x: x.squeeze(0), lambda x: x.unsqueeze(0)),
    # A single token is [1, 1, C].
    "cell": (lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, -1)),
    # Vectors of Haiku's batch norm are [1, 1, 1, C].
    "channel": (lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, 1, -1)),
    # A 1x1 convolution is a Linear: [O, I, 1, 1], or [1, 1, I, O] in Haiku.
    "pixel": (lambda x: x[:, :, 0, 0], lambda x: x[:, :, None, None]),
    "turned_pixel": (lambda x: x[0, 0].T, lambda x: x.T[None, None]),
    # Kernels of Haiku are [H, W, I, O].
    "kernel": (lambda x: x.permute(3, 2, 0, 1), lambda x: x.permute(2, 3, 1, 0)),
}


class Part(NamedTuple):
    """One thing of ours (a prefix of names) and where the foreign file keeps it."""

    what: What
    ours: str
    theirs: str


@dataclass(frozen=True)
class Entry:
    """One tensor of ours, or some of its rows, and its foreign name and layout."""

    ours: str
    theirs: str
    layout: Layout | Turn = "same"
    rows: tuple[int, int] | None = None

    @property
    def turn(self) -> Turn:
        """The way from the foreign layout to ours, and back."""
        return self.layout if isinstance(self.layout, Turn) else Turn(*LAYOUTS[self.layout])


@dataclass(frozen=True)
class Scheme:
    """How a foreign library names what is inside a module.

    Attributes:
        parameter: Between a module's name and a parameter's.
        linear: Names of weight and bias of a Linear.
        norm: Names of weight and bias of a norm.
        weight: Layout of a Linear's weight.
        pixel: Layout of a 1x1 convolution's weight.
        kernel: Layout of a convolution's weight.
        vector: Layout of a batch norm's vectors.
        averages: Names of mean and variance below a batch norm.
        read: Ours to theirs, inside a cross-attention block.
        layer: Ours to theirs, inside a self-attention layer; query, key and value under ``qkv#``.
        index: What stands for the place of a layer, ``{}`` in its name.
    """

    parameter: str
    linear: tuple[str, str]
    norm: tuple[str, str]
    weight: Layout
    pixel: Layout
    kernel: Layout
    vector: Layout
    averages: tuple[str, str]
    read: Mapping[str, str]
    layer: Mapping[str, str]
    index: Callable[[int], str]


def expand(parts: Iterable[Part], scheme: Scheme, trunk: TrunkConfig) -> list[Entry]:
    """Return one entry per tensor.

    Args:
        parts: What there is.
        scheme: How the foreign library names it.
        trunk: Gives the number of layers and the widths inside a fused projection.
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
            entries += _block(scheme, scheme.read, ours, theirs, None)
        else:
            for i in range(trunk.depth):
                layer = theirs.format(scheme.index(i))
                entries += _block(scheme, scheme.layer, f"{ours}.{i}", layer, trunk)
    return entries


def _pair(
    scheme: Scheme,
    names: tuple[str, str],
    weight: Layout,
    ours: str,
    theirs: str,
    *,
    bias: Layout = "same",
    rows: tuple[int, int] | None = None,
) -> list[Entry]:
    """Weight and bias of one module."""
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
    scheme: Scheme, names: Mapping[str, str], ours: str, theirs: str, trunk: TrunkConfig | None
) -> list[Entry]:
    """Norms, projections and MLP of one attention block."""
    entries = []
    for own, foreign in names.items():
        name, _, third = own.partition("#")
        rows = fused_rows(trunk)[int(third)] if trunk is not None and third else None
        is_norm = name.startswith("norm")
        parameters = scheme.norm if is_norm else scheme.linear
        weight: Layout = "same" if is_norm else scheme.weight
        entries += _pair(
            scheme, parameters, weight, f"{ours}.{name}", f"{theirs}{foreign}", rows=rows
        )
    return entries


def fused_rows(trunk: TrunkConfig) -> list[tuple[int, int]]:
    """Rows of query, key and value in the fused projection of a self-attention layer."""
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
    """Load a foreign file into a model; the names must be exactly those of the table.

    A batch norm's count of steps is nowhere needed; it is kept when the file has it.

    Args:
        model: Filled in place.
        entries: One per tensor.
        found: The file's tensors by foreign name.
        source: For messages.
        besides: Names of ours that such files have no place for; they stay as they are.

    Raises:
        CheckpointError: Lists missing, unexpected and misshapen entries by their foreign names.
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
        # Compared in the foreign layout: turning a tensor of another shape could hide it.
        expected = tuple(entry.turn.back(target).shape)
        shape = tuple(found[entry.theirs].shape) if entry.theirs in found else expected
        if shape != expected:
            problems["another shape"].append(f"{entry.theirs} (file {shape}, model {expected})")
        targets.append(target)
    if any(problems.values()):
        raise CheckpointError(f"{source} does not fit the model: {list_problems(problems)}")
    for entry, target in zip(entries, targets, strict=True):
        target.copy_(entry.turn.into(found[entry.theirs]))


def list_problems(problems: Mapping[str, Sequence[str]]) -> str:
    """Name the first few of each kind."""
    return "; ".join(
        f"{kind}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for kind, names in problems.items()
        if names
    )


def take_from_model(
    model: nn.Module, entries: Sequence[Entry], *, besides: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return a model's weights under foreign names, in foreign layouts.

    Args:
        model: What to take from.
        entries: One per tensor.
        besides: Names of ours that such files have no place for; they are left behind.

    Raises:
        CheckpointError: The model has weights that the table has no name for.
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
    """Every weight of ours must have a foreign name; an incomplete table would lose some."""
    named = {entry.ours for entry in entries}
    known = named.union(besides)
    nameless = [n for n in state if n not in known and not n.endswith(".num_batches_tracked")]
    absent = sorted(named - state.keys())
    if nameless or absent:
        raise CheckpointError(
            f"this layout has no place for {nameless[:8] or 'nothing'} of the model, which lacks "
            f"{absent[:8] or 'nothing'}; the model is not of a released kind"
        )
