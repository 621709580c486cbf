"""Augmentation settings and the choice of views: random crops in training, fixed in evaluation.

``augment_signals`` applies the settings for audio, points and texts. A ``View`` is given in
fractions of the image's sides, so it is valid at any resolution at which the image is decoded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log, radians, sqrt
from typing import Annotated, Literal, NamedTuple

import numpy as np

from perceivers.errors import ConfigError
from perceivers.settings import (
    Count,
    Fraction,
    Natural,
    NonNegative,
    Positive,
    Range,
    Rate,
    Settings,
    UsedFor,
    UsedIf,
)
from perceivers.types import ModalitySpec

# Attempts to sample a random crop that fits in the image.
CROP_ATTEMPTS = 10
# Beyond this range, the factor 10 ** (decibels / 20) does not fit in float32.
Decibels = Annotated[float, Range(-600, 600)]
# Half a turn in either direction reaches every angle.
Degrees = Annotated[float, Range(0, 180)]
PICTURES, SOUNDS = UsedFor("image", "video"), UsedFor("audio")
POINTS, TEXTS = UsedFor("points"), UsedFor("bytes")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Settings, prefix="augment."):
    """Random augmentation of training samples, per modality; the defaults change nothing.

    All frames of a clip get the same crop, rotation, operations and erased box. Whether mirroring
    preserves the label is for the user to decide. The audio of a video is augmented on its own:
    after a time shift it is no longer aligned with the frames.
    """

    crop_scale: Annotated[tuple[Fraction, Fraction], PICTURES] = (1.0, 1.0)
    """Area of a random crop as a fraction of crop_from, sampled uniformly from this range in
    0..1; (1, 1) with crop_ratio (1, 1) is the centre crop used for evaluation."""
    crop_ratio: Annotated[tuple[Positive, Positive], PICTURES] = (1.0, 1.0)
    """Aspect ratio (width by height) of a random crop relative to the model's input, sampled
    log-uniformly from this range; 1 is undistorted."""
    crop_from: Annotated[Literal["largest", "picture"], PICTURES] = "largest"
    """largest: crops are fractions of the largest undistorted crop, clipped where they are too
    long; picture: of the whole image, sampled up to 10 times until one fits, else the largest. With
    crop_scale (0.08, 1) and crop_ratio (0.75, 1.333) that is Inception's crop (arXiv 1409.4842)."""
    flip: Annotated[bool, PICTURES] = False
    """Mirror horizontally with probability 1/2."""
    rotate: Annotated[Degrees, PICTURES] = 0.0
    """Rotation in degrees, sampled uniformly from plus to minus this, 0..180; corners become 0."""
    shift: Annotated[Fraction, PICTURES] = 0.0
    """Shift along each axis as a fraction of the side, sampled uniformly from plus to minus this,
    in 0..1; what lies outside the image becomes 0."""
    rand_augment: Annotated[Natural, PICTURES] = 0
    """Number of RandAugment operations applied in sequence to every crop (N of arXiv 1909.13719); 0
    is off. Perceiver IO uses 4."""
    magnitude: Annotated[int, Range(0, 10), PICTURES, UsedIf("rand_augment", above=0)] = 5
    """Strength of RandAugment's operations, 0..10."""
    erase: Annotated[Fraction, PICTURES] = 0.0
    """Probability, 0..1, that noise replaces a box of an image, or the same box in all frames of a
    clip: random erasing (arXiv 1708.04896). Common recipes use 0.25."""
    copies: Count = 1
    """Copies of each sample in its batch, each augmented differently: repeated augmentation (arXiv
    1901.09335). The batch size counts all of them, and must be a multiple of this."""
    gain: Annotated[tuple[Decibels, Decibels], SOUNDS] = (0.0, 0.0)
    """Audio gain in decibels, sampled uniformly from this range, such as (-6, 6)."""
    time_shift: Annotated[Fraction, SOUNDS] = 0.0
    """Shift of audio in time as a fraction of the clip, sampled uniformly from plus to minus this,
    in 0..1."""
    time_fill: Annotated[Literal["zero", "wrap"], SOUNDS, UsedIf("time_shift", above=0)] = "zero"
    """zero: silence where a time shift leaves a gap; wrap: what was shifted out fills the gap."""
    noise: Annotated[Fraction, SOUNDS] = 0.0
    """Probability, 0..1, that white noise is added to audio."""
    noise_ratio: Annotated[tuple[Decibels, Decibels], SOUNDS, UsedIf("noise", above=0)] = (
        10.0,
        30.0,
    )
    """Signal-to-noise ratio (SNR) of added noise in decibels, sampled uniformly from this range."""
    invert: Annotated[bool, SOUNDS] = False
    """Flip the sign of a waveform with probability 1/2, which is inaudible."""
    turn: Annotated[Degrees, POINTS] = 0.0
    """Rotation of points in degrees, sampled uniformly from plus to minus this, in 0..180, about
    turn_axis through their mean, before a spec scales them."""
    turn_axis: Annotated[Literal["x", "y", "z"], POINTS, UsedIf("turn", above=0)] = "z"
    """The axis of turn; points in the plane rotate about z."""
    point_scale: Annotated[tuple[Positive, Positive], POINTS] = (1.0, 1.0)
    """Factor on all coordinates of a cloud, sampled uniformly from this range, after a spec's
    scaling; so (0.8, 1.25) may exceed -1..1."""
    jitter: Annotated[NonNegative, POINTS] = 0.0
    """Standard deviation of noise on every coordinate, where 1 is half the extent of a cloud scaled
    by its spec; noise is clipped at 5 standard deviations. PointNet uses 0.01."""
    point_drop: Annotated[Rate, POINTS] = 0.0
    """Largest fraction of a cloud's points to drop, 0..1; the fraction is sampled uniformly from 0
    to this. PointNet++ uses 0.875."""

    word_drop: Annotated[Fraction, TEXTS] = 0.0
    """Largest fraction of a text's words to drop, 0..1; the fraction is sampled uniformly from 0 to
    this, and one word always stays."""
    text_shift: Annotated[Natural, TEXTS] = 0
    """Most blanks to insert before a text; their number is sampled uniformly from 0 to this, or to
    the space that the text leaves in the model's length."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crop_scale", "crop_ratio", "gain", "noise_ratio", "point_scale"):
            low, high = getattr(self, name)
            if low > high or (name == "crop_scale" and low == 0):
                rule = "0 < low <= high <= 1" if name == "crop_scale" else "the lower first"
                raise ConfigError(
                    f"augment.{name} is {(low, high)}; it must be two numbers, {rule}"
                )

    @property
    def crops(self) -> bool:
        """Whether crops are random."""
        plain = self.crop_scale == self.crop_ratio == (1.0, 1.0)
        return not plain or self.crop_from == "picture"

    @property
    def active(self) -> bool:
        """Whether images and videos are augmented."""
        turns = self.rotate > 0 or self.shift > 0
        return self.crops or self.flip or turns or self.rand_augment > 0 or self.erase > 0

    @property
    def changes_sounds(self) -> bool:
        """Whether audio is augmented."""
        return self.gain != (0.0, 0.0) or self.time_shift > 0 or self.noise > 0 or self.invert

    @property
    def changes_points(self) -> bool:
        """Whether points are augmented."""
        scaled = self.point_scale != (1.0, 1.0)
        return scaled or max(self.turn, self.jitter, self.point_drop) > 0

    @property
    def changes_texts(self) -> bool:
        """Whether texts are augmented."""
        return max(self.word_drop, self.text_shift) > 0


@dataclass(frozen=True)
class View:
    """A box in an image, and how to mirror, rotate and shift it when it is resampled.

    Args:
        left: Left edge as a fraction of the image's width.
        top: Upper edge as a fraction of the image's height.
        width: Width as a fraction of the image's.
        height: Height as a fraction of the image's.
        flip: Whether to mirror horizontally.
        angle: Rotation in radians.
        shift: Shift right and down as fractions of the output's sides.
    """

    left: float
    top: float
    width: float
    height: float
    flip: bool = False
    angle: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)

    @property
    def is_whole(self) -> bool:
        """Whether the box is the whole image."""
        return (self.left, self.top, self.width, self.height) == (0.0, 0.0, 1.0, 1.0)

    @property
    def is_turned(self) -> bool:
        """Whether more than cropping, scaling and mirroring is needed."""
        return self.angle != 0.0 or self.shift != (0.0, 0.0)


def centre_view(size: tuple[int, int], target: tuple[int, int]) -> View:
    """Return the largest undistorted crop at the centre.

    Args:
        size: Width and height of the image in pixels.
        target: Width and height of the output in pixels.
    """
    return place_view(size, target, 0.5)


def place_view(size: tuple[int, int], target: tuple[int, int], along: float) -> View:
    """Return the largest undistorted crop, at a position along the side that it does not fill.

    Args:
        size: Width and height of the image in pixels.
        target: Width and height of the output in pixels.
        along: Fraction of the remainder that lies before the crop: 0 is the left or upper end, 1
            the other end.
    """
    width, height = _largest_box(size, target)
    return View((1 - width) * along, (1 - height) * along, width, height)


def random_view(
    size: tuple[int, int],
    target: tuple[int, int],
    augment: AugmentConfig,
    rng: np.random.Generator,
) -> View:
    """Sample a view; the random numbers used depend on ``augment`` only, never on the image.

    Args:
        size: Width and height of the image in pixels.
        target: Width and height of the output in pixels.
        augment: Augmentation settings.
        rng: Random generator.
    """
    width, height = _largest_box(size, target)
    left, top = (1 - width) / 2, (1 - height) / 2
    if augment.crops:
        if augment.crop_from == "picture":
            width, height = _inception_box(size, target, augment, rng)
        else:
            scale, ratio = _draw_crop(augment, rng)
            width = min(1.0, width * sqrt(scale * ratio))
            height = min(1.0, height * sqrt(scale / ratio))
        left, top = rng.random() * (1 - width), rng.random() * (1 - height)
    flip = bool(augment.flip and rng.random() < 0.5)
    angle = radians(rng.uniform(-augment.rotate, augment.rotate)) if augment.rotate else 0.0
    shift = (0.0, 0.0)
    if augment.shift:
        right, down = rng.uniform(-augment.shift, augment.shift, size=2).tolist()
        shift = (right, down)
    return View(left, top, width, height, flip, angle, shift)


def _draw_crop(augment: AugmentConfig, rng: np.random.Generator) -> tuple[float, float]:
    """Sample an area and an aspect ratio."""
    low, high = augment.crop_ratio
    return rng.uniform(*augment.crop_scale), exp(rng.uniform(log(low), log(high)))


def _inception_box(
    size: tuple[int, int],
    target: tuple[int, int],
    augment: AugmentConfig,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Return the sides, as fractions, of the first sampled box that fits in the image."""
    # Sample all attempts, so that later random numbers do not depend on which one fits.
    draws = [_draw_crop(augment, rng) for _ in range(CROP_ATTEMPTS)]
    aspect = target[0] / target[1] * size[1] / size[0]  # of the undistorted box, in fractions
    for scale, ratio in draws:
        width, height = sqrt(scale * aspect * ratio), sqrt(scale / (aspect * ratio))
        if max(width, height) <= 1:
            return width, height
    return _largest_box(size, target)


