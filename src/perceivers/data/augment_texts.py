"""Random changes of a text: words left out, and its place in the window.

Both are a line of numpy on bytes; libraries of text augmentation change tokens or swap synonyms of
one language, and models here read the bytes of any signal.

Legend: L bytes.
"""

import numpy as np
from numpy.typing import NDArray

from perceivers.data.views import Look

BLANKS = np.frombuffer(b" \t\n\r\f\v", np.uint8)


def change_text(text: NDArray[np.uint8], room: int, look: Look) -> NDArray[np.uint8]:
    """Leave words out and put blanks before what is left; in evaluation never.

    Args:
        text: Bytes ``[L]``, at least 1; not changed in place.
        room: How many bytes the model reads; blanks take only what the text leaves of it.
        look: Where the draws come from, and what to draw.
    """
    augment, rng = look.augment, look.rng
    if rng is None or not augment.changes_texts:
        return text
    if augment.word_drop:
        text = drop_words(text, rng.uniform(0, augment.word_drop), rng)
    if augment.text_shift:
        most = min(augment.text_shift, max(0, room - len(text)))
        text = np.concatenate([np.full(rng.integers(most + 1), BLANKS[0]), text])
    return text


def drop_words(
    text: NDArray[np.uint8], share: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Leave out a share of the words, each with the blanks after it; one word always stays.

    Args:
        text: Bytes ``[L]``. A word ends after the blanks that follow it.
        share: Of the words, 0..1, rounded down.
        rng: Which ones.
    """
    blank = np.isin(text, BLANKS)
    starts = np.flatnonzero(np.diff(blank.astype(np.int8), prepend=1) == -1)
    dropped = min(int(share * len(starts)), len(starts) - 1)
    if dropped < 1:
        return text
    kept = np.ones(len(starts) + 1, bool)
    kept[1 + rng.choice(len(starts), dropped, replace=False)] = False
    # Bytes before the first word belong to no word, and stay.
    return text[kept[np.searchsorted(starts, np.arange(len(text)), side="right")]]
