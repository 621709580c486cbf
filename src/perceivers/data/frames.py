"""Frames of a clip, all of them looked at and changed alike.

Legend: C channels, T frames, H W rows and columns.
"""

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from perceivers.data.augment import View
from perceivers.data.drawing import choose_view, draw_view, fit_array
from perceivers.data.rand_augment import as_picture, augment_crop
from perceivers.data.views import PLAIN, Look
from perceivers.types import Image, Video


class FrameFitter:
    """Fits the frames of one clip, one after the other, to uint8 ``[C, H, W]``.

    View and operations are drawn at the first frame. Operations that look at a picture, such as
    Equalize, look at each frame by itself.

    Args:
        spec: What the clip must look like; 1 (gray) or 3 (RGB) channels.
        look: What is seen of it.
    """

    def __init__(self, spec: Video, look: Look) -> None:
        self._spec, self._look = spec, look
        self._view: View | None = None
        self._seed = 0

    def __call__(self, picture: Picture) -> NDArray[np.uint8]:
        """Crop, change and resize one RGB or gray frame; all frames have the same size."""
        spec, look = self._spec, self._look
        target = (spec.width, spec.height)
        operates = look.rng is not None and look.augment.rand_augment > 0
        if self._view is None:
            self._view = choose_view(picture.size, target, look)
            if look.rng is not None and operates:
                self._seed = int(look.rng.integers(2**63))
        rng = np.random.default_rng(self._seed) if operates else None
        picture, view = augment_crop(picture, self._view, look.augment, rng)
        untouched = view.is_whole and not view.is_turned and not view.flip
        if not untouched or picture.size != target:
            picture = draw_view(picture, view, target)
        if spec.channels == 1:
            return np.asarray(picture.convert("L"))[None]
        return np.asarray(picture).transpose(2, 0, 1)


def fit_frames(frames: NDArray, spec: Video, look: Look = PLAIN) -> NDArray:
    """Fit ready frames: a part of them in order, each cropped and resized.

    The last frame is repeated to fill a spec that is longer. Their rate is not known, so frames
    are consecutive whatever ``spec.frame_rate``. What fits already and is not changed stays as it
    is.

    Args:
        frames: Clip ``[C, T, H, W]`` with the channels of the spec.
        spec: The shape to reach.
        look: What is seen of it.

    Raises:
        ConfigError: RandAugment of other than uint8 frames of 1 or 3 channels.
    """
    spare = frames.shape[1] - spec.frames
    if spare > 0:
        first = look.start(spare + 1)
        frames = frames[:, first : first + spec.frames]
    elif spare < 0:
        frames = np.pad(frames, ((0, 0), (0, -spare), (0, 0), (0, 0)), mode="edge")
    if look.rng is not None and look.augment.rand_augment:
        fit = FrameFitter(spec, look)
        return np.stack([fit(as_picture(frame)) for frame in frames.swapaxes(0, 1)], axis=1)
    channels, count, height, width = frames.shape
    view = choose_view((width, height), (spec.width, spec.height), look)
    stacked = frames.reshape(channels * count, height, width)  # [C * T, H, W]
    flat = Image(spec.height, spec.width, channels * count)
    if frames.dtype == np.int16:
        # Pillow cannot resample 16 bits with a sign.
        fitted = np.rint(fit_array(stacked.astype(np.float32), flat, view)).astype(np.int16)
    else:
        fitted = fit_array(stacked, flat, view)
    return fitted.reshape(channels, count, *flat.grid)
