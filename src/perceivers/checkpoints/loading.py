"""Loading models from model and run folders, and transferring encoder weights between models."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_bytes
from safetensors.torch import load_file
from torch import Tensor, nn

from perceivers.checkpoints.catalogue import find_own_weights, own_names, warn_of_license
from perceivers.checkpoints.names import list_problems
from perceivers.errors import CheckpointError, plain_reason, suggest
from perceivers.files import read_json_file
from perceivers.finite import list_names, names_not_finite
from perceivers.models.registry import FAMILIES, list_models
from perceivers.models.saving import FORMAT_VERSION, ModelInfo
from perceivers.reading import check_file, read_file
from perceivers.text_names import is_writable
from perceivers.types import ModalitySpec


@dataclass(frozen=True)
class Loaded:
    """A loaded model of any family (``models.base.Model``), its metadata and its folder."""

    model: Any
    info: ModelInfo
    folder: Path


def split_address(address: str | Path) -> tuple[str, str]:
    """Split ``RUN@last`` into folder and choice; an @ in an existing path is part of the path."""
    path, _, which = str(address).rpartition("@")
    if not path or "/" in which or Path(address).exists():
        return str(address), ""
    return path, which


def find_model_folder(address: str | Path) -> Path:
    """Return the model folder of an address: a model folder, a run folder (best) or ``RUN@last``.

    If the path does not exist, packaged weights of this name are used.

    Raises:
        CheckpointError: There is no model; the message lists what was tried.
    """
    path, which = split_address(address)
    if which not in {"", "best", "last"}:
        raise CheckpointError(f"{address}: expected 'best' or 'last' after @, not {which!r}")
    folder = Path(path)
    candidates = [folder / ("last" if which == "last" else "model")]
    if not which:
        candidates.append(folder)
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return candidate
    packaged = find_own_weights(path)
    # A run folder of the same name takes precedence, even if it has no model yet.
    if packaged is not None and not (folder / "config.yaml").exists():
        return packaged
    if not folder.exists():
        raise CheckpointError(
            f"{path} is neither a model name nor a folder; 'perceivers models' lists the names, "
            f"'perceivers models --weights' those with weights"
            + suggest(path, [*list_models(), *own_names()])
        )
    if folder.is_file():
        raise CheckpointError(
            f"{path} holds no model: it is a file, but a model is a folder; convert a file of "
            f"weights with 'perceivers convert {path} FOLDER' and give that folder"
        )
    raise CheckpointError(
        f"{path} holds no model: looked for config.json in {', '.join(map(str, candidates))}; "
        f"give a model folder, or a run folder in which training has saved a model"
    )


def absolute_model(address: str) -> str:
    """Return an address that does not depend on the working directory.

    Names of variants and of packaged weights, and addresses without a model, are unchanged.
    """
    if address in list_models():
        return address
    path, which = split_address(address)
    try:
        folder = find_model_folder(address)
    except CheckpointError:
        return address  # loading it raises the error
    if not folder.is_relative_to(path):
        return address
    return str(Path.cwd() / path) + (f"@{which}" if which else "")


def is_model_present(address: str) -> bool:
    """Return whether an address is the name of a variant or leads to a model."""
    if address in list_models():
        return True
    try:
        find_model_folder(address)
    except CheckpointError:
        return False
    return True


def load(address: str | Path, *, inputs: Mapping[str, ModalitySpec] | None = None) -> Any:
    """Load a model in evaluation mode from a model or run folder.

    Args:
        address: Model folder, run folder (its best model), run folder with ``@last``, or name of
            packaged weights, such as ``hip_digits``.
        inputs: Input sizes to load it for, if they differ from the saved ones; learned positions
            are interpolated.

    Raises:
        CheckpointError: There is no model, or its files are damaged or do not fit together.
    """
    model = load_with_info(address).model
    return model if inputs is None else model.resized(inputs)


def load_with_info(address: str | Path) -> Loaded:
    """Load a model in evaluation mode, together with its metadata and folder.

    Raises:
        CheckpointError: As for ``load``.
    """
    folder = find_model_folder(address)
    file = folder / "config.json"
    description = read_json_file(file)
    if "format_version" not in description:
        raise CheckpointError(f"{file} has no 'format_version', so it does not describe a model")
    version = description["format_version"]
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format version {version!r}; this library reads {FORMAT_VERSION}. "
            f"Install the release that wrote it ({description.get('library_version', 'unknown')})"
        )
    family = description.get("family")
    if not isinstance(family, str) or family not in FAMILIES:
        raise CheckpointError(
            f"{file}: family {family!r} is unknown; expected one of {list(FAMILIES)}"
        )
    stated = description.get("config")
    if not isinstance(stated, dict):
        raise CheckpointError(f"{file}: 'config' is {stated!r}, not an object")
    try:
        config = FAMILIES[family].config.from_json(stated)
        info = ModelInfo.from_json(description)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    _check_names(file, info, config)
    model = FAMILIES[family].module(config)
    warn_of_license(folder, info.license)
    load_state(model, read_tensors(folder / "model.safetensors"), source=str(folder))
    return Loaded(model=model.eval(), info=info, folder=folder)


def _check_names(path: Path, info: ModelInfo, config: Any) -> None:
    if info.task in {"classify", "multilabel"} and len(info.classes) != config.num_classes:
        raise CheckpointError(
            f"{path} has {len(info.classes)} class names for a head of {config.num_classes} "
            f"outputs; copy the folder again from its source"
        )
    if info.task == "multitask":
        named = {name: len(classes) for name, classes in info.columns.items()}
        answered = {name: output.channels for name, output in config.outputs.items()}
        if named != answered:
            raise CheckpointError(
                f"{path} names the classes {named} for the outputs {answered}; copy the folder "
                f"again from its source"
            )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: The file is missing, truncated or not in safetensors format.
    """
    check_file(path, error=CheckpointError)
    try:
        # safetensors cannot open paths that are not valid UTF-8.
        if not is_writable(str(path)):
            return load_bytes(read_file(path, error=CheckpointError))
        return load_file(path)
    except Exception as error:
        # safetensors validates the header, but its type conversion may raise any exception.
        raise CheckpointError(
            f"{path} is not a complete safetensors file ({plain_reason(error)}); copy it again "
            f"from its source"
        ) from error


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load weights into a model in place; names and shapes must match and values be finite.

    Raises:
        CheckpointError: Tensors are missing, unexpected, have another shape or kind of number, or
            contain NaN or infinity (all listed).
    """
    problems = compare_states(model.state_dict(), state)
    if problems:
        raise CheckpointError(f"{source} does not fit the model: {'; '.join(problems)}")
    check_finite(state, source=source)
    model.load_state_dict(dict(state))


def check_finite(state: Mapping[str, Tensor], *, source: str) -> None:
    """Check that all weights are finite, since outputs would be NaN or meaningless otherwise.

    Raises:
        CheckpointError: Tensors contain NaN or infinity (the first are named).
    """
    names = names_not_finite(state)
    if names:
        raise CheckpointError(
            f"{source}: {len(names)} of {len(state)} tensors hold NaN or infinity "
            f"({list_names(names)}); weights must be finite. Use an earlier checkpoint, copy the "
            f"file again from its source, or train again with a lower optimizer.lr or with "
            f"optimizer.clip"
        )


def compare_states(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Describe how names, shapes and kinds of number differ; empty if two states match."""
    groups = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "another shape": [
            f"{name} (file {tuple(found[name].shape)}, model {tuple(wanted[name].shape)})"
            for name in sorted(wanted.keys() & found.keys())
            if found[name].shape != wanted[name].shape
        ],
        "another kind of number": [
            f"{name} (file {found[name].dtype}, model {wanted[name].dtype})"
            for name in sorted(wanted.keys() & found.keys())
            # Any floating-point precision is accepted, but integers do not replace floats.
            if found[name].is_floating_point() != wanted[name].is_floating_point()
        ],
    }
    return list_problems(groups)


