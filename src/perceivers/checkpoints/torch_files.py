"""Reading named tensors from PyTorch and safetensors files and from Hugging Face folders.

Also finds the weights of a model in the file of a training script; ``pickles`` reads files.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save
from torch import Tensor

from perceivers.checkpoints.loading import read_tensors
from perceivers.checkpoints.pickles import (
    Inert,
    StoredTensor,
    TorchArchive,
    check_dense,
    is_archive,
    read_pickled,
)
from perceivers.errors import CheckpointError, ConfigError, suggest
from perceivers.files import read_json_file, write_atomic, write_json
from perceivers.types import Image

# -- Finding the model's weights in a training script's file -------------------------------------
#
# Scripts nest weights in dictionaries, add prefixes to their names, and save averaged weights, too.
# A *set* is a dictionary of tensors by name. The weights in it are the tensors with the shortest
# prefix without which the remaining names have a known format.

# Inserted into names by torch.compile, FSDP and activation checkpointing, at any depth.
INFIX = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
AVERAGED = re.compile(r"(^|[._-])(ema|avg|averaged?|swa|moving)([._-]|\d|$)|ema$")
MAX_DEPTH = 4
# Minimum number of tensors with a common prefix for it to be considered.
LEAST = 8
Entries = Mapping[str, Any]


class Candidate(NamedTuple):
    """A set of tensors that could be the weights, because their names have a known format.

    Attributes:
        name: Location in the file: dictionary keys and the prefix of the names, joined by dots.
        entries: Tensors by name without the prefix.
        notes: Notes on prefixes stripped and tensors left out.
    """

    name: str
    entries: Entries
    notes: tuple[str, ...] = ()

    @property
    def averaged(self) -> bool:
        """Whether the name indicates an average over training steps."""
        return bool(AVERAGED.search(self.name.lower()))


def find_sets(content: Any) -> dict[str, Entries]:
    """Return the dictionaries of tensors in a file by the dotted path of keys that leads to them.

    Args:
        content: Content of a ``TorchArchive``; pickled modules count as their state dicts.
    """
    found: dict[str, Entries] = {}
    seen: set[int] = set()

    def visit(value: Any, path: tuple[str, ...]) -> None:
        # An object that occurs twice counts once, and cycles end here.
        if id(value) in seen or len(path) > MAX_DEPTH:
            return
        seen.add(id(value))
        if isinstance(value, Inert):
            if entries := dict(_module_tensors(value, "", set())):
                found[".".join(path)] = entries
                return
            value = value.entries or (value.state if isinstance(value.state, Mapping) else {})
        if not isinstance(value, Mapping):
            return
        tensors = {k: v for k, v in value.items() if isinstance(v, StoredTensor)}
        if tensors and all(isinstance(key, str) for key in value):
            found[".".join(path)] = value
        for key, entry in value.items():
            if isinstance(entry, Mapping | Inert):
                visit(entry, (*path, str(key)))

    visit(content, ())
    return found


def _module_tensors(module: Inert, prefix: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield the parameters and buffers of a pickled ``nn.Module``, named as in its state dict."""
    state = module.state
    if not isinstance(state, Mapping) or "_parameters" not in state or id(module) in seen:
        return
    seen.add(id(module))
    passing = state.get("_non_persistent_buffers_set", ())
    for group in ("_parameters", "_buffers"):
        held = state.get(group)
        for name, tensor in (held if isinstance(held, Mapping) else {}).items():
            if isinstance(tensor, StoredTensor) and name not in passing:
                yield f"{prefix}{name}", tensor
    parts = state.get("_modules")
    for name, part in (parts if isinstance(parts, Mapping) else {}).items():
        if isinstance(part, Inert):
            yield from _module_tensors(part, f"{prefix}{name}.", seen)


