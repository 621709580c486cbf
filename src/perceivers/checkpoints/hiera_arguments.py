"""Constructor arguments of the official Hiera and of timm's, in our terms and back.

Both libraries write some of them beside their weights on the Hugging Face hub, and both are built
with them to be compared with.
"""

from collections.abc import Mapping
from typing import Any

from perceivers.checkpoints.hiera_names import Library
from perceivers.errors import CheckpointError
from perceivers.models.hiera import HieraConfig
from perceivers.types import Image, Video, spec_to_json


def constructor_arguments(config: HieraConfig, library: Library) -> dict[str, Any]:
    """Return what the class of the official package, or of timm, is built with.

    Args:
        config: The complete description.
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
    """Return what a ``config.json`` of either library on the hub says, as fields of our config.

    Sizes that shapes tell are left to them.

    Args:
        stated: The file's content: ``architecture`` and ``pretrained_cfg`` of timm, or the
            constructor arguments of the official class.
        source: For messages.

    Raises:
        CheckpointError: An argument has no counterpart here.
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
            f"{source}: patch_padding {padding} is not half of patch_kernel {kernel}; only that is "
            f"supported"
        )
    if "mask_unit_attn" in stated:
        fields["local_stages"] = count_local(stated["mask_unit_attn"], source)
    if "decoder_num_heads" in stated:
        fields["decoder"] = {"num_heads": stated["decoder_num_heads"]}
    return fields


def count_local(local: Any, source: str) -> int:
    """Return how many stages attend inside mask units; they must be the first ones.

    Raises:
        CheckpointError: A local stage follows a global one.
    """
    flags = [bool(flag) for flag in local]
    if flags != sorted(flags, reverse=True):
        raise CheckpointError(
            f"{source}: stages attend inside mask units as {flags}; only the first ones may"
        )
    return sum(flags)


def _stated_by_timm(given: Mapping[str, Any]) -> dict[str, Any]:
    """The size and statistics of the input."""
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
