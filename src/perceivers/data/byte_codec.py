"""Texts to ids of their UTF-8 bytes and back, vectorised over whole texts.

Legend: L bytes or ids.
Paper: Perceiver IO (arXiv 2107.14795) Sec. 4.1: no tokenizer, the vocabulary is the 256 bytes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perceivers.errors import DataError, InputError
from perceivers.types import BYTE_VOCABULARY, CLS, FIRST_BYTE, MASK, PAD, SEP, Bytes

MASK_TEXT = b"[MASK]"


def encode_text(text: str | bytes, *, parse_masks: bool = False) -> NDArray[np.int64]:
    """Return one id per byte, byte + 6, int64 ``[L]``.

    Args:
        text: Bytes, or text to encode as UTF-8.
        parse_masks: Encode the characters ``[MASK]`` as the mask id, where the model makes a
            prediction.

    Raises:
        InputError: A character that UTF-8 cannot encode (half of a surrogate pair).
    """
    if isinstance(text, str):
        try:
            # "surrogateescape" restores the bytes that were not valid UTF-8 when the text was read.
            text = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise InputError(
                f"character {error.start} of the text is {text[error.start]!r}, half of a "
                f"surrogate pair, which UTF-8 cannot encode; remove it, or give bytes"
            ) from error
    if not parse_masks or MASK_TEXT not in text:
        return np.frombuffer(text, np.uint8).astype(np.int64) + FIRST_BYTE
    mask = np.array([MASK], np.int64)
    parts = [mask]
    for part in text.split(MASK_TEXT):
        parts += [encode_text(part), mask]
    return np.concatenate(parts[1:-1])


def decode_ids(ids: NDArray | Sequence[int]) -> str:
    """Decode ids to text; special ids are left out, invalid UTF-8 becomes U+FFFD.

    Args:
        ids: Integers ``[L]`` in 0..261.

    Raises:
        InputError: Another shape or dtype, or an id outside the vocabulary.
    """
    values = np.asarray(ids)
    if not values.size:
        return ""
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise InputError(
            f"ids have shape {values.shape} and dtype {values.dtype}; one text is a list of "
            f"integers"
        )
    if values.min() < 0 or values.max() >= BYTE_VOCABULARY:
        raise InputError(
            f"ids lie in {values.min()}..{values.max()}; the vocabulary is 0..{BYTE_VOCABULARY - 1}"
        )
    return bytes((values[values >= FIRST_BYTE] - FIRST_BYTE).astype(np.uint8)).decode(
        "utf-8", "replace"
    )


def wrap_ids(
    first: NDArray[np.int64], second: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Return ``CLS first SEP``, or ``CLS first SEP second SEP`` for a pair of texts."""
    sep = np.array([SEP], np.int64)
    parts = [np.array([CLS], np.int64), first, sep]
    return np.concatenate(parts if second is None else [*parts, second, sep])


def pad_ids(ids: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Pad ids to a length with PAD.

    Raises:
        InputError: There are more ids than ``length``.
    """
    if len(ids) > length:
        raise InputError(
            f"the text takes {len(ids)} ids and the length is {length}; cut it, or choose a "
            f"greater length"
        )
    return np.pad(ids, (0, length - len(ids)), constant_values=PAD)


def text_ids(text: str | bytes, spec: Bytes, where: str, *, parse_masks: bool = False) -> Tensor:
    """Return the padded ids of one text ``[1, L]``.

    Args:
        text: The text.
        spec: Defines the length L and whether CLS and SEP are added.
        where: Name of the text, for messages.
        parse_masks: Interpret ``[MASK]`` as one hidden byte.

    Raises:
        DataError: The text is longer than the spec, or empty.
    """
    ids = encode_text(text, parse_masks=parse_masks)
    if len(ids) == 0:
        raise DataError(f"{where} is empty; there is nothing to read")
    wrapped = wrap_ids(ids) if spec.wrap == "cls_sep" else ids
    if len(wrapped) > spec.length:
        raise DataError(
            f"{where} takes {len(wrapped)} ids, but the model reads {spec.length}; cut it, or "
            f"train a model with inputs: {{bytes: {{length: {len(wrapped)}}}}}"
        )
    return torch.from_numpy(pad_ids(wrapped, spec.length)).unsqueeze(0)