def choose_weights(
    sets: Mapping[str, Entries], wanted: str | None, tells: Callable[[Entries], bool], source: str
) -> Candidate | None:
    """Choose the weights of a model among sets of tensors.

    Args:
        sets: Result of ``find_sets``, or tensors by name under an empty key.
        wanted: ``raw``, ``ema`` (averaged), or the name of a candidate. None prefers raw weights
            and adds a note if there are averaged ones.
        tells: Returns whether tensor names have a known format.
        source: File name for error messages.

    Returns:
        The chosen weights, or None if no set has names of a known format.

    Raises:
        ConfigError: There are no weights as wanted.
        CheckpointError: Several sets match.
    """
    found = [c for name, entries in sets.items() for c in _candidates(name, entries, tells)]
    if not found:
        return None
    found.sort(key=lambda candidate: candidate.averaged)
    names = ", ".join(
        f"{c.name or 'top level'}{' (averaged)' if c.averaged else ''}" for c in found
    )
    if wanted in {None, "raw", "ema"}:
        fitting = [c for c in found if c.averaged == (wanted == "ema")]
        if wanted is None and not fitting:
            fitting = found
    else:
        fitting = [c for c in found if c.name == wanted]
    if not fitting:
        raise ConfigError(
            f"{source} has no weights {wanted!r} (--weights); it holds: {names}; choose 'raw', "
            f"'ema' or one of these names"
        )
    if len(fitting) > 1:
        raise CheckpointError(
            f"{source} holds several sets of weights: {names}; choose one by its name with "
            f"--weights (Python: weights=)"
        )
    chosen = fitting[0]
    if wanted is None and len(found) > 1:
        said = (
            f"{source} holds several sets of weights: {names}; {chosen.name!r} is read; "
            f"--weights ema selects the averaged one"
        )
        chosen = chosen._replace(notes=(said, *chosen.notes))
    return chosen


def strip_wrappers(entries: Entries) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Strip what wrappers such as ``torch.compile`` and DDP add to names; return also notes on it.

    Raises:
        CheckpointError: Two tensors would get the same name.
    """
    plain = {INFIX.sub("", name): entry for name, entry in entries.items()}
    if len(plain) != len(entries):
        raise CheckpointError(
            "two tensors have the same name once '_orig_mod.' is stripped; save the weights of one "
            "model only"
        )
    found = sorted({match for name in entries for match in INFIX.findall(name)})
    notes = (f"{', '.join(map(repr, found))} stripped from the names",) if found else ()
    while plain and all(name.startswith("module.") for name in plain):
        plain = {name.removeprefix("module."): entry for name, entry in plain.items()}
        notes = (*notes, "'module.' stripped from the names")
    return plain, notes


def _candidates(name: str, held: Entries, tells: Callable[[Entries], bool]) -> Iterator[Candidate]:
    """Yield the tensors below each shortest prefix without which names have a known format."""
    tensors = {
        k: v for k, v in held.items() if not isinstance(v, Mapping | Inert) and _is_tensor(v)
    }
    plain, notes = strip_wrappers(tensors)
    taken: list[str] = []
    for prefix in _prefixes(plain):
        if any(prefix.startswith(shorter) for shorter in taken):
            continue
        below = {k.removeprefix(prefix): v for k, v in plain.items() if k.startswith(prefix)}
        if not _knows(tells, below):
            continue
        taken.append(prefix)
        told = list(notes)
        if prefix:
            told.append(f"{prefix!r} stripped from the names")
        if others := [k for k in plain if not k.startswith(prefix)]:
            told.append(
                f"{len(others)} tensors without {prefix!r} are not used: {', '.join(others[:4])}"
                + (", ..." if len(others) > 4 else "")
            )
        yield Candidate(".".join(filter(None, (name, prefix.rstrip(".")))), below, tuple(told))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, StoredTensor) or hasattr(value, "dtype")


def _knows(tells: Callable[[Entries], bool], entries: Entries) -> bool:
    # Raises if there are several models at once; a longer prefix then selects one of them.
    try:
        return tells(entries)
    except CheckpointError:
        return False


def _prefixes(names: Entries) -> list[str]:
    """Return the prefixes, up to a dot, shared by at least ``LEAST`` names; shortest first."""
    counts: dict[str, int] = {"": len(names)}
    for name in names:
        parts = name.split(".")
        for depth in range(1, min(len(parts), MAX_DEPTH + 1)):
            prefix = ".".join(parts[:depth]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1
    kept = [prefix for prefix, count in counts.items() if not prefix or count >= LEAST]
    return sorted(kept, key=lambda prefix: (prefix.count("."), prefix))


# -- Reading files -------------------------------------------------------------------------------

PICKLED = {".pth", ".pt", ".bin", ".ckpt"}
TENSOR_FILES = {*PICKLED, ".safetensors"}
# Keys under which training scripts save the weights, next to optimizer states and counters.
WRAPPERS = ("model_state", "state_dict", "model", "model_state_dict")


def is_tensor_file(path: Path) -> bool:
    """Return whether a file has a suffix of tensor files, including ``.pth.tar``."""
    suffixes = path.suffixes
    return path.suffix in TENSOR_FILES or (suffixes[-1:] == [".tar"] and suffixes[-2] in PICKLED)


def read_tensor_file(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.pth``, ``.pt``, ``.bin``, ``.ckpt`` or ``.safetensors`` file.

    In a file of a training script, these are the tensors under the first key of ``WRAPPERS`` that
    exists, else those at the top level.

    Raises:
        CheckpointError: The file is missing, damaged, or holds no tensors by name.
    """
    if path.suffix == ".safetensors":
        return strip_wrappers(read_tensors(path))[0]
    if not is_archive(path):
        return strip_wrappers(_read_old(path))[0]
    with TorchArchive(path) as archive:
        sets = find_sets(archive.content)
        name = next((name for name in (*WRAPPERS, "") if name in sets), None)
        if name is None:
            raise _without_tensors(path, archive.content, sets)
        return _load(archive, strip_wrappers(sets[name])[0])


