"""Configuration of HieraDet: stem, stages and their windows, positions, head; and named variants.

Papers: SAM 2 (arXiv 2408.00714) App. D; Window Attention is Bugged (arXiv 2311.05613) Sec. 4.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any

from perceivers.adapters.config import build_nested
from perceivers.errors import ConfigError, InputError
from perceivers.models.hiera import HieraHead
from perceivers.models.hiera.config import OneInput, Sizes
from perceivers.models.hiera.variants import make_head
from perceivers.settings import Count, Natural, Rate, change, named, settle
from perceivers.types import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Image,
    ModalitySpec,
    Points,
    spec_from_json,
    spec_to_json,
)


@dataclass(frozen=True, kw_only=True)
class HieraDetConfig(OneInput):
    """Configuration of a HieraDet with as many axes as its input; the released models have two."""

    inputs: Mapping[str, ModalitySpec]
    """One modality on a grid, at its native size; the model accepts other sizes too."""
    dim: Count = 96
    """Channels of the first stage; each further stage doubles them."""
    num_heads: Count = 1
    """Heads of the first stage; each further stage doubles them."""
    depths: Sizes = (1, 2, 7, 2)
    """Blocks per stage; from the second stage on, the first block of a stage pools."""
    windows: Sizes = (8, 4, 14, 7)
    """Tokens of a window along each axis, per stage. The first block of a stage still uses the
    windows of the previous stage."""
    global_blocks: tuple[Natural, ...] = (5, 7, 9)
    """Blocks with global attention, counted from 0 over all stages; none of them may pool."""
    patch_kernel: Sizes = (7, 7)
    """Kernel size of the patch embedding along each axis; odd."""
    patch_stride: Sizes = (4, 4)
    """Stride of the patch embedding along each axis."""
    pool: Sizes = (2, 2)
    """Pooling factor between stages along each axis."""
    position_grid: Sizes = (7, 7)
    """Grid of the position table that is interpolated; the other table has the size of a window of
    the first stage, and is tiled."""
    mlp_ratio: Count = 4
    """MLP expansion ratio."""
    dropout_rate: Rate = 0.0
    """Dropout before the logits, 0..1."""
    drop_path_rate: Rate = 0.0
    """Stochastic depth of the last block, 0..1; it increases linearly from 0 at the first block."""
    head: HieraHead = field(default_factory=HieraHead)
    """Output head: none, or logits from the mean of the last map."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_sizes()
        self._check_windows()
        self._check_input()

    # -- derived -----------------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        """Number of classes of a classifier; 0 for other models."""
        return self.head.num_outputs

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels per stage."""
        return tuple(self.dim * 2**stage for stage in range(len(self.depths)))

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """Index of the last block of every stage."""
        return tuple(end - 1 for end in accumulate(self.depths))

    def stride(self, stage: int) -> tuple[int, ...]:
        """Return the input elements per token of a stage along each axis."""
        return tuple(s * p**stage for s, p in zip(self.patch_stride, self.pool, strict=True))

    @property
    def smallest_size(self) -> tuple[int, ...]:
        """Smallest input size that leaves a token in the last stage."""
        pools = len(self.depths) - 1
        return tuple(
            s * (p**pools - 1) + 1 for s, p in zip(self.patch_stride, self.pool, strict=True)
        )

    # -- checks ------------------------------------------------------------------------------

    def _check_sizes(self) -> None:
        axes = (self.patch_kernel, self.patch_stride, self.pool, self.position_grid)
        if len({len(sizes) for sizes in axes}) != 1:
            raise ConfigError(
                f"patch_kernel={self.patch_kernel}, patch_stride={self.patch_stride}, "
                f"pool={self.pool}, position_grid={self.position_grid}: give one size per axis in "
                f"each"
            )
        if not self.depths:
            raise ConfigError(f"depths is {self.depths}; a HieraDet has at least one stage")
        if any(size % 2 == 0 for size in self.patch_kernel):
            raise ConfigError(f"patch_kernel is {self.patch_kernel}; its sizes must be odd")
        if self.dim % self.num_heads:
            raise ConfigError(f"dim={self.dim} is not a multiple of num_heads={self.num_heads}")
        if self.dropout_rate > 0.0 and self.head.kind == "none":
            raise ConfigError(
                f"dropout_rate={self.dropout_rate} acts before logits, and this model has none; "
                f"leave it out"
            )
        if self.head.kind == "segmentation":
            raise ConfigError(
                "a HieraDet has no segmentation head; use 'mean', or build on forward_features"
            )

    def _check_windows(self) -> None:
        if len(self.windows) != len(self.depths):
            raise ConfigError(
                f"windows={self.windows} for depths={self.depths}: give one window per stage"
            )
        if any(window % pool for window in self.windows[:-1] for pool in self.pool):
            raise ConfigError(
                f"windows={self.windows}: all but the last are pooled by {self.pool} at the next "
                f"stage, and must be multiples of it"
            )
        openers = {end + 1 for end in self.stage_ends[:-1]}
        wrong = [i for i in self.global_blocks if not 0 <= i <= self.stage_ends[-1] or i in openers]
        if wrong or len(set(self.global_blocks)) != len(self.global_blocks):
            raise ConfigError(
                f"global_blocks={self.global_blocks}: name each block of 0..{self.stage_ends[-1]} "
                f"at most once, and none of {sorted(openers)}, which pool inside windows"
            )

    def _check_input(self) -> None:
        rank = len(self.patch_kernel)
        specs = list(self.inputs.values())
        good = len(specs) == 1 and specs[0].kind not in {"labels", "bytes"}
        if not good or isinstance(specs[0], Points) or len(specs[0].grid) != rank:
            raise ConfigError(
                f"inputs={dict(self.inputs)}: this HieraDet reads one modality on a grid of {rank} "
                f"axes (2: images)"
            )
        object.__setattr__(self, "inputs", dict(self.inputs))
        check_smallest(self.spec.grid, self.smallest_size)

    # -- JSON --------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-serialisable data; ``from_json`` is the inverse."""
        data = asdict(self)
        data["inputs"] = {name: spec_to_json(spec) for name, spec in self.inputs.items()}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "HieraDetConfig":
        """Rebuild from the output of ``to_json``.

        Raises:
            ConfigError: A field is unknown, or the values contradict one another.
        """
        values = dict(data)
        values["inputs"] = {n: spec_from_json(spec) for n, spec in data["inputs"].items()}
        return build_nested(cls, values, given=())


