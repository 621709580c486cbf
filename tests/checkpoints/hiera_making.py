"""Tiny Hieras of every kind, and the official package where it is installed."""

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perceivers.models.hiera import Hiera, HieraConfig, HieraDecoder, HieraHead
from perceivers.types import IMAGENET_MEAN, IMAGENET_STD, Image, Video

STATISTICS: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
SIZE: dict[str, Any] = {"dim": 4, "num_heads": 2, "depths": (1, 2, 1, 1), "mlp_ratio": 2}
PICTURE: dict[str, Any] = {**SIZE, "inputs": {"image": Image(64, 64, 3, **STATISTICS)}}
CLIP: dict[str, Any] = {
    **SIZE,
    "inputs": {"video": Video(4, 64, 64, 3, **STATISTICS)},
    "patch_kernel": (3, 7, 7),
    "patch_stride": (2, 4, 4),
    "mask_unit": (1, 8, 8),
    "pool": (1, 2, 2),
    "positions": "separable",
}
WINDOW: dict[str, Any] = {
    **PICTURE,
    "positions": "window",
    "position_grid": (5, 5),
    "layer_scale": 1e-5,
}
CLASSES = HieraHead(kind="mean", num_outputs=5)
DECODER: dict[str, Any] = {"dim": 8, "depth": 2, "num_heads": 2}
AUTOENCODER: dict[str, Any] = {"init": "autoencoder", "decoder": HieraDecoder(**DECODER)}
LAST: dict[str, Any] = {
    "init": "autoencoder",
    "decoder": HieraDecoder(**DECODER, order="channels_last"),
}

# What shapes do not tell of such models.
STATED: dict[str, Any] = {"num_heads": 2}
STATED_DECODER: dict[str, Any] = {**STATED, "decoder": {"num_heads": 2}}

# Every kind of official file, and of timm's.
OFFICIAL: Mapping[str, HieraConfig] = {
    "image": HieraConfig(**PICTURE, head=CLASSES),
    "image_mae": HieraConfig(**PICTURE, **AUTOENCODER),
    "video": HieraConfig(**CLIP, head=CLASSES),
    "video_mae": HieraConfig(**CLIP, **LAST),
}
TIMM: Mapping[str, HieraConfig] = {
    "image": HieraConfig(**PICTURE, head=CLASSES),
    "headless": HieraConfig(**PICTURE),
    "window": HieraConfig(**{**WINDOW, "inputs": {"image": Image(256, 256, 3, **STATISTICS)}}),
    "window_pool": HieraConfig(
        **{**WINDOW, "inputs": {"image": Image(256, 256, 3, **STATISTICS)}},
        shortcut="pool",
        head=CLASSES,
    ),
}


def make(config: HieraConfig, seed: int = 0) -> Hiera:
    """Build a model whose every weight is drawn anew and matters."""
    model = Hiera(config).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            base = parameter if parameter.ndim == 1 else torch.zeros_like(parameter)
            parameter.copy_(base + torch.randn(parameter.shape, generator=draw) * 0.3)
    return model


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def flip(model: Hiera) -> None:
    """Turn the sign of one weight in the middle of the model."""
    with torch.no_grad():
        model.encoder.blocks[2].mlp.out.weight[1, 2] *= -1  # pyright: ignore[reportIndexIssue, reportOperatorIssue, reportAttributeAccessIssue]


class DropPath(nn.Module):
    """timm's, in evaluation."""

    def __init__(self, _rate: float) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Return the input."""
        return x


class Mlp(nn.Module):
    """timm's two layers, as the official code calls them."""

    def __init__(self, dim: int, hidden: int, act_layer: type[nn.Module]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the second layer of the activated first."""
        return self.fc2(self.act(self.fc1(x)))


def official_package(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the official package; of timm it needs two small modules, which stand in here."""
    if find_spec("hiera") is None:
        pytest.skip("needs the official code: pip install --no-deps hiera-transformer==0.1.4")
    layers = ModuleType("timm.models.layers")
    layers.DropPath, layers.Mlp = DropPath, Mlp  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("timm", "timm.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "timm.models.layers", layers)
    return import_module("hiera")
