"""Carrying a flat model's weights to other input sizes, and ordering its parameters by depth."""

from collections.abc import Mapping

from torch import Tensor, nn

from perceivers.adapters.config import PositionConfig, TokenConfig
from perceivers.adapters.multimodal import TokenReaders
from perceivers.errors import ConfigError
from perceivers.models.flat.trunk import Trunk
from perceivers.nn.positions import resize_table
from perceivers.settings import change
from perceivers.types import ModalitySpec

# Of a learned table: the old grid, the new one, and whether rows are cut instead of interpolated.
Grids = tuple[tuple[int, ...], tuple[int, ...], bool]


def check_resizable(old: Mapping[str, ModalitySpec], new: Mapping[str, ModalitySpec]) -> None:
    """Require the same modalities with the same channels; texts may only become shorter.

    Raises:
        ConfigError: They differ.
    """
    if list(new) != list(old) or any(
        (type(new[n]), new[n].channels) != (type(old[n]), old[n].channels) for n in old
    ):
        raise ConfigError(
            f"a model of {dict(old)} cannot be resized to {dict(new)}: names, kinds and channels "
            f"must stay"
        )
    for name, spec in new.items():
        if spec.kind == "bytes" and spec.num_tokens > old[name].num_tokens:
            raise ConfigError(
                f"a model of texts of {old[name].num_tokens} bytes has no positions for "
                f"{spec.num_tokens}; text positions are cut, never stretched"
            )


def pin_waves(positions: PositionConfig, grid: tuple[int, ...]) -> PositionConfig:
    """Return positions whose frequencies stay those that weights were trained with on ``grid``."""
    if positions.kind != "fourier" or positions.max_resolution is not None:
        return positions
    return change(positions, (), max_resolution=grid)


def pin_tokens(tokens: Mapping[str, TokenConfig], readers: TokenReaders) -> dict[str, TokenConfig]:
    """Return how modalities become tokens, with the frequencies that weights were trained with.

    Args:
        tokens: As they were.
        readers: What was built of them.
    """
    return {
        name: change(how, (), positions=pin_waves(how.positions, readers.reader(name).grid))
        for name, how in tokens.items()
    }


def token_tables(
    inputs: Mapping[str, ModalitySpec], old: TokenReaders, new: TokenReaders
) -> dict[str, Grids]:
    """Return the tables of learned token positions, for ``carry_tables``; those of texts are cut.

    Args:
        inputs: Modalities by name.
        old: The readers that weights come from.
        new: The readers that they go to.
    """
    return {
        f"inputs.readers.{name}.positions.source.table": (
            old.reader(name).grid,
            new.reader(name).grid,
            spec.kind == "bytes",
        )
        for name, spec in inputs.items()
    }


def carry_tables(state: Mapping[str, Tensor], grids: Mapping[str, Grids]) -> dict[str, Tensor]:
    """Return the state with learned tables fitted to new grids.

    Args:
        state: Weights by name.
        grids: Table name -> old grid, new grid, and whether rows are cut instead of interpolated.
    """
    carried = dict(state)
    for name, (old, new, cut) in grids.items():
        if name in carried:
            table = carried[name]
            carried[name] = table[: new[0]].clone() if cut else resize_table(table, old, new)
    return carried


def flat_layer_depths(model: nn.Module, trunk: Trunk) -> dict[str, int]:
    """Depth per parameter: inputs 0, every read and layer one more, outputs share the last.

    Weights that are used again keep their first depth and count once: else the layers of a model
    that shares them would lie so far below its head that they would hardly learn.
    """
    order: list[str] = []
    for step, index in trunk.steps:
        if step == "read":
            order.append(f"trunk.reads.{index}.")
        else:
            order += [f"trunk.blocks.{index}.{layer}." for layer in range(trunk.config.depth)]
    depths = {"inputs.": 0, "trunk.latents": 1}
    depths |= {prefix: depth for depth, prefix in enumerate(dict.fromkeys(order), start=1)}
    last = max(depths.values()) + 1
    return {
        name: next((at for prefix, at in depths.items() if name.startswith(prefix)), last)
        for name, _ in model.named_parameters()
    }
