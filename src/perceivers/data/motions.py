"""Random smooth motions and shapes given as formulas, so that they are exact at any position.

Legend: H W rows and columns. Positions and motions are ``[2, H, W]`` in pixels, x before y.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Neighbouring pixels move apart or together by less than this fraction of their distance, so that
# a motion never folds: no two positions of frame 1 move to the same position of frame 2.
STEEPEST = 0.4
MAX_BUMPS = 3
# Standard deviation of a bump and radius of a blob, as fractions of the frame's shorter side.
BUMP_WIDTHS = (0.12, 0.35)
BLOB_RADII = (0.15, 0.32)
BLOB_HARMONICS = (2, 3, 4, 5)
# Half the width in pixels of the rim over which a blob falls from 1 to 0.
RIM = 1.0


@dataclass(frozen=True, eq=False)
class Motion:
    """Motion from frame 1 to frame 2: an affine map plus a few smooth Gaussian bumps.

    Args:
        centre: ``[2]``, fixed point of the linear part.
        shift: ``[2]``, translation in pixels.
        linear: ``[2, 2]``, displacement per pixel from the centre: rotation, scaling, shear.
        bumps: ``[k, 2]``, centres of the bumps.
        widths: ``[k]``, standard deviations of the bumps in pixels.
        pushes: ``[k, 2]``, displacement of the bump centres in pixels.
    """

    centre: NDArray[np.float64]
    shift: NDArray[np.float64]
    linear: NDArray[np.float64]
    bumps: NDArray[np.float64]
    widths: NDArray[np.float64]
    pushes: NDArray[np.float64]

    def __call__(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the displacement of each position ``[2, H, W]``: ``[2, H, W]`` in pixels."""
        offsets = places - self.centre[:, None, None]
        flow = np.tensordot(self.linear, offsets, axes=1) + self.shift[:, None, None]
        for bump, width, push in zip(self.bumps, self.widths, self.pushes, strict=True):
            squares = np.square(places - bump[:, None, None]).sum(axis=0)
            flow += push[:, None, None] * np.exp(-squares / (2 * width**2))
        return flow

    def scaled(self, factor: float) -> "Motion":
        """Return the same motion with all displacements multiplied by ``factor``."""
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
        centre: ``[2]``, centre of the shape.
        radius: Mean radius in pixels.
        waves: ``[k, 2]``, cosine and sine amplitudes of the outline as fractions of the radius,
            for 2, 3, ... waves around.
    """

    centre: NDArray[np.float64]
    radius: float
    waves: NDArray[np.float64]

    def __call__(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the value of the shape at positions ``[2, H, W]``: ``[H, W]`` in 0..1."""
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
    """Sample a motion that moves no pixel of a frame by more than ``max_flow`` pixels.

    The largest displacement is uniform in 0..``max_flow``, or smaller if the motion would be too
    steep.
    """
    size = np.array([width, height], np.float64)
    centre = (size - 1) / 2
    strengths = rng.uniform(0.0, 1.0, 5) * (rng.random(5) < 0.7)
    turn, grow, shear, stretch = strengths[1:] * rng.choice([-1.0, 1.0], 4)
    # Divided below by the distance to the corners, so that each part moves these by about a pixel.
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
    """Sample a shape whose centre lies well inside the frame."""
    size = np.array([width, height], np.float64)
    count = len(BLOB_HARMONICS)
    falling = 1.0 / np.arange(1, count + 1)[:, None]
    return Blob(
        centre=rng.uniform(0.2, 0.8, 2) * size,
        radius=float(rng.uniform(*BLOB_RADII) * size.min()),
        waves=rng.uniform(-0.22, 0.22, (count, 2)) * falling,
    )


def _direction(rng: np.random.Generator) -> NDArray[np.float64]:
    """Sample a unit vector."""
    angle = rng.uniform(0.0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])
