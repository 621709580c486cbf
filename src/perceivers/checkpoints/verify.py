"""Comparing converted models with other libraries, live, or with the outputs in a bundle.

Legend: B batch, U mask units, N tokens of the last stage, P values of a patch.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.checkpoints.hiera_files import has_norm
from perceivers.checkpoints.hiera_names import Library, constructor_arguments
from perceivers.checkpoints.hugging_face import read_hugging_face
from perceivers.checkpoints.names import kind_of
from perceivers.checkpoints.parity import (
    RELATIVE_TOLERANCE,
    TOLERANCES,
    Archive,
    Difference,
    Precision,
    check_comparable,
    compare_live,
    compare_output,
    in_precision,
    largest_output,
    normalise,
)
from perceivers.checkpoints.torch_files import HuggingFaceFolder
from perceivers.errors import CheckpointError, ConfigError
from perceivers.masking import MaskPlan, draw_units
from perceivers.models import Perceiver, PerceiverIO
from perceivers.models.hiera import Hiera
from perceivers.types import FIRST_BYTE, PAD

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


Named = dict[str, Tensor]
# Our outputs and those of the other library.
Outputs = tuple[Named, Named]


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


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
    answer = theirs(inputs=normalise(raw, spec)).logits
    return {"logits": model({name: raw})}, {"logits": answer}


def _flow(model: PerceiverIO, theirs: Any, batch: int, draw: torch.Generator) -> Outputs:
    # The Hugging Face class expects the 3 x 3 windows of every pixel as input, channels fastest.
    ((name, spec),) = model.config.inputs.items()
    raw = torch.rand(batch, *spec.raw_shape, generator=draw, dtype=_dtype(model))
    frames = normalise(raw, spec).transpose(1, 2).flatten(0, 1)  # [B T, C, H, W]
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


# -- Comparing a converted Hiera with Hugging Face, the official package, timm, or a bundle ------
#
# The reference model gets the same random input, normalised without our adapters, and the same
# mask. Compared are the feature maps of all stages and the logits (or the mean token), or for
# autoencoders the loss and every predicted patch.

# From normalised input and one random number per mask unit to the reference outputs and, for
# autoencoders, the visible units.
Answer = Callable[[Tensor, Tensor], tuple[Named, Tensor | None]]
# Fraction of hidden mask units.
HIDDEN = 0.6
# Added to the variance of a patch, in all three libraries.
EPSILON = 1e-6
PACKAGES: Mapping[Library, tuple[str, str, str]] = {
    "official": ("hiera", "MaskedAutoencoderHiera", "hiera-transformer"),
    "timm": ("timm.models.hiera", "Hiera", "timm"),
}


def verify_hiera_folder(
    read: HuggingFaceFolder,
    model: Hiera,
    *,
    dtype: Precision = "float64",
    batch: int = 2,
    seed: int = 0,
) -> list[Difference]:
    """Compare a model with the Hugging Face class loaded from a folder.

    Args:
        read: Contents of the folder.
        model: The model converted from it or written to it.
        dtype: Precision of both models.
        batch: Number of samples.
        seed: Seed of the inputs and of the mask.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: Named differ in names or shapes, or the folder does not fit its class.
    """
    theirs = load_hugging_face(Path(read.path), read.name).to(getattr(torch, dtype))
    answers: dict[str, Callable[[Any, Tensor, Tensor], tuple[Named, Tensor | None]]] = {
        "HieraForPreTraining": _hugging_face_autoencoder,
        "HieraBackbone": _hugging_face_backbone,
    }
    answer = answers.get(read.name, _hugging_face_encoder)
    settings = {"whole": read.name != "HieraBackbone" and model.norm is not None}
    if read.name == "HieraModel":
        settings["whole"] = "pooler.layernorm.weight" in read.tensors
    normalised = bool(read.stated.get("normalize_pixel_loss", True))
    return _compare(
        model,
        lambda x, noise: answer(theirs, x, noise),
        dtype,
        batch,
        seed,
        normalised=normalised,
        **settings,
    )


def verify_hiera_tensors(
    tensors: Mapping[str, Tensor],
    model: Hiera,
    library: Library,
    *,
    dtype: Precision = "float64",
    batch: int = 2,
    seed: int = 0,
) -> list[Difference]:
    """Compare a model with the class of the official package or of timm with the same weights.

    Args:
        tensors: Tensors by name.
        model: The model converted from them or written to them.
        library: ``official`` or ``timm``.
        dtype: Precision of both models.
        batch: Number of samples.
        seed: Seed of the inputs and of the mask.

    Raises:
        ConfigError: The package cannot be imported.
        CheckpointError: Named differ in names or shapes, or the tensors do not fit the class.
    """
    package = import_package(library)
    arguments = constructor_arguments(model.config, library)
    masked = model.config.decoder is not None and library == "official"
    theirs = (package.MaskedAutoencoderHiera if masked else package.Hiera)(**arguments)
    whole = has_norm(model.config, tensors, library)
    if library == "official" and not masked:
        if model.config.head.kind == "none":
            theirs.head = nn.Identity()
        else:
            # In evaluation mode the official head outputs probabilities; compare logits.
            theirs.head.act_func = nn.Identity()
    if not whole:
        theirs.head.norm = nn.Identity()
    try:
        theirs.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise CheckpointError(f"the file does not fit the {library} class: {error}") from error
    theirs = theirs.to(getattr(torch, dtype)).train(False)
    answer = _official_autoencoder if masked else _official_encoder
    if library == "timm":
        answer = _timm_encoder
    return _compare(
        model, lambda x, noise: answer(theirs, x, noise), dtype, batch, seed, whole=whole
    )


def import_package(library: Library) -> Any:
    """Import the official package or timm.

    Raises:
        ConfigError: The package is not installed or cannot be imported.
    """
    module, needed, name = PACKAGES[library]
    try:
        package = import_module(module)
        getattr(package, needed)
    # With an incompatible torchvision, importing timm raises errors other than ImportError.
    except (ImportError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"comparing with the {library} code needs its package, which cannot be imported "
            f"({error}): pip install {name}, with a torchvision that fits this torch; converting "
            f"needs neither"
        ) from error
    return package


@torch.no_grad()
def verify_hiera_archive(model: Hiera, archive: Archive, source: str) -> list[Difference]:
    """Compare a model with the outputs stored in a bundle, in float64.

    The bundle contains ``input/raw`` in 0..1 and, for an autoencoder, ``input/keep`` (visible mask
    units).

    Raises:
        CheckpointError: Inputs differ in names, or outputs in names or shapes.
    """
    check_comparable(archive, source)
    needed = {"raw", "keep"} if model.config.decoder is not None else {"raw"}
    if archive.inputs.keys() != needed:
        raise CheckpointError(
            f"{source} holds the inputs {sorted(archive.inputs)}, expected {sorted(needed)}"
        )
    inputs = {name: torch.from_numpy(array) for name, array in archive.inputs.items()}
    with in_precision(model, torch.float64):
        made = hiera_outputs(model, inputs["raw"].double(), inputs.get("keep"))
    if made.keys() != archive.outputs.keys():
        raise CheckpointError(
            f"{source} stores the outputs {sorted(archive.outputs)}, the model has {sorted(made)}"
        )
    allowed = TOLERANCES["float64"] * max(1.0, largest_output(archive, source))
    return [compare_output(key, made[key], archive.outputs[key], allowed) for key in made]


# -- Our outputs ---------------------------------------------------------------------------------


@torch.no_grad()
def _compare(
    model: Hiera,
    answer: Answer,
    dtype: Precision,
    batch: int,
    seed: int,
    *,
    whole: bool = True,
    normalised: bool = True,
) -> list[Difference]:
    """Run both models on the same random input, with the mask that the reference model chose."""
    draw = torch.Generator().manual_seed(seed)
    spec = model.config.spec
    shape = (batch, *spec.raw_shape)
    raw = torch.rand(shape, generator=draw, dtype=getattr(torch, dtype))
    noise = torch.rand(batch, model.num_units(), generator=draw)
    x = raw if spec.channels_first else raw.movedim(-1, 1)
    theirs, keep = answer(normalise(x, spec), noise)
    with in_precision(model, getattr(torch, dtype)):
        ours = hiera_outputs(model, raw, keep, whole=whole, normalised=normalised)
    if model.config.feature_norms:
        # A backbone outputs only the stages that it normalises.
        ours = {name: x for name, x in ours.items() if name in theirs or "stage" not in name}
    return compare_live(ours, theirs, dtype)


def hiera_outputs(
    model: Hiera,
    raw: Tensor,
    keep: Bool[Tensor, "B U"] | None = None,
    *,
    whole: bool = True,
    normalised: bool = True,
) -> dict[str, Tensor]:
    """Return the outputs of our model that are compared, by name.

    Args:
        model: The model in evaluation mode.
        raw: Raw input of its native size.
        keep: Visible units of an autoencoder, the same number in every sample.
        whole: Include the logits or the normalised mean token, which backbones lack.
        normalised: Normalise target patches by their own mean and deviation.
    """
    if keep is not None:
        return _autoencoder_outputs(model, raw, keep, normalised)
    maps = model.forward_features(raw).maps
    outputs = {f"stage{number}": x for number, x in enumerate(maps, start=1)}
    if whole:
        outputs["pooled" if model.head is None else "logits"] = model(raw)
    return outputs


def _autoencoder_outputs(model: Hiera, raw: Tensor, keep: Tensor, normalised: bool) -> Named:
    """Return the loss and the predictions of hidden patches in the raster order of the input."""
    config, name = model.config, model.config.name
    kept, masked = (mask.nonzero()[:, 1].view(len(mask), -1) for mask in (keep, ~keep))
    plan = MaskPlan(kept={name: kept}, masked={name: masked}, axis="unit")
    encoded = model.encode({name: raw}, plan)

    def rows(x: Tensor) -> Shaped[Tensor, "B N P"]:
        return config.layout.merge(x, encoded.units, config.pools).flatten(1, -2)

    tokens = config.layout.tokens(config.pools)
    hidden = rows((~keep)[:, :, None, None].expand(-1, -1, tokens, 1))[..., 0]
    predicted = rows(model.reconstruct(encoded))[hidden]
    wanted = rows(model.patches(raw))[hidden]
    if normalised:
        spread = (wanted.var(-1, keepdim=True) + EPSILON).sqrt()
        wanted = (wanted - wanted.mean(-1, keepdim=True)) / spread
    return {"loss": (predicted - wanted).square().mean(), "prediction": predicted}


# -- Reference outputs ---------------------------------------------------------------------------


def _maps(stages: Any) -> Named:
    """Return feature maps by name, with channels moved from the last axis to axis 1."""
    return {f"stage{i}": x.movedim(-1, 1) for i, x in enumerate(stages, start=1)}


def _shown(noise: Tensor) -> Bool[Tensor, "B U"]:
    """Return a mask that is True for visible units: those with the smallest noise."""
    kept = draw_units(noise, HIDDEN)[0]
    return torch.zeros_like(noise, dtype=torch.bool).scatter(1, kept, True)


def _official_encoder(theirs: Any, x: Tensor, _noise: Tensor) -> tuple[Named, None]:
    answer, stages = theirs(x, return_intermediates=True)
    name = "pooled" if isinstance(theirs.head, nn.Identity) else "logits"
    return {**_maps(stages), name: answer}, None


def _official_autoencoder(theirs: Any, x: Tensor, noise: Tensor) -> tuple[Named, Tensor]:
    keep = _shown(noise)
    loss, predicted, _, _ = theirs(x, mask=keep)
    return {"loss": loss, "prediction": predicted}, keep


def _timm_encoder(theirs: Any, x: Tensor, _noise: Tensor) -> tuple[Named, None]:
    tokens, stages = theirs.forward_features(x, return_intermediates=True)
    outputs = _maps(stages)
    if isinstance(theirs.head.fc, nn.Linear):
        outputs["logits"] = theirs.forward_head(tokens)
    elif not isinstance(theirs.head.norm, nn.Identity):
        outputs["pooled"] = theirs.forward_head(tokens)
    return outputs, None


def _hugging_face_encoder(theirs: Any, x: Tensor, _noise: Tensor) -> tuple[Named, None]:
    found = theirs(x, output_hidden_states=True)
    outputs = _maps(found.reshaped_hidden_states[1:])
    if hasattr(found, "logits"):
        outputs["pooled" if isinstance(theirs.classifier, nn.Identity) else "logits"] = found.logits
    elif found.pooler_output is not None:
        outputs["pooled"] = found.pooler_output
    return outputs, None


def _hugging_face_autoencoder(theirs: Any, x: Tensor, noise: Tensor) -> tuple[Named, Tensor]:
    keep, _ = theirs.hiera.embeddings.patch_embeddings.random_masking(x, noise=noise)
    if not keep.any():
        raise CheckpointError(
            f"{keep.shape[1]} mask units are too few: Hugging Face's class would hide all of them"
        )
    found = theirs(x, noise=noise)
    return {"loss": found.loss, "prediction": found.logits[~found.bool_masked_pos]}, keep


def _hugging_face_backbone(theirs: Any, x: Tensor, _noise: Tensor) -> tuple[Named, None]:
    """Run the backbone's modules in the order used by the other Hugging Face classes.

    Its own forward pass (transformers 5.23) does not reorder the tokens into mask units, so local
    attention covers rows of the image instead, and the feature maps are wrong for the weights.
    """
    unroll = import_module("transformers.models.hiera.modeling_hiera").unroll
    config = theirs.config
    schedule = [config.query_stride] * (len(config.depths) - 1)
    tokens = unroll(theirs.embeddings(x)[0], tuple(x.shape[2:]), config.patch_stride, schedule)
    stages = theirs.encoder(tokens, output_hidden_states=True).reshaped_hidden_states[1:]
    maps = {}
    for stage, norm in theirs.hidden_states_norms.items():
        maps[stage] = norm(stages[int(stage.removeprefix("stage")) - 1]).movedim(-1, 1)
    return maps, None
