"""Open a run's data as its settings say: label columns, modalities, sizes, generated pairs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from perceivers.data import Dataset, open_data
from perceivers.data.flow_pairs import open_flow_pairs
from perceivers.data.sources import Source
from perceivers.data.warps import WARPS, make_warps
from perceivers.errors import ConfigError, DataError
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