@dataclass(frozen=True)
class Transfer:
    """Result of a weight transfer.

    Attributes:
        used: Names of tensors that were copied.
        dropped: Names of source tensors that were not copied.
        fresh: Names of target tensors that keep their initial values.
    """

    used: tuple[str, ...]
    dropped: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{len(self.used)} tensors copied, {len(self.dropped)} dropped "
            f"({_parts(self.dropped)}), {len(self.fresh)} newly initialised ({_parts(self.fresh)})"
        )


def _parts(names: tuple[str, ...]) -> str:
    return ", ".join(sorted({name.split(".")[0] for name in names})) or "none"


def transfer_encoder(source: Any, target: Any) -> Transfer:
    """Copy all tensors with equal names and shapes from one model to another, in place.

    The family's ``core``, from the raw inputs to the latents, must match completely; heads and
    decoders may differ.

    Args:
        source: The pre-trained model.
        target: The model to change; must have the same family.

    Raises:
        CheckpointError: The families differ, or a core tensor is missing or has another shape.
    """
    if type(source) is not type(target):
        raise CheckpointError(
            f"a {target.family} model cannot use the weights of a {source.family} model"
        )
    theirs, ours = source.state_dict(), target.state_dict()
    used = [n for n in ours if n in theirs and ours[n].shape == theirs[n].shape]
    broken = [n for n in ours if n.startswith(target.core) and n not in used]
    if broken:
        raise CheckpointError(
            f"the encoders differ at {', '.join(broken[:4])} ({len(broken)} tensors); fine-tuning "
            f"needs the same variant, inputs and positions"
        )
    target.load_state_dict({**ours, **{name: theirs[name] for name in used}})
    return Transfer(
        used=tuple(used),
        dropped=tuple(name for name in theirs if name not in used),
        fresh=tuple(name for name in ours if name not in used),
    )
