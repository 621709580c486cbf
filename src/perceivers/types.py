"""Modality specs: what a raw tensor of each modality looks like, and how it is normalised.

A spec is declared, never guessed. It is frozen and JSON-able, it knows the raw layout, the grid
its tokens lie on (row-major) and the preprocessing, and it knows nothing about models.

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

# Ids of the byte vocabulary: six special ones, then the 256 bytes (Perceiver IO Sec. 4.1).
PAD, BOS, EOS, MASK, CLS, SEP = range(6)
FIRST_BYTE = 6
BYTE_VOCABULARY = FIRST_BYTE + 256

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ElementOrder: TypeAlias = Literal["in_place", "fixed", "per_sample"]
OrderSeed: TypeAlias = Annotated[int, Range(0, 2**64 - 1), UsedIf("order", "fixed", "per_sample")]


class ModalitySpec(Settings):
    """Base of all specs: raw tensors are ``[B, C, *grid]`` or ``[B, *grid, C]``."""

    kind: ClassVar[str]
    channels_first: ClassVar[bool] = False

    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    # Of those without an order of their own: labels and targets.
    order: ElementOrder = "in_place"
    order_seed: int = 0

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of the grid the tokens lie on, slowest axis first."""
        raise AssertionError(f"{type(self).__name__} must define grid")

    @property
    def num_tokens(self) -> int:
        """Raw elements per sample; one token each."""
        return prod(self.grid)

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Shape of one raw sample, without the batch axis."""
        return (self.channels, *self.grid) if self.channels_first else (*self.grid, self.channels)

    def __post_init__(self) -> None:
        """Reject sizes below one and statistics that do not match the channels."""
        for name in ("mean", "std"):
            # The check that follows says what is wrong.
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
    """Pictures ``[B, C, H, W]``: uint8 0..255 or float 0..1, any number of channels.

    Args:
        height: Rows H in pixels.
        width: Columns W in pixels.
        channels: Channels C; 3 means RGB.
        mean: Subtracted per channel after scaling to 0..1 (none: 0).
        std: Divided by per channel (none: 1).
        order: The order in which readers give the elements: ``in_place``, ``fixed`` (one
            permutation for all samples) or ``per_sample`` (another one for every sample). It serves
            to find out how much a model leans on order (``perceivers shuffle``).
        order_seed: Seed of the permutations.
    """

    kind: ClassVar[str] = "image"
    channels_first: ClassVar[bool] = True

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
    """Clips ``[B, C, T, H, W]``: uint8 0..255 or float 0..1.

    Args:
        frames: Frames T.
        height: Rows H in pixels.
        width: Columns W in pixels.
        channels: Channels C.
        frame_rate: Frames per second the clip is sampled at; 0 when it does not matter.
        mean: As for ``Image``.
        std: As for ``Image``.
        order: As for ``Image``.
        order_seed: As for ``Image``.
    """

    kind: ClassVar[str] = "video"
    channels_first: ClassVar[bool] = True

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
    """Waveforms ``[B, C, S]``: float -1..1 or int16; no spectrogram.

    Args:
        samples: Samples S per channel.
        channels: Channels C; 1 is mono.
        sample_rate: Samples per second in Hz; 0 when it does not matter.
        mean: Subtracted per channel.
        std: Divided by per channel.
        order: As for ``Image``.
        order_seed: As for ``Image``.
    """

    kind: ClassVar[str] = "audio"
    channels_first: ClassVar[bool] = True

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
    """Point sets ``[B, P, C]``: coordinates and attributes are content, their order is the grid.

    Args:
        points: Points P per cloud.
        channels: Values C per point; 3 means x, y, z.
        mean: Subtracted per channel.
        std: Divided by per channel.
        ragged: Clouds may hold fewer points; a row of NaN is no point, and is never attended to.
        scale: ``unit``: readers centre every cloud and scale it into -1..1, axis by axis;
            ``centre``: they centre it and keep its unit, such as metres; ``floor``: so, too, but
            the last coordinate counts from its 2 % quantile, about the height above the ground.
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
        """Points."""
        return (self.points,)

    def __post_init__(self) -> None:
        """Reject a floor without a coordinate above it."""
        super().__post_init__()
        if self.scale == "floor" and self.channels > 3:
            raise ConfigError(
                f"Points.scale is 'floor' and channels {self.channels}; the last channel must be a "
                f"coordinate, so there are at most 3"
            )


@dataclass(frozen=True)
class Array(ModalitySpec):
    """Any regular array ``[B, *grid, C]``, channels last; floats as they are.

    Args:
        shape: The grid, slowest axis first.
        channels: Values C per grid cell.
        mean: Subtracted per channel.
        std: Divided by per channel.
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
        """Accept one integer or a list as the shape."""
        super().__post_init__()
        object.__setattr__(self, "shape", self.grid)

    @property
    def grid(self) -> tuple[int, ...]:
        """The declared shape."""
        return (self.shape,) if isinstance(self.shape, int) else tuple(self.shape)


@dataclass(frozen=True)
class Labels(ModalitySpec):
    """Class indices ``[B, length]``, int64 in 0..K-1, read as one-hot tokens of K channels.

    Args:
        num_classes: Classes K.
        length: Labels per sample.
    """

    kind: ClassVar[str] = "labels"

    num_classes: Count
    length: Count = 1
    channels: Count = field(default=0, init=False)
    mean: tuple[Finite, ...] = field(default=(), init=False)
    std: tuple[Positive, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        """Derive the channels: one per class."""
        object.__setattr__(self, "channels", self.num_classes)
        super().__post_init__()

    @property
    def grid(self) -> tuple[int, ...]:
        """Labels."""
        return (self.length,)

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Indices have no channel axis."""
        return (self.length,)


@dataclass(frozen=True)
class Bytes(ModalitySpec):
    """Texts ``[B, L]``: int64 ids of UTF-8 bytes, byte + 6; 0 pads, 1..5 are special.

    Args:
        length: Ids L per text, padding included.
        wrap: ``cls_sep`` puts CLS before and SEP after the text (as the Hugging Face tokenizer),
            ``none`` neither (as the released code); it counts in the length.
        order: As for ``Image``.
        order_seed: As for ``Image``.
    """

    kind: ClassVar[str] = "bytes"

    length: Count
    wrap: Literal["none", "cls_sep"] = "none"
    channels: Count = field(default=BYTE_VOCABULARY, init=False)
    mean: tuple[Finite, ...] = field(default=(), init=False)
    std: tuple[Positive, ...] = field(default=(), init=False)
    order: ElementOrder = field(default="in_place", repr=False)
    order_seed: OrderSeed = field(default=0, repr=False)

    @property
    def grid(self) -> tuple[int, ...]:
        """Bytes."""
        return (self.length,)

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Ids have no channel axis."""
        return (self.length,)


SPECS: dict[str, type[ModalitySpec]] = {
    spec.kind: spec for spec in (Image, Video, Audio, Points, Array, Labels, Bytes)
}


def spec_to_json(spec: ModalitySpec) -> dict[str, Any]:
    """Return a JSON-able description with the kind under ``type``.

    The order of elements is left out where they are in place, as they are nearly always.
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
        raise ConfigError(
            f"modality {kind!r}: {error}; its fields are described in docs/"
        ) from error
