"""Comparing a converted model with Hugging Face's own class, run on the same fresh inputs.

Needs the library transformers, which nothing else here imports. Every input is made twice: raw
for us, and as that class wants it (normalised, cut into windows) by code that shares nothing with
our adapters.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.checkpoints.hugging_face import read_hugging_face
from perceivers.checkpoints.kinds import kind_of
from perceivers.checkpoints.verify import Difference, Precision, compare_live, in_precision
from perceivers.errors import CheckpointError, ConfigError
from perceivers.models import PerceiverIO
from perceivers.types import FIRST_BYTE, PAD

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