def _largest_box(size: tuple[int, int], target: tuple[int, int]) -> tuple[float, float]:
    """Return the sides, as fractions, of the largest box with the target's aspect ratio."""
    (width, height), (target_width, target_height) = size, target
    if width * target_height >= height * target_width:
        return height * target_width / target_height / width, 1.0
    return 1.0, width * target_height / target_width / height


# ------------------------------------------------------------------------------------------------
# Which part of a sample is read: a random one in training, one or several fixed ones in evaluation.
#
# Evaluation with several views averages a classifier's outputs over evenly spread parts of a
# sample: k clips in time, from the start to the end, and from each clip s crops along the longer
# side, from end to end. A single view is the middle.

# A fraction of a count may lie this far below the whole number that it stands for.
EDGE = 1e-9


class Place(NamedTuple):
    """Position of a fixed part of a sample.

    Args:
        time: Fraction, 0..1, of the remaining time that lies before the part.
        along: Fraction, 0..1, of the remainder of the longer side that lies before the part.
    """

    time: float = 0.5
    along: float = 0.5


MIDDLE = Place()
UNCHANGED = AugmentConfig()


@dataclass(frozen=True)
class Look:
    """How to view a sample: at random for training, at a fixed place for evaluation.

    Args:
        rng: Random generator of views and augmentation; None for evaluation.
        augment: Augmentation, which needs the generator.
        place: The part to read without a generator.
    """

    rng: np.random.Generator | None = None
    augment: AugmentConfig = UNCHANGED
    place: Place = MIDDLE

    def start(self, choices: int) -> int:
        """Return a start, 0..choices - 1: sampled, or given by the place.

        Args:
            choices: Number of possible starts, at least 1.
        """
        if self.rng is None:
            return int((choices - 1) * self.place.time + EDGE)
        return int(self.rng.random() * choices)


