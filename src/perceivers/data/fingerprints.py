"""Fingerprints of data sets: find out whether the data changed between two runs, and how.

A fingerprint covers the names of all samples in order, their labels and targets, and the names of
the classes. No sample is read, so new contents under an old name go unnoticed.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.data.dataset import Dataset
from perceivers.text_names import compose, show_name

FORMAT = 1
# Beyond this, names and labels are only hashed, so messages cannot name what differs.
MAX_LISTED = 1_000_000
SHOWN = 3


@dataclass(frozen=True)
class Fingerprint:
    """Digests of a data set, with the names and labels that they were computed from.

    Args:
        digests: JSON-able: class names, and the number of samples and hashes by split.
        samples: JSON-able: ``names`` and ``labels`` by split; splits with too many samples are left
            out.
    """

    digests: Mapping[str, Any]
    samples: Mapping[str, Mapping[str, Any]]


def take_fingerprint(dataset: Dataset) -> Fingerprint:
    """Compute the fingerprint of a data set; 200,000 samples take about a second."""
    splits: dict[str, Any] = {}
    samples: dict[str, Any] = {}
    for split, source in dataset.splits.items():
        names = [compose(show_name(name)) for name in source.contents]
        labels, targets = source.labels, source.targets
        splits[split] = {
            "samples": len(names),
            "names": _digest("\0".join(names).encode()),
            "labels": None if labels is None else _digest_array(labels.astype("<i8")),
            "targets": None if targets is None else _digest_array(targets.astype("<f4")),
        }
        if len(names) <= MAX_LISTED:
            samples[split] = {
                "names": names,
                "labels": None if labels is None else labels.tolist(),
            }
    digests = {
        "format": FORMAT,
        "classes": list(dataset.classes),
        "columns": {name: list(classes) for name, classes in dataset.columns.items()},
        "targets": list(dataset.targets),
        "mask_classes": list(dataset.mask_classes),
        "splits": splits,
    }
    return Fingerprint(digests, samples)


def compare_fingerprints(before: Fingerprint, now: Fingerprint) -> list[str]:
    """Return sentences on how two data sets differ; empty if they are the same.

    Args:
        before: Earlier fingerprint.
        now: Current fingerprint.
    """
    found: list[str] = []
    old, new = before.digests, now.digests
    for key, noun in (
        ("classes", "classes"),
        ("mask_classes", "mask classes"),
        ("targets", "targets"),
    ):
        found += _compare_lists(noun, old[key], new[key])
    found += _compare_lists("label columns", list(old["columns"]), list(new["columns"]))
    for column in old["columns"].keys() & new["columns"].keys():
        found += _compare_lists(
            f"classes of {column}", old["columns"][column], new["columns"][column]
        )
    for split in [*old["splits"], *(new["splits"].keys() - old["splits"].keys())]:
        if split not in new["splits"]:
            found.append(f"the split {split!r} no longer exists")
        elif split not in old["splits"]:
            found.append(f"the split {split!r} is new")
        else:
            found += _compare_split(split, before, now)
    return found


def _compare_split(split: str, before: Fingerprint, now: Fingerprint) -> list[str]:
    old, new = before.digests["splits"][split], now.digests["splits"][split]
    if old == new:
        return []
    found: list[str] = []
    if old["samples"] != new["samples"]:
        found.append(f"{split}: {old['samples']:,} samples before, {new['samples']:,} now")
    listed = split in before.samples and split in now.samples
    if old["names"] != new["names"]:
        found += (
            _compare_names(split, before.samples[split]["names"], now.samples[split]["names"])
            if listed
            else [f"{split}: the names of the samples differ"]
        )
    if old["labels"] != new["labels"]:
        relabelled = _compare_labels(split, before, now) if listed else []
        # If samples were added or removed, the labels differ with them.
        if relabelled or old["names"] == new["names"]:
            found += relabelled or [f"{split}: the labels differ"]
    if old["targets"] != new["targets"] and old["names"] == new["names"]:
        found.append(f"{split}: the targets differ")
    return found


def _compare_names(split: str, old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Name the added and removed samples, or the first one that moved."""
    gone, come = set(old) - set(new), set(new) - set(old)
    found: list[str] = []
    if gone:
        found.append(
            f"{split}: samples missing: {len(gone):,} ({_list([n for n in old if n in gone])})"
        )
    if come:
        found.append(
            f"{split}: samples new: {len(come):,} ({_list([n for n in new if n in come])})"
        )
    if not found:
        place = next(i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1])
        found.append(
            f"{split}: the order of the samples differs, first at index {place}, which was "
            f"{old[place]} and is {new[place]}"
        )
    return found


def _compare_labels(split: str, before: Fingerprint, now: Fingerprint) -> list[str]:
    sides = [
        dict(zip(each.samples[split]["names"], _named_labels(split, each), strict=True))
        for each in (before, now)
    ]
    old, new = sides
    changed = [name for name in old if name in new and old[name] != new[name]]
    if not changed:
        return []
    first = changed[0]
    return [
        f"{split}: {len(changed):,} samples have a different label, such as {first}, which was "
        f"{old[first]} and is {new[first]}"
    ]


def _named_labels(split: str, fingerprint: Fingerprint) -> list[Any]:
    """Return the labels of a split, as class names if there is one label per sample."""
    labels = fingerprint.samples[split]["labels"]
    classes = fingerprint.digests["classes"]
    if labels is None:
        return [None] * len(fingerprint.samples[split]["names"])
    return [
        classes[label] if isinstance(label, int) and 0 <= label < len(classes) else label
        for label in labels
    ]


def _compare_lists(noun: str, old: Sequence[str], new: Sequence[str]) -> list[str]:
    if list(old) == list(new):
        return []
    gone, come = ([n for n in a if n not in set(b)] for a, b in ((old, new), (new, old)))
    found = [f"{noun} missing: {_list(gone)}"] if gone else []
    found += [f"{noun} new: {_list(come)}"] if come else []
    return found or [f"{noun}: the order was {_list(old)} and is {_list(new)}"]


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest_array(array: NDArray[Any]) -> str:
    # Unknown targets are NaN, which has many bit patterns.
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), np.float32("nan"), array)
    return _digest(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
