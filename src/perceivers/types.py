"""Modality specs: layout, token grid and normalisation of the raw tensors of each modality.

Specs are frozen, serialisable to JSON and independent of models. Users declare them; they are never
inferred from tensors. Tokens are in row-major order of the grid.

Legend: B batch, C channels, H W rows and columns, T frames, S samples, P points, K classes,
L bytes.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from math import prod
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from perceivers.errors import ConfigError, suggest
from perceivers.settings import (
    Count,
    Finite,
    Natural,
    NonNegative,
    Positive,
    Range,
    Settings,
    UsedIf,
)

# Byte vocabulary: six special ids, then the 256 bytes (Perceiver IO Sec. 4.1).
PAD, BOS, EOS, MASK, CLS, SEP = range(6)
FIRST_BYTE = 6
BYTE_VOCABULARY = FIRST_BYTE + 256

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ElementOrder: TypeAlias = Literal["in_place", "fixed", "per_sample"]
OrderSeed: TypeAlias = Annotated[int, Range(0, 2**64 - 1), UsedIf("order", "fixed", "per_sample")]


class ModalitySpec(Settings):
    """Base class of specs: raw tensors are ``[B, C, *grid]`` or ``[B, *grid, C]``."""

    kind: ClassVar[str]
    channels_first: ClassVar[bool] = False
    # Type of raw samples as they are usually stored, and so of zeros in place of missing ones.
    raw_dtype: ClassVar[str] = "float32"
    # What integers are, for messages, if they are indices rather than values; else empty.
    indexed: ClassVar[str] = ""
    # Whether samples are images or frames, and whether they extend in time.
    has_pixels: ClassVar[bool] = False
    has_time: ClassVar[bool] = False
    # Whether the settings ``size`` and ``channels`` of a run apply.
    takes_size: ClassVar[bool] = False
    # Distance from the smallest to the largest value after scaling.
    value_range: ClassVar[float] = 1.0

    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    # For specs that do not declare an order, such as labels.
    order: ElementOrder = "in_place"
    order_seed: int = 0

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of the token grid, slowest axis first."""
        raise AssertionError(f"{type(self).__name__} must define grid")

    @property
    def num_tokens(self) -> int:
        """Number of raw elements per sample, which are one token each."""
        return prod(self.grid)

    @property
    def has_order(self) -> bool:
        """Whether the order of the elements can be changed, which labels do not support."""
        return any(field.name == "order" for field in fields(self))

    @property
    def may_lack(self) -> bool:
        """Whether elements may be missing: texts are padded, ragged points may be fewer."""
        return False

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Shape of one raw sample, without the batch axis."""
        return (self.channels, *self.grid) if self.channels_first else (*self.grid, self.channels)

    def __post_init__(self) -> None:
        """Check all fields, and that ``mean`` and ``std`` match the channels."""
        for name in ("mean", "std"):
            # Values that are not numbers are reported by the check that follows.
            with suppress(TypeError, ValueError, OverflowError):
                values = tuple(float(value) for value in getattr(self, name))
                object.__setattr__(self, name, values)
        super().__post_init__()
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in {0, 1, self.channels}:
                raise ConfigError(
                    f"{type(self).__name__}.{name} has {len(values)} values for {self.channels} "
                    f"channels; give none, one for all, or one per channel"
                )


@dataclass(frozen=True)
class Image(ModalitySpec):
    """Images ``[B, C, H, W]``: uint8 in 0..255 or float in 0..1, any number of channels.

    Args:
        height: Rows H in pixels.
        width: Columns W in pixels.
        channels: Channels C; 3 means RGB.
        mean: Subtracted per channel after scaling to 0..1; default 0.
        std: Divisor per channel; default 1.
        order: Order of the elements after reading: ``in_place``, ``fixed`` (the same permutation
            for all samples) or ``per_sample`` (a different one for each sample). It measures how
            much a model depends on order (``perceivers shuffle``).
        order_seed: Seed of the permutations.
    """

    kind: ClassVar[str] = "image"
    channels_first: ClassVar[bool] = True
    raw_dtype: ClassVar[str] = "uint8"
    has_pixels: ClassVar[bool] = True
    takes_size: ClassVar[bool] = True

    height: Count
    width: Count
    channels: Count = 3
    mean: tuple[Finite, ...] = ()
    std: tuple[Positive, ...] = ()
    order: ElementOrder = field(default="in_place", repr=False)
    order_seed: OrderSeed = field(default=0, repr=False)

    @property
    def grid(self) -> tuple[int, ...]:
        """Rows and columns."""
        return (self.height, self.width)


@dataclass(frozen=True)
class Video(ModalitySpec):
    """Video clips ``[B, C, T, H, W]``: uint8 in 0..255 or float in 0..1.

    Args:
        frames: Frames T.
        height: Rows H in pixels.
        width: Columns W in pixels.
        channels: Channels C.
        frame_rate: Sampling rate in frames per second; 0 for any.
        mean: As for ``Image``.
        std: As for ``Image``.
        order: As for ``Image``.
        order_seed: As for ``Image``.
    """

    kind: ClassVar[str] = "video"
    channels_first: ClassVar[bool] = True
    raw_dtype: ClassVar[str] = "uint8"
    has_pixels: ClassVar[bool] = True
    has_time: ClassVar[bool] = True

    frames: Count
    height: Count
    width: Count
    channels: Count = 3
    frame_rate: NonNegative = 0.0
    mean: tuple[Finite, ...] = ()
    std: tuple[Positive, ...] = ()
    order: ElementOrder = field(default="in_place", repr=False)
    order_seed: OrderSeed = field(default=0, repr=False)

    @property
    def grid(self) -> tuple[int, ...]:
        """Frames, rows and columns."""
        return (self.frames, self.height, self.width)


@dataclass(frozen=True)
class Audio(ModalitySpec):
    """Audio waveforms ``[B, C, S]``: float in -1..1 or int16 (no spectrograms).

    Args:
        samples: Samples S per channel.
        channels: Channels C; 1 is mono.
        sample_rate: Sampling rate in Hz; 0 for any.
        mean: Subtracted per channel.
        std: Divisor per channel.
        order: As for ``Image``.
        order_seed: As for ``Image``.
    """

    kind: ClassVar[str] = "audio"
    channels_first: ClassVar[bool] = True
    has_time: ClassVar[bool] = True
    value_range: ClassVar[float] = 2.0

    samples: Count
    channels: Count = 1
    sample_rate: Natural = 0
    mean: tuple[Finite, ...] = ()
    std: tuple[Positive, ...] = ()
    order: ElementOrder = field(default="in_place", repr=False)
    order_seed: OrderSeed = field(default=0, repr=False)

    @property
    def grid(self) -> tuple[int, ...]:
        """Samples."""
        return (self.samples,)


@dataclass(frozen=True)
class Points(ModalitySpec):
    """Point clouds ``[B, P, C]``; coordinates are channels, and the grid is the index of the point.

    Args:
        points: Points P per cloud.
        channels: Values C per point; 3 means x, y, z.
        mean: Subtracted per channel.
        std: Divisor per channel.
        ragged: Whether clouds may have fewer points; rows of NaN mark missing points, which are
            never attended to.
        scale: How clouds are scaled when they are read. ``unit``: centred and scaled to -1..1, axis
            by axis; ``centre``: centred, keeping the unit, such as metres; ``floor``: like
            ``centre``, but the last coordinate is measured from its 2 % quantile, roughly the
            height above the ground; ``none``: unchanged.
        order: As for ``Image``.
        order_seed: As for ``Image``.
    """

    kind: ClassVar[str] = "points"

    points: Count
    channels: Count = 3
    mean: tuple[Finite, ...] = ()
    std: tuple[Positive, ...] = ()
    ragged: bool = False
    scale: Literal["none", "centre", "floor", "unit"] = "none"
    order: ElementOrder = field(default="in_place", repr=False)
    order_seed: OrderSeed = field(default=0, repr=False)

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of points."""
        return (self.points,)

    @property
    def may_lack(self) -> bool:
        """Whether clouds may have fewer points."""
        return self.ragged

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale == "floor" and self.channels > 3:
            raise ConfigError(
                f"Points.scale is 'floor' and channels is {self.channels}; the last channel must "
                f"be a coordinate, so use at most 3 channels"
            )


