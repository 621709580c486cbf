"""Which columns of a table are modalities, by their names and by the endings of their cells."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from perceivers.data.containers import name_kind
from perceivers.data.masks import MASK_NAME
from perceivers.data.texts import TEXT_EXTENSION

TEXT = "text"
# Columns of these names are modalities; what models call texts is "bytes".
KINDS = {
    "image": "image",
    "audio": "audio",
    "video": "video",
    "points": "points",
    "array": "array",
    MASK_NAME: MASK_NAME,
    TEXT: "bytes",
}
# Cells of these columns may be lists of numbers.
LISTED = ("points", "array", "audio")
# A column of which none of the first cells ends like a file holds none.
LOOKED_AT = 1000


def kind_of_name(path: str) -> str | None:
    """Return the kind of the file at a path by its ending; None where it is not known."""
    name = re.split(r"[/\\]", path.partition("?")[0])[-1]
    if name.lower().endswith(TEXT_EXTENSION):
        return "bytes"
    return name_kind(name)


def find_kinds(columns: Mapping[str, Sequence[Any]]) -> tuple[dict[str, str], list[str]]:
    """Return the kind of each column that is a modality, and notes on those that almost are.

    A column is one by its name, unless it holds numbers; or because all of its cells that are not
    empty end like files of one kind.

    Args:
        columns: The cells by column.
    """
    kinds: dict[str, str] = {}
    notes: list[str] = []
    for name, values in columns.items():
        held = [value for value in values if not is_empty(value)]
        if name.lower() in KINDS:
            if held and not all(is_number(value) for value in held):
                kinds[name] = KINDS[name.lower()]
            elif not held:
                notes.append(f"column {name!r} is empty in every row, so it is left out")
            continue
        first = [_kind_of_cell(value) for value in held[:LOOKED_AT]]
        if not any(first):
            continue
        found = [*first, *map(_kind_of_cell, held[LOOKED_AT:])]
        present = sorted({kind for kind in found if kind is not None})
        if len(present) == 1 and None not in found:
            kinds[name] = present[0]
        elif present:
            odd = held[found.index(None)] if None in found else None
            what = f"but {str(odd)[:40]!r} is none" if None in found else "of several kinds"
            notes.append(
                f"column {name!r} is no modality: cells end like files ({', '.join(present)}), "
                f"{what}"
            )
    return kinds, notes


def name_modalities(kinds: Mapping[str, str]) -> dict[str, str]:
    """Return the modality that each column becomes.

    The only column of a kind is that kind, and so is a column that is called so; of several, as of
    two cameras, the others keep their names.
    """
    of_kind = list(kinds.values())
    names: dict[str, str] = {}
    for column, kind in kinds.items():
        named = KINDS.get(column.lower()) == kind
        alone = of_kind.count(kind) == 1
        name = kind if named or alone else re.sub(r"\W", "_", column)
        names[column] = name
    return names


def _kind_of_cell(value: Any) -> str | None:
    """Return the kind of the file that a cell may name."""
    return kind_of_name(value) if isinstance(value, str) else None


def is_empty(value: Any) -> bool:
    """Tell whether a cell holds nothing."""
    return value is None or (isinstance(value, str) and not value.strip())


def is_number(value: Any) -> bool:
    """Tell whether a cell is one number, as such or as text."""
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
