"""Tables on the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Print a table; numbers are aligned to the right."""
    table = Table(title=title or None, title_justify="left")
    for index, name in enumerate(header):
        numeric = all(row[index].strip("%-").replace(".", "").replace(",", "").isdigit() for row in rows)
        table.add_column(name, justify="right" if numeric and rows else "left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
