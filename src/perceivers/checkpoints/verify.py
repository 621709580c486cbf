"""Comparing converted models with outputs of the official code and of Hugging Face's classes.

Hieras are compared in ``verify_hiera``.
"""

from collections.abc import Callable, Iterator, Mapping
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
from perceivers.models.hip.encoder import HiPEncoded
from perceivers.types import FIRST_BYTE, PAD

# -- Comparing a converted model with the outputs stored in its parity bundle --------------------

RELATIVE_TOLERANCE = 1e-5
Precision = Literal["float64", "float32"]
# Tolerances against another library's live outputs: in float64 relative to the largest output or
# to 1, whichever is larger; in float32 relative to the largest output, because rounding errors grow
# with depth.
TOLERANCES = {"float64": 1e-9, "float32": 1e-4}


@dataclass(frozen=True)
class Difference:
    """Largest absolute difference of one output, and the tolerance.

    Attributes:
        output: Name of the output.
        largest: Largest absolute difference.
        allowed: Absolute tolerance.
        is_empty: Whether the output has no values in either model, so that nothing was compared.
    """

    output: str
    largest: float
    allowed: float
    is_empty: bool = False

    @property
    def is_within(self) -> bool:
        """Whether the output agrees; False for empty outputs and for NaN or infinite values."""
        return not self.is_empty and isfinite(self.allowed) and self.largest <= self.allowed


@torch.no_grad()
def verify_bundle(model: HiP, bundle: Bundle) -> list[Difference]:
    """Run the model on the stored inputs and compare every stored output.

    Raises:
        CheckpointError: Outputs of the bundle and of the model differ in names or shapes, or an
            output is empty.
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
                    raise CheckpointError(
                        f"the bundle lacks output/{key}, which the model computes"
                    )
                compared.add(key)
                if kind == "latents" and tensor.numel() == bundle.outputs[key].size == 0:
                    # The released code may cut off all latents (see official_latents); the other
                    # outputs still depend on them.
                    differences.append(Difference(key, 0.0, allowed, is_empty=True))
                    continue
                differences.append(compare_output(key, tensor, bundle.outputs[key], allowed))
    unknown = sorted(bundle.outputs.keys() - compared)
    if unknown:
        raise CheckpointError(
            f"the bundle stores outputs that the model does not compute: {unknown}"
        )
    return differences


def compare_output(key: str, ours: Tensor, theirs: np.ndarray, allowed: float) -> Difference:
    """Compare one output with a reference array.

    Args:
        key: Name of the output.
        ours: Output of our model.
        theirs: The reference.
        allowed: Absolute tolerance.

    Raises:
        CheckpointError: The shapes differ, or there are no values to compare.
    """
    if tuple(ours.shape) != theirs.shape:
        raise CheckpointError(
            f"output {key} has shape {tuple(ours.shape)}, the reference has {theirs.shape}"
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
    """Compare every output with that of another library for the same inputs.

    Raises:
        CheckpointError: The outputs differ in names or shapes, or there are no values to compare.
    """
    if not theirs:
        raise CheckpointError("the reference model has no outputs, so nothing can be compared")
    if ours.keys() != theirs.keys():
        raise CheckpointError(
            f"the model has the outputs {sorted(ours)}, the reference model {sorted(theirs)}; they "
            f"must be the same"
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
    """Cast a model to ``dtype`` within a ``with`` block.

    Casting to a wider type and back is exact; casting to a narrower type loses precision.
    """
    before = next(model.parameters()).dtype
    try:
        model.to(dtype)
        yield
    finally:
        model.to(before)


def official_latents(encoded: HiPEncoded, latents: Tensor) -> Mapping[str, Tensor]:
    """Cut the last latents by modality as the released code does.

    The released code removes as many latents as there are *padded inputs*, so latents are lost
    whenever there is padding. A negative end counts from the back, as in any slice. The model
    itself returns all latents.
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


# -- Comparing a converted Perceiver or Perceiver IO with the outputs in its parity bundle -------
#
# The released code has channels last and flattens its outputs; ours keeps the layouts of the data.

# Our input names to the released ones, where they differ.
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
        CheckpointError: The archive lacks an input, or outputs differ in names or shapes.
    """
    check_comparable(archive, source)
    inputs = _stored_inputs(model, archive, source)
    made = RUNS[model.family](model, archive, inputs)
    if made.keys() != archive.outputs.keys():
        raise CheckpointError(
            f"{source} stores the outputs {sorted(archive.outputs)}, the model has {sorted(made)}"
        )
    allowed = RELATIVE_TOLERANCE * largest_output(archive, source)
    return [compare_output(key, made[key], archive.outputs[key], allowed) for key in made]


def _stored_inputs(model: Any, archive: Archive, source: str) -> dict[str, Tensor]:
    """Return the stored inputs with our names and layouts."""
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


def _classic(model: Perceiver, archive: Archive, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


# How the outputs of a bundle are computed, by model family.
RUNS: Mapping[str, Callable[[Any, Archive, Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "perceiver": _classic,
    "perceiver_io": _io,
}


# -- Comparing a converted model with its Hugging Face class on random inputs --------------------
#
# Needs transformers, which only verification imports. The inputs of that class (normalised, cut
# into windows) are computed without our adapters, so that an error in those cannot cancel out.

POINTS = 64


def load_hugging_face(folder: Path, name: str = "") -> Any:
    """Load a Hugging Face model in evaluation mode from a local folder.

    Args:
        folder: The Hugging Face folder.
        name: Name of the class; if empty, the folder's Perceiver class.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: Weights are missing or unexpected.
    """
    if find_spec("transformers") is None:
        raise ConfigError(
            "comparing with Hugging Face needs transformers: pip install 'transformers>=4.50'; "
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
    """Compare a model with its Hugging Face class on random inputs.

    Args:
        folder: The Hugging Face folder.
        model: The model converted from it, in flavour ``hf``.
        dtype: Precision of both models.
        batch: Number of samples.
        seed: Seed of the inputs.

    Raises:
        ConfigError: transformers is not installed.
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
    """Normalise as the image processor does; channels are on axis 1."""
    spec = model.config.inputs[name]
    shape = (1, -1, *[1] * (raw.ndim - 2))
    # Round the statistics to float32, as our adapters do.
    given = (spec.mean or (0.0,), spec.std or (1.0,))
    mean, std = (torch.tensor(values).to(raw.dtype).reshape(shape) for values in given)
    return (raw - mean) / std


