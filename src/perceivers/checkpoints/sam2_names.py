"""The names of the tensors in SAM 2's trunk: in Meta's files, and in Hugging Face's folders.

Read in facebookresearch/sam2 (``modeling/backbones/hieradet.py``) and in transformers 5.23
(``models/sam2``), both Apache-2.0. The fused projection has the same order in both and here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from perceivers.checkpoints.names import Entry, Turn
from perceivers.models import HieraDetConfig

Sam2Naming = Literal["meta", "hf"]


@dataclass(frozen=True)
class TrunkNames:
    """How a library names what is inside the trunk.

    Attributes:
        stem: The patch convolution.
        block: Ours to theirs, inside a block; each has a weight and a bias.
    """

    stem: str
    block: Mapping[str, str]


ATTENTION = {"attention.qkv": "attn.qkv", "attention.out": "attn.proj", "shortcut": "proj"}
TRUNK_NAMES: Mapping[Sam2Naming, TrunkNames] = {
    "meta": TrunkNames(
        stem="patch_embed.proj",
        block={
            "norm_attention": "norm1",
            **ATTENTION,
            "norm_mlp": "norm2",
            "mlp.hidden": "mlp.layers.0",
            "mlp.out": "mlp.layers.1",
        },
    ),
    "hf": TrunkNames(
        stem="patch_embed.projection",
        block={
            "norm_attention": "layer_norm1",
            **ATTENTION,
            "norm_mlp": "layer_norm2",
            "mlp.hidden": "mlp.proj_in",
            "mlp.out": "mlp.proj_out",
        },
    ),
}
TABLE, WINDOW = "pos_embed", "pos_embed_window"


def sam2_entries(config: HieraDetConfig, naming: Sam2Naming) -> list[Entry]:
    """Return the table of names of a trunk, without any prefix.

    Args:
        config: Gives the number of blocks, and the grids of the position tables.
        naming: Whose names.
    """
    names, rank = TRUNK_NAMES[naming], len(config.patch_kernel)
    openers = {end + 1 for end in config.stage_ends}
    modules = [("encoder.stem", names.stem)]
    modules += [
        (f"encoder.blocks.{index}.{own}", f"blocks.{index}.{foreign}")
        for index in range(sum(config.depths))
        for own, foreign in names.block.items()
        if own != "shortcut" or index in openers
    ]
    positions = "encoder.positions"
    return [
        Entry(f"{positions}.table", TABLE, turn_table(config.position_grid)),
        Entry(f"{positions}.window", WINDOW, turn_table([config.windows[0]] * rank)),
        *(
            Entry(f"{own}.{kind}", f"{foreign}.{kind}")
            for own, foreign in modules
            for kind in ("weight", "bias")
        ),
    ]


def turn_table(grid: Sequence[int]) -> Turn:
    """Return the way from a map ``[1, C, *grid]`` of positions to a table ``[N, C]``, and back."""

    def into(x: Tensor) -> Tensor:
        return x[0].flatten(1).T

    def back(x: Tensor) -> Tensor:
        return x.T.reshape(1, -1, *grid)

    return Turn(into, back)
