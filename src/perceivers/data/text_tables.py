"""Tables of texts: the column ``text`` holds the text, and other columns may hold labels.

Any bytes are legal in a text.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate

import numpy as np

from perceivers.data.labels import index_labels
from perceivers.data.media_kinds import TEXT
from perceivers.data.sources import Found
from perceivers.data.tables import Table
from perceivers.data.targets import Chosen, check_known, read_targets
from perceivers.data.texts import Texts
from perceivers.errors import DataError, suggest


def read_text_tables(tables: Mapping[str, Table], chosen: Chosen, where: str) -> Found:
    """Read the texts of some splits.

    Args:
        tables: A table by split; ``train`` is among them. The names of classes are looked for
            beside it.
        chosen: Label columns, none reads ``label`` where there is one; and columns of numbers.
        where: The data's address, for messages.

    Raises:
        DataError: A table that lacks the column ``text``, or holds a label that is no class.
        ConfigError: A column that there is not.
    """
    labelled, texts = {}, {}
    for split, table in tables.items():
        encoded = _encode_texts(table)
        others = {name: values for name, values in table.columns.items() if name != TEXT}
        targets = read_targets(others, chosen.targets, table.places, where)
        hidden = others if chosen.bare else chosen.targets
        labelled[split] = table.label_table(table.places, (TEXT, *hidden), chosen.integers)
        ends = list(accumulate((len(text) for text in encoded), initial=0))
        spans = np.array([ends[:-1], ends[1:]], np.int64).T
        texts[split] = Texts(b"".join(encoded), spans, table.names, targets=targets)
    check_known(texts["train"].targets, chosen.targets, where)
    folder = tables["train"].path.parent
    labelling = index_labels(
        labelled, chosen.labels, folder, where, tables["train"].classes, chosen.integers
    )
    sources = {
        split: replace(source, labels=labelling.labels[split]) for split, source in texts.items()
    }
    return Found(
        sources, labelling.classes, labelling.notes, labelling.columns, tuple(chosen.targets)
    )


def _encode_texts(table: Table) -> list[bytes]:
    """Return the bytes of every text."""
    names = list(table.columns)
    if TEXT not in names and table.path.suffix.lower() != ".jsonl":
        raise DataError(
            f"{table.path}: the header is {names}; of the columns, which the first line names, one "
            f"is {TEXT!r}, or some hold files (image, audio, video, points)" + suggest(TEXT, names)
        )
    encoded = []
    for row, text in enumerate(table.columns.get(TEXT, [None] * len(table))):
        if not isinstance(text, str):
            held = sorted(name for name in names if table.columns[name][row] is not None)
            raise DataError(
                f"{table.places[row]} holds {held}; every line is an object with the text under "
                f"{TEXT!r}, or with files under the names of their kinds (image, audio, video, "
                f"points)"
            )
        encoded.append(encode_cell(text, f"{table.path}: text {table.rows[row]}"))
    return encoded


def encode_cell(text: str, where: str) -> bytes:
    """Return the bytes that a text was read from.

    Raises:
        DataError: Half of a surrogate pair.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds {text[error.start]!a} at character {error.start}, half of a surrogate "
            f"pair, which UTF-8 cannot write; remove it"
        ) from error
