"""Open a run's data according to its settings, and find the packaged recipes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from perceivers.checkpoints.loading import split_address
from perceivers.data import Dataset, open_data
from perceivers.data.flow_pairs import WARPS, make_warps, open_flow_pairs
from perceivers.data.sources import Source
from perceivers.errors import ConfigError, DataError, RunError, suggest
from perceivers.files import write_atomic
from perceivers.report.console import Grid, Shown
from perceivers.training.config import FlowTrainConfig, RegressConfig, TrainConfig
from perceivers.training.run_folder import RunFolder
from perceivers.types import ModalitySpec


def open_dataset(
    config: TrainConfig,
    *,
    address: str | None = None,
    frame_size: tuple[int, int] | None = None,
) -> Dataset:
    """Open the data of a run, or other data with the same settings.

    Args:
        config: Settings of the run.
        address: Data address; default: the data of the run.
        frame_size: Height and width of frame pairs, for optical flow.

    Raises:
        UserError: The data cannot be opened.
    """
    address = address or config.data
    if frame_size is not None:
        return _open_pairs(address, config, *frame_size)
    if address.startswith(WARPS):
        raise DataError(f"{address} holds generated frame pairs, which only --task flow can use")
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
    """Return the specs of the modalities that the run reads.

    Raises:
        ConfigError: A setting refers to modalities or fields that the data do not have.
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
            spec.takes_size for spec in specs.values()
        ):
            raise ConfigError(
                f"{name}={getattr(config, name)} applies to images, but {config.data} holds "
                f"{sorted(specs)}; set other sizes with inputs"
            )
    return specs


def _open_pairs(address: str, config: TrainConfig, height: int, width: int) -> Dataset:
    """Open frame pairs with flow: generated from images, or measured ones in a folder."""
    if not address.startswith(WARPS):
        try:
            pairs = open_flow_pairs(Path(address).expanduser())
        except DataError as error:
            raise DataError(
                f"{error}. To generate pairs from images, use 'warps:{address}'"
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
        f"frame pairs are generated: images warped by up to {largest:g} pixels, so their flow is "
        f"known exactly"
    )
    return replace(photographs, address=address, splits=made, classes=(), notes=(note,))


# -- Packaged recipes: complete settings of training runs ----------------------------------------


@dataclass(frozen=True)
class Recipe:
    """A packaged YAML file.

    Attributes:
        name: File name without ``.yaml``.
        title: What it trains, in a sentence.
        command: Command that runs it.
        text: Content of the file.
    """

    name: str
    title: str
    command: str
    text: str


def list_recipes() -> list[Recipe]:
    """Return all packaged recipes, sorted by name."""
    found = [path for path in files("perceivers.recipes").iterdir() if path.name.endswith(".yaml")]
    return [_read(path.name, path.read_text()) for path in sorted(found, key=lambda p: p.name)]


def find_recipe(name: str) -> Recipe:
    """Return the recipe with this name.

    Raises:
        ConfigError: It does not exist.
    """
    known = {recipe.name: recipe for recipe in list_recipes()}
    if name not in known:
        raise ConfigError(
            f"recipe {name!r} is unknown; there are {', '.join(known)}{suggest(name, known)}"
        )
    return known[name]


def copy_recipe(name: str, folder: Path, *, overwrite: bool = False) -> Path:
    """Copy a recipe to ``NAME.yaml`` in a folder.

    Raises:
        ConfigError: There is no such recipe, or the file exists and ``overwrite`` is off.
    """
    recipe, path = find_recipe(name), folder / f"{name}.yaml"
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists; pass --overwrite or copy into another folder")
    write_atomic(path, recipe.text)
    return path


def show_recipes(name: str | None = None, *, copy: bool = False, overwrite: bool = False) -> Shown:
    """List, show or copy packaged training settings.

    Args:
        name: A recipe; without it, list all.
        copy: Write NAME.yaml to this folder.
        overwrite: Replace an existing NAME.yaml.

    Raises:
        ConfigError: There is no such recipe, or the file exists and ``overwrite`` is off.
    """
    if name is None:
        if copy:
            raise ConfigError("--copy needs the name of a recipe")
        return Shown(
            [Grid(("recipe", "what it trains"), [(r.name, r.title) for r in list_recipes()])]
        )
    if copy:
        return Shown(
            [str(copy_recipe(name, Path(), overwrite=overwrite)), find_recipe(name).command]
        )
    return Shown([find_recipe(name).text.removesuffix("\n")])


def settings_file(name: str) -> Path:
    """Resolve a ``--config`` value to an existing file or else to a packaged recipe.

    Args:
        name: A path, or the name of a recipe with or without ``.yaml``.
    """
    path = Path(name)
    packaged = Path(str(files("perceivers.recipes"))) / f"{name.removesuffix('.yaml')}.yaml"
    bare = path.name == name
    return packaged if bare and not path.exists() and packaged.is_file() else path


def _read(file: str, text: str) -> Recipe:
    # The first two lines of a recipe are comments: its title and its command.
    title, command = (line.removeprefix("#").strip() for line in text.splitlines()[:2])
    return Recipe(file.removesuffix(".yaml"), title, command, text)


# -- The settings and the data of the run that a model comes from --------------------------------


def run_config(model: str | Path) -> TrainConfig | None:
    """Return the settings of a model's run; None for a model folder without a run.

    Args:
        model: Run folder, ``RUN@last`` or model folder.
    """
    folder = RunFolder(Path(split_address(model)[0]))
    return folder.read_config()[1] if folder.config.is_file() else None


def own_data(model: str | Path, config: TrainConfig | None) -> str:
    """Return the data address that a model was trained on.

    Args:
        model: Name of the model, for the message.
        config: Settings of its run, if there is one.

    Raises:
        RunError: The model has no run.
    """
    if config is None:
        raise RunError(
            f"{model} is a model folder without a run; give a data address (evaluate: --data)"
        )
    return config.data
