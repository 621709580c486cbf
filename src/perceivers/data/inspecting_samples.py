"""Facts about one raw sample: sizes, rates and oddities, found by decoding it.

Legend: C channels, H W rows and columns, T frames, S samples, P points, L bytes.
"""

import codecs
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from perceivers.data.audio_clips import fit_audio, read_sound_info
from perceivers.data.augment import Look, Place
from perceivers.data.clouds import INSIDE
from perceivers.data.containers import open_bytes
from perceivers.data.deep_pictures import (
    UNSIGNED,
    count_channels,
    describe_values,
    is_deep,
    read_deep,
    read_layout,
)
from perceivers.data.joined import JoinedSource
from perceivers.data.masks import MASK_NAME, find_pair_turn, picture_orientation, read_ids
from perceivers.data.pictures import (
    GRAY_MODES,
    ORIENTATION_TAG,
    load_picture,
    open_picture,
)
from perceivers.data.point_files import native_points
from perceivers.data.sources import (
    Encoded,
    EncodedClip,
    KindedSource,
    PictureSource,
    Source,
)
from perceivers.data.texts import Documents
from perceivers.data.video_clips import fit_video, native_video
from perceivers.errors import DataError
from perceivers.types import Audio, Video

# Audio longer than this, in s, is decoded only at its start, middle and end, this long each.
WHOLE_SOUND = 90
PART_OF_SOUND = 30
PLACES = (0.0, 0.5, 1.0)
DIGEST_SIZE = 16
CHUNK = 2**20
# The rest of a multi-byte character that is cut at the start of a window.
REST_OF_LETTER = re.compile(rb"\A[\x80-\xbf]{1,3}")


# Flags of masks whose images are rotated by EXIF.
MASK_FLAGS: Mapping[str | None, str] = {
    "upright": "are upright, like their images as rotated by EXIF",
    "stored": "are stored like their images, and are rotated with them by EXIF",
    None: "may be stored upright or like their images (rotated by EXIF, and the sizes do not "
    "tell): segment.exif_masks says which, upright by default",
}


class RawFacts(NamedTuple):
    """Facts about one modality of one sample.

    Args:
        numbers: Sizes by quantity, such as ``width``.
        values: Properties that samples share or differ in, such as ``sample rate in Hz``.
        flags: Oddities, such as ``silent``.
    """

    numbers: dict[str, float]
    values: dict[str, str]
    flags: tuple[str, ...] = ()


class Cut(NamedTuple):
    """Whether a text starts, or ends, inside a longer one, perhaps within a character."""

    begins: bool = False
    ends: bool = False


WHOLE = Cut()


class SampleFacts(NamedTuple):
    """Facts about one sample.

    Args:
        modalities: Facts by modality.
        kinds: Kind of spec that each modality is read with.
        digest: Hash of the content; None if there is nothing to compare.
        path: The file, or tar member, that contains the whole sample; empty if there is none.
        problem: ``path: reason`` if the sample cannot be read; nothing else is known then.
    """

    modalities: Mapping[str, RawFacts]
    kinds: Mapping[str, str]
    digest: bytes | None = None
    path: str = ""
    problem: str = ""


def measure_sample(source: Source, index: int) -> SampleFacts:
    """Read and decode one sample, and describe each of its modalities.

    Videos are decoded at their first, middle and last frame; audio of more than 90 s in three parts
    of 30 s.

    Args:
        source: Source of the sample.
        index: Index of the sample.

    Returns:
        The facts, or ``problem`` alone if the sample cannot be read.
    """
    try:
        if isinstance(source, PictureSource):
            return _measure_encoded(source.encoded(index))
        raw = {n: value for n, value in source.read(index).items() if n != INSIDE}
        stated = source.kind_by_modality if isinstance(source, KindedSource) else {}
        kinds = {n: stated.get(n) or find_raw_kind(n, value) for n, value in raw.items()}
        paths = {value.path if isinstance(value, EncodedClip) else "" for value in raw.values()}
        name, cut = source.names[index], _find_cut(source, index, raw)
        found = {n: measure_raw(value, kinds[n], name, cut) for n, value in raw.items()}
        return SampleFacts(
            _flag_turned_masks(found, kinds, raw, name),
            kinds,
            _digest(raw),
            paths.pop() if len(paths) == 1 else "",
        )
    except DataError as error:
        return SampleFacts({}, {}, problem=str(error))


