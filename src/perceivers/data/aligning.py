"""Labels of other data in the order of a model's classes, where their ids tell which is which."""

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.data.dataset import Dataset
from perceivers.data.labels import as_integer
from perceivers.data.sources import Source

Columns = Mapping[str, Sequence[str]]


def align_classes(dataset: Dataset, classes: Sequence[str], columns: Columns) -> Dataset:
    """Return data whose classes are those of a model, if they are some of its ids.

    Data that hold only some of the ids 1007, 2007 and 3007 have fewer classes than the model that
    was trained on all of them. Names that are no integers are left alone: whether they mean the
    same is not told by one that is missing. All of the model's in another order are put in its own.

    Data without a training split number classes by held-out samples alone: there any names may be
    some of the model's, and numbers that are no names of its classes are their places.

    Args:
        dataset: Opened data.
        classes: The model's, of its only label.
        columns: The model's, by label column.
    """
    held_out = "train" not in dataset.splits
    named = _rename(dataset.classes, classes, held_out)
    if named:
        splits = {s: _place(each, [(named, classes)]) for s, each in dataset.splits.items()}
        return replace(dataset, splits=splits, classes=tuple(classes))
    if list(dataset.columns) != list(columns):
        return dataset
    renamed = {name: _rename(own, columns[name], held_out) for name, own in dataset.columns.items()}
    if not any(renamed.values()):
        return dataset
    pairs = [
        (renamed[name], columns[name]) if renamed[name] else (own, own)
        for name, own in dataset.columns.items()
    ]
    splits = {split: _place(source, pairs) for split, source in dataset.splits.items()}
    known = {name: tuple(theirs) for name, (_, theirs) in zip(columns, pairs, strict=True)}
    return replace(dataset, splits=splits, columns=known)


def _rename(own: Sequence[str], theirs: Sequence[str], held_out: bool) -> tuple[str, ...]:
    """Return a model's name of each class; none where they are all its own, or are not."""
    if not own or tuple(own) == tuple(theirs):
        return ()
    numbers = [as_integer(name) for name in own]
    places = [number for number in numbers if number is not None and 0 <= number < len(theirs)]
    whole = None not in numbers
    if set(own) <= set(theirs):
        # All of them in another order, as composed and decomposed folders are sorted.
        same = len(own) == len(theirs)
        return tuple(own) if whole or held_out or same else ()
    return tuple(theirs[place] for place in places) if held_out and len(places) == len(own) else ()


def _place(source: Source, pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> Source:
    """Return a source with the labels of other lists of names."""
    labels: Any = source.labels
    if labels is None or not is_dataclass(source) or isinstance(source, type):
        return source
    if isinstance(whole := getattr(source, "source", None), Source):
        return replace(source, **{"source": _place(whole, pairs)})
    rows: NDArray[np.int64] = labels.reshape(len(labels), -1)
    # The last entry is where -1, unknown, leads.
    tables = [np.array([*(list(b).index(name) for name in a), -1], np.int64) for a, b in pairs]
    placed = np.stack([table[rows[:, i]] for i, table in enumerate(tables)], axis=1)
    return replace(source, labels=placed.reshape(labels.shape))
