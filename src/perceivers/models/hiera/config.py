"""Configuration of Hiera: stem, stages, positions, head, and the decoder for pre-training.

Paper: Hiera (arXiv 2306.00989) Sec. 3 and App. A. Default sizes are those of the released code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Annotated, Any, Literal

from perceivers.adapters.config import build_nested
from perceivers.errors import ConfigError, InputError
from perceivers.nn.mask_units import UnitLayout
from perceivers.settings import Count, Natural, Positive, Rate, Settings, UsedIf
from perceivers.types import Bytes, ModalitySpec, Points, spec_from_json, spec_to_json

PositionKind = Literal["absolute", "separable", "window"]
ResizeKind = Literal["window", "plain"]
HeadKind = Literal["none", "mean", "segmentation"]
TargetOrder = Literal["channels_first", "channels_last"]
WINDOWED = UsedIf("positions", "window")
OF_CLIPS = UsedIf("num_axes", 3, otherwise="on inputs without frames", part="all_frames")
Sizes = tuple[Count, ...]


@dataclass(frozen=True, kw_only=True)
class HieraHead(Settings, prefix="head."):
    """Output head of a Hiera or HieraDet."""

    kind: HeadKind = "none"
    """none: return the normalised mean token (an autoencoder: its reconstruction); mean: logits
    computed from that token; segmentation: logits per input element, computed from all stages."""
    num_outputs: Annotated[Natural, UsedIf("kind", "mean", "segmentation")] = 0
    """Number of classes."""
    dim: Annotated[Count, UsedIf("kind", "segmentation")] = 128
    """Channels to which all stages are projected before they are summed (segmentation)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind != "none" and self.num_outputs < 1:
            raise ConfigError(
                f"head.num_outputs is {self.num_outputs}; a head of kind {self.kind!r} needs at "
                f"least 1"
            )


