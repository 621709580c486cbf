"""Comparing a converted Hiera: with Hugging Face's class, the official package, timm, or a bundle.

The other library runs on the same fresh input, normalised by code that shares nothing with our
adapters, and with the same units hidden. Compared are the maps of all stages, the logits (or the
mean token), and of auto-encoders the loss and every predicted patch.

Legend: B batch, U mask units, N tokens of the last stage, P values of a patch.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn

from perceivers.checkpoints.bundle import Archive, check_comparable, largest_output
from perceivers.checkpoints.hiera_files import has_norm
from perceivers.checkpoints.hiera_names import Library, constructor_arguments
from perceivers.checkpoints.hugging_face import HuggingFaceFolder
from perceivers.checkpoints.verify import (
    TOLERANCES,
    Difference,
    Precision,
    compare_live,
    compare_output,
    in_precision,
    load_hugging_face,
)
from perceivers.errors import CheckpointError, ConfigError
from perceivers.masking import MaskPlan, draw_units
from perceivers.models.hiera import Hiera

Outputs = dict[str, Tensor]
# From normalised input and one number per unit: what the library makes, and which units it shows.
Answer = Callable[[Tensor, Tensor], tuple[Outputs, Tensor | None]]
HIDDEN = 0.6
# Added to the variance of a patch in all three libraries.
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
    """Compare with Hugging Face's class, built from the folder that the model was made from.

    Args:
        read: The folder.
        model: Converted from it, or written to it.
        dtype: Precision of both.
        batch: Samples.
        seed: Of the inputs and of what is hidden.

    Raises:
        ConfigError: The library is not installed.
        CheckpointError: Outputs differ in number or shape, or the folder does not fit its class.
    """
    theirs = load_hugging_face(Path(read.path), read.name).to(getattr(torch, dtype))
    answers: dict[str, Callable[[Any, Tensor, Tensor], tuple[Outputs, Tensor | None]]] = {
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
    """Compare with the class of the official package, or of timm, filled with the same file.

    Args:
        tensors: The file's content.
        model: Converted from it, or written to it.
        library: ``official`` or ``timm``.
        dtype: Precision of both.
        batch: Samples.
        seed: Of the inputs and of what is hidden.

    Raises:
        ConfigError: The package does not import here; says how to get it.
        CheckpointError: Outputs differ in number or shape, or the file does not fit the class.
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
            # It answers with probabilities; ours are logits.
            theirs.head.act_func = nn.Identity()
    if not whole:
        theirs.head.norm = nn.Identity()
    try:
        theirs.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise CheckpointError(f"the file does not fit the class of {library}: {error}") from error
    theirs = theirs.to(getattr(torch, dtype)).train(False)
    answer = _official_autoencoder if masked else _official_encoder
    if library == "timm":
        answer = _timm_encoder
    return _compare(
        model, lambda x, noise: answer(theirs, x, noise), dtype, batch, seed, whole=whole
    )


def import_package(library: Library) -> Any:
    """Import the official package, or timm.

    Raises:
        ConfigError: It is not here, or does not import.
    """
    module, needed, name = PACKAGES[library]
    try:
        package = import_module(module)
        getattr(package, needed)
    # A torchvision that does not fit torch stops timm with other errors than ImportError.
    except (ImportError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"comparing with the {library} code needs its package, which does not import here "
            f"({error}): pip install {name}, with a torchvision that fits this torch; converting "
            f"needs neither"
        ) from error
    return package


@torch.no_grad()
def verify_hiera_archive(model: Hiera, archive: Archive, source: str) -> list[Difference]:
    """Compare with the outputs that a bundle stores, in float64.

    The bundle holds ``input/raw`` in 0..1 and, of an auto-encoder, ``input/keep``.

    Raises:
        CheckpointError: The archive lacks an input, or an output of the model; or it stores one
            that the model does not make, or of another shape.
    """
    check_comparable(archive, source)
    needed = {"raw", "keep"} if model.config.decoder is not None else {"raw"}
    if archive.inputs.keys() != needed:
        raise CheckpointError(
            f"{source} holds the inputs {sorted(archive.inputs)}, needed are {sorted(needed)}"
        )
    inputs = {name: torch.from_numpy(array) for name, array in archive.inputs.items()}
    with in_precision(model, torch.float64):
        made = hiera_outputs(model, inputs["raw"].double(), inputs.get("keep"))
    if made.keys() != archive.outputs.keys():
        raise CheckpointError(
            f"{source} stores the outputs {sorted(archive.outputs)}, the model makes {sorted(made)}"
        )
    allowed = TOLERANCES["float64"] * max(1.0, largest_output(archive, source))
    return [compare_output(key, made[key], archive.outputs[key], allowed) for key in made]