def check_smallest(size: Sequence[int], smallest: Sequence[int]) -> None:
    """Require an input that leaves a token in the last stage.

    Raises:
        InputError: The input is smaller than ``smallest`` along an axis.
    """
    if any(s < least for s, least in zip(size, smallest, strict=True)):
        raise InputError(
            f"an input of {tuple(size)} is pooled to nothing; the smallest legal size is "
            f"{tuple(smallest)}; resize the data"
        )


# -- Named HieraDet variants, and their completion to a full configuration -------------------------
#
# The image encoder trunks of SAM 2, and a small model for two CPU cores. They are backbones
# without a head; ``num_classes`` adds one. Sizes are those of
# the released configurations.


# Image size and normalisation with which SAM 2 was trained.
SAM2_INPUT = {"image": Image(1024, 1024, 3, mean=IMAGENET_MEAN, std=IMAGENET_STD)}

VARIANTS: dict[str, Mapping[str, Any]] = {
    "hiera_det_tiny": {
        "inputs": SAM2_INPUT,
        "dim": 96,
        "num_heads": 1,
        "depths": (1, 2, 7, 2),
        "global_blocks": (5, 7, 9),
    },
    "hiera_det_small": {
        "inputs": SAM2_INPUT,
        "dim": 96,
        "num_heads": 1,
        "depths": (1, 2, 11, 2),
        "global_blocks": (7, 10, 13),
    },
    "hiera_det_base_plus": {
        "inputs": SAM2_INPUT,
        "dim": 112,
        "num_heads": 2,
        "depths": (2, 3, 16, 3),
        "global_blocks": (12, 16, 20),
        "position_grid": (14, 14),
    },
    "hiera_det_large": {
        "inputs": SAM2_INPUT,
        "dim": 144,
        "num_heads": 2,
        "depths": (2, 6, 36, 4),
        "windows": (8, 4, 16, 8),
        "global_blocks": (23, 33, 43),
    },
    # No native input size of its own: it is taken from the data.
    "hiera_det_nano": {
        "dim": 32,
        "num_heads": 1,
        "depths": (1, 1, 3),
        "windows": (4, 2, 4),
        "global_blocks": (3,),
        "position_grid": (4, 4),
    },
}


# -- Full configuration from a variant, an input and a head --------------------------------------


def configure(
    settings: Mapping[str, Any],
    *,
    inputs: Mapping[str, ModalitySpec] | None,
    num_classes: int | Mapping[str, int] | None,
    head: Any,
    overrides: Mapping[str, Any],
) -> HieraDetConfig:
    """Return the full configuration of a variant.

    Args:
        settings: Settings of the variant.
        inputs: One modality; that of the variant by default.
        num_classes: Number of classes; without it the model is a backbone.
        head: ``mean`` or the default, or a ``HieraHead``.
        overrides: Fields of ``HieraDetConfig``.

    Raises:
        ConfigError: A setting is missing, or contradicts another one.
    """
    values: dict[str, Any] = {**settings, **overrides}
    values["inputs"] = inputs or settings.get("inputs")
    if values["inputs"] is None:
        raise ConfigError("this variant has no input size; describe it with inputs={name: spec}")
    if num_classes is not None:
        values["head"] = make_head(num_classes, head)
    elif isinstance(head, HieraHead):
        values["head"] = head
    elif head != "query":  # the default of every model family
        raise ConfigError(f"head={head!r} needs num_classes")
    return settle(HieraDetConfig, values, named(overrides))


def as_classifier(
    config: HieraDetConfig, num_classes: int | Mapping[str, int], head: Any
) -> HieraDetConfig:
    """Return the config of a classifier with the same encoder.

    Raises:
        ConfigError: Several tasks, or an unknown head.
    """
    return change(config, head=make_head(num_classes, head))