@dataclass(frozen=True, kw_only=True)
class HieraDecoder(Settings, prefix="decoder."):
    """Decoder for masked autoencoding; it is dropped after pre-training."""

    dim: Count = 512
    """Channels; a multiple of ``num_heads``."""
    depth: Count = 8
    """Number of blocks, all with global attention."""
    num_heads: Count = 16
    """Attention heads."""
    order: TargetOrder = "channels_first"
    """Order of the values of a patch: channels first in the released image models, last in the
    released video models."""
    all_frames: bool = False
    """Video: reconstruct every frame of a patch; the released models reconstruct only the first."""
    latent_head: bool = False
    """Add a linear layer that predicts the encoder's tokens for the whole input; it is trained with
    mask.target latent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.num_heads:
            raise ConfigError(
                f"decoder.dim is {self.dim}; it must be a multiple of decoder.num_heads="
                f"{self.num_heads}"
            )


class OneInput(Settings, prefix=""):
    """Base class of configs with exactly one input modality."""

    inputs: Mapping[str, ModalitySpec]

    @property
    def name(self) -> str:
        """Name of the modality."""
        return next(iter(self.inputs))

    @property
    def spec(self) -> ModalitySpec:
        """Specification of the modality."""
        return self.inputs[self.name]

    @property
    def data_inputs(self) -> Mapping[str, ModalitySpec]:
        """Modalities that the data set must provide."""
        return self.inputs


@dataclass(frozen=True, kw_only=True)
class HieraConfig(OneInput):
    """Configuration of a Hiera with as many axes as its input: 1 audio, 2 images, 3 videos."""

    inputs: Mapping[str, ModalitySpec]
    """One modality on a grid, at its native size; the model accepts other sizes too."""
    dim: Count = 96
    """Channels of the first stage; each further stage doubles them."""
    num_heads: Count = 1
    """Heads of the first stage; each further stage doubles them."""
    depths: Sizes = (2, 3, 16, 3)
    """Blocks per stage."""
    patch_kernel: Sizes = (7, 7)
    """Kernel size of the patch embedding along each axis; odd."""
    patch_stride: Sizes = (4, 4)
    """Stride of the patch embedding along each axis."""
    mask_unit: Sizes = (8, 8)
    """Tokens of a mask unit along each axis, at the first stage."""
    pool: Sizes = (2, 2)
    """Pooling factor along each axis; 1 leaves an axis unpooled."""
    num_pools: Natural | None = None
    """Stage changes that pool; None: all, or all but the last with a decoder, as released."""
    local_stages: Natural = 2
    """Stages with attention inside mask units, including the block that opens the next stage."""
    mlp_ratio: Count = 4
    """MLP expansion ratio."""
    shortcut: Literal["project", "pool"] = "project"
    """How the residual connection is widened between stages; see ``HieraBlock``."""
    layer_scale: Positive | None = None
    """Initial value of layer scale on residual branches; None: no layer scale."""
    positions: PositionKind = "absolute"
    """absolute: one table; separable: a temporal and a spatial table (3 axes); window: one table
    that is interpolated and one that is tiled (arXiv 2311.05613)."""
    position_grid: Annotated[Sizes, WINDOWED] = ()
    """Grid of the table that is interpolated (window only); the native grid when empty."""
    position_resize: Annotated[ResizeKind, UsedIf("positions", "absolute", "separable")] = "window"
    """How absolute and separable tables are resized: window keeps the pattern inside mask units
    aligned with the units; plain interpolates the whole table, as other libraries do."""
    position_antialias: Annotated[bool, WINDOWED] = True
    """Use antialiasing when the interpolated table is reduced in size (window only)."""
    dropout_rate: Rate = 0.0
    """Dropout before the logits, 0..1."""
    drop_path_rate: Rate = 0.0
    """Stochastic depth of the last block, 0..1; it increases linearly from 0 at the first block."""
    unit_drop_rate: Rate = 0.0
    """Fraction of mask units dropped in training, at least 0, below 1; not for segmentation and
    autoencoders, whose output covers all units."""
    pad: bool = False
    """Pad inputs of other sizes with zeros (the mean) at their ends instead of rejecting them."""
    feature_norms: tuple[Natural, ...] = ()
    """Stages, from 0, whose maps in the feature pyramid get their own LayerNorm."""
    head: HieraHead = HieraHead()
    """Output head."""
    decoder: Annotated[HieraDecoder | None, OF_CLIPS] = None
    """Only in autoencoders."""
    init: Literal["paper", "autoencoder"] = "paper"
    """Initialisation as in the released classifiers (paper) or in their pre-training
    (autoencoder)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_pools is None:
            pools = len(self.depths) - (1 if self.decoder is None else 2)
            object.__setattr__(self, "num_pools", max(pools, 0))
        self._check_sizes()
        self._check_input()
        _ = self.layout
        if self.positions == "window" and not self.position_grid:
            object.__setattr__(self, "position_grid", self.native_grid)
        self._check_positions()

    # -- derived -----------------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        """Number of classes of a classifier; 0 for other models."""
        return self.head.num_outputs if self.head.kind == "mean" else 0

    @property
    def byte_outputs(self) -> tuple[str, ...]:
        """Name of the text for which a call returns scores over the byte vocabulary, if any."""
        return (self.name,) if self.decoder is not None and self.reads_text else ()

    @property
    def reads_text(self) -> bool:
        """Whether the input is a text (bytes)."""
        return isinstance(self.spec, Bytes)

    @property
    def num_axes(self) -> int:
        """Number of axes of the input."""
        return len(self.mask_unit)

    @property
    def pools(self) -> int:
        """Number of stage changes that pool."""
        assert self.num_pools is not None
        return self.num_pools

    @property
    def layout(self) -> UnitLayout:
        """Token order in memory, from grid to mask units."""
        return UnitLayout(unit=self.mask_unit, pool=self.pool, levels=len(self.depths) - 1)

    @property
    def unit_size(self) -> tuple[int, ...]:
        """Input elements of a mask unit along each axis; input sizes are multiples of them."""
        return tuple(s * u for s, u in zip(self.patch_stride, self.mask_unit, strict=True))

    @property
    def native_grid(self) -> tuple[int, ...]:
        """Tokens of the native input along each axis, padded to whole mask units."""
        sizes = zip(self.spec.grid, self.unit_size, self.mask_unit, strict=True)
        return tuple(-(-size // unit) * tokens for size, unit, tokens in sizes)

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels per stage."""
        return tuple(self.dim * 2**stage for stage in range(len(self.depths)))

    def stage_pools(self, stage: int) -> int:
        """Return how many times the tokens of a stage were pooled."""
        return min(stage, self.pools)

    def stride(self, stage: int) -> tuple[int, ...]:
        """Return the input elements per token of a stage along each axis."""
        pools = self.stage_pools(stage)
        return tuple(s * p**pools for s, p in zip(self.patch_stride, self.pool, strict=True))

    @property
    def patch(self) -> tuple[int, ...]:
        """Input elements per decoder token along each axis."""
        return self.stride(len(self.depths) - 1)

    @property
    def target_patch(self) -> tuple[int, ...]:
        """The part of ``patch`` that is reconstructed."""
        whole = self.decoder is None or self.decoder.all_frames or len(self.patch) < 3
        return self.patch if whole else (1, *self.patch[1:])

    @property
    def target_dim(self) -> int:
        """Values predicted per decoder token; for texts a score per byte and vocabulary entry."""
        return prod(self.target_patch) * self.spec.channels

    # -- checks ------------------------------------------------------------------------------

    def _check_sizes(self) -> None:
        axes = (self.patch_kernel, self.patch_stride, self.mask_unit, self.pool)
        if len({len(sizes) for sizes in axes}) != 1:
            raise ConfigError(
                f"patch_kernel={self.patch_kernel}, patch_stride={self.patch_stride}, "
                f"mask_unit={self.mask_unit}, pool={self.pool}: give one size per axis in each"
            )
        if not self.depths:
            raise ConfigError(f"depths is {self.depths}; a Hiera has at least one stage")
        if any(size % 2 == 0 for size in self.patch_kernel):
            raise ConfigError(f"patch_kernel is {self.patch_kernel}; its sizes must be odd")
        if self.dim % self.num_heads:
            raise ConfigError(f"dim={self.dim} is not a multiple of num_heads={self.num_heads}")
        if not 0 <= self.local_stages <= len(self.depths) or not 0 <= self.pools < len(self.depths):
            raise ConfigError(
                f"local_stages={self.local_stages}, num_pools={self.num_pools}: with "
                f"{len(self.depths)} stages the first lies in 0..{len(self.depths)}, the second in "
                f"0..{len(self.depths) - 1}"
            )
        if any(not 0 <= stage < len(self.depths) for stage in self.feature_norms):
            raise ConfigError(
                f"feature_norms={self.feature_norms}; stages are 0..{len(self.depths) - 1}"
            )
        if self.dropout_rate > 0.0 and self.head.kind == "none":
            raise ConfigError(
                f"dropout_rate={self.dropout_rate} acts before logits, and this model has none; "
                f"leave it out"
            )
        if self.unit_drop_rate > 0.0 and (self.decoder or self.head.kind == "segmentation"):
            raise ConfigError(
                f"unit_drop_rate={self.unit_drop_rate} drops units, but segmentation and "
                f"autoencoders need an output for every unit; leave it out"
            )
        if self.shortcut == "pool" and self.pools < len(self.depths) - 1:
            raise ConfigError("shortcut='pool' doubles channels by pooling; every stage must pool")

    def _check_input(self) -> None:
        rank = len(self.mask_unit)
        specs = list(self.inputs.values())
        good = len(specs) == 1 and specs[0].kind != "labels"
        if not good or isinstance(specs[0], Points) or len(specs[0].grid) != rank:
            raise ConfigError(
                f"inputs={dict(self.inputs)}: this Hiera has {rank} axes and reads one modality "
                f"on such a grid (1: audio and texts, 2: images, 3: videos); 'perceivers models "
                f"hiera*' lists the others"
            )
        object.__setattr__(self, "inputs", dict(self.inputs))
        if not self.pad:
            check_size(self.spec.grid, self.unit_size)
        if self.decoder is not None and self.head.kind != "none":
            raise ConfigError("an autoencoder (decoder) has no head; leave one of them out")

    def _check_positions(self) -> None:
        rank = len(self.mask_unit)
        if self.positions == "separable" and rank != 3:
            raise ConfigError(
                f"positions='separable' needs an input with 3 axes (frames, height, width), but "
                f"there are {rank} axes"
            )
        if self.positions == "window" and len(self.position_grid) != rank:
            raise ConfigError(f"position_grid={self.position_grid} must have {rank} sizes")

    # -- JSON --------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-serialisable data; ``from_json`` is the inverse."""
        data = asdict(self)
        data["inputs"] = {name: spec_to_json(spec) for name, spec in self.inputs.items()}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "HieraConfig":
        """Rebuild from the output of ``to_json``.

        Raises:
            ConfigError: A field is unknown, or the values contradict one another.
        """
        values = dict(data)
        values["inputs"] = {n: spec_from_json(spec) for n, spec in data["inputs"].items()}
        if isinstance(values.get("decoder"), Mapping):
            values["decoder"] = build_nested(HieraDecoder, values["decoder"], given=())
        return build_nested(cls, values, given=())


def check_size(size: Sequence[int], unit: Sequence[int]) -> None:
    """Require a multiple of the mask unit along every axis.

    Raises:
        InputError: The size is not a multiple; the message suggests the nearest valid sizes.
    """
    if all(s > 0 and s % u == 0 for s, u in zip(size, unit, strict=True)):
        return
    smaller = tuple(max(s // u, 1) * u for s, u in zip(size, unit, strict=True))
    larger = tuple(max(-(-s // u), 1) * u for s, u in zip(size, unit, strict=True))
    nearest = f"size is {larger}" if smaller == larger else f"sizes are {smaller} and {larger}"
    raise InputError(
        f"an input of {tuple(size)} is not made of whole mask units of {tuple(unit)} elements; the "
        f"nearest legal {nearest}; or pass pad=True"
    )
