"""The verb explain: what it writes and prints, and how it refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Outcome

Call = Callable[..., Outcome]


def test_pictures_are_explained(
    call: Call, classifier: Path, pictures: Path, tmp_path: Path
) -> None:
    files = [pictures / "cats" / "0.png", pictures / "dogs" / "0.png"]
    out = tmp_path / "out"
    outcome = call("explain", classifier, *files, "--out", out, "--head", "all", "--latents", 1)
    assert outcome.code == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"0_attention.png", "0-2_attention.png", "overview.png"}
    assert f"2 figures in {out}; see {out / 'overview.png'}" in outcome.out
    assert "not what determined the output" in outcome.out


@pytest.mark.slow
def test_what_cannot_be_read_is_skipped_and_named(
    call: Call, classifier: Path, pictures: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    outcome = call(
        "explain", classifier, bad, pictures / "cats" / "0.png", "--out", tmp_path / "out"
    )
    assert outcome.code == 0
    assert outcome.err.startswith(f"skipped: {bad}: ")
    assert outcome.out.startswith("1 figures in ")


def test_mistakes_are_answered_with_a_message(
    refuse: Callable[..., str], classifier: Path, pictures: Path, tmp_path: Path
) -> None:
    picture, out = pictures / "cats" / "0.png", tmp_path / "out"
    refuse(
        ["explain", classifier, picture, "--out", out, "--head", "7"], "head is '7'.* from 0 to 0"
    )
    refuse(["explain", classifier, tmp_path / "x.png", "--out", out], "x.png: no such file")
    refuse(["explain", tmp_path, picture, "--out", out], "holds no model")
    refuse(["explain", classifier, picture, "--latent", "3"], "did you mean '--latents'")
    assert not out.exists()
