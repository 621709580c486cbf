"""The six released models at full size, side by side with Hugging Face's classes (slow).

Weights are random, since none are at hand. Flow is run on a small tile and the clip is short;
everything else, above all the widths that no small model reaches, is as released.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from perceivers.checkpoints.hugging_face import (
    model_from_hugging_face,
    read_hugging_face,
    save_hugging_face,
)
from perceivers.checkpoints.names import with_flavour
from perceivers.checkpoints.verify import verify_hugging_face
from perceivers.models import PerceiverIO
from perceivers.models.perceiver_io.variants import VARIANTS, configure
from perceivers.models.saving import ModelInfo

pytest.importorskip("transformers")

# Raw size that is run, where it is not the released one.
SMALLER: dict[str, dict[str, dict[str, int]]] = {
    "perceiver_io_flow": {"video": {"height": 64, "width": 96}},
    "perceiver_io_multimodal": {"video": {"frames": 2}, "audio": {"samples": 3840}},
}


def shrink(config: Any, name: str) -> Any:
    """Change raw sizes, and the resolutions that the class derives from them."""
    for modality, sizes in SMALLER.get(name, {}).items():
        inputs = dict(config.inputs)
        inputs[modality] = replace(inputs[modality], **sizes)
        config = replace(config, inputs=inputs)
    if name == "perceiver_io_flow":
        resolutions = {"video": (64, 96)}
    elif name == "perceiver_io_multimodal":
        resolutions = {"video": (2, 56, 56), "audio": (3840,)}
    else:
        return config
    parts = {}
    for field in ("tokens", "outputs"):
        parts[field] = {
            key: replace(entry, positions=replace(entry.positions, max_resolution=resolutions[key]))
            if entry.positions.kind == "fourier"
            else entry
            for key, entry in getattr(config, field).items()
        }
    return replace(config, **parts)


@pytest.mark.slow
@pytest.mark.skipif("FULL_SIZE" not in os.environ, reason="minutes and gigabytes: set FULL_SIZE=1")
@pytest.mark.parametrize(
    "name",
    [
        "perceiver_io_language",
        "perceiver_io_imagenet_learned",
        "perceiver_io_imagenet_fourier",
        "perceiver_io_imagenet_conv",
        "perceiver_io_flow",
        "perceiver_io_multimodal",
    ],
)
def test_a_release_at_full_size_computes_what_its_class_computes(
    name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    config = configure(VARIANTS[name], inputs=None, num_classes=None, head="query", overrides={})
    model = PerceiverIO(shrink(with_flavour(config, "hf"), name)).eval()
    with torch.no_grad():  # what starts at zero would hide differences
        for parameter in model.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    assert save_hugging_face(model, tmp_path, ModelInfo()) == []
    del model
    model = model_from_hugging_face(read_hugging_face(tmp_path))
    differences = verify_hugging_face(tmp_path, model, batch=1)
    for d in differences:
        record_property(d.output, d.largest)  # in the report of --junit-xml
    assert all(d.is_within for d in differences)