PLAIN = Look()


@dataclass(frozen=True, kw_only=True)
class Views(Settings, prefix="views."):
    """Number of views of each sample in evaluation.

    Args:
        temporal: Clips spread over the duration of a video or of audio, at least 1.
        spatial: Crops spread over the longer side of an image or of a video's frames, at least 1.
            They are identical if image and input have the same aspect ratio.

    Raises:
        ConfigError: A number below 1.
    """

    temporal: Count = 1
    spatial: Count = 1

    def __str__(self) -> str:
        return f"{self.temporal}x{self.spatial}"

    @property
    def count(self) -> int:
        """Views per sample."""
        return self.temporal * self.spatial

    @property
    def places(self) -> tuple[Place, ...]:
        """All views: all crops of the first clip, then of the next."""
        return tuple(
            Place(time, along) for time in _spread(self.temporal) for along in _spread(self.spatial)
        )

    def check(self, specs: Mapping[str, ModalitySpec]) -> None:
        """Reject several views of modalities for which they would be identical.

        Args:
            specs: Specs of the modalities that are read.

        Raises:
            ConfigError: Several temporal views without videos or audio, or several spatial ones
                without images or videos.
        """
        needs = (
            (self.temporal, "temporal", "has_time", "videos or audio"),
            (self.spatial, "spatial", "has_pixels", "images or videos"),
        )
        for number, name, extent, nouns in needs:
            if number > 1 and not any(getattr(spec, extent) for spec in specs.values()):
                raise ConfigError(
                    f"views are {self}, but {number} {name} views need {nouns}, and the model "
                    f"reads {sorted(specs)}; use 1 {name} view"
                )


def _spread(count: int) -> tuple[float, ...]:
    """Return evenly spaced fractions from 0 to 1, or 0.5 for one."""
    return tuple(i / (count - 1) for i in range(count)) if count > 1 else (0.5,)
