"""What a verb prints: lines and tables, remarks and the exit status; ``cli.printing`` prints it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """A table on the terminal.

    Args:
        header: Titles of the columns.
        rows: Cells by row; columns of numbers are right-aligned.
        title: Line above the table.
        bare: Whether a file or pipe gets columns without borders, and a blank line below them.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    bare: bool = False


@dataclass(frozen=True)
class Shown:
    """Printed form of a result.

    Args:
        lines: Lines and tables for stdout. They may be an iterator: work that it does between them,
            such as drawing a report, then starts after the lines before it were printed.
        remarks: Lines for stderr, such as the samples that were skipped.
        status: Exit status.
    """

    lines: Iterable[str | Grid]
    remarks: Sequence[str] = ()
    status: int = 0


def name_skipped(samples: Iterable[str]) -> list[str]:
    """Return the remarks on samples that could not be read.

    Args:
        samples: Each as ``path: reason``.
    """
    return [f"skipped: {text}" for text in samples]