# -- ours ------------------------------------------------------------------------------------------


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
    """Run both sides on fresh input."""
    draw = torch.Generator().manual_seed(seed)
    spec = model.config.spec
    shape = (batch, *spec.raw_shape)
    raw = torch.rand(shape, generator=draw, dtype=getattr(torch, dtype))
    noise = torch.rand(batch, model.num_units(), generator=draw)
    x = raw if spec.channels_first else raw.movedim(-1, 1)
    theirs, keep = answer(_normalised(x, model), noise)
    with in_precision(model, getattr(torch, dtype)):
        ours = hiera_outputs(model, raw, keep, whole=whole, normalised=normalised)
    if model.config.feature_norms:
        # A backbone gives out the stages that it normalises, and no others.
        ours = {name: x for name, x in ours.items() if name in theirs or "stage" not in name}
    return compare_live(ours, theirs, dtype)


def _normalised(x: Tensor, model: Hiera) -> Tensor:
    """In units of the input's statistics, channels on axis 1."""
    spec = model.config.spec
    shape = (1, -1, *[1] * (x.ndim - 2))
    # Statistics are kept in float32, as everywhere.
    given = (spec.mean or (0.0,), spec.std or (1.0,))
    mean, std = (torch.tensor(values).to(x.dtype).reshape(shape) for values in given)
    return (x - mean) / std


def hiera_outputs(
    model: Hiera,
    raw: Tensor,
    keep: Bool[Tensor, "B U"] | None = None,
    *,
    whole: bool = True,
    normalised: bool = True,
) -> dict[str, Tensor]:
    """Return what is compared, by name.

    Args:
        model: Ours, in evaluation mode.
        raw: Raw input of its native size.
        keep: Units shown to an auto-encoder, the same number in every sample.
        whole: Also the logits, or the normalised mean token; not of bare backbones.
        normalised: Score every patch in units of its own mean and deviation.
    """
    if keep is not None:
        return _autoencoder_outputs(model, raw, keep, normalised)
    maps = model.forward_features(raw).maps
    outputs = {f"stage{number}": x for number, x in enumerate(maps, start=1)}
    if whole:
        outputs["pooled" if model.head is None else "logits"] = model(raw)
    return outputs


def _autoencoder_outputs(model: Hiera, raw: Tensor, keep: Tensor, normalised: bool) -> Outputs:
    """The loss, and the predicted patches of hidden units in the order of the picture's rows."""
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


# -- theirs ----------------------------------------------------------------------------------------


def _maps(stages: Any) -> Outputs:
    """Maps of stages by name, from channels last."""
    return {f"stage{i}": x.movedim(-1, 1) for i, x in enumerate(stages, start=1)}


def _shown(noise: Tensor) -> Bool[Tensor, "B U"]:
    """Show the units of least noise."""
    kept = draw_units(noise, HIDDEN)[0]
    return torch.zeros_like(noise, dtype=torch.bool).scatter(1, kept, True)


def _official_encoder(theirs: Any, x: Tensor, _noise: Tensor) -> tuple[Outputs, None]:
    answer, stages = theirs(x, return_intermediates=True)
    name = "pooled" if isinstance(theirs.head, nn.Identity) else "logits"
    return {**_maps(stages), name: answer}, None


def _official_autoencoder(theirs: Any, x: Tensor, noise: Tensor) -> tuple[Outputs, Tensor]:
    keep = _shown(noise)
    loss, predicted, _, _ = theirs(x, mask=keep)
    return {"loss": loss, "prediction": predicted}, keep


def _timm_encoder(theirs: Any, x: Tensor, _noise: Tensor) -> tuple[Outputs, None]:
    tokens, stages = theirs.forward_features(x, return_intermediates=True)
    outputs = _maps(stages)
    if isinstance(theirs.head.fc, nn.Linear):
        outputs["logits"] = theirs.forward_head(tokens)
    elif not isinstance(theirs.head.norm, nn.Identity):
        outputs["pooled"] = theirs.forward_head(tokens)
    return outputs, None


def _hugging_face_encoder(theirs: Any, x: Tensor, _noise: Tensor) -> tuple[Outputs, None]:
    found = theirs(x, output_hidden_states=True)
    outputs = _maps(found.reshaped_hidden_states[1:])
    if hasattr(found, "logits"):
        outputs["pooled" if isinstance(theirs.classifier, nn.Identity) else "logits"] = found.logits
    elif found.pooler_output is not None:
        outputs["pooled"] = found.pooler_output
    return outputs, None


def _hugging_face_autoencoder(theirs: Any, x: Tensor, noise: Tensor) -> tuple[Outputs, Tensor]:
    keep, _ = theirs.hiera.embeddings.patch_embeddings.random_masking(x, noise=noise)
    if not keep.any():
        raise CheckpointError(
            f"{keep.shape[1]} mask units are too few: Hugging Face's class would hide them all"
        )
    found = theirs(x, noise=noise)
    return {"loss": found.loss, "prediction": found.logits[~found.bool_masked_pos]}, keep


def _hugging_face_backbone(theirs: Any, x: Tensor, _noise: Tensor) -> tuple[Outputs, None]:
    """Run its parts in the order of its other classes.

    Its own forward pass (transformers 5.23) leaves out the reordering of the tokens into mask
    units, and so puts its attention on rows of the picture; its maps are not those of the weights.
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
