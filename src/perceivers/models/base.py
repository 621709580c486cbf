"""Interface of models, on which tasks, training and checkpoints rely in all model families."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from perceivers.adapters import ElementAdapter
from perceivers.errors import ConfigError, InputError
from perceivers.models.saving import ModelInfo, save_folder
from perceivers.nn.positions import LearnedPositions
from perceivers.types import ModalitySpec


@runtime_checkable
class ModelConfig(Protocol):
    """Immutable, JSON-serialisable configuration of a model."""

    inputs: Mapping[str, ModalitySpec]

    @property
    def data_inputs(self) -> Mapping[str, ModalitySpec]:
        """Modalities that the data set must provide."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes of a classifier; 0 for other models."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-serialisable data; ``from_json`` is the inverse."""
        ...


@runtime_checkable
class Model(Protocol):
    """An ``nn.Module`` built from a config; implemented by all model families."""

    family: str
    core: tuple[str, ...]
    config: Any

    def __call__(self, inputs: Any) -> Any:
        """Compute outputs from raw tensors by modality name."""
        ...

    def adapter(self, name: str) -> ElementAdapter:
        """Return the adapter of a modality."""
        ...

    def as_dict(self, inputs: Mapping[str, Tensor] | Tensor) -> dict[str, Tensor]:
        """Return inputs by name; a model with one modality accepts a single tensor too."""
        ...

    def features(
        self, inputs: Mapping[str, Tensor], *, present: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return what the encoder makes of the inputs, by the names of ``feature_names``."""
        ...

    def feature_tokens(
        self, inputs: Mapping[str, Tensor], *, present: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Return the last features as vectors, ``[B, n, D]``."""
        ...

    def layer_depths(self) -> dict[str, int]:
        """Return a depth per parameter, for layer-wise learning-rate decay."""
        ...

    def set_recompute(self, on: bool = True) -> None:
        """Turn activation checkpointing on or off."""
        ...

    def compiled_parts(self) -> list[nn.Module]:
        """Return the modules to compile with ``torch.compile``, one by one."""
        ...

    def resized(self, inputs: Mapping[str, ModalitySpec]) -> Any:
        """Return a copy for other input sizes."""
        ...

    def save_pretrained(
        self, folder: str | Path, *, info: ModelInfo | None = None, overwrite: bool = False
    ) -> Path:
        """Write a model folder."""
        ...


class SavedModule(nn.Module, ABC):
    """Base class of models: input handling, compilation and saving.

    Attributes:
        family: Name of the model family in the registry.
        core: Prefixes of the parameters that fine-tuning transfers.
        repeated: Types of the modules to compile one by one.
        config: The full configuration.
    """

    family: str
    core: tuple[str, ...]
    repeated: tuple[type[nn.Module], ...]
    config: Any

    def compiled_parts(self) -> list[nn.Module]:
        """Return the modules to compile with ``torch.compile``, one by one.

        They are repeated layers, so that a few graphs serve many of them. None contains another.
        """
        return [module for module in self.modules() if isinstance(module, self.repeated)]

    def as_dict(self, inputs: Mapping[str, Tensor] | Tensor) -> dict[str, Tensor]:
        """Return inputs by name; a model with one modality accepts a single tensor too.

        Raises:
            InputError: A single tensor was given, but the model has several modalities.
        """
        if not isinstance(inputs, Tensor):
            return dict(inputs)
        names = list(self.config.data_inputs)
        if len(names) != 1:
            raise InputError(
                f"a bare tensor is ambiguous for a model of {names}; pass a dict of name -> tensor"
            )
        return {names[0]: inputs}

    # -- What a family knows about its models, with the answer of most families ------------------

    @property
    def encoded_inputs(self) -> Mapping[str, ModalitySpec]:
        """Modalities that the encoder reads."""
        return self.config.inputs

    @property
    def predicted_labels(self) -> tuple[str, ...]:
        """Labels that the model predicts beside its inputs, without reading them."""
        return ()

    @property
    def segmented_modality(self) -> str | None:
        """Modality whose elements the model classifies; None without such an output."""
        return None

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features, in the order of ``features``."""
        return ("latents",)

    @property
    def result_names(self) -> tuple[str, ...]:
        """Names of the tensors that a call returns; different from the names of inputs."""
        return ("output",)

    @abstractmethod
    def features(
        self, inputs: Mapping[str, Tensor], *, present: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return what the encoder makes of the inputs, by the names of ``feature_names``.

        Args:
            inputs: Raw tensors ``[B, ...]`` by name.
            present: In which samples a modality is present, bool ``[B]``; default all.
        """

    def feature_tokens(
        self, inputs: Mapping[str, Tensor], *, present: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "B n D"]:
        """Return the last features as vectors."""
        return self.features(inputs, present=present)[self.feature_names[-1]]

    def covered_grid(self, name: str) -> tuple[int, ...]:
        """Return the grid of elements that the tokens of a modality cover."""
        return self.config.inputs[name].grid

    def with_window_positions(self) -> Any:
        """Split absolute positions into a global and a window part (arXiv 2311.05613).

        Raises:
            ConfigError: The model has no absolute positions that could be split.
        """
        raise ConfigError(
            f"positions=window needs a Hiera with absolute positions, but the model family is "
            f"{self.family!r}"
        )

    def count_tokens(self) -> dict[str, tuple[int, int]]:
        """Return the number of tokens and of groups of every modality of the data."""
        return {name: (spec.num_tokens, 1) for name, spec in self.config.data_inputs.items()}

    def position_tables(self) -> dict[str, LearnedPositions]:
        """Return the learned positions of the inputs, by modality."""
        return {}

    @abstractmethod
    def describe(self) -> tuple[str, str]:
        """Return the size of the latents (or of the last tokens) and the structure, for tables."""

    def save_pretrained(
        self, folder: str | Path, *, info: ModelInfo | None = None, overwrite: bool = False
    ) -> Path:
        """Write a model folder that ``perceivers.load`` reads.

        Raises:
            CheckpointError: The folder already holds a model and ``overwrite`` is off.
        """
        return save_folder(self, Path(folder), info or ModelInfo(), overwrite=overwrite)
