"""A validation split where the data give none: by a hash of each sample's name.

The choice needs no seed and no order of files: it is the same on every machine, and adding samples
moves few of the others.
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
    """Divide training samples into training and validation, class by class.

    Args:
        names: Stable id per sample.
        labels: Class per sample ``[n]``, or ``[n, T]`` in several label columns, of which the
            first known one counts; None is one class for all.
        share: Validation share in 0..1, both excluded; a class of two or more gives at least one
            and keeps at least one.
        address: The data's address, for messages.

    Returns:
        Sorted indices that stay in training, sorted indices for validation, and a note.

    Raises:
        ConfigError: The share is out of range.
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
            f"{address}: {len(names)} training samples and no class with two, so none can be set "
            f"aside for validation; add samples, or give a validation split"
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
    """Number the classes ``[n]`` of all columns through, each sample by its first known one."""
    if labels.ndim == 1:
        return labels
    # Samples without any label share one class: column 0, label -1.
    column = (labels != UNKNOWN).argmax(axis=1)
    label = labels[np.arange(len(labels)), column]
    return column * (int(labels.max(initial=0)) + 1) + label
