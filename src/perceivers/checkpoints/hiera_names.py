"""Hiera in other libraries: tensor names, config inferred from shapes, constructor arguments.

Covers the official package, timm and Hugging Face; ``hiera_files`` reads and writes the files.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from math import isqrt, prod
from typing import Any, Literal

from torch import Tensor

from perceivers.checkpoints.names import Entry, Layout, Turn, grid_layout
from perceivers.errors import CheckpointError, ConfigError, suggest
from perceivers.models.hiera import HieraConfig
from perceivers.models.hiera.variants import VARIANTS, configure
from perceivers.nn.mask_units import UnitLayout
from perceivers.types import IMAGENET_MEAN, IMAGENET_STD, Image, Video, spec_to_json

# -- Tensor names in the official files, in timm and in Hugging Face -----------------------------
#
# One table per library maps our modules to its modules; a module that is missing from the table is
# not supported there. The fused query, key and value have the same row order in all libraries.

Library = Literal["official", "timm", "hf"]

# The Hugging Face classes, and the prefix of the encoder in each.
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
    """Return the name table of a configuration, one entry per tensor.

    Args:
        config: The model's configuration.
        library: The library whose names to use.
        prefix: Prefix of the encoder's names (Hugging Face, depends on the class).
        with_norm: Include the norm of the mean token, which backbones lack.

    Raises:
        CheckpointError: The library does not support a part of the model.
    """
    names = _Names(library)
    entries = [
        Entry(entry.ours, f"{prefix}{entry.theirs}", entry.layout)
        for entry in _encoder(config, names)
    ]
    if config.head.kind == "segmentation":
        raise CheckpointError(f"{library} does not support a segmentation head")
    if config.decoder is not None:
        # The norm after an autoencoder's encoder is stored outside the encoder, without prefix.
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
    """A library's names by ours; raises ``CheckpointError`` for names that it lacks."""

    def __init__(self, library: Library) -> None:
        self.library: Library = library

    def __getitem__(self, ours: str) -> str:
        return self._find(NAMES[self.library], ours)

    def inside(self, ours: str) -> str:
        return self._find(BLOCKS[self.library], ours)

    def _find(self, table: Mapping[str, str], ours: str) -> str:
        if ours not in table:
            raise CheckpointError(
                f"the {self.library} layout of a Hiera does not support {ours!r}, which this model "
                f"has; convert to another layout"
            )
        return table[ours]


def _pair(ours: str, theirs: str, weight: Layout | Turn = "same") -> list[Entry]:
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


