"""Hieras in files of tensors by name: the official ``.pth`` and timm's, read and written."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from perceivers.checkpoints.hiera_names import NAMES, NORM, Library, hiera_entries
from perceivers.checkpoints.hiera_shapes import STEM, config_from_shapes
from perceivers.checkpoints.names import fill_model, take_from_model
from perceivers.checkpoints.torch_files import PICKLED
from perceivers.errors import CheckpointError, ConfigError
from perceivers.files import write_atomic
from perceivers.models.hiera import Hiera, HieraConfig, HieraHead
from perceivers.settings import change

# What only timm's files have; without a norm at all, only its backbones.
TIMM_ALONE = ("head.fc.weight", "head.norm.weight", "pos_embed_win", "blocks.0.ls1.gamma")


def tell_library(tensors: Mapping[str, Any]) -> Library | None:
    """Return whose names these are: ``official``, ``timm``, or None where they are no Hiera's."""
    if not {STEM, "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight"} <= tensors.keys():
        return None
    if any(name in tensors for name in TIMM_ALONE):
        return "timm"
    named = ("norm.weight", "encoder_norm.weight", "head.projection.weight")
    return "official" if any(name in tensors for name in named) else "timm"


def hiera_from_tensors(
    tensors: Mapping[str, Tensor], library: Library, stated: Mapping[str, Any], source: str
) -> Hiera:
    """Build our model and fill it; every tensor must be used, and none may be missing.

    A backbone without a norm leaves ours as the identity of its scale and offset.

    Args:
        tensors: The file's content.
        library: Whose names they have.
        stated: Fields of ``HieraConfig`` that shapes do not tell, or that win over them.
        source: For messages.

    Raises:
        CheckpointError: Missing, unexpected or misshapen tensors, each listed; or something is
            neither told by shapes nor stated.
        ConfigError: A stated field is unknown or impossible.
    """
    config = config_from_shapes(tensors, stated, source)
    model = Hiera(config)
    fill_hiera(model, tensors, library, source=source)
    return model.eval()


def fill_hiera(
    model: Hiera,
    tensors: Mapping[str, Tensor],
    library: Library,
    *,
    source: str,
    prefix: str = "",
) -> None:
    """Fill a model; a file without the norm of the mean token leaves it without effect.

    Raises:
        CheckpointError: Missing, unexpected or misshapen tensors, each listed.
    """
    normed = has_norm(model.config, tensors, library, prefix)
    entries = hiera_entries(model.config, library, prefix=prefix, with_norm=normed)
    besides = () if normed else NORM
    fill_model(model, entries, tensors, source=source, besides=besides)
    if not normed and model.norm is not None:
        nn.init.ones_(model.norm.weight)
        nn.init.zeros_(model.norm.bias)


def has_norm(
    config: HieraConfig, tensors: Mapping[str, Tensor], library: Library, prefix: str = ""
) -> bool:
    """Return whether a file holds the norm; only models without a head may lack it."""
    name = f"{prefix}{NAMES[library]['norm']}.weight"
    needed = config.decoder is not None or config.head.kind == "mean" or library == "official"
    return needed or name in tensors


def save_official(model: Any, path: Path) -> list[str]:
    """Write a ``.pth`` as the official package loads it, the weights under ``model_state``.

    Raises:
        CheckpointError: It has no place for a part of the model.
        ConfigError: The file name has another suffix.
    """
    if path.suffix not in PICKLED:
        raise ConfigError(f"official weights are written to a .pth file, not to {path}")
    config = _hiera(model).config
    _require_official(config)
    tensors = take_from_model(model, hiera_entries(config, "official"))
    _write_pickled(path, {"model_state": tensors})
    return []


def save_timm(model: Any, path: Path) -> list[str]:
    """Write a state dict of timm's: ``.safetensors``, or ``.pth``/``.bin``; return what is left.

    Raises:
        CheckpointError: timm has no place for a part of the model.
        ConfigError: The file name has another suffix.
    """
    if path.suffix not in {*PICKLED, ".safetensors"}:
        raise ConfigError(f"timm's weights are written to .safetensors or .pth, not to {path}")
    config, notes = _hiera(model).config, []
    left = [name for name in model.state_dict() if name.startswith("decoder.")]
    if config.decoder is not None:
        # timm keeps the encoder of an auto-encoder alone, and lets its last stage pool.
        config = change(config, (), decoder=None, num_pools=None, head=HieraHead())
        notes = [f"timm has no decoder: {len(left)} tensors stay behind"]
    tensors = take_from_model(model, hiera_entries(config, "timm"), besides=left)
    if path.suffix == ".safetensors":
        write_atomic(path, save(tensors, metadata={"format": "pt"}))
    else:
        _write_pickled(path, tensors)
    return notes


def _require_official(config: HieraConfig) -> None:
    """Refuse what the official class would compute otherwise with tensors of the same names."""
    wrong = []
    if config.shortcut != "project":
        wrong.append(f"shortcut={config.shortcut!r} (it projects)")
    if config.decoder is not None:
        video = len(config.mask_unit) == 3
        order = "channels_last" if video else "channels_first"
        if config.decoder.order != order:
            wrong.append(f"decoder order={config.decoder.order!r} (here it has {order!r})")
        if video and config.decoder.all_frames:
            wrong.append("decoder all_frames=True (it predicts the first of a patch)")
    if wrong:
        raise CheckpointError(f"the official Hiera has no place for {', '.join(wrong)}")


def _hiera(model: Any) -> Hiera:
    if not isinstance(model, Hiera):
        raise CheckpointError(f"this layout is of Hieras; the model's family is {model.family!r}")
    return model


def _write_pickled(path: Path, content: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_atomic(path, buffer.getvalue())
