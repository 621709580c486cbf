"""Whether a sound file was cut short: what it promises, compared with what is there.

The decoders take such files for shorter ones. WAV, AIFF and their like state the bytes of their
samples, which libsndfile compares with the file; a whole Ogg file ends with a page that says it is
the last. What an MP3 states may be wrong, because editors keep old headers; but they cut between
its frames, so that one that is shorter than stated and ends within a frame was cut short. FLAC and
containers are judged while they are decoded.
"""

import os
import re
from io import BufferedIOBase

from perceivers.errors import DataError

# Writers to pipes cannot go back to state a size, and leave this one, or a larger, or none.
UNSTATED_SIZE = 0x7FFFF000
# Some writers count headers among the samples.
MAX_MISSING_BYTES = 64
# How libsndfile logs the size of the samples, or of the whole file, where it is not what is there.
WRONG_SIZE = re.compile(
    r"^\s*(?:data|SSND|BODY|Data Size|riff|Riff size)\s*:\s*(\d+)\s*\(should be (\d+)\)",
    re.MULTILINE,
)
# Of a page of Ogg: its flags, the sample at which it ends, the number of its stream, that of its
# segments, the table of their lengths, its size.
FLAGS_AT, ENDS_AT, STREAM_AT, COUNT_AT, TABLE_AT, LAST_PAGE, MAX_PAGE = 5, 6, 14, 26, 27, 4, 65307
NO_END = 2**64 - 1
# Kilobits per second of layer III by index: of MPEG-1, and of MPEG-2 and 2.5.
KILOBITS = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
HERTZ = (44100, 48000, 32000)
# Headers that state a length, and how far into the first frame they may lie.
STATING, FIRST_FRAME = (b"Xing", b"Info", b"VBRI"), 64
ID3_HEAD = 10


def check_stated_size(log: str, path: str) -> None:
    """Require all of the samples that a file states.

    Args:
        log: What libsndfile says of its headers.
        path: Where it lies, for messages.

    Raises:
        DataError: The file was cut short.
    """
    for size, held in (map(int, found) for found in WRONG_SIZE.findall(log)):
        if size < UNSTATED_SIZE and held < size - MAX_MISSING_BYTES:
            raise DataError(
                f"{path}: ends after {held} of {size} bytes of sound; the file is damaged or cut "
                f"short"
            )


def check_ogg_end(file: BufferedIOBase, path: str) -> int:
    """Return how many samples the last page holds.

    Args:
        file: The whole file.
        path: Where it lies, for messages.

    Raises:
        DataError: The last page is missing or incomplete: the file was cut short.
    """
    length = file.seek(0, os.SEEK_END)
    # Twice, as something else may follow the last page.
    file.seek(max(0, length - 2 * MAX_PAGE))
    pages = [b"OggS" + page for page in file.read().split(b"OggS")[1:]]
    page = pages[-1] if pages else b""
    whole = False
    if len(page) > COUNT_AT and page[FLAGS_AT] & LAST_PAGE:
        table = page[TABLE_AT : TABLE_AT + page[COUNT_AT]]
        whole = len(table) == page[COUNT_AT] and len(page) >= TABLE_AT + len(table) + sum(table)
    if not whole:
        raise DataError(
            f"{path}: the last page of sound is missing after {length} bytes; the file is "
            f"damaged or cut short"
        )
    stream = page[STREAM_AT : STREAM_AT + 4]
    ends = [_page_end(p) for p in pages if p[STREAM_AT : STREAM_AT + 4] == stream]
    known = [end for end in ends if end != NO_END]
    return known[-1] - known[-2] if len(known) > 1 else max(known, default=0)


def _page_end(page: bytes) -> int:
    """Return the number of the sample at which a page of Ogg ends."""
    return int.from_bytes(page[ENDS_AT : ENDS_AT + 8], "little")


def check_mp3_end(
    file: BufferedIOBase, last: bytes, seconds: tuple[float, float], path: str
) -> None:
    """Require the last frame of an MP3 that is shorter than it states.

    Args:
        file: The whole file, at its beginning.
        last: Its last frame, as far as it goes.
        seconds: How long it is, and how long it says it is.
        path: Where it lies, for messages.

    Raises:
        DataError: The file was cut short.
    """
    if _states_length(file) and len(last) < _frame_size(last):
        raise DataError(
            f"{path}: ends within a frame after {seconds[0]:.2f} of {seconds[1]:.2f} s; the file "
            f"is damaged or cut short"
        )


def _states_length(file: BufferedIOBase) -> bool:
    """Tell whether the first frame of an MP3, behind its tags, is a header that states a length."""
    head = file.read(ID3_HEAD)
    size = 0
    if head[:3] == b"ID3":
        # Seven bits of each byte count.
        size = ID3_HEAD + sum((byte & 127) << 7 * (3 - i) for i, byte in enumerate(head[6:10]))
    file.seek(size)
    first = file.read(FIRST_FRAME)
    return any(word in first for word in STATING)


def _frame_size(frame: bytes) -> int:
    """Return how many bytes an MP3's frame has, by its header; 0 where that is no header."""
    if len(frame) < 4 or frame[0] != 0xFF or frame[1] >> 5 != 7:
        return 0
    version, index = frame[1] >> 3 & 3, frame[2] >> 4
    rate, padding = frame[2] >> 2 & 3, frame[2] >> 1 & 1
    if index == 15 or rate == 3:
        return 0
    first = version == 3
    # MPEG-2 halves the rates, MPEG-2.5 halves them again.
    hertz = HERTZ[rate] // (1 if first else 2 if version == 2 else 4)
    return (144 if first else 72) * 1000 * KILOBITS[not first][index] // hertz + padding
