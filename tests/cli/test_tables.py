"""Tables on the terminal."""

import pytest

from perceivers.cli.printing import print_table


def test_brackets_in_a_table_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("what", "how"), [("missing", 'pip install "perceivers[export]"'), ("n", "[/x]")])
    printed = capsys.readouterr().out
    assert 'pip install "perceivers[export]"' in printed
    assert "[/x]" in printed
