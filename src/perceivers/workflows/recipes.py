"""Packaged recipes: complete settings of training runs; their pages say which were measured."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from perceivers.errors import ConfigError, suggest
from perceivers.files import write_atomic


@dataclass(frozen=True)
class Recipe:
    """A packaged YAML file.

    Attributes:
        name: What it is asked for by.
        title: What it trains, in a sentence.
        command: How it is run.
        text: The whole file.
    """

    name: str
    title: str
    command: str
    text: str


def list_recipes() -> list[Recipe]:
    """Return all packaged recipes, by name."""
    found = [path for path in files("perceivers.recipes").iterdir() if path.name.endswith(".yaml")]
    return [_read(path.name, path.read_text()) for path in sorted(found, key=lambda p: p.name)]


def find_recipe(name: str) -> Recipe:
    """Return one recipe.

    Raises:
        ConfigError: There is none of this name.
    """
    known = {recipe.name: recipe for recipe in list_recipes()}
    if name not in known:
        raise ConfigError(
            f"recipe {name!r} is unknown; there are {', '.join(known)}{suggest(name, known)}"
        )
    return known[name]


def copy_recipe(name: str, folder: Path, *, overwrite: bool = False) -> Path:
    """Write a recipe as ``NAME.yaml``, to be changed and run.

    Raises:
        ConfigError: There is no such recipe, or the file exists and ``overwrite`` is off.
    """
    recipe, path = find_recipe(name), folder / f"{name}.yaml"
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists; pass --overwrite or copy into another folder")
    write_atomic(path, recipe.text)
    return path


def settings_file(name: str) -> Path:
    """Return the file that a ``--config`` means: one that is there, or else a packaged recipe.

    Args:
        name: A path, or the name of a recipe, with or without ``.yaml``.
    """
    path = Path(name)
    packaged = Path(str(files("perceivers.recipes"))) / f"{name.removesuffix('.yaml')}.yaml"
    bare = path.name == name
    return packaged if bare and not path.exists() and packaged.is_file() else path


def _read(file: str, text: str) -> Recipe:
    """The first two comment lines say what and how."""
    title, command = (line.removeprefix("#").strip() for line in text.splitlines()[:2])
    return Recipe(file.removesuffix(".yaml"), title, command, text)
