"""Comparing a converted Perceiver or Perceiver IO with the outputs stored in its parity bundle.

The released code keeps channels last and flattens what it answers; ours keeps raw layouts.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from perceivers.checkpoints.bundle import Archive, check_comparable, largest_output
from perceivers.checkpoints.kinds import kind_of
from perceivers.checkpoints.verify import RELATIVE_TOLERANCE, Difference, compare_output
from perceivers.errors import CheckpointError
from perceivers.models import Perceiver, PerceiverIO

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
