"""What is random about a training sample, and which part of a picture is looked at, and how.

Settings for sounds, points and texts are carried out in ``augment_sounds``, ``augment_points`` and
``augment_texts``. A ``View`` is in shares of the picture's sides, so it holds for any resolution
the picture is decoded at.
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
from perceivers.types import Audio, Image, ModalitySpec, Video

# Times a random crop is drawn until it fits in the picture.
CROP_ATTEMPTS = 10
# Beyond it a factor of 10 ** (decibels / 20) is no 32-bit number.
Decibels = Annotated[float, Range(-600, 600)]
# Half a turn either way reaches every angle.
Degrees = Annotated[float, Range(0, 180)]
PICTURES, SOUNDS = UsedFor("image", "video"), UsedFor("audio")
POINTS, TEXTS = UsedFor("points"), UsedFor("bytes")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Settings, prefix="augment."):
    """Random changes of training samples, for each modality its own; the defaults change nothing.

    A clip is changed as one: all frames have the same crop, turn, operations and erased box.
    Whether mirroring keeps the label true is for the user to say. A sound that belongs to a film is
    changed on its own: shifted in time, it no longer runs beside its frames.
    """

    crop_scale: Annotated[tuple[Fraction, Fraction], PICTURES] = (1.0, 1.0)
    """Area of a random crop, as a share of ``crop_from``, drawn uniformly from this range in 0..1;
    (1, 1) with crop_ratio (1, 1) is the centre crop used for evaluation."""
    crop_ratio: Annotated[tuple[Positive, Positive], PICTURES] = (1.0, 1.0)
    """Aspect ratio (width by height) of a random crop relative to the model's input, drawn
    log-uniformly from this range; 1 is undistorted."""
    crop_from: Annotated[Literal["largest", "picture"], PICTURES] = "largest"
    """largest: crops are shares of the largest undistorted crop, cut off where they are too long;
    picture: of the whole picture, drawn up to 10 times until one fits, else the largest. With
    crop_scale (0.08, 1) and crop_ratio (0.75, 1.333) that is Inception's (arXiv 1409.4842)."""
    flip: Annotated[bool, PICTURES] = False
    """Mirror left and right with probability 1/2."""
    rotate: Annotated[Degrees, PICTURES] = 0.0
    """Rotation in degrees, drawn uniformly from plus to minus this, in 0..180; corners become 0."""
    shift: Annotated[Fraction, PICTURES] = 0.0
    """Shift along each axis as a share of the side, drawn uniformly from plus to minus this, in
    0..1; what lies outside the picture becomes 0."""
    rand_augment: Annotated[Natural, PICTURES] = 0
    """Operations of RandAugment that follow each other on every crop (N of arXiv 1909.13719); 0 is
    off. Perceiver IO has 4."""
    magnitude: Annotated[int, Range(0, 10), PICTURES, UsedIf("rand_augment", above=0)] = 5
    """Strength of RandAugment's operations, 0..10."""
    erase: Annotated[Fraction, PICTURES] = 0.0
    """Probability, 0..1, with which noise replaces a box of a picture, or the same box in all
    frames of a clip: random erasing (arXiv 1708.04896). Common recipes have 0.25."""
    copies: Count = 1
    """Copies of each sample in its batch, each changed in another way: repeated augmentation (arXiv
    1901.09335). The batch size counts all of them, and must be a multiple."""
    gain: Annotated[tuple[Decibels, Decibels], SOUNDS] = (0.0, 0.0)
    """Loudness of a sound: decibels added, drawn uniformly from this range, such as (-6, 6)."""
    time_shift: Annotated[Fraction, SOUNDS] = 0.0
    """Shift of a sound in time as a share of the clip, drawn uniformly from plus to minus this, in
    0..1."""
    time_fill: Annotated[Literal["zero", "wrap"], SOUNDS, UsedIf("time_shift", above=0)] = "zero"
    """zero: silence where a shifted sound leaves a gap; wrap: what was pushed out comes back."""
    noise: Annotated[Fraction, SOUNDS] = 0.0
    """Probability, 0..1, with which white noise is added to a sound."""
    noise_ratio: Annotated[tuple[Decibels, Decibels], SOUNDS, UsedIf("noise", above=0)] = (
        10.0,
        30.0,
    )
    """Loudness of a sound above its added noise in decibels (SNR), drawn uniformly from this
    range."""
    invert: Annotated[bool, SOUNDS] = False
    """Change the sign of a waveform with probability 1/2; ears do not notice."""
    turn: Annotated[Degrees, POINTS] = 0.0
    """Rotation of points in degrees, drawn uniformly from plus to minus this, in 0..180, about
    ``turn_axis`` through their mean, before a spec scales them."""
    turn_axis: Annotated[Literal["x", "y", "z"], POINTS, UsedIf("turn", above=0)] = "z"
    """The axis of ``turn``; points in the plane turn about z."""
    point_scale: Annotated[tuple[Positive, Positive], POINTS] = (1.0, 1.0)
    """Factor on all coordinates of a cloud, drawn uniformly from this range; after a spec's
    scaling, so (0.8, 1.25) may reach beyond -1..1."""
    jitter: Annotated[NonNegative, POINTS] = 0.0
    """Standard deviation of noise on every coordinate, as a share of 1, which is half the extent of
    a cloud that its spec scales; noise is cut off at 5 deviations. PointNet has 0.01."""
    point_drop: Annotated[Rate, POINTS] = 0.0
    """Largest share of a cloud's points that is left out, 0..1; the share is drawn uniformly from 0
    to this. PointNet++ has 0.875."""

    word_drop: Annotated[Fraction, TEXTS] = 0.0
    """Largest share of a text's words that is left out, 0..1; the share is drawn uniformly from 0
    to this, and one word always stays."""
    text_shift: Annotated[Natural, TEXTS] = 0
    """Most blanks put before a text; their number is drawn uniformly from 0 to this, or to the room
    that the text leaves in the model's length."""

    def __post_init__(self) -> None:
        """Reject values out of range, and ranges whose ends are exchanged."""
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
        """Whether pictures and clips are changed at all."""
        turns = self.rotate > 0 or self.shift > 0
        return self.crops or self.flip or turns or self.rand_augment > 0 or self.erase > 0

    @property
    def changes_sounds(self) -> bool:
        """Whether sounds are changed at all."""
        return self.gain != (0.0, 0.0) or self.time_shift > 0 or self.noise > 0 or self.invert

    @property
    def changes_points(self) -> bool:
        """Whether points are changed at all."""
        scaled = self.point_scale != (1.0, 1.0)
        return scaled or max(self.turn, self.jitter, self.point_drop) > 0

    @property
    def changes_texts(self) -> bool:
        """Whether texts are changed at all."""
        return max(self.word_drop, self.text_shift) > 0


