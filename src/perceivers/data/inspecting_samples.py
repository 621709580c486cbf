"""Facts about one raw sample: sizes, rates and oddities, found by decoding it.

How one modality is described is in its row, see ``perceivers.data.modality``.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL.Image import Image as Picture

from perceivers.data.by_modality.arrays import ARRAY
from perceivers.data.by_modality.images import measure_deep, measure_picture
from perceivers.data.clouds import INSIDE
from perceivers.data.containers import open_bytes
from perceivers.data.deep_pictures import is_deep, read_layout
from perceivers.data.masks import MASK_NAME, find_pair_turn, picture_orientation
from perceivers.data.modality import WHOLE, Cut, RawFacts, modalities
from perceivers.data.pictures import ORIENTATION_TAG, load_picture, open_picture
from perceivers.data.sources import (
    Encoded,
    Source,
)
from perceivers.errors import DataError

DIGEST_SIZE = 16
CHUNK = 2**20
# Flags of masks whose images are rotated by EXIF.
MASK_FLAGS: Mapping[str | None, str] = {
    "upright": "are upright, like their images as rotated by EXIF",
    "stored": "are stored like their images, and are rotated with them by EXIF",
    None: "may be stored upright or like their images (rotated by EXIF, and the sizes do not "
    "tell): segment.exif_masks says which, upright by default",
}


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
        if source.is_pictures:
            return _measure_encoded(source.encoded(index))
        raw = {n: value for n, value in source.read(index).items() if n != INSIDE}
        stated = source.kind_by_modality
        kinds = {n: stated.get(n) or find_raw_kind(n, value) for n, value in raw.items()}
        paths = {value.path if isinstance(value, Encoded) else "" for value in raw.values()}
        name, cut = source.names[index], Cut(*source.find_ends(index))
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
    if isinstance(raw, Encoded):
        kind = raw.kind
    elif isinstance(raw, Picture) and kind != MASK_NAME:
        kind = "image"
    return modalities().get(kind, ARRAY).inspect(raw, path, cut)


def find_raw_kind(name: str, raw: Any) -> str:
    """Return the kind of spec that a raw modality is read with, as in ``types.SPECS``."""
    if isinstance(raw, Encoded):
        return raw.kind
    if name == MASK_NAME:
        return MASK_NAME
    if isinstance(raw, Picture):
        return "image"
    row = modalities().get(name, ARRAY)
    return "array" if row.native is None else row.spec.kind


def _measure_encoded(encoded: Encoded) -> SampleFacts:
    data = encoded.load()
    if is_deep(data):
        facts = measure_deep(encoded)
        return SampleFacts({"image": facts}, {"image": "image"}, _digest_bytes(data), encoded.path)
    picture = open_picture(data, encoded.path)
    turned = picture.getexif().get(ORIENTATION_TAG, 1) not in {0, 1}
    facts = measure_picture(load_picture(picture, encoded.path))
    if (layout := read_layout(data)) is not None and layout.unread:
        facts = facts._replace(flags=(*facts.flags, "of several pages, of which the first is read"))
    if turned:
        facts = facts._replace(flags=(*facts.flags, "turned upright by EXIF"))
    return SampleFacts({"image": facts}, {"image": "image"}, _digest_bytes(data), encoded.path)


def _digest_bytes(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest()


def _digest(raw: Mapping[str, Any]) -> bytes:
    """Hash all modalities: encoded files by their bytes, decoded images by their pixels."""
    total = hashlib.blake2b(digest_size=DIGEST_SIZE)
    seen: set[str] = set()
    for name in sorted(raw):
        value = raw[name]
        if isinstance(value, Encoded):
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
