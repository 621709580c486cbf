"""Checks for NaN and infinity: in weights, and in the outputs of models."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from perceivers.errors import DataError

NAMES_SHOWN = 4


@torch.no_grad()
def names_not_finite(tensors: Mapping[str, Any]) -> list[str]:
    """Return the names of floating-point tensors that contain NaN or infinity.

    Other values are skipped. Memory use does not grow with tensor size. Of a tensor sharded over
    processes, only the local part is checked.
    """
    floats: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            part = getattr(value, "to_local", None)
            own = value if part is None else part()
            if own.numel():
                floats[name] = own.detach()
    # The Euclidean norm is several times faster than the maximum norm, but may overflow although
    # all values are finite, so its findings are checked again with the maximum norm.
    suspects = _with_infinite_norm(floats, 2.0)
    found = _with_infinite_norm({name: floats[name] for name in suspects}, float("inf"))
    return [name for name in tensors if name in found]


def _with_infinite_norm(tensors: Mapping[str, Tensor], order: float) -> set[str]:
    norms = {name: torch.linalg.vector_norm(each, ord=order) for name, each in tensors.items()}
    found: set[str] = set()
    # Stacked, so that the host waits once per device instead of once per tensor.
    for device in {norm.device for norm in norms.values()}:
        names = [name for name, norm in norms.items() if norm.device == device]
        fine = torch.stack([norms[name].isfinite() for name in names]).tolist()
        found |= {name for name, is_fine in zip(names, fine, strict=True) if not is_fine}
    return found


def list_names(names: Sequence[str]) -> str:
    """Return the first names as text, and the number of further ones."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


# -- Non-finite outputs: ``argmax`` would treat NaN as the largest score -------------------------
#
# Weights are checked when they are loaded and saved, but finite weights can still overflow.
#
# Legend: K classes.

NO_ANSWER = (
    "the model's output contains NaN or infinity, although its weights are finite; check the input "
    "for values far outside the range it was trained on"
)


def is_answer(scores: Tensor, dim: int = -1) -> Bool[Tensor, "..."]:
    """Return which rows of scores are valid: no NaN, no +inf, and at least one above -inf."""
    return (scores < torch.inf).all(dim) & (scores > -torch.inf).any(dim)


def check_answer(values: Tensor, where: str) -> None:
    """Raise if a model output is not finite.

    Args:
        values: Model output.
        where: Name of the input, for the message.

    Raises:
        DataError: A value is NaN or infinite.
    """
    if not bool(values.isfinite().all()):
        raise DataError(f"{where}: {NO_ANSWER}")
