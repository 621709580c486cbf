"""Which samples of a batch hold which modality.

Legend: B batch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from perceivers.errors import InputError, suggest


def check_present(present: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> None:
    """Reject presences that do not belong to what is given.

    Args:
        present: Bool ``[B]`` by modality; values are not looked at, so that graphs stay static.
        inputs: Raw tensors ``[B, ...]`` by name.

    Raises:
        InputError: A modality that is not among the inputs, another type, or another shape.
    """
    for name, there in present.items():
        if name not in inputs:
            raise InputError(
                f"present speaks of {name!r}, which is not among the inputs {list(inputs)}"
                + suggest(name, inputs)
            )
        if there.dtype != torch.bool or there.ndim != 1 or there.shape[0] != inputs[name].shape[0]:
            raise InputError(
                f"present[{name!r}] is {there.dtype} of shape {tuple(there.shape)}; expected bool "
                f"[{inputs[name].shape[0]}], one entry per sample"
            )
