"""Third-party state-dict formats: detection, loading and verification.

To support another format, add a row to ``FOREIGN_LAYOUTS``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from perceivers.checkpoints.hiera_files import (
    hiera_from_tensors,
    save_official,
    save_timm,
    tell_library,
)
from perceivers.checkpoints.hiera_names import Library
from perceivers.checkpoints.sam2 import find_trunk, sam2_from_tensors
from perceivers.checkpoints.verify import Difference, Precision, verify_sam2_tensors
from perceivers.checkpoints.verify_hiera import verify_hiera_tensors
from perceivers.errors import CheckpointError

Tensors = Mapping[str, Tensor]


@runtime_checkable
class Verify(Protocol):
    """Compare a model with another library's model of the same tensors."""

    def __call__(self, tensors: Tensors, model: Any, *, dtype: Precision) -> list[Difference]:
        """Return one difference per output."""
        ...


@dataclass(frozen=True)
class ForeignLayout:
    """One third-party state-dict format.

    Attributes:
        title: What is converted, for the model card.
        tells: Returns whether tensor names have this format.
        build: Builds our model from tensors, given fields of its config and the source (for
            messages); returns it with notes on unused tensors.
        verify: Runs both implementations and compares their outputs.
    """

    title: str
    tells: Callable[[Mapping[str, Any]], bool]
    build: Callable[[Tensors, Mapping[str, Any], Path], tuple[Any, list[str]]]
    verify: Verify


def _hiera(library: Library, title: str) -> ForeignLayout:
    def build(tensors: Tensors, stated: Mapping[str, Any], source: Path) -> tuple[Any, list[str]]:
        return hiera_from_tensors(tensors, library, stated, str(source)), []

    return ForeignLayout(
        title=title,
        tells=lambda tensors: tell_library(tensors) == library,
        build=build,
        verify=partial(verify_hiera_tensors, library=library),
    )


FOREIGN_LAYOUTS: Mapping[str, ForeignLayout] = {
    "official": _hiera("official", "official Hiera"),
    "timm": _hiera("timm", "timm Hiera"),
    "sam2": ForeignLayout(
        title="trunk of SAM 2",
        tells=lambda tensors: find_trunk(tensors) is not None,
        build=lambda tensors, stated, source: sam2_from_tensors(tensors, stated, str(source)),
        verify=verify_sam2_tensors,
    ),
}
# The formats that can be written, each as one file.
WRITERS: Mapping[str, Callable[[Any, Path], list[str]]] = {
    "official": save_official,
    "timm": save_timm,
}


def is_known(tensors: Mapping[str, Any]) -> bool:
    """Return whether the tensor names have a known format."""
    return any(layout.tells(tensors) for layout in FOREIGN_LAYOUTS.values())


def find_layout(tensors: Tensors, source: str) -> ForeignLayout:
    """Return the format of a file's tensors.

    Raises:
        CheckpointError: The format is unknown.
    """
    for layout in FOREIGN_LAYOUTS.values():
        if layout.tells(tensors):
            return layout
    first = ", ".join(sorted(tensors)[:4]) or "nothing"
    titles = ", ".join(layout.title for layout in FOREIGN_LAYOUTS.values())
    raise CheckpointError(
        f"{source} holds {len(tensors)} tensors ({first}, ...) of no known layout; expected one of "
        f"{titles}. To convert a Hugging Face file, give its folder; a model of this library is a "
        f"folder with config.json"
    )
