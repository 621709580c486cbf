"""Smooth motions and shapes drawn as formulas, so that they are known exactly at any place.

Legend: H W rows and columns. Places and motions are ``[2, H, W]`` in pixels, x before y.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Neighbouring pixels move apart or together by less than this share of their distance, so that a
# motion never folds: two places of frame 1 never come to lie on one of frame 2.
STEEPEST = 0.4
MAX_BUMPS = 3
# A bump's standard deviation, and a blob's radius, as shares of the frame's shorter side.
BUMP_WIDTHS = (0.12, 0.35)
BLOB_RADII = (0.15, 0.32)
BLOB_HARMONICS = (2, 3, 4, 5)
# Half the width in pixels of the rim over which a blob goes from 1 to 0.
RIM = 1.0


@dataclass(frozen=True, eq=False)
class Motion:
    """An affine motion with a few smooth bumps: where every place of frame 1 goes.

    Args:
        centre: ``[2]``, the place that the linear part leaves where it is.
        shift: ``[2]``, pixels that everything moves.
        linear: ``[2, 2]``, change of position per pixel from the centre: turning, growing, shear.
        bumps: ``[k, 2]``, middles of the bumps.
        widths: ``[k]``, their standard deviations in pixels.
        pushes: ``[k, 2]``, pixels that their middles move.
    """

    centre: NDArray[np.float64]
    shift: NDArray[np.float64]
    linear: NDArray[np.float64]
    bumps: NDArray[np.float64]
    widths: NDArray[np.float64]
    pushes: NDArray[np.float64]

    def __call__(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how far each place ``[2, H, W]`` moves: ``[2, H, W]`` in pixels."""
        offsets = places - self.centre[:, None, None]
        flow = np.tensordot(self.linear, offsets, axes=1) + self.shift[:, None, None]
        for bump, width, push in zip(self.bumps, self.widths, self.pushes, strict=True):
            squares = np.square(places - bump[:, None, None]).sum(axis=0)
            flow += push[:, None, None] * np.exp(-squares / (2 * width**2))
        return flow

    def scaled(self, factor: float) -> "Motion":
        """Return the same motion, every place going ``factor`` times as far."""
        return Motion(
            self.centre,
            self.shift * factor,
            self.linear * factor,
            self.bumps,
            self.widths,
            self.pushes * factor,
        )


@dataclass(frozen=True, eq=False)
class Blob:
    """A roundish shape: 1 inside, 0 outside, smooth over a rim of two pixels.

    Args:
        centre: ``[2]``, its middle.
        radius: Mean radius in pixels.
        waves: ``[k, 2]``, cosine and sine amplitudes of its outline as shares of the radius, for
            2, 3, ... waves around.
    """

    centre: NDArray[np.float64]
    radius: float
    waves: NDArray[np.float64]

    def __call__(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the shape at places ``[2, H, W]``: ``[H, W]`` in 0..1."""
        x, y = places - self.centre[:, None, None]
        angle = np.arctan2(y, x)
        outline = np.ones_like(angle)
        for harmonic, (cosine, sine) in zip(BLOB_HARMONICS, self.waves, strict=True):
            outline += cosine * np.cos(harmonic * angle) + sine * np.sin(harmonic * angle)
        inside = self.radius * outline - np.hypot(x, y)
        ramp = (inside / RIM * 0.5 + 0.5).clip(0.0, 1.0)
        return ramp * ramp * (3.0 - 2.0 * ramp)


def frame_places(height: int, width: int) -> NDArray[np.float64]:
    """Return the coordinates of every pixel of a frame: ``[2, H, W]``."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    return np.stack([x, y])


def draw_motion(rng: np.random.Generator, height: int, width: int, max_flow: float) -> Motion:
    """Draw a motion that moves no pixel of a frame farther than ``max_flow`` pixels.

    The farthest pixel moves a length drawn evenly from 0 to ``max_flow``, less where the motion
    would be too steep.
    """
    size = np.array([width, height], np.float64)
    centre = (size - 1) / 2
    strengths = rng.uniform(0.0, 1.0, 5) * (rng.random(5) < 0.7)
    turn, grow, shear, stretch = strengths[1:] * rng.choice([-1.0, 1.0], 4)
    # Divided by the distance of the corners, so that every part alone moves them about one pixel.
    linear = np.array([[grow + stretch, shear - turn], [shear + turn, grow - stretch]])
    count = int(rng.integers(0, MAX_BUMPS + 1))
    motion = Motion(
        centre=centre,
        shift=strengths[0] * _direction(rng),
        linear=linear / np.hypot(*centre),
        bumps=rng.uniform(0.0, 1.0, (count, 2)) * size,
        widths=rng.uniform(*BUMP_WIDTHS, count) * size.min(),
        pushes=np.array([rng.random() * _direction(rng) for _ in range(count)]).reshape(count, 2),
    )
    length = max_flow * rng.random()
    flow = motion(frame_places(height, width))
    farthest = float(np.hypot(*flow).max())
    steepest = max(float(np.abs(np.diff(flow, axis=axis)).max()) for axis in (1, 2))
    factors = [
        limit / found for limit, found in ((length, farthest), (STEEPEST, steepest)) if found > 0
    ]
    return motion.scaled(min(factors, default=0.0))


def draw_blob(rng: np.random.Generator, height: int, width: int) -> Blob:
    """Draw a shape whose middle lies well inside the frame."""
    size = np.array([width, height], np.float64)
    count = len(BLOB_HARMONICS)
    falling = 1.0 / np.arange(1, count + 1)[:, None]
    return Blob(
        centre=rng.uniform(0.2, 0.8, 2) * size,
        radius=float(rng.uniform(*BLOB_RADII) * size.min()),
        waves=rng.uniform(-0.22, 0.22, (count, 2)) * falling,
    )


def _direction(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a vector of length one."""
    angle = rng.uniform(0.0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])
