"""Whether a WAV or Ogg file was cut short: what it promises, compared with what is there.

The decoder takes such files for shorter ones. WAV states the bytes of its samples; a whole Ogg
file ends with a page that says it is the last. FLAC and containers are judged while they are
decoded; MP3 promises nothing that holds, because editors keep old headers.
"""

from perceivers.errors import DataError

# Writers to pipes cannot go back to state a size, and leave this one, or a larger, or none.
UNSTATED_SIZE = 0x7FFFF000
# Some writers count headers among the samples.
MAX_MISSING_BYTES = 64
# Of a page of Ogg: its flags, the number of its segments, and the table of their lengths.
FLAGS_AT, COUNT_AT, TABLE_AT, LAST_PAGE = 5, 26, 27, 4


def check_sound_end(data: bytes, path: str) -> None:
    """Require all of a WAV or Ogg file; other files pass.

    Args:
        data: The whole file.
        path: Where it lies, for messages.

    Raises:
        DataError: The file was cut short.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        _check_wav(data, path)
    elif data[:4] == b"OggS":
        _check_ogg(data, path)


def _check_wav(data: bytes, path: str) -> None:
    """Compare the stated size of the samples with the bytes behind it."""
    place = 12
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        if data[place : place + 4] == b"data":
            held = len(data) - place - 8
            if size < UNSTATED_SIZE and held < size - MAX_MISSING_BYTES:
                raise DataError(
                    f"{path}: ends after {held} of {size} bytes of sound; the file is damaged or "
                    f"cut short"
                )
            return
        place += 8 + size + size % 2  # chunks begin at even places


def _check_ogg(data: bytes, path: str) -> None:
    """Require that the last page says it is the last, and is complete."""
    page = data[data.rfind(b"OggS") :]
    whole = False
    if len(page) > COUNT_AT and page[FLAGS_AT] & LAST_PAGE:
        table = page[TABLE_AT : TABLE_AT + page[COUNT_AT]]
        whole = len(table) == page[COUNT_AT] and len(page) >= TABLE_AT + len(table) + sum(table)
    if not whole:
        raise DataError(
            f"{path}: the last page of sound is missing after {len(data)} bytes; the file is "
            f"damaged or cut short"
        )
