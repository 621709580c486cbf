"""Texts as bytes: fitting, and facts about samples.

Legend: L bytes or ids.
"""

import codecs
import re
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from perceivers.data.augment import PLAIN, Look
from perceivers.data.augment_signals import change_text
from perceivers.data.byte_codec import pad_ids, wrap_ids
from perceivers.data.modality import Cut, Modality, RawFacts
from perceivers.data.texts import TEXT_EXTENSION, TEXT_LENGTH
from perceivers.errors import DataError
from perceivers.types import BYTE_VOCABULARY, FIRST_BYTE, Bytes

# Buckets of the pairs of bytes that are features.
HASHES = 512
# The rest of a multi-byte character that is cut at the start of a window.
REST_OF_LETTER = re.compile(rb"\A[\x80-\xbf]{1,3}")


def fit_text(raw: Any, path: str, spec: Bytes, look: Look = PLAIN) -> NDArray[np.int64]:
    """Fit a text ``[L]``: a random part or the first, wrapped as the spec says, then PAD.

    Values of dtype uint8 are bytes; wider integers are ids already, which are not augmented.
    """
    room, rng = text_room(spec), look.rng
    if raw.dtype == np.uint8:
        raw = change_text(raw, room, look)
    first = 0 if rng is None else int(rng.integers(max(0, len(raw) - room) + 1))
    ids = raw[first : first + room].astype(np.int64)
    if raw.dtype == np.uint8:
        ids += FIRST_BYTE
    return pad_ids(wrap_ids(ids) if spec.wrap == "cls_sep" else ids, spec.length)


def text_room(spec: Bytes) -> int:
    """Return how many bytes of text fit, after wrapping.

    Raises:
        DataError: No text fits.
    """
    room = spec.length - (2 if spec.wrap == "cls_sep" else 0)
    if room < 1:
        raise DataError(
            f"a length of {spec.length} leaves no room for text between CLS and SEP; give at "
            f"least 3"
        )
    return room


def check_whole(raw: Any, path: str, spec: Bytes) -> None:
    """Reject a text that would be cut.

    Raises:
        DataError: The text is longer than the model reads.
    """
    if len(raw) > (room := text_room(spec)):
        raise DataError(
            f"{path}: the text has {len(raw)} bytes, and the model reads at most {room} "
            f"(length {spec.length}, wrap {spec.wrap!r}); shorten or split the text, or use a "
            f"model of greater length"
        )


def is_text(raw: NDArray, name: str, spec: Bytes) -> bool:
    """Tell whether an array is bytes or ids.

    Raises:
        DataError: No text fits into the spec.
    """
    text_room(spec)
    return raw.ndim == 1 and np.issubdtype(raw.dtype, np.integer)


def inspect(raw: NDArray, path: str, cut: Cut) -> RawFacts:
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


def summarise(ids: Int[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """Return square roots of the counts of bytes, and of pairs of bytes in hash buckets."""
    single = torch.zeros(len(ids), BYTE_VOCABULARY).scatter_add(
        1, ids, (ids >= FIRST_BYTE).to(torch.float32)
    )
    real = ((ids[:, :-1] >= FIRST_BYTE) & (ids[:, 1:] >= FIRST_BYTE)).to(torch.float32)
    pairs = (ids[:, :-1] * 263 + ids[:, 1:]) % HASHES
    double = torch.zeros(len(ids), HASHES).scatter_add(1, pairs, real)
    # The square root keeps frequent bytes from dominating.
    return torch.cat([single, double], 1).sqrt()


ROW = Modality(
    spec=Bytes,
    fit=fit_text,
    native=lambda raw, ragged: Bytes(TEXT_LENGTH),
    is_valid=is_text,
    is_element=lambda values, spec: np.greater_equal(values, FIRST_BYTE),
    check_whole=check_whole,
    inspect=inspect,
    summarise=summarise,
    noun="text",
    endings=(TEXT_EXTENSION,),
    in_folders=False,
    decode=lambda path, data: np.frombuffer(data, np.uint8).copy(),
    words=("text", "caption", "input"),
)
