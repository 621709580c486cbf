"""Loading model folders and run folders, and carrying an encoder over to another model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_bytes
from safetensors.torch import load_file
from torch import Tensor, nn

from perceivers.checkpoints.catalogue import find_own_weights, own_names, warn_of_license
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
    """A model of any family (``models.base.Model``) with what travelled with it."""

    model: Any
    info: ModelInfo
    folder: Path


def split_address(address: str | Path) -> tuple[str, str]:
    """Divide ``RUN@last`` into folder and choice; an @ inside an existing path belongs to it."""
    path, _, which = str(address).rpartition("@")
    if not path or "/" in which or Path(address).exists():
        return str(address), ""
    return path, which


def find_model_folder(address: str | Path) -> Path:
    """Return the model folder behind a model folder, a run folder (its best) or ``RUN@last``.

    A name that is no path is looked for among the weights that come with the package.

    Raises:
        CheckpointError: There is none; says what was looked for.
    """
    path, which = split_address(address)
    if which not in {"", "best", "last"}:
        raise CheckpointError(f"{address}: after @ comes 'best' or 'last', not {which!r}")
    folder = Path(path)
    candidates = [folder / ("last" if which == "last" else "model")]
    if not which:
        candidates.append(folder)
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return candidate
    packaged = find_own_weights(path)
    # A folder of the same name comes first if it is a run, even one without a model yet.
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
            f"{path} holds no model: it is a file, and a model is a folder here; make one of a "
            f"file of weights with 'perceivers convert {path} FOLDER', and give that"
        )
    raise CheckpointError(
        f"{path} holds no model: looked for config.json in {', '.join(map(str, candidates))}; "
        f"give a model folder, or a run folder whose training has saved a model"
    )


def absolute_model(address: str) -> str:
    """Return the address of a model that means the same in every folder.

    Names of variants and of packaged weights stay as they are.
    """
    if address in list_models():
        return address
    path, which = split_address(address)
    try:
        folder = find_model_folder(address)
    except CheckpointError:
        return address  # said when it is loaded
    if not folder.is_relative_to(path):
        return address
    return str(Path.cwd() / path) + (f"@{which}" if which else "")


def is_model_present(address: str) -> bool:
    """Tell whether an address is a variant's name, or a model is there."""
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
        address: ``out/`` (model folder), ``runs/a`` (the run's best), ``runs/a@last``, or the name
            of weights that come with the package, such as ``hip_digits``.
        inputs: Load it for other input sizes: learned positions are interpolated.

    Raises:
        CheckpointError: Nothing to load, or the files are damaged or do not fit.
    """
    model = load_with_info(address).model
    return model if inputs is None else model.resized(inputs)


def load_with_info(address: str | Path) -> Loaded:
    """Load a model and what travelled with it.

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
        raise CheckpointError(f"{file}: family {family!r} is unknown; known are {list(FAMILIES)}")
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
    """Compare class names with the outputs that they name."""
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
        CheckpointError: Missing, truncated or not safetensors.
    """
    check_file(path, error=CheckpointError)
    try:
        # The library opens no path that is not UTF-8.
        if not is_writable(str(path)):
            return load_bytes(read_file(path, error=CheckpointError))
        return load_file(path)
    except Exception as error:
        # The library checks a header well, but raises what its conversion of types raises.
        raise CheckpointError(
            f"{path} is not a complete safetensors file ({plain_reason(error)}); copy it again "
            f"from its source"
        ) from error


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load finite weights whose names and shapes must match exactly.

    Raises:
        CheckpointError: Lists missing, unexpected and misshapen entries, or those that hold NaN or
            infinity.
    """
    problems = compare_states(model.state_dict(), state)
    if problems:
        raise CheckpointError(f"{source} does not fit the model: {'; '.join(problems)}")
    check_finite(state, source=source)
    model.load_state_dict(dict(state))


def check_finite(state: Mapping[str, Tensor], *, source: str) -> None:
    """Refuse weights with which every answer would be NaN, or look like one.

    Raises:
        CheckpointError: Names tensors that hold NaN or infinity.
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
    """Describe how two sets of weights differ; empty when they fit."""
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
            # Weights may be of any precision, but whole numbers are no weights.
            if found[name].is_floating_point() != wanted[name].is_floating_point()
        ],
    }
    return [
        f"{kind}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for kind, names in groups.items()
        if names
    ]


@dataclass(frozen=True)
class Transfer:
    """What fine-tuning took over, left behind, and starts afresh (parameter names)."""

    used: tuple[str, ...]
    dropped: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        """One line for the console."""
        return (
            f"{len(self.used)} tensors taken over, {len(self.dropped)} left behind "
            f"({_parts(self.dropped)}), {len(self.fresh)} fresh ({_parts(self.fresh)})"
        )


def _parts(names: tuple[str, ...]) -> str:
    return ", ".join(sorted({name.split(".")[0] for name in names})) or "none"


def transfer_encoder(source: Any, target: Any) -> Transfer:
    """Copy everything the two models share by name and shape; heads and decoders may differ.

    What must be shared is the family's ``core``: everything from the raw inputs to the latents.

    Raises:
        CheckpointError: The families differ, or a tensor of the core has no counterpart.
    """
    if source.family != target.family:
        raise CheckpointError(
            f"a {target.family} model cannot take over the weights of a {source.family} model"
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