def _flag_turned_masks(
    found: dict[str, RawFacts], kinds: Mapping[str, str], raw: Mapping[str, Any], name: str
) -> dict[str, RawFacts]:
    """Flag how training reads a mask whose image is rotated by EXIF."""
    pictures = [value for n, value in raw.items() if kinds[n] == "image"]
    if MASK_NAME not in raw or not pictures or "width" not in found[MASK_NAME].numbers:
        return found
    lies = find_pair_turn(pictures[0], raw[MASK_NAME], name)
    if picture_orientation(pictures[0]) == 1:
        return found
    flag = MASK_FLAGS[lies]
    own = found[MASK_NAME]
    return {**found, MASK_NAME: own._replace(flags=(*own.flags, flag))}


def _find_cut(source: Source, index: int, raw: Mapping[str, Any]) -> Cut:
    """Tell which ends of a sample's text are not ends of its document."""
    while isinstance(source, JoinedSource):
        source, index = source.locate(index)
    if not isinstance(source, Documents):
        return WHOLE
    piece = source.pieces[int(np.searchsorted(source.ends, index, side="right"))]
    first = int(source.names[index].rpartition("@")[2])
    return Cut(first > 0, first + len(raw["bytes"]) < Path(piece.path).stat().st_size)


def measure_raw(raw: Any, kind: str, path: str, cut: Cut = WHOLE) -> RawFacts:
    """Describe one modality of a sample.

    Args:
        raw: As a source reads it.
        kind: Kind of modality, which determines the layout of arrays.
        path: Name of the sample, for messages.
        cut: Which ends of a text are cut by a window.

    Raises:
        DataError: It cannot be decoded.
    """
    if isinstance(raw, EncodedClip):
        return CLIPS[raw.kind](raw)
    if kind == MASK_NAME:
        points = isinstance(raw, np.ndarray) and raw.ndim == 1
        return _measure_mask(read_ids(raw, path, axes=1 if points else 2))
    if isinstance(raw, Picture):
        return measure_picture(raw)
    if kind == "bytes":
        return _measure_text(raw, cut)
    return ARRAYS.get(kind, _measure_array)(raw)


def find_raw_kind(name: str, raw: Any) -> str:
    """Return the kind of spec that a raw modality is read with, as in ``types.SPECS``."""
    if isinstance(raw, EncodedClip):
        return raw.kind
    if name == MASK_NAME:
        return MASK_NAME
    if isinstance(raw, Picture):
        return "image"
    return name if name in ARRAYS else "array"


def measure_picture(picture: Picture) -> RawFacts:
    """Describe a decoded, upright image."""
    width, height = picture.size
    low_high = picture.getextrema()
    pairs = low_high if isinstance(low_high[0], tuple) else (low_high,)
    flat = all(low == high for low, high in pairs)  # pyright: ignore[reportGeneralTypeIssues]
    flags = ("of one colour only",) if flat else ()
    return RawFacts({"width": width, "height": height}, {"colours": _colours(picture)}, flags)


def _colours(picture: Picture) -> str:
    if picture.mode in GRAY_MODES:
        return "gray" if picture.mode in {"1", "L"} else "16-bit gray"
    has_alpha = picture.mode in {"LA", "La", "PA", "RGBA", "RGBa"}
    if has_alpha or "transparency" in picture.info:
        return "with transparency"
    return "RGB" if picture.mode in {"RGB", "P"} else picture.mode


def _measure_encoded(encoded: Encoded) -> SampleFacts:
    if is_deep(encoded.data):
        facts = _measure_deep(EncodedClip(encoded.path, encoded.data, "image"))
        return SampleFacts(
            {"image": facts}, {"image": "image"}, _digest_bytes(encoded.data), encoded.path
        )
    picture = open_picture(encoded.data, encoded.path)
    turned = picture.getexif().get(ORIENTATION_TAG, 1) not in {0, 1}
    facts = measure_picture(load_picture(picture, encoded.path))
    if (layout := read_layout(encoded.data)) is not None and layout.unread:
        facts = facts._replace(flags=(*facts.flags, "of several pages, of which the first is read"))
    if turned:
        facts = facts._replace(flags=(*facts.flags, "turned upright by EXIF"))
    return SampleFacts(
        {"image": facts}, {"image": "image"}, _digest_bytes(encoded.data), encoded.path
    )


def _measure_deep(clip: EncodedClip) -> RawFacts:
    """Describe an image that Pillow cannot hold."""
    with open_bytes(clip) as file:
        data = file.read()
    channels, layout = count_channels(data, clip.path), read_layout(data)
    facts = _measure_array_picture(read_deep(data, clip.path, channels))
    if layout is None or (channels in {1, 3} and layout.format == UNSIGNED and layout.bits == 16):
        return facts._replace(values={"colours": "16 bits per value"})
    said = {"channels": str(channels), "values": describe_values(layout)}
    return facts._replace(values=said)


