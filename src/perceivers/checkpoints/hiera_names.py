"""The names of a Hiera's tensors in the official files, in timm's and in Hugging Face's, as ours.

One table per library says which module of theirs is which of ours; a library that lacks a row has
no place for it. Rows of the fused query, key and value have the same order in all of them.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Literal

from torch import Tensor

from perceivers.checkpoints.names import Entry, Layout, Turn
from perceivers.errors import CheckpointError
from perceivers.models.hiera import HieraConfig
from perceivers.nn.mask_units import UnitLayout

Library = Literal["official", "timm", "hf"]

# The classes of Hugging Face, and how they name the encoder inside them.
PREFIXES: Mapping[str, str] = {
    "HieraForImageClassification": "hiera.",
    "HieraForPreTraining": "hiera.",
    "HieraBackbone": "",
    "HieraModel": "",
}

NAMES: Mapping[Library, Mapping[str, str]] = {
    "official": {
        "encoder.stem": "patch_embed.proj",
        "encoder.positions.table": "pos_embed",
        "encoder.positions.spatial": "pos_embed_spatial",
        "encoder.positions.temporal": "pos_embed_temporal",
        "encoder.blocks": "blocks.{i}",
        "norm": "norm",
        "head": "head.projection",
        "autoencoder.norm": "encoder_norm",
        "decoder.fusion.merges": "multi_scale_fusion_heads.{i}",
        "decoder.embed": "decoder_embed",
        "decoder.mask_token": "mask_token",
        "decoder.positions": "decoder_pos_embed",
        "decoder.blocks": "decoder_blocks.{i}",
        "decoder.norm": "decoder_norm",
        "decoder.predict": "decoder_pred",
    },
    "timm": {
        "encoder.stem": "patch_embed.proj",
        "encoder.positions.table": "pos_embed",
        "encoder.positions.window": "pos_embed_win",
        "encoder.positions.spatial": "pos_embed_spatial",
        "encoder.positions.temporal": "pos_embed_temporal",
        "encoder.blocks": "blocks.{i}",
        "norm": "head.norm",
        "head": "head.fc",
    },
    "hf": {
        "encoder.stem": "embeddings.patch_embeddings.projection",
        "encoder.positions.table": "embeddings.position_embeddings",
        "encoder.blocks": "encoder.stages.{stage}.layers.{place}",
        "norm": "pooler.layernorm",
        "feature_norms": "hidden_states_norms.stage{number}",
        "head": "classifier",
        "autoencoder.norm": "encoder_norm",
        "decoder.fusion.merges": "multiscale_fusion.multi_scale_fusion_heads.{i}",
        "decoder.embed": "decoder.decoder_embeddings",
        "decoder.mask_token": "decoder.mask_token",
        "decoder.positions": "decoder.decoder_position_embeddings",
        "decoder.blocks": "decoder.decoder_block.layers.{i}",
        "decoder.norm": "decoder.decoder_norm",
        "decoder.predict": "decoder.decoder_pred",
    },
}
BLOCK = {
    "norm_attention": "norm1",
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "norm_mlp": "norm2",
    "mlp.hidden": "mlp.fc1",
    "mlp.out": "mlp.fc2",
    "shortcut": "proj",
}
BLOCKS: Mapping[Library, Mapping[str, str]] = {
    "official": BLOCK,
    "timm": {**BLOCK, "scale_attention": "ls1.gamma", "scale_mlp": "ls2.gamma"},
    "hf": {**BLOCK, "norm_attention": "layernorm_before", "norm_mlp": "layernorm_after"},
}
NORM = ("norm.weight", "norm.bias")


def hiera_entries(
    config: HieraConfig, library: Library, *, prefix: str = "", with_norm: bool = True
) -> list[Entry]:
    """Return the table of names for a configuration.

    Args:
        config: What there is.
        library: Whose names.
        prefix: Of the encoder's names (Hugging Face, by class).
        with_norm: Whether the norm of the mean token is there; backbones go without.

    Raises:
        CheckpointError: The library has no place for a part of the model.
    """
    names = _Names(library)
    entries = [
        Entry(entry.ours, f"{prefix}{entry.theirs}", entry.layout)
        for entry in _encoder(config, names)
    ]
    if config.head.kind == "segmentation":
        raise CheckpointError(f"{library} has no place for a segmentation head")
    if config.decoder is not None:
        entries += _pair("norm", names["autoencoder.norm"])
        return entries + list(_decoder(config, names))
    if with_norm:
        entries += _pair("norm", f"{prefix}{names['norm']}")
    for stage in config.feature_norms:
        theirs = names["feature_norms"].format(number=stage + 1)
        entries += _pair(f"feature_norms.{stage}", theirs)
    if config.head.kind == "mean":
        entries += _pair("head", names["head"])
    return entries


class _Names:
    """A library's names, by ours."""

    def __init__(self, library: Library) -> None:
        self.library: Library = library

    def __getitem__(self, ours: str) -> str:
        return self._find(NAMES[self.library], ours)

    def inside(self, ours: str) -> str:
        """Return a name inside a block."""
        return self._find(BLOCKS[self.library], ours)

    def _find(self, table: Mapping[str, str], ours: str) -> str:
        if ours not in table:
            raise CheckpointError(
                f"the {self.library} layout of a Hiera has no place for {ours!r}, which this model "
                f"has; convert to another layout"
            )
        return table[ours]


