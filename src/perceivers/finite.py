"""Finding tensors that contain NaN or infinity."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

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