def fusion_layout(pool: tuple[int, ...], levels: int) -> Turn:
    """Return the conversion of a multi-scale fusion from a convolution to our Linear.

    The convolution, whose kernel equals its stride, merges the tokens that ``levels`` pooling steps
    merge. In our token order these are consecutive, so that a Linear on their concatenated channels
    does the same.
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


# -- Inferring a configuration from tensor shapes ------------------------------------------------
#
# Shapes give depths, widths, number of classes, position embeddings and decoder, but neither heads
# nor strides and pooling. Models of released sizes get the released values; others need --config.

# Number of heads by width, in the first stage and in the decoder.
RELEASED_HEADS = {96: 1, 112: 2, 144: 2, 256: 4}
RELEASED_DECODER_HEADS = {512: 16}
# Strides, mask units and pooling of the released models by number of axes; shapes do not show them.
RELEASED_SIZES: Mapping[int, Mapping[str, tuple[int, ...]]] = {
    2: {"patch_stride": (4, 4), "mask_unit": (8, 8), "pool": (2, 2)},
    3: {"patch_stride": (2, 4, 4), "mask_unit": (1, 8, 8), "pool": (1, 2, 2)},
}
# Input size of the released models with window position embeddings; their shapes do not show it.
WINDOW_SIZE = 256
# Initial value of the released layer scales; trained weights do not show it.
LAYER_SCALE = 1e-5
STEM = "patch_embed.proj.weight"


def config_from_shapes(
    tensors: Mapping[str, Tensor], stated: Mapping[str, Any], source: str
) -> HieraConfig:
    """Infer the configuration of a Hiera from an official or timm state dict.

    Args:
        tensors: Tensors by name.
        stated: Fields of ``HieraConfig`` as plain data; they take precedence over inferred ones.
        source: File name for error messages.

    Raises:
        CheckpointError: A required setting is neither given nor implied by the shapes.
        ConfigError: A given field is unknown or invalid.
    """
    unknown = sorted(stated.keys() - HieraConfig.__dataclass_fields__.keys())
    if unknown:
        raise ConfigError(
            f"a Hiera has no setting {unknown[0]!r}; its settings are "
            f"{sorted(HieraConfig.__dataclass_fields__)}"
            + suggest(unknown[0], HieraConfig.__dataclass_fields__)
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        told = _read_encoder(shapes) | _positions(shapes)
        told |= _ends(shapes)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{source} does not hold the weights of a Hiera: missing or misshapen tensor ({error})"
        ) from error
    values = _merge(told, stated)
    _require(values, source)
    if "inputs" not in values:
        values["inputs"] = _inputs(shapes, values, source)
    return HieraConfig.from_json(values)


def name_variant(config: HieraConfig) -> str:
    """Return the variant with this configuration, ignoring the head; "" if there is none.

    An autoencoder matches variants of autoencoders only.
    """
    for name, settings in VARIANTS.items():
        if not settings.get("inputs"):
            continue
        known = configure(settings, inputs=None, num_classes=None, head="query", overrides={})
        if _comparable(known) == _comparable(config):
            return name
    return ""


def _comparable(config: HieraConfig) -> dict[str, Any]:
    """Return the settings that determine tensors and outputs, except those of the head."""
    left_out = {"head", "init", "layer_scale", "drop_path_rate", "unit_drop_rate"}
    data = {name: value for name, value in config.to_json().items() if name not in left_out}
    return {**data, "scaled": config.layer_scale is not None}


def _read_encoder(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    dim, _, *kernel = shapes[STEM]
    # A block widens its channels between its two norms exactly where a stage begins.
    widths: list[tuple[int, int]] = []
    while f"blocks.{len(widths)}.norm1.weight" in shapes:
        block = f"blocks.{len(widths)}"
        widths.append((shapes[f"{block}.norm1.weight"][0], shapes[f"{block}.norm2.weight"][0]))
    starts = [0, *(i for i, (wide_in, out) in enumerate(widths) if wide_in != out), len(widths)]
    projects = len(starts) < 3 or f"blocks.{starts[1]}.proj.weight" in shapes
    return {
        "dim": dim,
        "patch_kernel": kernel,
        "depths": [end - start for start, end in pairwise(starts)],
        "mlp_ratio": shapes["blocks.0.mlp.fc1.weight"][0] // widths[0][1],
        "shortcut": "project" if projects else "pool",
        "layer_scale": LAYER_SCALE if "blocks.0.ls1.gamma" in shapes else None,
        **RELEASED_SIZES.get(len(kernel), {}),
        **({"num_heads": RELEASED_HEADS[dim]} if dim in RELEASED_HEADS else {}),
    }


def _positions(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    if "pos_embed_spatial" in shapes:
        return {"positions": "separable"}
    if "pos_embed_win" in shapes:
        return {
            "positions": "window",
            "position_grid": shapes["pos_embed"][2:],
            "mask_unit": shapes["pos_embed_win"][2:],
        }
    return {"positions": "absolute"}


def _ends(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the settings of the decoder or, without a decoder, those of the head."""
    if "decoder_embed.weight" not in shapes:
        head = next((n for n in ("head.projection", "head.fc") if f"{n}.weight" in shapes), "")
        if not head:
            return {}
        return {"head": {"kind": "mean", "num_outputs": shapes[f"{head}.weight"][0]}}
    dim, depth, fused = shapes["decoder_embed.weight"][0], 0, 0
    while f"decoder_blocks.{depth}.norm1.weight" in shapes:
        depth += 1
    while f"multi_scale_fusion_heads.{fused}.weight" in shapes:
        fused += 1
    video = len(shapes[STEM]) == 5
    decoder: dict[str, Any] = {"dim": dim, "depth": depth}
    decoder["order"] = "channels_last" if video else "channels_first"
    if dim in RELEASED_DECODER_HEADS:
        decoder["num_heads"] = RELEASED_DECODER_HEADS[dim]
    told = {"decoder": decoder, "num_pools": fused, "init": "autoencoder"}
    if fused:
        # The last fusion merges as many tokens as one pooling step, so its kernel is the pool.
        told["pool"] = shapes[f"multi_scale_fusion_heads.{fused - 1}.weight"][2:]
    return told