def _pair(ours: str, theirs: str, weight: Layout | Turn = "same") -> list[Entry]:
    """Weight and bias of one module."""
    return [
        Entry(f"{ours}.weight", f"{theirs}.weight", weight),
        Entry(f"{ours}.bias", f"{theirs}.bias"),
    ]


def _encoder(config: HieraConfig, names: _Names) -> Iterator[Entry]:
    yield from _pair("encoder.stem", names["encoder.stem"])
    table = "encoder.positions.table"
    if config.positions == "separable":
        for part in ("spatial", "temporal"):
            ours = f"encoder.positions.{part}"
            yield Entry(ours, names[ours], "row")
    elif config.positions == "window":
        window = "encoder.positions.window"
        yield Entry(window, names[window], grid_layout(config.mask_unit))
        yield Entry(table, names[table], grid_layout(config.position_grid))
    else:
        yield Entry(table, names[table], "row")
    index = 0
    for stage, depth in enumerate(config.depths):
        for place in range(depth):
            theirs = names["encoder.blocks"].format(i=index, stage=stage, place=place)
            projects = stage > 0 and place == 0 and config.shortcut == "project"
            scaled = config.layer_scale is not None
            yield from _block(names, f"encoder.blocks.{index}", theirs, projects, scaled)
            index += 1


def _block(
    names: _Names, ours: str, theirs: str, projects: bool = False, scaled: bool = False
) -> Iterator[Entry]:
    """Norms, attention and MLP of a block, and what only some blocks have."""
    modules = [name for name in BLOCK if projects or name != "shortcut"]
    for name in modules:
        yield from _pair(f"{ours}.{name}", f"{theirs}.{names.inside(name)}")
    for name in ("scale_attention", "scale_mlp") if scaled else ():
        yield Entry(f"{ours}.{name}.scale", f"{theirs}.{names.inside(name)}")


def _decoder(config: HieraConfig, names: _Names) -> Iterator[Entry]:
    assert config.decoder is not None
    for stage in range(config.pools):
        ours = "decoder.fusion.merges"
        merged = fusion_layout(config.pool, config.pools - stage)
        yield from _pair(f"{ours}.{stage}", names[ours].format(i=stage), merged)
    yield Entry("decoder.mask_token", names["decoder.mask_token"], "cell")
    yield Entry("decoder.positions", names["decoder.positions"], "row")
    for index in range(config.decoder.depth):
        theirs = names["decoder.blocks"].format(i=index)
        yield from _block(names, f"decoder.blocks.{index}", theirs)
    for module in ("embed", "norm", "predict"):
        yield from _pair(f"decoder.{module}", names[f"decoder.{module}"])


def grid_layout(grid: tuple[int, ...]) -> Turn:
    """Return the way of a table from ``[1, C, *grid]`` to our ``[N, C]``."""

    def into(x: Tensor) -> Tensor:
        return x[0].flatten(1).T

    def back(x: Tensor) -> Tensor:
        return x.T.reshape(1, -1, *grid)

    return Turn(into, back)


def fusion_layout(pool: tuple[int, ...], levels: int) -> Turn:
    """Return the way of a fusion from a convolution to our Linear.

    A convolution whose kernel is its stride joins the tokens that ``levels`` poolings would join;
    in our order of tokens they are neighbours, and their channels one long row.
    """
    kernel = tuple(p**levels for p in pool)
    layout = UnitLayout(unit=kernel, pool=pool, levels=levels)
    whole = (1,) * len(kernel)

    def into(x: Tensor) -> Tensor:  # [O, C, *kernel] to [O, T C]
        return layout.split(x.movedim(1, -1)).flatten(1)

    def back(x: Tensor) -> Tensor:
        tokens = x.reshape(len(x), 1, prod(kernel), -1)
        return layout.merge(tokens, whole).movedim(-1, 1)

    return Turn(into, back)
