"""Third-party formats: detection, loading, writing and verification.

To support another format, add a row to ``FOREIGN_LAYOUTS``, and to ``WRITERS`` to write it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from perceivers.checkpoints.haiku_perceiver import save_haiku
from perceivers.checkpoints.hiera_files import (
    hiera_from_tensors,
    read_hiera_folder,
    save_hiera_folder,
    save_official,
    save_timm,
    tell_library,
    with_hiera_task,
)
from perceivers.checkpoints.hiera_names import Library
from perceivers.checkpoints.hugging_face import save_hugging_face
from perceivers.checkpoints.sam2 import find_trunk, sam2_from_tensors
from perceivers.checkpoints.torch_files import read_tensor_file
from perceivers.checkpoints.verify import (
    Difference,
    Precision,
    verify_hugging_face,
    verify_sam2_tensors,
)
from perceivers.checkpoints.verify_hiera import verify_hiera_folder, verify_hiera_tensors
from perceivers.errors import CheckpointError
from perceivers.models.saving import ModelInfo

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
        complete: Adds the variant, task and classes of a model to its metadata.
    """

    title: str
    tells: Callable[[Mapping[str, Any]], bool]
    build: Callable[[Tensors, Mapping[str, Any], Path], tuple[Any, list[str]]]
    verify: Verify
    complete: Callable[[Any, ModelInfo], ModelInfo] = lambda model, info: info


def _hiera(library: Library, title: str) -> ForeignLayout:
    def build(tensors: Tensors, stated: Mapping[str, Any], source: Path) -> tuple[Any, list[str]]:
        return hiera_from_tensors(tensors, library, stated, str(source)), []

    return ForeignLayout(
        title=title,
        tells=lambda tensors: tell_library(tensors) == library,
        build=build,
        verify=partial(verify_hiera_tensors, library=library),
        complete=with_hiera_task,
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


@dataclass(frozen=True)
class Writer:
    """How models of one family are written in a third-party format.

    Attributes:
        write: Writes a model and returns notes on what the other library computes differently.
        verify: Compares what was written with the model; None if it cannot be run here.
        suffix: Required ending of the file; empty if any is allowed.
        is_folder: Whether a folder is written, not a file.
    """

    write: Callable[[Any, Path, ModelInfo], list[str]]
    verify: Callable[[Path, Any, Precision], list[Difference]] | None = None
    suffix: str = ""
    is_folder: bool = False


def _file(library: str, save: Callable[[Any, Path], list[str]]) -> Writer:
    def verify(path: Path, model: Any, dtype: Precision) -> list[Difference]:
        return FOREIGN_LAYOUTS[library].verify(read_tensor_file(path), model, dtype=dtype)

    return Writer(lambda model, path, info: save(model, path), verify)


def _verify_hiera(folder: Path, model: Any, dtype: Precision) -> list[Difference]:
    return verify_hiera_folder(read_hiera_folder(folder), model, dtype=dtype)


def _verify_perceiver(folder: Path, model: Any, dtype: Precision) -> list[Difference]:
    return verify_hugging_face(folder, model, dtype=dtype)


_HAIKU = Writer(lambda model, path, info: save_haiku(model, path), suffix=".npz")
# Formats that can be written, with the model families that each supports.
WRITERS: Mapping[str, Mapping[str, Writer]] = {
    "hf": {
        "perceiver_io": Writer(save_hugging_face, _verify_perceiver, is_folder=True),
        "hiera": Writer(save_hiera_folder, _verify_hiera, is_folder=True),
    },
    "haiku": {"perceiver": _HAIKU, "perceiver_io": _HAIKU},
    "official": {"hiera": _file("official", save_official)},
    "timm": {"hiera": _file("timm", save_timm)},
}


def find_writer(to: str, model: Any) -> Writer:
    """Return the writer of a format for a model.

    Raises:
        CheckpointError: The format has no place for models of this family.
    """
    able = WRITERS[to]
    writer = able.get(model.family)
    if writer is None:
        raise CheckpointError(
            f"format {to!r} does not support models of family {model.family!r}, only of "
            f"{' and '.join(able)}"
        )
    return writer


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
