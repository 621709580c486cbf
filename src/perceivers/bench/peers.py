"""The same models in other libraries, built from our descriptions with fresh weights.

Dropout is off, as in ours. Nothing is imported from another library before one of its models is
built.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from perceivers.checkpoints.hiera_arguments import constructor_arguments
from perceivers.checkpoints.hiera_hugging_face import class_of_hiera, config_to_hiera
from perceivers.checkpoints.hugging_face_config import class_of, config_to_hugging_face
from perceivers.checkpoints.kinds import kind_of, with_flavour
from perceivers.models.hiera import HieraConfig
from perceivers.models.perceiver_io import PerceiverIOConfig
from perceivers.models.saving import ModelInfo

RESNETS = {"resnet_50": [3, 4, 6, 3], "resnet_101": [3, 4, 23, 3]}


class StandInMlp(nn.Module):
    """timm's two-layer perceptron, as far as the official package uses it."""

    def __init__(self, dim: int, hidden: int, act_layer: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), act_layer(), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform every token on its own."""
        return self.fc2(self.act(self.fc1(x)))


class StandInDropPath(nn.Identity):
    """timm's stochastic depth at rate 0."""


def import_official() -> Any:
    """Import the official Hiera package.

    It asks timm for two small classes; where timm does not import, stand-ins of the same function
    take their place.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import_module("timm.models.layers")
    except (ImportError, RuntimeError):
        names = ("timm", "timm.models", "timm.models.layers")
        made = {name: ModuleType(name) for name in names}
        layers: Any = made["timm.models.layers"]
        layers.Mlp, layers.DropPath = StandInMlp, StandInDropPath
        sys.modules.update(made)
    return import_module("hiera")


def build_official(config: HieraConfig) -> nn.Module:
    """Build the official package's Hiera; like ours it returns logits, not probabilities."""
    model = import_official().Hiera(**constructor_arguments(config, "official"))
    model.head.act_func = nn.Identity()
    return model


def build_transformers(config: HieraConfig | PerceiverIOConfig) -> nn.Module:
    """Build Hugging Face's class of the same model."""
    library = import_module("transformers")
    if isinstance(config, HieraConfig):
        name, kind = class_of_hiera(config), library.HieraConfig
        stated = config_to_hiera(config, name, ModelInfo())
    else:
        config = with_flavour(config, "hf")
        name, kind = class_of(config, kind_of(config)), library.PerceiverConfig
        stated = config_to_hugging_face(config, kind_of(config))
        stated["num_labels"] = config.num_classes
    return getattr(library, name)(kind(**stated))


def build_resnet(name: str, num_classes: int) -> nn.Module:
    """Build one of Hugging Face's ResNets."""
    library = import_module("transformers")
    config = library.ResNetConfig(depths=RESNETS[name], num_labels=num_classes)
    return library.ResNetForImageClassification(config)