@dataclass(frozen=True)
class View:
    """A box in a picture, and how it is mirrored, turned and moved when it is drawn.

    Args:
        left: Left edge as a share of the width.
        top: Upper edge as a share of the height.
        width: Width as a share of the picture's.
        height: Height as a share of the picture's.
        flip: Mirror left and right.
        angle: Rotation in radians.
        shift: Shift right and down as shares of the output's sides.
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
        """Whether the box is the whole picture."""
        return (self.left, self.top, self.width, self.height) == (0.0, 0.0, 1.0, 1.0)

    @property
    def is_turned(self) -> bool:
        """Whether more than cropping, scaling and mirroring is needed."""
        return self.angle != 0.0 or self.shift != (0.0, 0.0)


def centre_view(size: tuple[int, int], target: tuple[int, int]) -> View:
    """Return the largest undistorted box in the middle.

    Args:
        size: Width and height of the picture in pixels.
        target: Width and height of the output in pixels.
    """
    return place_view(size, target, 0.5)


def place_view(size: tuple[int, int], target: tuple[int, int], along: float) -> View:
    """Return the largest undistorted box at a place along the side that is longer than it.

    Args:
        size: Width and height of the picture in pixels.
        target: Width and height of the output in pixels.
        along: Share of what the box leaves out that lies before it: 0 is the left or upper end, 1
            the other one.
    """
    width, height = _largest_box(size, target)
    return View((1 - width) * along, (1 - height) * along, width, height)


def random_view(
    size: tuple[int, int],
    target: tuple[int, int],
    augment: AugmentConfig,
    rng: np.random.Generator,
) -> View:
    """Draw a view; the draws depend on ``augment`` and ``rng`` alone, never on the picture.

    Args:
        size: Width and height of the picture in pixels.
        target: Width and height of the output in pixels.
        augment: What to draw.
        rng: Where from.
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
    """Draw an area and an aspect ratio."""
    low, high = augment.crop_ratio
    return rng.uniform(*augment.crop_scale), exp(rng.uniform(log(low), log(high)))


