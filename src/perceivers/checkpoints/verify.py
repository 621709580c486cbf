"""Comparing converted models with outputs of the official code and of Hugging Face's."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from math import isfinite, lcm
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.checkpoints.bundle import Archive, Bundle, check_comparable, largest_output
from perceivers.checkpoints.hugging_face import read_hugging_face
from perceivers.checkpoints.names import kind_of
from perceivers.checkpoints.sam2 import Sam2Weights, split_trunk
from perceivers.errors import CheckpointError, ConfigError
from perceivers.models import HieraDet, HieraDetConfig, Perceiver, PerceiverIO
from perceivers.models.hip import HiP
from perceivers.models.hip.encoder import Encoded
from perceivers.types import FIRST_BYTE, PAD

# -- Comparing a converted model with the outputs stored in its parity bundle --------------------

RELATIVE_TOLERANCE = 1e-5
Precision = Literal["float64", "float32"]
# Allowed when another library runs beside ours: absolute in float64 for outputs below 1, relative
# to the largest beyond; in float32 always relative, because rounding grows with depth.
TOLERANCES = {"float64": 1e-9, "float32": 1e-4}


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference of one output, and what is allowed.

    ``is_empty`` marks outputs without values on both sides, which prove nothing.
    """

    output: str
    largest: float
    allowed: float
    is_empty: bool = False

    @property
    def is_within(self) -> bool:
        """Whether the output agrees; nothing, and values that are not finite, never do."""
        return not self.is_empty and isfinite(self.allowed) and self.largest <= self.allowed


@torch.no_grad()
def verify_bundle(model: HiP, bundle: Bundle) -> list[Difference]:
    """Run the model on the stored inputs and compare every stored output.

    Raises:
        CheckpointError: The bundle stores an output that the model does not make, or of another
            shape.
    """
    allowed = RELATIVE_TOLERANCE * bundle.absmax
    differences = []
    compared = set()
    for dataset, modalities in bundle.datasets:
        inputs = {
            name: torch.from_numpy(bundle.inputs[f"{dataset}/{name}"]) for name, _ in modalities
        }
        encoded = model.encode(inputs)
        made = {
            "input_reconstruction": model.reconstruct(encoded),
            "latents": official_latents(encoded, model.decode(encoded)),
        }
        for kind, outputs in made.items():
            for name, tensor in outputs.items():
                key = f"{dataset}/{kind}/{name}"
                if key not in bundle.outputs:
                    raise CheckpointError(f"the bundle lacks output/{key}, which the model makes")
                compared.add(key)
                if kind == "latents" and tensor.numel() == bundle.outputs[key].size == 0:
                    # The released code may cut all of them away; the other outputs use them.
                    differences.append(Difference(key, 0.0, allowed, is_empty=True))
                    continue
                differences.append(compare_output(key, tensor, bundle.outputs[key], allowed))
    unknown = sorted(bundle.outputs.keys() - compared)
    if unknown:
        raise CheckpointError(f"the bundle stores outputs that the model does not make: {unknown}")
    return differences


def compare_output(key: str, ours: Tensor, theirs: np.ndarray, allowed: float) -> Difference:
    """Compare one output with what was stored.

    Raises:
        CheckpointError: They differ in shape, or hold nothing that could be compared.
    """
    if tuple(ours.shape) != theirs.shape:
        raise CheckpointError(
            f"output {key} has shape {tuple(ours.shape)}, the bundle's {theirs.shape}"
        )
    if theirs.size == 0:
        raise CheckpointError(
            f"output {key} is empty (shape {theirs.shape}), so nothing can be compared; use inputs "
            f"for which it has values"
        )
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, which never agrees
        gap = np.abs(ours.double().numpy() - theirs.astype(np.float64))
    return Difference(output=key, largest=float(gap.max()), allowed=allowed)


