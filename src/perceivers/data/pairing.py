"""Files of several kinds put together to samples by their paths without ending.

``cat/1.png`` and ``cat/1.wav`` are one sample. Some samples may lack a kind; but where no sample
has two kinds, the names were never meant to pair.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from perceivers.data.containers import name_kind
from perceivers.errors import DataError
from perceivers.text_names import compose

NOUNS = {"image": "pictures", "audio": "sounds", "video": "videos", "points": "point clouds"}
Parts = Mapping[str, str]


def kind_of(path: str) -> str:
    """Return the kind of a file that was found because it has one."""
    kind = name_kind(path.rpartition(os.sep)[2])
    assert kind is not None, path
    return kind


def pair_paths(paths: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the files of each sample by kind, by their common path without ending.

    Args:
        paths: Where the files lie, each of a known kind.

    Raises:
        DataError: A sample would have two files of one kind.
    """
    samples: dict[str, dict[str, str]] = {}
    # One name may be spelled in two ways; the first one names the sample.
    first: dict[str, str] = {}
    for path in paths:
        kind = kind_of(path)
        stem = path.rpartition(".")[0]
        parts = samples.setdefault(first.setdefault(compose(stem), stem), {})
        if kind in parts:
            raise DataError(
                f"{path}: lies beside {Path(parts[kind]).name!r}; files of several kinds "
                f"are paired by name, so a name may have one file of each kind"
            )
        parts[kind] = path
    return samples


def check_pairs(samples: Sequence[Parts], kinds: Sequence[str], root: Path) -> str:
    """Return a sentence on samples that lack a kind, empty when none does.

    Args:
        samples: The files by kind of every sample of all splits.
        kinds: All kinds there are, at least two.
        root: The data's folder, for messages.

    Raises:
        DataError: No sample has two kinds.
    """
    held = Counter(tuple(kind for kind in kinds if kind in parts) for parts in samples)
    if all(len(combination) == 1 for combination in held):
        counts = ", ".join(f"{held[(kind,)]} {NOUNS[kind]}" for kind in kinds)
        raise DataError(
            f"{root}: holds {counts}, and no two of different kinds share a name; files of several "
            f"kinds are paired by their paths without ending, such as a/1.png and a/1.wav. Rename "
            f"them, or put every kind into a folder of its own and give one of those"
        )
    if list(held) == [tuple(kinds)]:
        return ""
    every = ", ".join(
        f"{count} with {' and '.join(NOUNS[kind] for kind in combination)}"
        for combination, count in sorted(held.items(), key=lambda item: (-len(item[0]), item[0]))
    )
    return f"paired by name, not all samples hold every kind: {every}"
