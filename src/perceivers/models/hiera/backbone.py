"""What Hiera and its sister with windows share beside their blocks: input, depths, the pyramid.

Legend: B batch, C channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn import functional as F

from perceivers.adapters import ElementAdapter
from perceivers.adapters.elements import INTEGER_SCALE
from perceivers.errors import ConfigError, InputError
from perceivers.models.base import SavedModule
from perceivers.types import PAD, ModalitySpec


@dataclass(frozen=True)
class Pyramid:
    """Feature maps of all stages: a backbone's answer to detection and segmentation.

    ``maps`` are ``[B, C, *grid]`` from fine to coarse, with ``channels`` C each; ``strides`` are
    the input elements per cell along each axis.
    """

    maps: tuple[Tensor, ...]
    strides: tuple[tuple[int, ...], ...]
    channels: tuple[int, ...]


class Backbone(SavedModule):
    """A model of one modality, of any size, with an encoder of blocks.

    Attributes:
        input: The modality's adapter.
        encoder: With ``blocks``, and ``recompute``.
    """

    input: ElementAdapter
    encoder: Any

    def adapter(self, name: str) -> ElementAdapter:
        """Return the adapter of the modality."""
        if name != self.config.name:
            raise InputError(f"this model reads {self.config.name!r}, not {name!r}")
        return self.input

    def layer_depths(self) -> dict[str, int]:
        """Return a depth per parameter: stem and positions 0, one more per block, the rest last."""
        blocks = {f"encoder.blocks.{i}.": i + 1 for i in range(len(self.encoder.blocks))}
        last = len(blocks) + 1
        depths = {**blocks, "encoder.": 0}
        return {
            name: next((at for prefix, at in depths.items() if name.startswith(prefix)), last)
            for name, _ in self.named_parameters()
        }

    def set_recompute(self, on: bool = True) -> None:
        """Recompute the encoder's blocks in the backward pass: less memory, more time."""
        self.encoder.recompute = on

    def channels_last(self, inputs: Mapping[str, Tensor] | Tensor) -> Shaped[Tensor, "B *size C"]:
        """Return the raw input with its channels last, after a look at all but its size.

        Bytes become one-hot rows.

        Raises:
            InputError: Another modality, number of axes or of channels, or integers of a scale that
                is not known.
        """
        given, name, spec = self.as_dict(inputs), self.config.name, self.config.spec
        if list(given) != [name]:
            raise InputError(f"this model reads {[name]}, but was given {list(given)}")
        raw = given[name]
        if not isinstance(raw, Tensor) or raw.ndim != len(spec.raw_shape) + 1:
            found = tuple(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
            raise InputError(f"input {name!r} is {found}; expected a batch of {spec.raw_shape}")
        if spec.kind == "bytes":
            if raw.is_floating_point() or raw.dtype == torch.bool:
                raise InputError(f"input {name!r} has dtype {raw.dtype}; byte ids are integers")
            # What pads a text is no byte: a row of zeros.
            return F.one_hot(raw.long(), spec.channels).float() * (raw != PAD).unsqueeze(-1)
        raw = raw.movedim(1, -1) if spec.channels_first else raw
        if raw.shape[-1] != spec.channels:
            raise InputError(
                f"input {name!r} has {raw.shape[-1]} channels; this model reads {spec.channels}"
            )
        if not (raw.is_floating_point() or raw.dtype in INTEGER_SCALE):
            raise InputError(
                f"input {name!r} has dtype {raw.dtype}; use float32, or uint8 (0..255) or int16"
            )
        return raw

    def check_resizable(self, inputs: Mapping[str, ModalitySpec]) -> None:
        """Require the same modality with the same channels.

        Raises:
            ConfigError: They differ.
        """
        old, new = self.config.spec, next(iter(inputs.values()), None)
        if list(inputs) != [self.config.name] or new is None or type(new) is not type(old):
            raise ConfigError(f"a model of {self.config.inputs} cannot be resized to {inputs}")
        if new.channels != old.channels:
            raise ConfigError(f"a model of {old} cannot be resized to {new}: channels must stay")
