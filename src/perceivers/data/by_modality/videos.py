"""Videos: fitting, alone or with their sound, and facts about samples.

Legend: C channels, T frames, H W rows and columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from perceivers.data.augment import PLAIN, Look, Place
from perceivers.data.by_modality.images import shrink
from perceivers.data.containers import VIDEO_EXTENSIONS
from perceivers.data.erasing import erase_box
from perceivers.data.modality import Cut, Modality, RawFacts, read_values
from perceivers.data.sources import Encoded, RawSample
from perceivers.data.video_clips import fit_clip, fit_frames, fit_video, native_video
from perceivers.errors import DataError
from perceivers.types import Audio, ModalitySpec, Video

# Videos are inspected at these times, and read with at most this many frames: decoding all takes
# long.
PLACES = (0.0, 0.5, 1.0)
READ_FRAMES = 8


def fit_film(raw: Any, path: str, spec: Video, look: Look = PLAIN) -> NDArray:
    """Fit a clip, or frames ``[C, T, H, W]``.

    Raises:
        DataError: The clip cannot be decoded, or the frames have other channels.
    """
    if isinstance(raw, Encoded):
        return fit_video(raw, spec, look)
    if raw.ndim != 4 or raw.shape[0] != spec.channels:
        raise DataError(
            f"{path}: video has shape {raw.shape} [C, T, H, W], but the spec has {spec.channels} "
            f"channels; frames are cut and resized, but channels are not changed"
        )
    return fit_frames(raw, spec, look)


def fit_together(
    sample: RawSample, path: str, specs: Mapping[str, ModalitySpec], look: Look
) -> dict[str, NDArray]:
    """Fit a video and its audio from the same time on; empty if there are not both."""
    film, sound = None, None
    for name, spec in specs.items():
        raw = sample[name]
        if isinstance(raw, Encoded) and isinstance(spec, Video):
            film = (name, raw, spec)
        elif isinstance(raw, Encoded) and isinstance(spec, Audio):
            sound = (name, raw, spec)
    if film is None or sound is None:
        return {}
    (film_name, clip, video), (sound_name, track, audio) = film, sound
    other_file = None if track.path == clip.path else track
    frames, waves = fit_clip(clip, video, audio, look, sound=other_file)
    return {film_name: frames, sound_name: waves}


def native_clip(raw: NDArray | Encoded, ragged: bool) -> Video:
    """Return the spec of a file, or of frames ``[C, T, H, W]``."""
    if isinstance(raw, Encoded):
        return native_video(raw)
    channels, frames, height, width = raw.shape
    return Video(frames, height, width, channels)


def longest(found: Sequence[Video]) -> Video:
    """Return the first spec, with the most frames of all."""
    return replace(found[0], frames=max(spec.frames for spec in found))


def is_video(raw: NDArray, name: str, spec: Video) -> bool:
    """Tell whether an array is frames with the channels of a spec.

    Raises:
        DataError: It is not.
    """
    if raw.ndim == 4 and raw.shape[0] == spec.channels:
        return True
    raise DataError(
        f"modality {name!r} has shape {raw.shape} [C, T, H, W], but the spec has "
        f"{spec.channels} channels; use the channels of the data"
    )


def inspect(raw: NDArray | Encoded, path: str, cut: Cut) -> RawFacts:
    """Describe a video."""
    return _measure_film(raw) if isinstance(raw, Encoded) else _measure_frames(raw)


def _measure_film(clip: Encoded) -> RawFacts:
    spec = native_video(clip)
    for time in PLACES:
        fit_video(clip, Video(1, 8, 8), Look(place=Place(time)))
    return RawFacts(
        {
            "seconds": spec.frames / spec.frame_rate,
            "frames": spec.frames,
            "width": spec.width,
            "height": spec.height,
        },
        {"frames per second": f"{spec.frame_rate:.4g}"},
    )


def _measure_frames(raw: NDArray) -> RawFacts:
    """Describe frames ``[C, T, H, W]``."""
    channels, frames, height, width = raw.shape
    return RawFacts(
        {"frames": frames, "width": width, "height": height}, {"channels": str(channels)}
    )


def summarise(raw: Shaped[Tensor, "B C T H W"]) -> Float[Tensor, "B D"]:
    """Return small copies of the mean frame, and of the mean change between frames."""
    values = read_values(raw)
    changes = values.diff(dim=2).abs().mean(2) if values.shape[2] > 1 else values[:, :, 0]
    return torch.cat([shrink(values.mean(2)), shrink(changes)], 1)


ROW = Modality(
    spec=Video,
    fit=fit_film,
    native=native_clip,
    merge=longest,
    is_slow=lambda spec: True,
    glimpse=lambda spec: replace(spec, frames=min(spec.frames, READ_FRAMES)),
    is_valid=is_video,
    augment=erase_box,
    inspect=inspect,
    summarise=summarise,
    noun="video",
    endings=VIDEO_EXTENSIONS,
    decode=lambda path, data: Encoded(path, data, "video"),
    streamed=True,
    words=("video", "clip", "frames", "input"),
)