def _inception_box(
    size: tuple[int, int],
    target: tuple[int, int],
    augment: AugmentConfig,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Return the sides, as shares, of the first drawn box that fits in the picture."""
    # All are drawn, so that what is drawn later does not depend on which one fits.
    draws = [_draw_crop(augment, rng) for _ in range(CROP_ATTEMPTS)]
    aspect = target[0] / target[1] * size[1] / size[0]  # of the undistorted box, in shares
    for scale, ratio in draws:
        width, height = sqrt(scale * aspect * ratio), sqrt(scale / (aspect * ratio))
        if max(width, height) <= 1:
            return width, height
    return _largest_box(size, target)


def _largest_box(size: tuple[int, int], target: tuple[int, int]) -> tuple[float, float]:
    """Return the sides, as shares, of the largest box with the target's aspect ratio."""
    (width, height), (target_width, target_height) = size, target
    if width * target_height >= height * target_width:
        return height * target_width / target_height / width, 1.0
    return 1.0, width * target_height / target_width / height


# ------------------------------------------------------------------------------------------------
# What is seen of a sample: a random part in training, one or several fixed parts in evaluation.
#
# Evaluation in several views averages a classifier's answers over parts of a sample that are
# spread evenly: k clips in time, the first at the start and the last at the end, and of each s
# crops along the longer side, from end to end. One view is the middle.

# A share of a count may lie this much below the whole number that it stands for.
EDGE = 1e-9


class Place(NamedTuple):
    """Where a fixed part of a sample lies.

    Args:
        time: Share, 0..1, of the time left out that passes before the part.
        along: Share, 0..1, of what is left out of the longer side that lies before the part.
    """

    time: float = 0.5
    along: float = 0.5


MIDDLE = Place()
UNCHANGED = AugmentConfig()


@dataclass(frozen=True)
class Look:
    """How a sample is looked at.

    Args:
        rng: Where random parts and changes come from; None for evaluation, which has none.
        augment: How pictures and clips are changed when there is a generator.
        place: What is seen when there is none.
    """

    rng: np.random.Generator | None = None
    augment: AugmentConfig = UNCHANGED
    place: Place = MIDDLE

    def start(self, choices: int) -> int:
        """Return which of some beginnings to take, 0..choices - 1: drawn once, or the place's.

        Args:
            choices: How many there are, at least 1.
        """
        if self.rng is None:
            return int((choices - 1) * self.place.time + EDGE)
        return int(self.rng.random() * choices)


PLAIN = Look()


@dataclass(frozen=True, kw_only=True)
class Views(Settings, prefix="views."):
    """How many parts of each sample evaluation looks at.

    Args:
        temporal: Clips spread over the time of a film or a sound, at least 1.
        spatial: Crops spread over the longer side of a picture or of a film's frames, at least 1.
            They are all the same where picture and input have the same aspect ratio.

    Raises:
        ConfigError: A number below 1.
    """

    temporal: Count = 1
    spatial: Count = 1

    def __str__(self) -> str:
        """Show both numbers."""
        return f"{self.temporal}x{self.spatial}"

    @property
    def count(self) -> int:
        """Views per sample."""
        return self.temporal * self.spatial

    @property
    def places(self) -> tuple[Place, ...]:
        """Every view, all crops of one time after the other."""
        return tuple(
            Place(time, along) for time in _spread(self.temporal) for along in _spread(self.spatial)
        )

    def check(self, specs: Mapping[str, ModalitySpec]) -> None:
        """Refuse views that would all be the same.

        Args:
            specs: What is read.

        Raises:
            ConfigError: Several temporal views without films or sounds, or several spatial ones
                without pictures or films.
        """
        needs = (
            (self.temporal, "temporal", (Video, Audio), "films or sounds"),
            (self.spatial, "spatial", (Image, Video), "pictures or films"),
        )
        for number, name, kinds, nouns in needs:
            if number > 1 and not any(isinstance(spec, kinds) for spec in specs.values()):
                raise ConfigError(
                    f"views are {self}, but {number} {name} views need {nouns}, and the model "
                    f"reads {sorted(specs)}; use 1 {name} view"
                )


def _spread(count: int) -> tuple[float, ...]:
    """Return shares from 0 to 1, or the middle."""
    return tuple(i / (count - 1) for i in range(count)) if count > 1 else (0.5,)
