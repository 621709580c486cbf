"""What every model offers, whatever its system: the contract of tasks, training and checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from perceivers.adapters import ElementAdapter
from perceivers.errors import InputError
from perceivers.models.saving import ModelInfo, save_folder
from perceivers.types import ModalitySpec


@runtime_checkable
class ModelConfig(Protocol):
    """A frozen, JSON-able description of a model."""

    inputs: Mapping[str, ModalitySpec]

    @property
    def data_inputs(self) -> Mapping[str, ModalitySpec]:
        """The modalities that a data set must bring."""
        ...

    @property
    def num_classes(self) -> int:
        """Logits of a classifier; 0 for other models."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return plain data; ``from_json`` restores it."""
        ...


@runtime_checkable
class Model(Protocol):
    """An ``nn.Module`` built from a config; all four systems keep to this."""

    family: str
    core: tuple[str, ...]
    config: Any

    def __call__(self, inputs: Any) -> Any:
        """Answer raw tensors by name."""
        ...

    def adapter(self, name: str) -> ElementAdapter:
        """Return the adapter of a modality."""
        ...

    def as_dict(self, inputs: Mapping[str, Tensor] | Tensor) -> dict[str, Tensor]:
        """Accept one bare tensor for a model with one modality."""
        ...

    def layer_depths(self) -> dict[str, int]:
        """Return a depth per parameter, for layer-wise learning rates."""
        ...

    def set_recompute(self, on: bool = True) -> None:
        """Trade time for memory in the backward pass."""
        ...

    def compiled_parts(self) -> list[nn.Module]:
        """Return the modules that ``torch.compile`` compiles, each on its own."""
        ...

    def resized(self, inputs: Mapping[str, ModalitySpec]) -> Any:
        """Return a copy for other input sizes."""
        ...

    def save_pretrained(
        self, folder: str | Path, *, info: ModelInfo | None = None, overwrite: bool = False
    ) -> Path:
        """Write a model folder."""
        ...


class SavedModule(nn.Module):
    """What the systems share beside their mathematics: bare tensors, and model folders.

    Attributes:
        family: Name in the registry.
        core: Prefixes of the parameters that fine-tuning carries over.
        repeated: Types of the modules that are compiled, each on its own.
        config: The complete description.
    """

    family: str
    core: tuple[str, ...]
    repeated: tuple[type[nn.Module], ...]
    config: Any

    def compiled_parts(self) -> list[nn.Module]:
        """Return the modules that ``torch.compile`` compiles, each on its own.

        They repeat, so few graphs serve many of them, and none contains another.
        """
        return [module for module in self.modules() if isinstance(module, self.repeated)]

    def as_dict(self, inputs: Mapping[str, Tensor] | Tensor) -> dict[str, Tensor]:
        """Accept one bare tensor for a model with one modality.

        Raises:
            InputError: The model has several.
        """
        if not isinstance(inputs, Tensor):
            return dict(inputs)
        names = list(self.config.data_inputs)
        if len(names) != 1:
            raise InputError(
                f"a bare tensor is ambiguous for a model of {names}; pass a dict of name -> tensor"
            )
        return {names[0]: inputs}

    def save_pretrained(
        self, folder: str | Path, *, info: ModelInfo | None = None, overwrite: bool = False
    ) -> Path:
        """Write a model folder that ``perceivers.load`` reads.

        Raises:
            CheckpointError: A model is already there and ``overwrite`` is off.
        """
        return save_folder(self, Path(folder), info or ModelInfo(), overwrite=overwrite)
