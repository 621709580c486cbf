"""Compiled parts: which there are, when they run compiled, and who may not compile.

What needs the compiler itself is in ``tests/workflows/test_compiling.py``.
"""

from contextlib import nullcontext

import pytest
import torch
from tests.contracts.test_inductor import MODELS, build

from perceivers.errors import ConfigError
from perceivers.models import compiling
from perceivers.models.compiling import CompiledParts, check_compiler, compile_parts


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """The modules that were to be compiled; the compiler itself takes ten seconds to load."""
    found: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: found.append(self))
    monkeypatch.setattr(CompiledParts, "_counting", lambda self: nullcontext())
    return found


@pytest.mark.parametrize("row", MODELS)
def test_every_family_names_its_blocks_and_none_holds_another(
    row: str, asked: list[torch.nn.Module]
) -> None:
    model = build(row)
    parts = model.compiled_parts()
    inner = {id(child) for part in parts for child in part.modules() if child is not part}
    assert len(parts) > 1
    assert not inner & set(map(id, parts))
    # Most of a model lies in its blocks; what is left are embeddings, positions and read-outs.
    assert sum(p.numel() for part in parts for p in part.parameters()) > 0.3 * sum(
        p.numel() for p in model.parameters()
    )
    CompiledParts(model, [2])
    assert asked == parts


@pytest.mark.usefixtures("asked")
def test_batches_of_other_sizes_run_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    stances: list[str] = []
    monkeypatch.setattr(torch.compiler, "set_stance", lambda s: nullcontext(stances.append(s)))
    compiled = CompiledParts(build("hiera"), [2, 4])
    seen = [(len(batch), len(stances)) for batch in compiled.batches(["ab", "abc", "abcd", "a"])]
    assert seen == [(2, 0), (3, 1), (4, 1), (1, 2)]
    assert stances == ["force_eager"] * 2
    assert compiled.num_odd == 2
    assert compiled.news() == ""
    assert "no batch had 2 or 4 samples" in compiled.summary()


def test_what_is_not_compiled_says_nothing(asked: list[torch.nn.Module]) -> None:
    plain = compile_parts(build("hiera"), [2], on=False)
    assert list(plain.batches(["ab"])) == ["ab"]
    assert plain.news() == plain.summary() == ""
    assert not asked


@pytest.mark.usefixtures("asked")
def test_compile_time_is_told_once_and_too_many_graphs_are_named() -> None:
    compiled = CompiledParts(build("hiera"), [2])
    compiled.seconds, compiled.num_graphs = 41.3, 5
    assert compiled.news() == f"compiling {compiled.num_parts} parts of the model took 41 s"
    assert compiled.news() == ""
    compiled.seconds, compiled.num_graphs = 99.0, compiling.MOST_GRAPHS + 1
    assert "the remaining ones run uncompiled" in compiled.news()


def test_machines_that_cannot_compile_are_told_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match="not on device mps"):
        check_compiler("mps")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="'no-such-compiler', which is not on the PATH"):
        check_compiler("cpu")
    monkeypatch.setenv("CXX", "true")  # is there, and compiles nothing

    def fail(function: object, **options: object) -> object:
        raise RuntimeError("No working C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(ConfigError, match=r"RuntimeError: No working C\+\+ compiler found\. It"):
        check_compiler("cpu")