def compare_live(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], dtype: Precision
) -> list[Difference]:
    """Compare every output that another library made from the same inputs.

    Raises:
        CheckpointError: One side lacks an output, they differ in shape, or there is nothing to
            compare.
    """
    if not theirs:
        raise CheckpointError("the other side makes no outputs, so nothing can be compared")
    if ours.keys() != theirs.keys():
        raise CheckpointError(
            f"the model makes the outputs {sorted(ours)}, the other side {sorted(theirs)}; all "
            f"must be compared"
        )
    differences = []
    for name, stored in theirs.items():
        largest = float(stored.abs().max()) if stored.numel() else 0.0
        scale = max(1.0, largest) if dtype == "float64" else largest
        allowed = TOLERANCES[dtype] * scale
        differences.append(compare_output(name, ours[name], stored.numpy(), allowed))
    return differences


@contextmanager
def in_precision(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Cast a model for a while; float32 comes back from float64 as it was."""
    before = next(model.parameters()).dtype
    try:
        model.to(dtype)
        yield
    finally:
        model.to(before)


def official_latents(encoded: Encoded, latents: Tensor) -> Mapping[str, Tensor]:
    """Cut the last latents the way the released code does.

    It drops *input* padding from *latents*, which loses rows whenever there is padding; a negative
    end wraps, as slices do. The model itself returns all latents.
    """
    cut = {}
    start = 0
    for share in encoded.layout.shares:
        if encoded.layout.axis == "slots":
            cut[share.name] = latents[:, 0, start : start + share.length]
            start += share.length
            continue
        own = encoded.layout.part(latents, share.name)  # [B, g, N, C]
        if share.group_padding:
            own = own[:, :, : own.shape[2] - share.group_padding]
        own = own.flatten(1, 2)
        if share.final_padding:
            own = own[:, : own.shape[1] - share.final_padding]
        cut[share.name] = own
    return cut


# ------------------------------------------------------------------------------------------------
# Comparing a converted Perceiver or Perceiver IO with the outputs stored in its parity bundle.
#
# The released code keeps channels last and flattens what it answers; ours keeps raw layouts.

# Our name of an input to the released one, where they differ.
STORED_INPUTS: Mapping[str, Mapping[str, str]] = {
    "image_classes": {"image": "images"},
    "flow": {"video": "frames"},
    "language": {"bytes": "ids"},
    "multimodal": {"video": "images"},
}


@torch.no_grad()
def verify_archive(
    model: Perceiver | PerceiverIO, archive: Archive, source: str
) -> list[Difference]:
    """Run the model on the stored inputs and compare every stored output.

    Raises:
        CheckpointError: The archive lacks an input, stores an output that the model does not make,
            or one of another shape.
    """
    check_comparable(archive, source)
    inputs = _stored_inputs(model, archive, source)
    made = _classic(model, inputs) if isinstance(model, Perceiver) else _io(model, archive, inputs)
    if made.keys() != archive.outputs.keys():
        raise CheckpointError(
            f"{source} stores the outputs {sorted(archive.outputs)}, the model makes {sorted(made)}"
        )
    allowed = RELATIVE_TOLERANCE * largest_output(archive, source)
    return [compare_output(key, made[key], archive.outputs[key], allowed) for key in made]


def _stored_inputs(model: Any, archive: Archive, source: str) -> dict[str, Tensor]:
    """The stored arrays in our raw layouts, by our names."""
    names = STORED_INPUTS.get(kind_of(model.config), {})
    inputs = {}
    for name, spec in model.config.inputs.items():
        stored = names.get(name, name)
        if stored not in archive.inputs:
            raise CheckpointError(f"{source} lacks input/{stored}; it has {sorted(archive.inputs)}")
        array = torch.from_numpy(archive.inputs[stored])
        if spec.kind == "bytes":
            array = array.long()
        elif spec.channels_first:
            array = array.movedim(-1, 1)
        inputs[name] = array.reshape(-1, *spec.raw_shape)
    return inputs


def _classic(model: Perceiver, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"logits": model(inputs), "latents": model.forward_features(inputs).latents}


def _io(model: PerceiverIO, archive: Archive, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kind = kind_of(model.config)
    valid = {}
    if kind == "language":
        valid = {name: torch.from_numpy(archive.inputs["mask"]).bool() for name in inputs}
    encoded = model.encode(inputs, valid=valid)
    if kind == "flow":
        return {"out": model.decode(encoded).movedim(1, -1)}
    if kind != "multimodal":
        return {"out": model.decode(encoded)}
    points = {
        name: archive.config.get(f"subsampled_{stored}")
        for name, stored in {"audio": "audio", "video": "image"}.items()
    }
    asked = {name: torch.tensor(ids) if ids else None for name, ids in points.items()}
    audio, video = (model.decode(encoded, name, ids=asked[name]) for name in ("audio", "video"))
    if asked["video"] is None:
        video = video.flatten(2).transpose(1, 2)
    return {"audio": audio.flatten(1), "image": video, "label": model.decode(encoded, "label")}


# -- Comparing a converted model with Hugging Face's own class, run on the same fresh inputs -----
#
# Needs the library transformers, which nothing else here imports. Every input is made twice: raw
# for us, and as that class wants it (normalised, cut into windows) by code that shares nothing
# with our adapters.

POINTS = 64


def load_hugging_face(folder: Path, name: str = "") -> Any:
    """Build that library's class from a folder, all of whose weights must be used.

    Args:
        folder: The Hugging Face folder.
        name: Its class; one of the Perceivers, told by the folder, when not given.

    Raises:
        ConfigError: The library is not installed.
        CheckpointError: It finds weights missing, or has no use for some.
    """
    if find_spec("transformers") is None:
        raise ConfigError(
            "comparing with Hugging Face needs its library: pip install 'transformers>=4.50'; "
            "converting does not"
        )
    library = import_module("transformers")
    model, found = getattr(library, name or read_hugging_face(folder).name).from_pretrained(
        folder, local_files_only=True, output_loading_info=True
    )
    problems = {key: sorted(found[key]) for key in ("missing_keys", "unexpected_keys")}
    if any(problems.values()):
        raise CheckpointError(f"{folder} does not fit its own class: {problems}")
    return model.eval()


@torch.no_grad()
def verify_hugging_face(
    folder: Path, model: PerceiverIO, *, dtype: Precision = "float64", batch: int = 2, seed: int = 0
) -> list[Difference]:
    """Run both on fresh random inputs and compare every output.

    Args:
        folder: The Hugging Face folder.
        model: Converted from it, in flavour ``hf``.
        dtype: Precision of both.
        batch: Samples.
        seed: Of the inputs.

    Raises:
        ConfigError: The library is not installed.
        CheckpointError: Outputs differ in shape, or the folder does not fit its class.
    """
    theirs = load_hugging_face(folder).to(getattr(torch, dtype))
    draw = torch.Generator().manual_seed(seed)
    makers = {"flow": _flow, "multimodal": _multimodal, "image_classes": _images}
    with in_precision(model, getattr(torch, dtype)):
        ours, reference = makers.get(kind_of(model.config), _texts)(model, theirs, batch, draw)
    return compare_live(ours, reference, dtype)


Outputs = tuple[dict[str, Tensor], dict[str, Tensor]]


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _normalised(raw: Tensor, model: PerceiverIO, name: str) -> Tensor:
    """What the image processor does, channels on axis 1."""
    spec = model.config.inputs[name]
    shape = (1, -1, *[1] * (raw.ndim - 2))
    # Statistics are kept in float32, as everywhere.
    given = (spec.mean or (0.0,), spec.std or (1.0,))
    mean, std = (torch.tensor(values).to(raw.dtype).reshape(shape) for values in given)
    return (raw - mean) / std


def _texts(model: PerceiverIO, theirs: Any, batch: int, draw: torch.Generator) -> Outputs:
    """Bytes, the last text padded over half its length."""
    ((name, spec),) = model.config.inputs.items()
    ids = torch.randint(FIRST_BYTE, spec.channels, (batch, spec.num_tokens), generator=draw)
    ids[-1, spec.num_tokens // 2 :] = PAD
    answer = theirs(inputs=ids, attention_mask=(ids != PAD).long()).logits
    return {"logits": model({name: ids})}, {"logits": answer}


def _images(model: PerceiverIO, theirs: Any, batch: int, draw: torch.Generator) -> Outputs:
    ((name, spec),) = model.config.inputs.items()
    raw = torch.rand(batch, *spec.raw_shape, generator=draw, dtype=_dtype(model))
    answer = theirs(inputs=_normalised(raw, model, name)).logits
    return {"logits": model({name: raw})}, {"logits": answer}


def _flow(model: PerceiverIO, theirs: Any, batch: int, draw: torch.Generator) -> Outputs:
    """Two frames; that class wants the 3x3 windows already cut out, channels fastest."""
    ((name, spec),) = model.config.inputs.items()
    raw = torch.rand(batch, *spec.raw_shape, generator=draw, dtype=_dtype(model))
    frames = _normalised(raw, model, name).transpose(1, 2).flatten(0, 1)  # [B T, C, H, W]
    windows = F.unfold(frames, 3, padding=1).unflatten(1, (spec.channels, 9))  # [B T, C, 9, H W]
    patches = windows.transpose(1, 2).reshape(batch, 2, -1, *spec.grid[1:])
    answer = theirs(inputs=patches).logits  # [B, H, W, 2]
    return {"flow": model({name: raw}).movedim(1, -1)}, {"flow": answer}


def _multimodal(model: PerceiverIO, theirs: Any, batch: int, draw: torch.Generator) -> Outputs:
    """A clip, asked for at some points; that class cannot answer all at once."""
    config = model.config
    raw = {
        name: torch.rand(batch, *config.inputs[name].raw_shape, generator=draw, dtype=_dtype(model))
        for name in ("audio", "video")
    }
    classes = config.inputs["label"].channels
    labels = torch.randint(0, classes, (batch, 1), generator=draw)
    points = {
        name: torch.randint(0, model.num_queries(name), (POINTS,), generator=draw)
        for name in ("audio", "video")
    }
    answer = theirs(
        inputs={
            "image": raw["video"].transpose(1, 2),
            "audio": raw["audio"].transpose(1, 2),
            "label": F.one_hot(labels[:, 0], classes).to(_dtype(model)),
        },
        subsampled_output_points={"image": points["video"], "audio": points["audio"]},
    ).logits
    encoded = model.encode({**raw, "label": labels})
    audio, video = (model.decode(encoded, name, ids=points[name]) for name in ("audio", "video"))
    ours = {"audio": audio.flatten(1), "image": video, "label": model.decode(encoded, "label")}
    return ours, {name: answer[name] for name in ours}


# ------------------------------------------------------------------------------------------------
# Comparing a converted SAM 2 trunk with Hugging Face's own class, run on the same fresh picture.
#
# Needs the library transformers, which nothing else here imports. Meta's names are turned into
# that library's by code that shares nothing with our table.

# Pixels along the shorter side, or the next size that is made of whole windows: windows of later
# stages are filled up there, and the 1024 of the release would take minutes in float64.
LEAST_PIXELS = 192
META_TO_HUGGING_FACE = (
    ("patch_embed.proj.", "patch_embed.projection."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".mlp.layers.0.", ".mlp.proj_in."),
    (".mlp.layers.1.", ".mlp.proj_out."),
)


def load_hugging_face_trunk(read: Sam2Weights, config: HieraDetConfig) -> Any:
    """Build that library's class, all of whose weights must come from the file, and no others.

    Args:
        read: The file or folder.
        config: What a file without ``config.json`` was recognised as.

    Raises:
        ConfigError: The library is not installed.
        CheckpointError: The weights do not fit its class.
    """
    if find_spec("transformers") is None:
        raise ConfigError(
            "comparing with Hugging Face needs its library: pip install 'transformers>=4.57'; "
            "converting does not"
        )
    library = import_module("transformers.models.sam2.modeling_sam2")
    settings = import_module("transformers").Sam2HieraDetConfig
    model = library.Sam2HieraDetModel(settings(**(read.stated or describe_trunk(config))))
    state = dict(read.trunk)
    if read.naming == "meta":
        state = {_rename(name): tensor for name, tensor in state.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{read.source} does not fit Sam2HieraDetModel: {error}") from error
    return model.eval()


def _rename(name: str) -> str:
    for meta, theirs in META_TO_HUGGING_FACE:
        name = name.replace(meta, theirs)
    return name


def describe_trunk(config: HieraDetConfig) -> dict[str, Any]:
    """Return that library's settings of a trunk."""
    stages = range(len(config.depths))
    return {
        "hidden_size": config.dim,
        "num_attention_heads": config.num_heads,
        "num_channels": config.spec.channels,
        "image_size": list(config.spec.grid),
        "patch_kernel_size": list(config.patch_kernel),
        "patch_stride": list(config.patch_stride),
        "patch_padding": [size // 2 for size in config.patch_kernel],
        "query_stride": list(config.pool),
        "window_positional_embedding_background_size": list(config.position_grid),
        "num_query_pool_stages": len(stages) - 1,
        "blocks_per_stage": list(config.depths),
        "embed_dim_per_stage": list(config.dims),
        "num_attention_heads_per_stage": [config.num_heads * 2**stage for stage in stages],
        "window_size_per_stage": list(config.windows),
        "global_attention_blocks": list(config.global_blocks),
        "mlp_ratio": float(config.mlp_ratio),
    }


@torch.no_grad()
def verify_sam2(
    read: Sam2Weights, model: HieraDet, *, dtype: Precision = "float64", seed: int = 0
) -> list[Difference]:
    """Run both on one fresh random picture and compare the map of every stage.

    Args:
        read: The file or folder that the model was converted from.
        model: Ours; it comes back in its own precision.
        dtype: Precision of both.
        seed: Of the picture.

    Raises:
        ConfigError: The library is not installed.
        CheckpointError: Maps differ in shape, or the weights do not fit its class.
    """
    precision = getattr(torch, dtype)
    theirs = load_hugging_face_trunk(read, model.config).to(precision)
    spec, size = model.config.spec, picture_size(model.config)
    draw = torch.Generator().manual_seed(seed)
    raw = torch.rand(1, spec.channels, *size, generator=draw, dtype=precision)
    # Statistics are kept in float32, as everywhere.
    mean, std = (
        torch.tensor(values).to(precision).reshape(1, -1, 1, 1)
        for values in (spec.mean or (0.0,), spec.std or (1.0,))
    )
    stored = theirs((raw - mean) / std).intermediate_hidden_states
    with in_precision(model, precision):
        maps = model.forward_features(raw).maps
    return compare_live(
        {f"stage {stage}": x for stage, x in enumerate(maps)},
        {f"stage {stage}": x.movedim(-1, 1) for stage, x in enumerate(stored)},
        dtype,
    )


def verify_sam2_tensors(
    tensors: Mapping[str, Tensor], model: HieraDet, *, dtype: Precision = "float64"
) -> list[Difference]:
    """Do as ``verify_sam2`` for the tensors of a file.

    Raises:
        ConfigError: The library is not installed.
        CheckpointError: As ``verify_sam2``; or there is no trunk.
    """
    return verify_sam2(split_trunk(tensors, "the file"), model, dtype=dtype)


def picture_size(config: HieraDetConfig) -> tuple[int, ...]:
    """Return a size that both run: whole windows of the first stage that never become odd."""
    pools = len(config.depths) - 1
    units = [
        stride * lcm(config.windows[0], pool**pools)
        for stride, pool in zip(config.patch_stride, config.pool, strict=True)
    ]
    # The last side is one unit longer, so that rows and columns are told apart.
    counts = [-(-LEAST_PIXELS // unit) for unit in units]
    counts[-1] += 1
    return tuple(unit * count for unit, count in zip(units, counts, strict=True))
