"""Tables on the terminal."""

import pytest

from perceivers.cli.printing import print_grid
from perceivers.report.console import Grid


def test_brackets_in_a_table_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("missing", 'pip install "perceivers[export]"'), ("n", "[/x]")]
    print_grid(Grid(("what", "how"), rows))
    printed = capsys.readouterr().out
    assert 'pip install "perceivers[export]"' in printed
    assert "[/x]" in printed
