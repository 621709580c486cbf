"""Training pairs for optical flow, generated from single photographs, with exact ground truth.

Frame 2 is cut from a photograph. Frame 1 is made by looking up, for each of its pixels x, what
frame 2 shows at x + flow(x), where flow is a formula (``motions``): so the flow is exact at every
pixel of frame 1, whatever the filter. Photographs are sampled on a canvas larger than the frame by
the longest motion, so nothing is invented at the edges.

In a share of the pairs a piece of another photograph moves in front, with a motion of its own. The
piece has a shape in frame 2, and frame 1 shows both, shape and content, where its motion takes them
from. Flow is that of whatever frame 1 shows. Background that the piece covers in frame 2 alone
keeps its true motion although its end point is hidden there, as in Sintel or FlyingChairs.

Legend: H W rows and columns of the frames.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, isfinite

import numpy as np
import torch
from numpy.typing import NDArray

from perceivers.data.augment import AugmentConfig
from perceivers.data.deep_pictures import to_eight_bits
from perceivers.data.drawing import fit_encoded
from perceivers.data.motions import Motion, draw_blob, draw_motion, frame_places
from perceivers.data.sources import PictureSource, Source
from perceivers.data.views import Look
from perceivers.errors import ConfigError, DataError
from perceivers.nn.patches import sample_pixels
from perceivers.types import Image

# Before the address of photographs, from which pairs are generated.
WARPS = "warps:"
MIN_SIDE = 16
DEFAULT_MAX_FLOW = 8.0
# At most doubled, so that photographs of the frame's size do not turn blurred.
CROPS = AugmentConfig(crop_scale=(0.5, 1.0), flip=True)
# What a bicubic filter reads beside a place.
FILTER_MARGIN = 2

# Differences of exposure between frames: factors, shares of full scale, and sensor noise of at most
# 3 of 255 steps (standard deviation).
JITTER_GAIN = 0.05
JITTER_OFFSET = 0.02
JITTER_NOISE = 3.0


@dataclass(frozen=True, eq=False)
class WarpedPairs:
    """A source of generated frame pairs, equal at every reading of the same index.

    A sample holds ``video``, uint8 ``[3, 2, H, W]`` (frame 1, frame 2), and ``flow``, float32
    ``[2, H, W]`` in pixels from frame 1 to frame 2, channel 0 = u (to the right), 1 = v (down).

    Args:
        photographs: A source of pictures; it must have names as well.
        height: Rows H of the frames.
        width: Columns W of the frames.
        max_flow: Pixels that nothing moves farther than, at most half the shorter side.
        seed: Chooses crops, motions and shapes, together with the index.
        repeats: Pairs made of each photograph, each with another crop and another motion. Pair i
            is made of photograph i modulo their number, so one pass sees all before any repeats.
        layered: Share of the pairs, 0..1, in which a piece of another photograph moves in front.
        jitter: Whether the frames differ a little in brightness (gain within 5 %, offset within
            2 % of full scale) and carry independent noise (deviation up to 3 of 255).

    Raises:
        ConfigError: A setting out of range.
        DataError: The source holds no picture files, or none at all.
    """

    photographs: Source
    height: int
    width: int
    max_flow: float = DEFAULT_MAX_FLOW
    seed: int = 0
    repeats: int = 1
    layered: float = 0.5
    jitter: bool = True
    labels: None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Reject settings that make no pairs."""
        if min(self.height, self.width) < MIN_SIDE:
            raise ConfigError(
                f"frames of {self.height} x {self.width} pixels; both sides must be at least "
                f"{MIN_SIDE}"
            )
        limit = min(self.height, self.width) / 2
        if not (isfinite(self.max_flow) and 0 < self.max_flow <= limit):
            raise ConfigError(
                f"max_flow is {self.max_flow}; for frames of {self.height} x {self.width} pixels "
                f"it must be above 0 and at most {limit:g}"
            )
        if self.repeats < 1 or self.seed < 0:
            raise ConfigError(
                f"repeats is {self.repeats} and seed is {self.seed}; they must be at least 1 and 0"
            )
        if not 0 <= self.layered <= 1:
            raise ConfigError(f"layered is {self.layered}; it is a share and must lie in 0..1")
        if not isinstance(self.photographs, PictureSource):
            raise DataError(
                f"flow pairs are made of picture files, not of {type(self.photographs).__name__}; "
                f"give a folder of pictures or tars of them"
            )
        if not len(self.photographs):
            raise DataError("flow pairs need at least 1 photograph, and the source holds none")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The photograph's name and the number of its pair."""
        return tuple(
            f"{name}#warp{copy}" for copy in range(self.repeats) for name in self.photographs.names
        )

    def __len__(self) -> int:
        """Count the pairs."""
        return len(self.photographs) * self.repeats

    def read(self, index: int) -> dict[str, NDArray]:
        """Return one pair and its flow.

        Raises:
            DataError: A photograph cannot be read.
            IndexError: There is no such pair.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        rng = np.random.default_rng((self.seed, index))
        photograph = index % len(self.photographs)
        places = frame_places(self.height, self.width)
        canvas = self._canvas(photograph, rng)
        motion = draw_motion(rng, self.height, self.width, self.max_flow)
        flow, frame1, frame2 = motion(places), self._seen(canvas, motion), self._seen(canvas, None)
        if rng.random() < self.layered and len(self.photographs) > 1:
            others = rng.integers(1, len(self.photographs))
            canvas = self._canvas(int(photograph + others) % len(self.photographs), rng)
            motion = draw_motion(rng, self.height, self.width, self.max_flow)
            shape = draw_blob(rng, self.height, self.width)
            moved = motion(places)
            before, after = shape(places + moved), shape(places)
            flow = np.where(before > 0.5, moved, flow)
            frame1 += before * (self._seen(canvas, motion) - frame1)
            frame2 += after * (self._seen(canvas, None) - frame2)
        frames = [self._develop(frame, rng) for frame in (frame1, frame2)]
        return {"video": np.stack(frames, axis=1), "flow": flow.astype(np.float32)}

    @property
    def _margin(self) -> int:
        """Pixels by which a canvas is larger than the frame, on each side."""
        return ceil(self.max_flow) + FILTER_MARGIN

    def _canvas(self, index: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Return a crop of a photograph, with room around the frame: ``[3, H + .., W + ..]``."""
        assert isinstance(self.photographs, PictureSource)
        room = 2 * self._margin
        spec = Image(self.height + room, self.width + room)
        return to_eight_bits(fit_encoded(self.photographs.encoded(index), spec, Look(rng, CROPS)))

    def _seen(self, canvas: NDArray[np.uint8], motion: Motion | None) -> NDArray[np.float64]:
        """Return what a frame shows, ``[3, H, W]`` in 0..255: frame 2 without a motion."""
        margin = self._margin
        if motion is None:
            inner = canvas[:, margin : margin + self.height, margin : margin + self.width]
            return inner.astype(np.float64)
        places = frame_places(self.height, self.width)
        places = torch.from_numpy(places + motion(places) + margin)
        # Double precision, since single would be off by a visible part of a pixel on large frames.
        scene = torch.from_numpy(np.ascontiguousarray(canvas)).to(places.dtype)
        return sample_pixels(scene[None], places[None], "bicubic")[0].numpy()

    def _develop(self, frame: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Return what a camera makes of it."""
        if self.jitter:
            gain = 1 + rng.uniform(-JITTER_GAIN, JITTER_GAIN)
            offset = 255 * rng.uniform(-JITTER_OFFSET, JITTER_OFFSET)
            noise = rng.standard_normal(frame.shape) * rng.uniform(0.0, JITTER_NOISE)
            frame = frame * gain + offset + noise
        return np.rint(frame).clip(0, 255).astype(np.uint8)


def make_warps(
    splits: Mapping[str, Source],
    *,
    height: int,
    width: int,
    max_flow: float = DEFAULT_MAX_FLOW,
    seed: int = 0,
    repeats: int = 1,
) -> dict[str, WarpedPairs]:
    """Turn every split of a set of photographs into a split of frame pairs with flow.

    Args:
        splits: Sources of picture files by split, as ``open_data`` gives them.
        height: Rows H of the frames.
        width: Columns W of the frames.
        max_flow: Pixels that nothing moves farther than.
        seed: Chooses crops, motions and shapes.
        repeats: Pairs per photograph in ``train``, so that longer training sees new motions; the
            other splits have one.

    Raises:
        ConfigError: A setting out of range.
        DataError: A split that holds no picture files.
    """
    return {
        split: WarpedPairs(
            source,
            height,
            width,
            max_flow=max_flow,
            seed=seed,
            repeats=repeats if split == "train" else 1,
        )
        for split, source in splits.items()
    }
