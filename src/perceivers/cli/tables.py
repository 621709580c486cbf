"""Tables on the terminal."""

import re
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

NUMBER = re.compile(r"-?[\d,.]+ ?%?")


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    plain: bool = False,
) -> None:
    """Print a table; numbers are aligned to the right, and ``plain`` ones have no lines."""
    table = Table(title=title or None, title_justify="left")
    if plain:
        table.box, table.pad_edge = None, False
    for index, name in enumerate(header):
        numeric = all(NUMBER.fullmatch(row[index]) for row in rows)
        table.add_column(name, justify="right" if numeric and rows else "left")
    for row in rows:
        table.add_row(*map(escape, row))  # brackets are text, not styles
    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a pipe has no width to fit into
        console.width = 200
    console.print(table)