@dataclass(frozen=True)
class Array(ModalitySpec):
    """Any regular array ``[B, *grid, C]`` with channels last; floats are not scaled.

    Args:
        shape: Shape of the grid, slowest axis first.
        channels: Values C per grid cell.
        mean: Subtracted per channel.
        std: Divisor per channel.
        order: As for ``Image``.
        order_seed: As for ``Image``.
    """

    kind: ClassVar[str] = "array"

    shape: Count | Sequence[Count]
    channels: Count = 1
    mean: tuple[Finite, ...] = ()
    std: tuple[Positive, ...] = ()
    order: ElementOrder = field(default="in_place", repr=False)
    order_seed: OrderSeed = field(default=0, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "shape", self.grid)

    @property
    def grid(self) -> tuple[int, ...]:
        """The declared shape."""
        return (self.shape,) if isinstance(self.shape, int) else tuple(self.shape)


@dataclass(frozen=True)
class Labels(ModalitySpec):
    """Class indices ``[B, length]``, int64 in 0..K-1, encoded as one-hot tokens with K channels.

    Args:
        num_classes: Classes K.
        length: Labels per sample.
    """

    kind: ClassVar[str] = "labels"
    raw_dtype: ClassVar[str] = "int64"
    indexed: ClassVar[str] = "labels are class indices (int64), negative where unknown"

    num_classes: Count
    length: Count = 1
    channels: Count = field(default=0, init=False)
    mean: tuple[Finite, ...] = field(default=(), init=False)
    std: tuple[Positive, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", self.num_classes)
        super().__post_init__()

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of labels."""
        return (self.length,)

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Indices have no channel axis."""
        return (self.length,)


@dataclass(frozen=True)
class Bytes(ModalitySpec):
    """Texts ``[B, L]`` as int64 ids of UTF-8 bytes: byte + 6; 0 is padding, 1..5 are special ids.

    Args:
        length: Ids L per text, including padding.
        wrap: ``cls_sep`` adds CLS before and SEP after the text (as in the Hugging Face tokenizer),
            ``none`` adds nothing (as in the released code). Both ids are included in the length.
        order: As for ``Image``.
        order_seed: As for ``Image``.
    """

    kind: ClassVar[str] = "bytes"
    raw_dtype: ClassVar[str] = "int64"
    indexed: ClassVar[str] = "texts are ids of bytes (int64): byte + 6, 0 where padded"

    length: Count
    wrap: Literal["none", "cls_sep"] = "none"
    channels: Count = field(default=BYTE_VOCABULARY, init=False)
    mean: tuple[Finite, ...] = field(default=(), init=False)
    std: tuple[Positive, ...] = field(default=(), init=False)
    order: ElementOrder = field(default="in_place", repr=False)
    order_seed: OrderSeed = field(default=0, repr=False)

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of bytes."""
        return (self.length,)

    @property
    def may_lack(self) -> bool:
        """Texts shorter than the length are padded."""
        return True

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Ids have no channel axis."""
        return (self.length,)


SPECS: dict[str, type[ModalitySpec]] = {
    spec.kind: spec for spec in (Image, Video, Audio, Points, Array, Labels, Bytes)
}


def spec_to_json(spec: ModalitySpec) -> dict[str, Any]:
    """Return a JSON-serialisable description, with the kind under ``type``.

    ``order`` and ``order_seed`` are left out at their usual value ``in_place``.
    """
    values = {f.name: getattr(spec, f.name) for f in fields(spec) if f.init}
    if values.get("order") == "in_place":
        del values["order"], values["order_seed"]
    return {"type": spec.kind, **values}


def spec_from_json(data: Mapping[str, Any]) -> ModalitySpec:
    """Rebuild a spec from ``spec_to_json``.

    Raises:
        ConfigError: The type is unknown, or a field is missing or unknown.
    """
    values = dict(data)
    kind = values.pop("type", None)
    if kind not in SPECS:
        raise ConfigError(
            f"modality type {kind!r} is unknown; the types are {sorted(SPECS)}"
            + suggest(str(kind), SPECS)
        )
    try:
        return SPECS[kind](
            **{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        )
    except TypeError as error:
        raise ConfigError(f"modality {kind!r}: {error}; see docs/ for its fields") from error
