"""Models that can be measured: those of this library, and the same ones in other libraries.

``build_subject`` returns the module with a suitable input.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from perceivers.checkpoints.hiera_files import class_of_hiera, config_to_hiera
from perceivers.checkpoints.hiera_names import constructor_arguments
from perceivers.checkpoints.hugging_face import class_of, config_to_hugging_face
from perceivers.checkpoints.names import kind_of, with_flavour
from perceivers.errors import ConfigError, UserError, suggest
from perceivers.models.hiera import HieraConfig
from perceivers.models.perceiver_io import PerceiverIOConfig
from perceivers.models.registry import create_model, list_models
from perceivers.models.saving import ModelInfo
from perceivers.types import IMAGENET_MEAN, IMAGENET_STD, Image
from perceivers.version import __version__

# -- The same models in other libraries, built from our configs with random weights --------------
#
# Dropout is disabled, as in our models. Other libraries are imported only when one of their models
# is built.


RESNETS = {"resnet_50": [3, 4, 6, 3], "resnet_101": [3, 4, 23, 3]}


class StandInMlp(nn.Module):
    """Replacement for timm's MLP, with the arguments that the official package uses."""

    def __init__(self, dim: int, hidden: int, act_layer: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), act_layer(), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform every token independently."""
        return self.fc2(self.act(self.fc1(x)))


class StandInDropPath(nn.Identity):
    """Replacement for timm's stochastic depth, at rate 0."""


def import_official() -> Any:
    """Import the official Hiera package.

    It imports two small classes from timm; if timm cannot be imported, equivalent ones replace
    them.

    Raises:
        ImportError: The package is not installed.
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
    """Build the official package's Hiera, returning logits instead of probabilities."""
    model = import_official().Hiera(**constructor_arguments(config, "official"))
    # In evaluation mode the head applies a softmax.
    model.head.act_func = nn.Identity()
    return model


def build_transformers(config: HieraConfig | PerceiverIOConfig) -> nn.Module:
    """Build the same model with the class of Hugging Face transformers."""
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


# -- The models that can be measured -------------------------------------------------------------

NUM_CLASSES = 1000
HIERAS = [f"hiera_{size}_224" for size in ("tiny", "small", "base", "base_plus", "large", "huge")]
PERCEIVERS = [f"perceiver_io_imagenet_{kind}" for kind in ("learned", "fourier", "conv")]
# Library -> package to install, and the models that it provides.
LIBRARIES: dict[str, tuple[str, list[str]]] = {
    "transformers": ("transformers", [*PERCEIVERS, *HIERAS, *RESNETS]),
    "hiera": ("hiera-transformer", HIERAS),
}
ALWAYS = "transformers:resnet_50"


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Args:
        name: Name as given by the user.
        library: Library that provides it; empty for this one.
        variant: Its name in that library.
    """

    name: str
    library: str
    variant: str

    @property
    def label(self) -> str:
        """Name in tables and plots."""
        return f"{self.variant} ({self.library})" if self.library else self.variant

    @property
    def version(self) -> str:
        """Version of the library."""
        return version(LIBRARIES[self.library][0]) if self.library else __version__


@dataclass(frozen=True)
class Built:
    """A module with a suitable input.

    Args:
        module: The module, with random weights.
        pictures: Images ``[B, 3, size, size]``; raw for our models, normalised for others.
        run: Returns logits ``[B, classes]``.
    """

    module: nn.Module
    pictures: Tensor
    run: Callable[[Tensor], Tensor]


def find_subject(name: str) -> Subject:
    """Return the model with the given name.

    Raises:
        ConfigError: The name is unknown, or its library is not installed.
    """
    library, colon, variant = name.partition(":")
    if not colon:
        if name not in list_models():
            near = suggest(name, list_models())
            raise ConfigError(f"model {name!r} is unknown; 'perceivers models' lists all{near}")
        return Subject(name, "", name)
    if library not in LIBRARIES:
        raise ConfigError(
            f"model {name!r}: library {library!r} is unknown; choose from {list(LIBRARIES)}"
        )
    package, variants = LIBRARIES[library]
    if variant not in variants:
        near = suggest(variant, variants)
        raise ConfigError(f"model {name!r} is unknown; {library} has {variants}{near}")
    if not is_there(library):
        raise ConfigError(f"model {name!r} needs a missing package: pip install {package}")
    return Subject(name, library, variant)


def is_there(library: str) -> bool:
    """Return whether another library is installed."""
    try:
        version(LIBRARIES[library][0])
    except PackageNotFoundError:
        return False
    return True


def add_peers(names: Sequence[str]) -> list[str]:
    """Add the same models in other installed libraries, and ResNet-50, to a list of names."""
    here = [library for library in LIBRARIES if is_there(library)]
    found = [*names]
    for name in names:
        found += [f"{library}:{name}" for library in here if name in LIBRARIES[library][1]]
    found += [ALWAYS] * ("transformers" in here)
    return list(dict.fromkeys(found))


def check_sizes(subjects: Sequence[Subject], sizes: Sequence[int]) -> None:
    """Check, before anything is measured, that every model can be built at every size.

    Raises:
        ConfigError: A model cannot; the message gives the size and the reason.
    """
    for variant in {s.variant: None for s in subjects if s.variant not in RESNETS}:
        for size in sizes:
            try:
                with torch.device("meta"):
                    model = create(variant, size)
                if getattr(model.config, "num_classes", None) != NUM_CLASSES:
                    raise ConfigError("it is not an image classifier")
            except UserError as error:
                raise ConfigError(
                    f"{variant} cannot be measured on images of {size} x {size} pixels: {error}"
                ) from None


def create(variant: str, size: int) -> Any:
    """Build one of our classifiers for square images of ``size`` pixels."""
    image = Image(size, size, 3, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return create_model(variant, inputs={"image": image}, num_classes=NUM_CLASSES)


def build_subject(subject: Subject, size: int, batch: int, device: torch.device) -> Built:
    """Build a model and its input on a device.

    Args:
        subject: From ``find_subject``.
        size: Side of the images in pixels.
        batch: Number of images.
        device: Device of model and input.
    """
    raw = torch.rand(batch, 3, size, size, device=device)
    if not subject.library:
        model = create(subject.variant, size).to(device)
        return Built(model, raw, model)
    pictures = (raw - 0.45) / 0.225
    if subject.variant in RESNETS:
        module = build_resnet(subject.variant, NUM_CLASSES)
    else:
        with torch.device("meta"):
            config = create(subject.variant, size).config
        build = build_official if subject.library == "hiera" else build_transformers
        module = build(config)
    module = module.to(device)
    if subject.library == "hiera":
        return Built(module, pictures, module)
    return Built(module, pictures, lambda x: module(x).logits)
