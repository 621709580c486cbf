"""Printing of results, tables, remarks and progress on the terminal."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from perceivers.report.console import Grid, Shown

NUMBER = re.compile(r"-?[\d,.]+ ?%?")


def print_shown(shown: Shown) -> int:
    """Print what a verb has to show, and return its exit status."""
    for remark in shown.remarks:
        say(remark)
    for line in shown.lines:
        if isinstance(line, Grid):
            print_grid(line)
        else:
            sys.stdout.write(f"{line}\n")
    return shown.status


def print_grid(grid: Grid) -> None:
    """Print a table; a bare one has no borders in a file or pipe, and a blank line below it."""
    table = Table(title=grid.title or None, title_justify="left")
    if grid.bare and not sys.stdout.isatty():
        table.box, table.pad_edge = None, False
    for index, name in enumerate(grid.header):
        numeric = all(NUMBER.fullmatch(row[index]) for row in grid.rows)
        table.add_column(name, justify="right" if numeric and grid.rows else "left")
    for row in grid.rows:
        table.add_row(*map(escape, row))  # rich reads brackets as styles
    console = Console(highlight=False)
    if not console.is_terminal:  # rich would cut to 80 columns
        console.width = 200
    console.print(table)
    if grid.bare:
        sys.stdout.write("\n")


def say(text: str) -> None:
    """Print a line to stderr, apart from the output."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@contextmanager
def drawing_progress() -> Iterator[Callable[[int, int], None] | None]:
    """Draw a progress bar on stderr for ``(done, total)``; None if that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("checking samples", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
