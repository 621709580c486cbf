"""Imports only go down, nothing heavy comes along, and nothing is imported relatively."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "perceivers"

# Lowest first; a layer may import itself (its own package) and everything below it.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "version",
        "errors",
        "settings",
        "types",
        "files",
        "draws",
        "finite",
        "foreign",
        "limits",
        "machine",
        "reading",
        "text_names",
        "array_files",
    ),
    ("nn",),
    ("adapters", "masking"),
    ("models",),
    ("tasks", "data", "checkpoints"),
    ("training",),
    ("report", "exporting", "plan", "bench"),
    ("workflows",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
# What the order of layers alone would allow.
FORBIDDEN = {
    "data": {"models", "tasks", "checkpoints"},
    "tasks": {"data"},
    "models": {"checkpoints", "tasks", "training"},
}
# The two facades: they name things of every layer, lazily (PEP 562) or for type checkers.
FACADES = {"__init__.py", "__init__.pyi"}
ONLY_HOME = {"lightning": "training/runtime.py", "lightning_fabric": "training/runtime.py"}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported dotted name, wherever in the file, and the level of relative imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module == "perceivers":  # from perceivers import nn
                yield from ((f"perceivers.{alias.name}", node.level) for alias in node.names)
            else:
                yield module, node.level


def offences(name: str, text: str) -> list[str]:
    """Broken rules of the file ``name`` (relative to the package), as readable lines."""
    here = Path(name).parts[0].removesuffix(".py")
    found = []
    for target, level in imports(ast.parse(text)):
        if level:
            found.append(f"{name}: relative import of {target!r}")
            continue
        top, *rest = target.split(".")
        if top in ONLY_HOME and name != ONLY_HOME[top]:
            found.append(f"{name}: imports {top}; only {ONLY_HOME[top]} may")
        if top != "perceivers" or not rest or name in FACADES:
            continue
        there = rest[0]
        if here not in RANK or there not in RANK:
            found.append(f"{name}: perceivers.{there if here in RANK else here} has no layer")
        elif there != here and (
            there in FORBIDDEN.get(here, ())
            or RANK[there] > RANK[here]
            or (RANK[there] == RANK[here] and RANK[here] > 0)
        ):
            found.append(f"{name}: {here} imports {there}, which is not below it")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_only_go_down(path: Path) -> None:
    assert offences(path.relative_to(SOURCE).as_posix(), path.read_text()) == []


@pytest.mark.parametrize(
    ("name", "text", "offence"),
    [
        ("nn/attention.py", "from perceivers.models import HiP", "nn imports models"),
        ("data/files.py", "import perceivers.models.hip", "data imports models"),
        ("data/files.py", "from perceivers.checkpoints import x", "data imports checkpoints"),
        ("tasks/mae.py", "from perceivers.data import x", "tasks imports data"),
        ("models/hip/model.py", "from perceivers.tasks import x", "models imports tasks"),
        ("masking.py", "from perceivers.adapters import x", "masking imports adapters"),
        ("training/loop.py", "from perceivers import report", "training imports report"),
        ("nn/blocks.py", "def f():\n    from perceivers.cli import x", "nn imports cli"),
        ("nn/blocks.py", "from . import init", "relative import"),
        ("training/loop.py", "from lightning.fabric import Fabric", "imports lightning; only"),
        ("elsewhere.py", "from perceivers.nn import x", "perceivers.elsewhere has no layer"),
        ("nn/blocks.py", "from perceivers.elsewhere import x", "perceivers.elsewhere has no layer"),
    ],
)
def test_the_check_notices(name: str, text: str, offence: str) -> None:
    assert any(offence in line for line in offences(name, text))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("training/runtime.py", "from lightning.fabric import Fabric"),
        ("models/hip/model.py", "from perceivers.models.hip.config import HiPConfig"),
        ("data/files.py", "from perceivers.types import Image\nimport numpy"),
        ("__init__.py", "from perceivers.workflows import pretrain"),
        ("types.py", "from perceivers.errors import ConfigError"),
    ],
)
def test_the_check_allows_what_is_right(name: str, text: str) -> None:
    assert offences(name, text) == []


HEAVY = ("transformers", "matplotlib", "lightning", "lightning_fabric", "sklearn", "torchmetrics")


def modules_after(statement: str) -> set[str]:
    """Top-level modules loaded once a fresh interpreter has run ``statement``."""
    code = f"{statement}\nimport sys\nprint(*sorted({{n.split('.')[0] for n in sys.modules}}))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(SOURCE.parent), "PATH": ""},
    )
    return set(result.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = modules_after("import perceivers")
    assert "perceivers" in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.slow
def test_building_a_model_loads_no_extra() -> None:
    """The core needs torch, NumPy and jaxtyping alone."""
    loaded = modules_after("import perceivers.models, perceivers.masking, perceivers.checkpoints")
    assert "torch" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_asking_for_the_version_imports_no_torch() -> None:
    assert "torch" not in modules_after("import perceivers.version")


FAMILY_SWITCH = re.compile(
    r"\.family *(==|!=|in|not in)|isinstance\([a-z_.]+, *\(?"
    r"(HiP|Hiera|PerceiverIO|Perceiver|EntitySet|HieraDet)\b"
)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_code_asks_which_family_a_model_belongs_to(path: Path) -> None:
    """What only a family knows is a method of its models or a field of its row in the registry."""
    assert FAMILY_SWITCH.search(path.read_text()) is None


def test_a_switch_on_families_is_noticed() -> None:
    for text in ('if model.family == "hip":', "isinstance(model, HiP)", "x.family not in KNOWN"):
        assert FAMILY_SWITCH.search(text)
    assert FAMILY_SWITCH.search("FAMILIES[model.family].objective") is None
