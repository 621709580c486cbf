"""Open a run's data as its settings say: label columns, modalities, sizes, generated pairs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from perceivers.data import Dataset, open_data
from perceivers.data.flow_pairs import WARPS, make_warps, open_flow_pairs
from perceivers.data.sources import Source
from perceivers.errors import ConfigError, DataError, suggest
from perceivers.files import write_atomic
from perceivers.training.config import FlowTrainConfig, RegressConfig, TrainConfig
from perceivers.types import Image, ModalitySpec


def open_dataset(
    config: TrainConfig,
    *,
    address: str | None = None,
    frame_size: tuple[int, int] | None = None,
) -> Dataset:
    """Open the data of a run, or other data in the same way.

    Args:
        config: The run's settings.
        address: Other data; the run's own when not given.
        frame_size: Height and width of frame pairs, for flow.

    Raises:
        UserError: The data cannot be opened.
    """
    address = address or config.data
    if frame_size is not None:
        return _open_pairs(address, config, *frame_size)
    if address.startswith(WARPS):
        raise DataError(
            f"{address} holds generated frame pairs, which only flow learns from (--task flow)"
        )
    targets = config.targets if isinstance(config, RegressConfig) else ()
    dataset = open_data(
        address,
        val_share=config.val_share,
        labels=config.labels,
        targets=targets,
        integer_labels=config.integer_labels,
    )
    return dataset.holding(config.modalities)


def data_specs(config: TrainConfig, dataset: Dataset) -> dict[str, ModalitySpec]:
    """Describe what the run reads of its data.

    Raises:
        ConfigError: A setting speaks of modalities or fields that the data have not.
    """
    specs = dict(
        dataset.specs(
            size=config.size,
            channels=config.channels,
            overrides=config.inputs,
            modalities=config.modalities,
        )
    )
    for name in ("size", "channels"):
        if getattr(config, name) is not None and not any(
            isinstance(spec, Image) for spec in specs.values()
        ):
            raise ConfigError(
                f"{name}={getattr(config, name)} speaks of pictures, but {config.data} holds "
                f"{sorted(specs)}; set other sizes with inputs"
            )
    return specs


def _open_pairs(address: str, config: TrainConfig, height: int, width: int) -> Dataset:
    """Open frame pairs with flow: generated from photographs, or measured ones in a folder."""
    if not address.startswith(WARPS):
        try:
            pairs = open_flow_pairs(Path(address).expanduser())
        except DataError as error:
            raise DataError(
                f"{error}. Pairs are generated from photographs with 'warps:{address}'"
            ) from error
        splits: Mapping[str, Source] = {"train": pairs, "val": pairs, "test": pairs}
        return Dataset(address, splits, (), ("measured pairs; all splits are the same",))
    photographs = open_data(address.removeprefix(WARPS), val_share=config.val_share)
    largest = config.max_flow if isinstance(config, FlowTrainConfig) else 8.0
    repeats = config.repeats if isinstance(config, FlowTrainConfig) else 1
    made = make_warps(
        photographs.splits,
        height=height,
        width=width,
        max_flow=largest,
        seed=config.seed,
        repeats=repeats,
    )
    note = (
        f"frame pairs are generated: photographs warped by up to {largest:g} pixels, so their flow "
        f"is known exactly"
    )
    return replace(photographs, address=address, splits=made, classes=(), notes=(note,))


# -- Packaged recipes: complete settings of training runs; their pages say which were measured ---


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
