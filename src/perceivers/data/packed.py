"""Many short texts in two arrays, which take little memory and are shared by forked workers.

A list of strings takes a Python object for each, and a worker that merely reads one writes its
count of references, so that the system copies the memory page by page.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray


class PackedTexts(Sequence[str]):
    """A sequence of strings that cannot be changed.

    Args:
        texts: The strings.
    """

    __slots__ = ("_data", "_ends")
    __hash__ = None  # pyright: ignore[reportAssignmentType] - as of a list

    def __init__(self, texts: Iterable[str] = ()) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        self._data = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        """Count the texts."""
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "PackedTexts": ...
    def __getitem__(self, index: int | slice) -> "str | PackedTexts":
        """Return one text, or some of them."""
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        place = range(len(self))[index]
        first, end = self._ends[place], self._ends[place + 1]
        return self._data[first:end].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        """Return the texts in order."""
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Compare with any sequence of texts."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(
            mine == theirs for mine, theirs in zip(self, other, strict=True)
        )

    def __repr__(self) -> str:
        """Show the first texts."""
        shown = ", ".join(repr(text) for text in self[:3])
        return f"PackedTexts([{shown}{', ...' if len(self) > 3 else ''}], {len(self)} in all)"

    def take(self, indices: NDArray[np.int64]) -> "PackedTexts":
        """Return the texts at some places.

        Args:
            indices: Places ``[n]``.
        """
        return PackedTexts(self[int(index)] for index in indices)
