"""What the shapes of a Hiera's tensors say of the model, and what they leave open.

Shapes give the depths, widths, classes, tables and decoder. They do not give heads, strides and
pools: those are the released ones at the released widths, and must be stated at any other.
"""

from collections.abc import Mapping
from itertools import pairwise
from math import isqrt
from typing import Any

from torch import Tensor

from perceivers.errors import CheckpointError, ConfigError, suggest
from perceivers.models.hiera import HieraConfig
from perceivers.models.hiera.build import configure
from perceivers.models.hiera.variants import VARIANTS
from perceivers.types import IMAGENET_MEAN, IMAGENET_STD, Image, Video, spec_to_json

# Heads of the first stage at the released widths, and of the decoder.
RELEASED_HEADS = {96: 1, 112: 2, 144: 2, 256: 4}
RELEASED_DECODER_HEADS = {512: 16}
# Strides, mask units and pools of the released models, by the number of axes.
RELEASED_SIZES: Mapping[int, Mapping[str, tuple[int, ...]]] = {
    2: {"patch_stride": (4, 4), "mask_unit": (8, 8), "pool": (2, 2)},
    3: {"patch_stride": (2, 4, 4), "mask_unit": (1, 8, 8), "pool": (1, 2, 2)},
}
# The size that window tables were trained at; their own sizes do not tell.
WINDOW_SIZE = 256
# Where the released layer scales start; what was learned does not tell.
LAYER_SCALE = 1e-5
STEM = "patch_embed.proj.weight"


def config_from_shapes(
    tensors: Mapping[str, Tensor], stated: Mapping[str, Any], source: str
) -> HieraConfig:
    """Describe the Hiera that a file of the official names, or of timm's, was saved from.

    Args:
        tensors: The file's content.
        stated: Fields of ``HieraConfig`` as plain data; they win over what shapes say.
        source: For messages.

    Raises:
        CheckpointError: Something is neither told by shapes nor stated.
        ConfigError: A stated field is unknown or impossible.
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
        told = _encoder(shapes) | _positions(shapes)
        told |= _ends(shapes)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"{source} is not a Hiera's: no usable {error} in it") from error
    values = _merge(told, stated)
    _require(values, source)
    if "inputs" not in values:
        values["inputs"] = _inputs(shapes, values, source)
    return HieraConfig.from_json(values)


def name_variant(config: HieraConfig) -> str:
    """Return the named model that a configuration is, whatever its classes; else an empty string.

    Auto-encoders are compared with auto-encoders.
    """
    for name, settings in VARIANTS.items():
        if not settings.get("inputs"):
            continue
        known = configure(settings, inputs=None, num_classes=None, head="query", overrides={})
        if _comparable(known) == _comparable(config):
            return name
    return ""


def _comparable(config: HieraConfig) -> dict[str, Any]:
    """Everything that fixes tensors and arithmetic, but the head's width."""
    left_out = {"head", "init", "layer_scale", "drop_path_rate", "unit_drop_rate"}
    data = {name: value for name, value in config.to_json().items() if name not in left_out}
    return {**data, "scaled": config.layer_scale is not None}


def _encoder(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Widths and depths; a stage begins where a block's norms differ in width."""
    dim, _, *kernel = shapes[STEM]
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
    """The decoder of an auto-encoder, or the classes."""
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
        # The last of the fusions joins what one pooling would join.
        told["pool"] = shapes[f"multi_scale_fusion_heads.{fused - 1}.weight"][2:]
    return told


def _merge(told: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """What was stated over what was told, field by field inside the head and the decoder too."""
    merged = {**told, **stated}
    for name in ("head", "decoder"):
        if isinstance(told.get(name), Mapping) and isinstance(stated.get(name), Mapping):
            merged[name] = {**told[name], **stated[name]}
    return merged


def _require(values: Mapping[str, Any], source: str) -> None:
    """Name what no shape tells, before a default is taken for it."""
    missing = [
        name for name in ("num_heads", "patch_stride", "mask_unit", "pool") if name not in values
    ]
    if isinstance(values.get("decoder"), Mapping) and "num_heads" not in values["decoder"]:
        missing.append("decoder.num_heads")
    if missing:
        raise CheckpointError(
            f"{source} is of no released size (first stage {values['dim']} channels wide), and "
            f"shapes do not tell {', '.join(missing)}; give --config with a JSON file that does, "
            f'such as {{"num_heads": 1}} or {{"decoder": {{"num_heads": 16}}}}'
        )


def _inputs(
    shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """A square input that the tables fit, under the name of the released models."""
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
            f"{source}: its tables do not tell the size of the input; give --config with a JSON "
            f'file that holds "inputs"'
        )
    side = _side(shapes["pos_embed"][1], source)
    return {"image": spec_to_json(Image(side * stride[0], side * stride[1], channels, **given))}


def _side(cells: int, source: str) -> int:
    """The side of a square of so many cells."""
    side = isqrt(cells)
    if side**2 != cells:
        raise CheckpointError(
            f"{source}: a table of {cells} positions is no square; give --config with a JSON file "
            f'that holds "inputs"'
        )
    return side
