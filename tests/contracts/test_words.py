"""Prose uses the words of the field: a short list of phrases of our own is refused."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "perceivers"
# Each with what to write instead (docs/concepts.md has the vocabulary).
REFUSED = {
    r"\banew\b": "again",
    r"\bat hand\b": "available",
    r"\bso many\b": "the number",
    r"\bof theirs\b": "their",
    r"\bspeaks? of\b": "describes",
    r"\bread-outs?\b": "decoder output, head",
    r"\bheld[- ]back\b": "held-out",
    r"\bfilms?\b": "video",
    r"\bclassical answers?\b": "baseline",
    r"\bconstant answers?\b": "constant baseline",
    r"\bthe release's\b": "as in the released code",
    r"\bcomes? along\b": "is part of",
    r"\bposition rows?\b": "position embedding",
    r"\bweighs? nothing\b": "has weight 0",
    r"\bauto-encod": "autoencod",
}
# Tables that a script writes from records of earlier runs, and dated entries that stay as written.
LEFT = {"docs/log.md", "docs/results.md", "docs/cli.md", "CHANGELOG.md"}


def prose_of(path: Path) -> str:
    """Return strings and comments of a module, or a whole page."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    strings = [n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant)]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return "\n".join([*(each for each in strings if isinstance(each, str)), *comments])


def refused(text: str) -> list[str]:
    """Return the refused phrases of a text, each with its replacement."""
    text = " ".join(text.split())
    return [
        f"{phrase}: write {word!r}"
        for phrase, word in REFUSED.items()
        if re.search(phrase, text, re.I)
    ]


PATHS = [
    *sorted(SOURCE.rglob("*.py")),
    *sorted(SOURCE.rglob("*.yaml")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("*.md")),
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_is_free_of_our_old_phrases(path: Path) -> None:
    if path.relative_to(ROOT).as_posix() not in LEFT:
        assert refused(prose_of(path)) == []


def test_a_refused_phrase_is_noticed() -> None:
    assert refused("It is drawn\nanew from the held back films.") == [
        r"\banew\b: write 'again'",
        r"\bheld[- ]back\b: write 'held-out'",
        r"\bfilms?\b: write 'video'",
    ]
    assert refused("Metrics of the held-out videos.") == []
