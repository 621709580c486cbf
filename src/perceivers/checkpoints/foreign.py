"""The foreign layouts that weights come in as tensors by name, and how each is told and read.

A further layout is a further row: what tells it, what builds our model from it, and what compares.
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
    """Compare a model with what another library makes of the same tensors."""

    def __call__(self, tensors: Tensors, model: Any, *, dtype: Precision) -> list[Difference]:
        """Return one difference per output."""
        ...


@dataclass(frozen=True)
class ForeignLayout:
    """One way of naming tensors.

    Attributes:
        title: What is converted, for the model card.
        tells: Whether the names of tensors are of this layout.
        build: From tensors, stated fields of our config and their source to our model, and what is
            said of tensors that it does not use.
        verify: Run both sides and compare.
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
# Into which of them a model of ours can be written, as a file.
WRITERS: Mapping[str, Callable[[Any, Path], list[str]]] = {
    "official": save_official,
    "timm": save_timm,
}


def is_known(tensors: Mapping[str, Any]) -> bool:
    """Return whether names of tensors are of a known layout."""
    return any(layout.tells(tensors) for layout in FOREIGN_LAYOUTS.values())


def find_layout(tensors: Tensors, source: str) -> ForeignLayout:
    """Return the layout of a file's tensors.

    Raises:
        CheckpointError: They are of none that is known.
    """
    for layout in FOREIGN_LAYOUTS.values():
        if layout.tells(tensors):
            return layout
    first = ", ".join(sorted(tensors)[:4]) or "nothing"
    titles = ", ".join(layout.title for layout in FOREIGN_LAYOUTS.values())
    raise CheckpointError(
        f"{source} holds {len(tensors)} tensors ({first}, ...) of no known layout; known are "
        f"{titles}; a file of Hugging Face is converted with its folder, and a model of this "
        f"library is a folder with config.json"
    )
