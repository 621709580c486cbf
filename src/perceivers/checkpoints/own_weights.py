"""Small weights of ours that come with the package, loaded by their name.

Each is a model folder below ``perceivers/weights``: half-precision tensors, which load as float32,
a card, the settings it was trained with, and its curve. Nothing here downloads.
"""

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from perceivers.files import read_json_file

FOLDER = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class OwnWeights:
    """One packaged model.

    Attributes:
        name: What it is loaded by.
        variant: The named model that it fills.
        task: What it was trained for.
        parameters: Trainable values.
        size: Bytes of its tensors on disk.
        license: SPDX name, of the weights.
        data: What it was trained on, and the licence of that.
        figures: What was measured on held-back data.
        folder: Where it lies.
    """

    name: str
    variant: str
    task: str
    parameters: int
    size: int
    license: str
    data: str
    figures: dict[str, float]
    folder: Path


def list_own_weights(pattern: str = "*") -> list[OwnWeights]:
    """Return the packaged weights whose name, or whose model's, matches a shell pattern."""
    found = [_read(path.parent) for path in sorted(FOLDER.glob("*/config.json"))]
    return [w for w in found if fnmatch(w.name, pattern) or fnmatch(w.variant, pattern)]


def find_own_weights(name: str) -> Path | None:
    """Return the folder of packaged weights; None where none have this name."""
    folder = FOLDER / name
    # A name with separators, or '.', would lead elsewhere.
    known = folder.parent == FOLDER and name not in {"", ".", ".."}
    return folder if known and (folder / "config.json").is_file() else None


def own_names() -> list[str]:
    """Return the names of the packaged weights."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def _read(folder: Path) -> OwnWeights:
    description = read_json_file(folder / "config.json")
    origin: dict[str, Any] = description["provenance"]
    return OwnWeights(
        name=folder.name,
        variant=origin["variant"],
        task=description["task"],
        parameters=origin["parameters"],
        size=(folder / "model.safetensors").stat().st_size,
        license=description["license"],
        data=f"{origin['data']} ({origin['data_license']})",
        figures=description["metrics"],
        folder=folder,
    )
