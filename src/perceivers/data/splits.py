"""Validation split for data without one, chosen by a hash of each sample's name.

The split depends neither on a seed nor on the order of files: it is the same on every machine, and
adding samples moves few other samples.
"""

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from perceivers.data.sources import UNKNOWN, pick
from perceivers.errors import ConfigError, DataError
from perceivers.text_names import name_bytes


def hash_order(names: Sequence[str], indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sort sample indices by the hash of the samples' names."""
    digests = [sha256(name_bytes(name)).digest() for name in pick(names, indices)]
    order = sorted(range(len(indices)), key=digests.__getitem__)
    return indices[order]


def carve_validation(
    names: Sequence[str], labels: NDArray[np.int64] | None, share: float, address: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], str]:
    """Divide training samples into training and validation, stratified by class.

    Args:
        names: Stable id per sample.
        labels: Class per sample ``[n]``, or ``[n, T]`` for several label columns, of which the
            first known one counts; None treats all samples as one class.
        share: Validation fraction in (0, 1). Of each class with two or more samples, at least one
            goes to validation and at least one stays in training.
        address: Address of the data, for messages.

    Returns:
        Sorted training indices, sorted validation indices, and a note.

    Raises:
        ConfigError: The fraction is out of range.
        DataError: No class has two samples.
    """
    if not 0 < share < 1:
        raise ConfigError(f"val_share is {share}; it must lie between 0 and 1, such as 0.1")
    everyone = np.zeros(len(names), np.int64) if labels is None else _first_known(labels)
    chosen: list[NDArray[np.int64]] = []
    for label in np.unique(everyone):
        members = hash_order(names, np.flatnonzero(everyone == label))
        if len(members) >= 2:
            count = min(max(1, round(share * len(members))), len(members) - 1)
            chosen.append(members[:count])
    if not chosen:
        raise DataError(
            f"{address}: {len(names)} training samples and no class with two, so none can be used "
            f"for validation; add samples, or give a validation split"
        )
    validation = np.sort(np.concatenate(chosen))
    training = np.setdiff1d(np.arange(len(names)), validation)
    kind = "" if labels is None else "stratified "
    note = (
        f"val: {kind}{share * 100:g} % of train ({len(validation)} of {len(names)} samples), "
        f"chosen by a hash of the sample names"
    )
    return training, validation, note


def _first_known(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a joint class number ``[n]`` per sample, from its first known label column."""
    if labels.ndim == 1:
        return labels
    # Samples without any label share one class: column 0, label -1.
    column = (labels != UNKNOWN).argmax(axis=1)
    label = labels[np.arange(len(labels)), column]
    return column * (int(labels.max(initial=0)) + 1) + label