def _measure_point_file(clip: EncodedClip) -> RawFacts:
    """Describe a cloud, or a mesh from which points will be sampled."""
    spec = native_points(clip)
    return RawFacts({"points": spec.points}, {"values per point": str(spec.channels)})


def _measure_sound(clip: EncodedClip) -> RawFacts:
    info = read_sound_info(clip)
    whole = info.samples <= WHOLE_SOUND * info.sample_rate
    count = info.samples if whole else PART_OF_SOUND * info.sample_rate
    spec = Audio(count, info.channels)
    peak = max(
        float(np.abs(fit_audio(clip, spec, Look(place=Place(time)))).max())
        for time in (PLACES[:1] if whole else PLACES)
    )
    return RawFacts(
        {"seconds": info.samples / info.sample_rate},
        {"sample rate in Hz": str(info.sample_rate), "channels": str(info.channels)},
        ("silent",) if peak == 0.0 else (),
    )


def _measure_film(clip: EncodedClip) -> RawFacts:
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


def _measure_text(raw: NDArray, cut: Cut = WHOLE) -> RawFacts:
    """Describe a text ``[L]``: bytes, or ids."""
    if raw.dtype != np.uint8:
        return RawFacts({"ids": len(raw)}, {})
    flags = () if _is_utf8(raw.tobytes(), cut) else ("not in UTF-8",)
    return RawFacts({"bytes": len(raw)}, {}, flags)


def _is_utf8(text: bytes, cut: Cut) -> bool:
    """Tell whether a text is UTF-8, apart from characters that a window cuts."""
    if cut.begins:
        text = REST_OF_LETTER.sub(b"", text)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(text, final=not cut.ends)
    except UnicodeDecodeError:
        return False
    return True


def _measure_points(raw: NDArray) -> RawFacts:
    """Describe a cloud ``[P, C]``."""
    return RawFacts({"points": raw.shape[0]}, {"values per point": str(raw.shape[1])})


def _measure_array_picture(raw: NDArray) -> RawFacts:
    """Describe an array ``[C, H, W]``."""
    channels, height, width = raw.shape
    flags = ("of one colour only",) if raw.min() == raw.max() else ()
    return RawFacts({"width": width, "height": height}, {"channels": str(channels)}, flags)


def _measure_array_film(raw: NDArray) -> RawFacts:
    """Describe frames ``[C, T, H, W]``."""
    channels, frames, height, width = raw.shape
    return RawFacts(
        {"frames": frames, "width": width, "height": height}, {"channels": str(channels)}
    )


def _measure_wave(raw: NDArray) -> RawFacts:
    """Describe a waveform ``[C, S]``."""
    flags = () if np.any(raw) else ("silent",)
    return RawFacts({"samples": raw.shape[1]}, {"channels": str(raw.shape[0])}, flags)


def _measure_mask(raw: NDArray) -> RawFacts:
    """Describe class ids per pixel ``[H, W]``, or per point ``[P]``."""
    found = np.unique(raw)
    flags = ("of one class only",) if len(found) == 1 else ()
    sizes = dict(
        zip(("width", "height") if raw.ndim == 2 else ("points",), raw.shape[::-1], strict=True)
    )
    return RawFacts({**sizes, "classes in it": len(found)}, {}, flags)


def _measure_array(raw: NDArray) -> RawFacts:
    return RawFacts({}, {"shape": "x".join(map(str, raw.shape))})


ARRAYS: Mapping[str, Callable[[NDArray], RawFacts]] = {
    "image": _measure_array_picture,
    "video": _measure_array_film,
    "audio": _measure_wave,
    "points": _measure_points,
    "bytes": _measure_text,
}


CLIPS: Mapping[str, Callable[[EncodedClip], RawFacts]] = {
    "image": _measure_deep,
    "audio": _measure_sound,
    "video": _measure_film,
    "points": _measure_point_file,
}


def _digest_bytes(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest()


def _digest(raw: Mapping[str, Any]) -> bytes:
    """Hash all modalities: encoded files by their bytes, decoded images by their pixels."""
    total = hashlib.blake2b(digest_size=DIGEST_SIZE)
    seen: set[str] = set()
    for name in sorted(raw):
        value = raw[name]
        if isinstance(value, EncodedClip):
            # One file may be both video and audio of a sample.
            if value.path not in seen:
                with open_bytes(value) as file:
                    while chunk := file.read(CHUNK):
                        total.update(chunk)
            seen.add(value.path)
        elif isinstance(value, Picture):
            total.update(f"{value.mode}{value.size}".encode() + value.tobytes())
        else:
            array = np.ascontiguousarray(value)
            total.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return total.digest()
