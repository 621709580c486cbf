"""The built-in data set: scikit-learn's 1,797 scanned digits of 8x8 pixels; no network needed."""

import numpy as np

from perceivers.data.arrays import Arrays
from perceivers.data.splits import hash_order
from perceivers.errors import DataError

FULL_SCALE = 16.0
SHARES = {"test": 0.2, "val": 0.1}


def read_digits() -> tuple[dict[str, Arrays], tuple[str, ...], str]:
    """Return the splits, class names and a note.

    The split is fixed: 20 % of each class for test and 10 % for validation, in the order of a hash
    of the sample names, so it depends on no generator and no version.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "'digits' comes with scikit-learn, which is not installed; run "
            'pip install "perceivers[demo]"'
        ) from error
    pixels, targets = load_digits(return_X_y=True)
    images = np.rint(np.asarray(pixels).reshape(-1, 1, 8, 8) * (255.0 / FULL_SCALE)).astype(
        np.uint8
    )
    names = [f"digits/{index}" for index in range(len(images))]
    labels = np.asarray(targets, np.int64)
    everything = Arrays({"image": images}, names, labels)
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for label in np.unique(labels):
        members = hash_order(names, np.flatnonzero(labels == label)).tolist()
        num_test, num_val = (round(SHARES[split] * len(members)) for split in ("test", "val"))
        parts["test"] += members[:num_test]
        parts["val"] += members[num_test : num_test + num_val]
        parts["train"] += members[num_test + num_val :]
    splits = {name: everything.subset(np.sort(np.array(part))) for name, part in parts.items()}
    counts = " / ".join(str(len(split)) for split in splits.values())
    note = f"digits: fixed stratified split, train / val / test {counts} scans of 8x8 pixels"
    return splits, tuple(str(label) for label in range(10)), note