def read_known_weights(
    path: Path, wanted: str | None, tells: Callable[[Mapping[str, Any]], bool]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Read the weights of a model, wherever they are in a file, with notes on what is not used.

    If no tensor names have a known format, the largest set of tensors is returned.

    Args:
        path: A file as for ``read_tensor_file``.
        wanted: ``raw``, ``ema`` or the name of a set; None prefers raw weights.
        tells: Returns whether tensor names have a known format.

    Raises:
        CheckpointError: The file is missing or damaged, or holds no tensors by name or several
            models.
        ConfigError: There are no weights as wanted.
    """
    if path.suffix == ".safetensors" or not is_archive(path):
        tensors = read_tensors(path) if path.suffix == ".safetensors" else _read_old(path)
        chosen = choose_weights({"": tensors}, wanted, tells, str(path))
        return (dict(chosen.entries), chosen.notes) if chosen else (tensors, ())
    with TorchArchive(path) as archive:
        sets = find_sets(archive.content)
        chosen = choose_weights(sets, wanted, tells, str(path))
        if chosen is not None:
            notes = (*chosen.notes, *_describe_rest(archive.content, chosen))
            return _load(archive, chosen.entries), notes
        if not sets:
            raise _without_tensors(path, archive.content, sets)
        largest = max(sets.values(), key=len)
        return _load(archive, largest), ()


def read_folder_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of a Hugging Face folder; safetensors are preferred.

    Raises:
        CheckpointError: There is no file of weights, or it is damaged.
    """
    return read_tensor_file(find_folder_file(folder))


def find_folder_file(folder: Path) -> Path:
    """Return the file of weights in a Hugging Face folder.

    Raises:
        CheckpointError: There is no such file.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f"{folder} holds neither model.safetensors nor pytorch_model.bin; download one of them"
    )


def _load(archive: TorchArchive, entries: Entries) -> dict[str, Tensor]:
    tensors = {k: v for k, v in entries.items() if isinstance(v, StoredTensor)}
    return {name: archive.load(tensor) for name, tensor in tensors.items()}


def _describe_rest(content: Any, chosen: Candidate) -> list[str]:
    if not isinstance(content, Mapping) or not chosen.name:
        return []
    others = [str(k) for k in content if str(k) != chosen.name.partition(".")[0]]
    if not others or any(isinstance(value, StoredTensor) for value in content.values()):
        return []
    return [f"the weights are those under {chosen.name!r}; not used: {', '.join(others[:8])}"]


def _without_tensors(path: Path, content: Any, sets: Mapping[str, Entries]) -> CheckpointError:
    if isinstance(content, Inert):
        held = f"a {type(content).origin}"
    elif isinstance(content, Mapping):
        listed = ", ".join(map(str, list(sets or content)[:8])) or "nothing"
        held = f"a dict of {listed}"
    else:
        held = f"a {type(content).__name__}"
    return CheckpointError(
        f"{path} holds {held}, not tensors by name; save the weights with "
        f"torch.save(model.state_dict(), PATH)"
    )


def _read_old(path: Path) -> dict[str, Tensor]:
    """Read a file written before PyTorch 1.6, tensors only."""
    try:
        found = read_pickled(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} is not a complete file of weights, or was written before PyTorch 1.6 and "
            f"holds more than tensors; copy it again from its source, or save it again there with "
            f"torch.save(model.state_dict(), PATH) ({error})"
        ) from error
    for name in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = dict(found[name])
    tensors = isinstance(found, Mapping) and {
        name: value for name, value in found.items() if isinstance(value, Tensor)
    }
    if not tensors:
        raise _without_tensors(path, found, {})
    check_dense(str(path), tensors)
    return tensors


# -- Hugging Face folders ------------------------------------------------------------------------
#
# transformers is not imported: a folder is ``config.json`` and ``model.safetensors`` (or
# ``pytorch_model.bin``, read without executing code), and ``preprocessor_config.json`` for images.


@dataclass(frozen=True)
class HuggingFaceFolder:
    """Contents of a Hugging Face folder: class name, JSON files and weights."""

    path: Path
    name: str
    stated: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits; empty if ``config.json`` has none."""
        labels = self.stated.get("id2label")
        if not isinstance(labels, Mapping):
            return ()
        return tuple(str(labels.get(str(i), labels.get(i, ""))) for i in range(len(labels)))


def read_hugging_face_folder(
    folder: Path, classes: Collection[str], telling: Mapping[str, str]
) -> HuggingFaceFolder:
    """Read a folder of one of some classes.

    Args:
        folder: The folder.
        classes: Names of the accepted classes.
        telling: Beginnings of tensor names that identify a class if ``config.json`` does not name
            it; the first match decides.

    Raises:
        CheckpointError: A file is missing or damaged, or the class is unknown.
    """
    stated = read_json_file(folder / "config.json")
    tensors = read_folder_tensors(folder)
    named = stated.get("architectures") or []
    told = [name for start, name in telling.items() if any(n.startswith(start) for n in tensors)]
    if not named and not told:
        raise CheckpointError(
            f"{folder}: config.json names no class under 'architectures', and the tensor names do "
            f"not identify one"
        )
    name = str(named[0]) if named else told[0]
    if name not in classes:
        raise CheckpointError(
            f"{folder}: class {name!r} is unknown; expected one of {list(classes)}"
            + suggest(name, classes)
        )
    return HuggingFaceFolder(folder, name, stated, read_preprocessor(folder), tensors)


def read_preprocessor(folder: Path) -> dict[str, Any]:
    """Return the content of ``preprocessor_config.json``; empty without it."""
    path = folder / "preprocessor_config.json"
    return read_json_file(path) if path.is_file() else {}


def write_hugging_face_folder(
    folder: Path,
    stated: Mapping[str, Any],
    tensors: dict[str, Tensor],
    preprocessor: Mapping[str, Any],
) -> None:
    """Write a folder that a Hugging Face class can load.

    Args:
        folder: The folder.
        stated: Content of ``config.json``, with ``architectures`` and ``model_type``.
        tensors: Tensors by name.
        preprocessor: Content of ``preprocessor_config.json``, which is not written if empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors)
    if preprocessor:
        write_json(folder / "preprocessor_config.json", dict(preprocessor))
    write_json(folder / "config.json", {"dtype": "float32", **stated})


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file as other libraries do."""
    write_atomic(path, save(tensors, metadata={"format": "pt"}))


def count_labels(stated: Mapping[str, Any]) -> int:
    """Return the number of classes: length of ``id2label``, else ``num_labels``, else 2."""
    labels = stated.get("id2label")
    return len(labels) if isinstance(labels, Mapping) else int(stated.get("num_labels", 2))


def name_labels(classes: Sequence[str], count: int) -> dict[str, Any]:
    """Return the entries of ``config.json`` that name the classes; unnamed ones are numbered."""
    labels = classes or [f"LABEL_{i}" for i in range(count)]
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def describe_preprocessor(name: str, spec: Image, **sizes: Any) -> dict[str, Any]:
    """Return the content of ``preprocessor_config.json`` for images that are resized and cropped.

    Args:
        name: Class of the image processor.
        spec: The input.
        sizes: ``size`` and ``crop_size``.
    """
    return {
        "image_processor_type": name,
        "do_resize": True,
        "resample": 3,
        "do_center_crop": True,
        **sizes,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean or (0.0,) * spec.channels),
        "image_std": list(spec.std or (1.0,) * spec.channels),
    }