def _merge(told: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """Merge given fields over inferred ones, also field by field in the head and the decoder."""
    merged = {**told, **stated}
    for name in ("head", "decoder"):
        if isinstance(told.get(name), Mapping) and isinstance(stated.get(name), Mapping):
            merged[name] = {**told[name], **stated[name]}
    return merged


def _require(values: Mapping[str, Any], source: str) -> None:
    # Without this check, HieraConfig's defaults would silently replace what shapes do not show.
    missing = [
        name for name in ("num_heads", "patch_stride", "mask_unit", "pool") if name not in values
    ]
    if isinstance(values.get("decoder"), Mapping) and "num_heads" not in values["decoder"]:
        missing.append("decoder.num_heads")
    if missing:
        raise CheckpointError(
            f"{source} does not have a released size (first stage {values['dim']} channels wide), "
            f"and shapes do not determine {', '.join(missing)}; give --config with a JSON file "
            f'that does, such as {{"num_heads": 1}} or {{"decoder": {{"num_heads": 16}}}}'
        )


def _inputs(
    shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """Return a square input that fits the position embeddings, named as in the released models."""
    channels, stride = shapes[STEM][1], values["patch_stride"]
    given: dict[str, Any] = {}
    if channels == len(IMAGENET_MEAN):
        given = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    if values["positions"] == "window" and len(stride) == 2:
        return {"image": spec_to_json(Image(WINDOW_SIZE, WINDOW_SIZE, channels, **given))}
    if values["positions"] == "separable":
        side = _side(shapes["pos_embed_spatial"][1], source)
        frames = shapes["pos_embed_temporal"][1] * stride[0]
        spec = Video(frames, side * stride[1], side * stride[2], channels, **given)
        return {"video": spec_to_json(spec)}
    if len(stride) != 2 or "pos_embed" not in shapes:
        raise CheckpointError(
            f"{source}: the position embeddings do not determine the size of the input; give "
            f'--config with a JSON file that holds "inputs"'
        )
    side = _side(shapes["pos_embed"][1], source)
    return {"image": spec_to_json(Image(side * stride[0], side * stride[1], channels, **given))}


def _side(cells: int, source: str) -> int:
    side = isqrt(cells)
    if side**2 != cells:
        raise CheckpointError(
            f"{source}: {cells} positions do not form a square; give --config with a JSON file "
            f'that holds "inputs"'
        )
    return side


# -- Constructor arguments of the official Hiera and of timm -------------------------------------
#
# Both libraries store some of them next to their weights on the Hugging Face hub; verification
# builds their classes with all of them.


def constructor_arguments(config: HieraConfig, library: Library) -> dict[str, Any]:
    """Return the constructor arguments of the official Hiera or of timm's for a configuration.

    Args:
        config: The model's configuration.
        library: ``official`` or ``timm``.
    """
    arguments: dict[str, Any] = {
        "in_chans": config.spec.channels,
        "embed_dim": config.dim,
        "num_heads": config.num_heads,
        "stages": config.depths,
        "q_pool": config.pools,
        "q_stride": config.pool,
        "mask_unit_size": config.mask_unit,
        "mask_unit_attn": tuple(i < config.local_stages for i in range(len(config.depths))),
        "patch_kernel": config.patch_kernel,
        "patch_stride": config.patch_stride,
        "patch_padding": tuple(size // 2 for size in config.patch_kernel),
        "mlp_ratio": float(config.mlp_ratio),
        "sep_pos_embed": config.positions == "separable",
    }
    size = tuple(config.spec.grid)
    if library == "timm":
        return arguments | {
            "img_size": size,
            "num_classes": config.num_classes,
            "use_expand_proj": config.shortcut == "project",
            "init_values": config.layer_scale,
            "abs_win_pos_embed": config.positions == "window",
            **({"global_pos_size": config.position_grid} if config.position_grid else {}),
        }
    if config.decoder is not None:
        arguments |= {
            "decoder_embed_dim": config.decoder.dim,
            "decoder_depth": config.decoder.depth,
            "decoder_num_heads": config.decoder.num_heads,
        }
    return arguments | {"input_size": size, "num_classes": config.num_classes or 1}


def stated_by_hub(stated: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Translate a ``config.json`` of either library on the hub to fields of our config.

    Fields that the tensor shapes determine are left out.

    Args:
        stated: Content of the file: ``architecture`` and ``pretrained_cfg`` (timm), or constructor
            arguments of the official class.
        source: File name for error messages.

    Raises:
        CheckpointError: An argument has a value that is not supported.
    """
    if isinstance(stated.get("pretrained_cfg"), Mapping):
        return _stated_by_timm(stated["pretrained_cfg"])
    names = {
        "num_heads": "num_heads",
        "patch_stride": "patch_stride",
        "mask_unit_size": "mask_unit",
        "q_stride": "pool",
        "drop_path_rate": "drop_path_rate",
    }
    fields = {ours: stated[theirs] for theirs, ours in names.items() if theirs in stated}
    kernel, padding = stated.get("patch_kernel"), stated.get("patch_padding")
    if kernel and padding and [size // 2 for size in kernel] != list(padding):
        raise CheckpointError(
            f"{source}: patch_padding {padding} is not half of patch_kernel {kernel}, which is the "
            f"only supported padding"
        )
    if "mask_unit_attn" in stated:
        fields["local_stages"] = count_local(stated["mask_unit_attn"], source)
    if "decoder_num_heads" in stated:
        fields["decoder"] = {"num_heads": stated["decoder_num_heads"]}
    return fields


def count_local(local: Any, source: str) -> int:
    """Return the number of stages with attention inside mask units, which must come first.

    Raises:
        CheckpointError: A stage with local attention follows one with global attention.
    """
    flags = [bool(flag) for flag in local]
    if flags != sorted(flags, reverse=True):
        raise CheckpointError(
            f"{source}: attention inside mask units, by stage, is {flags}; stages with it must "
            f"come first"
        )
    return sum(flags)


def _stated_by_timm(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the size, mean and deviation of the input; timm's file gives nothing else."""
    size = given.get("input_size")
    if not size:
        return {}
    statistics: dict[str, Any] = {
        name: tuple(given[name]) for name in ("mean", "std") if given.get(name)
    }
    if len(size) == 4:
        channels, frames, height, width = size
        clip = Video(frames, height, width, channels, **statistics)
        return {"inputs": {"video": spec_to_json(clip)}}
    channels, height, width = size
    return {"inputs": {"image": spec_to_json(Image(height, width, channels, **statistics))}}
