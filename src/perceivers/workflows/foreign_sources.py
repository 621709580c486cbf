"""Open third-party weights: our model of them, its metadata, and a comparison with the source.

Files are recognised by their tensor names (``checkpoints.formats``), folders by ``config.json``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceivers.checkpoints.bundle import read_archive, require
from perceivers.checkpoints.catalogue import find_weights
from perceivers.checkpoints.formats import (
    FOREIGN_LAYOUTS,
    ForeignLayout,
    find_layout,
    is_known,
)
from perceivers.checkpoints.hiera_files import (
    hiera_from_hugging_face,
    read_hiera_folder,
    with_hiera_task,
)
from perceivers.checkpoints.hiera_names import stated_by_hub
from perceivers.checkpoints.sam2 import SAM2_FOLDERS, model_from_sam2, read_sam2_folder
from perceivers.checkpoints.torch_files import find_folder_file, read_known_weights
from perceivers.checkpoints.verify import Difference, Precision, verify_sam2
from perceivers.checkpoints.verify_hiera import verify_hiera_archive, verify_hiera_folder
from perceivers.errors import CheckpointError
from perceivers.files import read_json_file
from perceivers.models.saving import ModelInfo
from perceivers.reading import read_file

UNSTATED = "as stated by the source of the parameters"
# File names that say nothing about their content; the name of the folder may.
GENERIC = {"model", "pytorch_model"}
BACKBONE_NOTE = (
    "HieraBackbone has no norm of the mean token, so ours has no effect. Its forward pass in "
    "transformers 5.23 skips the reordering of tokens into mask units, so its feature maps do not "
    "match the weights; the comparison runs its parts in the right order"
)


@dataclass(frozen=True)
class Opened:
    """A model built from third-party weights.

    Attributes:
        model: Our model, in evaluation mode.
        info: Metadata to save with the model.
        verify: Runs a given model of ours and the source's model, and compares their outputs.
        notes: Remarks, such as parts of the source that are not used.
    """

    model: Any
    info: ModelInfo
    verify: Callable[[Any, Precision], list[Difference]]
    notes: tuple[str, ...] = ()


def open_tensor_file(source: Path, config: Path | None, weights: str | None = None) -> Opened:
    """Open a ``.pth``, ``.pt``, ``.bin``, ``.ckpt`` or ``.safetensors`` file.

    Args:
        source: File with weights alone, or with a training checkpoint.
        config: JSON file with settings that cannot be inferred from shapes.
        weights: ``raw``, ``ema``, or the name of one of several sets of weights; None means
            ``raw``.

    Raises:
        UserError: The file is damaged, its format is unknown, or its tensors do not fit the model.
    """
    stated = {} if config is None else read_json_file(config)
    return _open_known(source, source, weights, stated)


def open_hub_folder(
    source: Path, stated: Mapping[str, Any], config: Path | None, weights: str | None = None
) -> Opened:
    """Open a Hugging Face hub folder written by the official Hiera package or by timm.

    Args:
        source: The folder.
        stated: Content of its ``config.json``.
        config: JSON file with settings that neither ``config.json`` nor shapes define.
        weights: As for ``open_tensor_file``.

    Raises:
        UserError: A file is damaged, its format is unknown, or its tensors do not fit the model.
    """
    more = {} if config is None else read_json_file(config)
    known = stated_by_hub(stated, str(source)) | more
    return _open_known(source, find_folder_file(source), weights, known)


def open_archive(source: Path) -> Opened | None:
    """Open a parity bundle of a Hiera; return None for another model family.

    In the bundle, ``config`` has the settings that cannot be inferred from shapes, and ``library``
    is the library whose tensor names it uses.

    Raises:
        UserError: The bundle is damaged or incomplete, or its tensors do not fit the model.
    """
    archive = read_archive(source)
    if archive.config.get("kind") != "hiera":
        return None
    where = f"{source}: config_json"
    name, stated = (require(archive.config, key, where) for key in ("library", "config"))
    if name not in FOREIGN_LAYOUTS:
        raise CheckpointError(
            f"{source}: library is {name!r}; expected one of {list(FOREIGN_LAYOUTS)}"
        )
    tensors = {key: torch.from_numpy(array).float() for key, array in archive.params.items()}
    opened = _opened(source, tensors, FOREIGN_LAYOUTS[name], stated)
    return replace(
        opened, verify=lambda other, _dtype: verify_hiera_archive(other, archive, str(source))
    )


def _open_known(source: Path, file: Path, weights: str | None, stated: Mapping[str, Any]) -> Opened:
    tensors, notes = read_known_weights(file, weights, is_known)
    opened = _opened(source, tensors, find_layout(tensors, str(source)), stated)
    return replace(opened, notes=(*notes, *opened.notes))


def _opened(
    source: Path, tensors: Mapping[str, Tensor], layout: ForeignLayout, stated: Mapping[str, Any]
) -> Opened:
    model, notes = layout.build(tensors, stated, source)
    return Opened(
        model=model,
        info=layout.complete(model, describe_source(source, layout.title, None)),
        verify=lambda other, dtype: layout.verify(tensors, other, dtype=dtype),
        notes=tuple(notes),
    )


def open_hiera_folder(source: Path) -> Opened:
    """Open a Hugging Face folder of a Hiera class.

    Raises:
        CheckpointError: A file is damaged, or its tensors do not fit the model.
    """
    read = read_hiera_folder(source)
    model = hiera_from_hugging_face(read)
    more: dict[str, Any] = {}
    if read.classes and model.config.head.kind == "mean":
        more["classes"] = read.classes
    if not read.stated.get("normalize_pixel_loss", True):
        more["target"] = "per-channel"
    info = describe_source(source, f"Hugging Face {read.name}", None, **more)
    return Opened(
        model=model,
        info=with_hiera_task(model, info),
        verify=lambda other, dtype: verify_hiera_folder(read, other, dtype=dtype),
        notes=(BACKBONE_NOTE,) if read.name == "HieraBackbone" else (),
    )


def open_sam2_folder(source: Path) -> Opened:
    """Open the image trunk of a Hugging Face folder of SAM 2; other parts are ignored.

    Raises:
        CheckpointError: A file is damaged, or its tensors do not fit the model.
    """
    read = read_sam2_folder(source)
    return Opened(
        model=model_from_sam2(read),
        info=describe_source(source, "Hugging Face trunk of SAM 2", None),
        verify=lambda other, dtype: verify_sam2(read, other, dtype=dtype),
        notes=tuple(read.notes),
    )


# Hugging Face ``model_type`` -> function that opens the folder.
FOLDERS: Mapping[str, Callable[[Path], Opened]] = {
    "hiera": open_hiera_folder,
    **dict.fromkeys(SAM2_FOLDERS, open_sam2_folder),
}


def describe_source(source: Path, kind: str, flavour: str | None, **more: Any) -> ModelInfo:
    """Return metadata for converted weights; released weights are recognised by name.

    Args:
        source: File or folder.
        kind: Description of the source format.
        flavour: Implementation whose arithmetic the model follows; None if there is only one.
        more: Further fields of ``ModelInfo``.
    """
    # A file with a generic name belongs to a folder, whose name and model card describe it.
    folder = source.parent if source.stem in GENERIC else source
    name = folder.name
    released = find_weights(name)
    provenance = {"source": name, "converted_from": kind}
    if flavour is not None:
        provenance["flavour"] = flavour
    known = released.license if released else UNSTATED
    settings = {"license": card_license(folder) or known, **more}
    return ModelInfo(**{**settings, "provenance": {**provenance, **more.get("provenance", {})}})


def card_license(folder: Path) -> str:
    """Return the licence from the header of the folder's model card; empty if there is none."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    head = read_file(card, error=CheckpointError).decode(errors="replace").split("---")
    lines = head[1].splitlines() if len(head) > 2 and not head[0].strip() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("license:")]
    return found[0] if found else ""


def compare_positions(before: Any, after: Any) -> Difference:
    """Compare the position embeddings of two models at the native input size."""
    grid = before.config.native_grid
    first, second = (model.encoder.positions(grid).detach() for model in (before, after))
    largest = float((first.double() - second.double()).abs().max())
    return Difference("positions", largest, 1e-6 * float(first.abs().max()))