def _texts(model: PerceiverIO, theirs: Any, batch: int, draw: torch.Generator) -> Outputs:
    ((name, spec),) = model.config.inputs.items()
    ids = torch.randint(FIRST_BYTE, spec.channels, (batch, spec.num_tokens), generator=draw)
    # Half of the last text is padding, to compare attention masks as well.
    ids[-1, spec.num_tokens // 2 :] = PAD
    answer = theirs(inputs=ids, attention_mask=(ids != PAD).long()).logits
    return {"logits": model({name: ids})}, {"logits": answer}


def _images(model: PerceiverIO, theirs: Any, batch: int, draw: torch.Generator) -> Outputs:
    ((name, spec),) = model.config.inputs.items()
    raw = torch.rand(batch, *spec.raw_shape, generator=draw, dtype=_dtype(model))
    answer = theirs(inputs=_normalised(raw, model, name)).logits
    return {"logits": model({name: raw})}, {"logits": answer}


def _flow(model: PerceiverIO, theirs: Any, batch: int, draw: torch.Generator) -> Outputs:
    # The Hugging Face class expects the 3 x 3 windows of every pixel as input, channels fastest.
    ((name, spec),) = model.config.inputs.items()
    raw = torch.rand(batch, *spec.raw_shape, generator=draw, dtype=_dtype(model))
    frames = _normalised(raw, model, name).transpose(1, 2).flatten(0, 1)  # [B T, C, H, W]
    windows = F.unfold(frames, 3, padding=1).unflatten(1, (spec.channels, 9))  # [B T, C, 9, H W]
    patches = windows.transpose(1, 2).reshape(batch, 2, -1, *spec.grid[1:])
    answer = theirs(inputs=patches).logits  # [B, H, W, 2]
    return {"flow": model({name: raw}).movedim(1, -1)}, {"flow": answer}


def _multimodal(model: PerceiverIO, theirs: Any, batch: int, draw: torch.Generator) -> Outputs:
    # Compare random output points: the Hugging Face class cannot decode all of them at once.
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


# -- Comparing a converted SAM 2 trunk with its Hugging Face class on a random image -------------
#
# Needs transformers, as above. Meta's names are translated to Hugging Face's without our name
# table, so that an error in it cannot cancel out.

# Minimum size of the shorter side, rounded up to whole windows. At this size, windows of later
# stages need padding, which is compared as well; the released 1024 takes minutes in float64.
LEAST_PIXELS = 192
META_TO_HUGGING_FACE = (
    ("patch_embed.proj.", "patch_embed.projection."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".mlp.layers.0.", ".mlp.proj_in."),
    (".mlp.layers.1.", ".mlp.proj_out."),
)


def load_hugging_face_trunk(read: Sam2Weights, config: HieraDetConfig) -> Any:
    """Build Hugging Face's class of the trunk and load the weights; all names must match.

    Args:
        read: The trunk's weights.
        config: Our configuration, used if ``read`` comes from a file without ``config.json``.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: The weights do not fit its class.
    """
    if find_spec("transformers") is None:
        raise ConfigError(
            "comparing with Hugging Face needs transformers: pip install 'transformers>=4.57'; "
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
    """Translate our config to the settings of Hugging Face's ``Sam2HieraDetConfig``."""
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
    """Compare the feature maps of every stage with Hugging Face's on a random image.

    Args:
        read: The weights that the model was converted from.
        model: The converted model; its precision is restored afterwards.
        dtype: Precision of both models.
        seed: Seed of the image.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: Feature maps differ in shape, or the weights do not fit the class.
    """
    precision = getattr(torch, dtype)
    theirs = load_hugging_face_trunk(read, model.config).to(precision)
    spec, size = model.config.spec, picture_size(model.config)
    draw = torch.Generator().manual_seed(seed)
    raw = torch.rand(1, spec.channels, *size, generator=draw, dtype=precision)
    # Round the statistics to float32, as our adapters do.
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
    """Run ``verify_sam2`` on the tensors of a file.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: There is no trunk, or as for ``verify_sam2``.
    """
    return verify_sam2(split_trunk(tensors, "the file"), model, dtype=dtype)


def picture_size(config: HieraDetConfig) -> tuple[int, ...]:
    """Return an input size that both implementations accept.

    It consists of whole windows of the first stage, and stays divisible in every pooling step.
    """
    pools = len(config.depths) - 1
    units = [
        stride * lcm(config.windows[0], pool**pools)
        for stride, pool in zip(config.patch_stride, config.pool, strict=True)
    ]
    # Not square, so that swapped rows and columns are detected.
    counts = [-(-LEAST_PIXELS // unit) for unit in units]
    counts[-1] += 1
    return tuple(unit * count for unit, count in zip(units, counts, strict=True))
