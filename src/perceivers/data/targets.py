"""Target columns: numbers to be predicted, from tables, JSON entries and arrays.

Legend: n samples, T target columns.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from perceivers.data.labels import IntegerLabels, check_columns
from perceivers.errors import ConfigError, DataError, suggest


class Chosen(NamedTuple):
    """The columns that are asked for: labels (none reads ``label``), and numbers to be predicted.

    A column is one or the other. ``bare`` asks for the samples alone, in the order they lie in: no
    label is read, and a column ``split`` divides nothing. ``integers`` says what whole numbers in
    label columns are.
    """

    labels: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    bare: bool = False
    integers: IntegerLabels = "values"

    def check(self) -> None:
        """Refuse a column that is named twice.

        Raises:
            ConfigError: With the column.
        """
        both = [column for column in self.targets if column in self.labels]
        if both:
            raise ConfigError(
                f"column {both[0]!r} is asked for as a label and as a target; a column is either "
                f"a class (labels) or a number to be predicted (targets)"
            )
        if len(set(self.targets)) != len(self.targets):
            raise ConfigError(f"targets are {list(self.targets)}; name each column once")

    def refuse(self, where: str) -> None:
        """Refuse any column, of data that have none.

        Raises:
            ConfigError: A column is asked for.
        """
        check_columns(self.labels, (), where)
        check_targets(self.targets, (), where)


NO_COLUMNS = Chosen()
LARGEST = float(np.finfo(np.float32).max)


def check_targets(chosen: Sequence[str], known: Sequence[str], where: str) -> None:
    """Refuse target columns that there are not.

    Raises:
        ConfigError: With the columns that there are.
    """
    for column in chosen:
        if column not in known:
            have = f"its columns are {', '.join(known)}" if known else "it has none to choose"
            raise ConfigError(
                f"target {column!r} is asked for, but {where} has no such column; {have}"
                + suggest(column, known)
            )


def read_targets(
    columns: Mapping[str, Sequence[Any] | NDArray],
    chosen: Sequence[str],
    places: Sequence[str],
    where: str,
) -> NDArray[np.float32] | None:
    """Return chosen columns as numbers ``[n, T]``, NaN where a value is empty or missing.

    Args:
        columns: Values by column: numbers, numbers as text, or None.
        chosen: Columns to read; none returns None.
        places: Where each row lies, for messages.
        where: The data's address, for messages.

    Raises:
        DataError: A value that is no finite number.
        ConfigError: A column that there is not.
    """
    check_targets(chosen, list(columns), where)
    if not chosen:
        return None
    read = [
        [_as_number(value, column, place) for value, place in zip(values, places, strict=True)]
        for column, values in ((column, columns[column]) for column in chosen)
    ]
    return np.array(read, np.float32).T.copy()


def check_known(targets: NDArray[np.float32] | None, chosen: Sequence[str], where: str) -> None:
    """Refuse a target of which training knows no value.

    Raises:
        DataError: With the column.
    """
    for number, column in enumerate(chosen):
        if targets is not None and np.isnan(targets[:, number]).all():
            raise DataError(
                f"{where}: target {column!r} is empty in all {len(targets)} training samples; "
                f"choose another column, or fill it in"
            )


def _as_number(value: Any, column: str, place: str) -> float:
    """Return one value; NaN where it is unknown."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return float("nan")
    number = float("inf")
    if isinstance(value, str | int | float | np.number) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not np.isnan(number) and abs(number) > LARGEST:
        raise DataError(
            f"{place}: {column} is {value!r}, no number that can be learned; a target is a finite "
            f"number, and an unknown one is left empty"
        )
    return number
