"""What comes from outside enters by one door each: opening files, JSON, YAML, and numbers in text.

``reading`` opens files, ``foreign`` parses text, ``array_files`` reads arrays. Whoever else calls
what they call is listed here, with the reason; so is every conversion of a number in the modules
that read what somebody else wrote.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "perceivers"

DOORS = {"reading.py", "foreign.py"}
# Methods that open a file by its path, on whatever they are called.
OPENING = {"open", "read_bytes", "read_text"}
# Functions of these libraries open a path, or parse what somebody else wrote.
LIBRARIES = {"av", "csv", "io", "json", "np", "numpy", "pickle", "torch", "yaml", "zipfile", "ast"}
PARSERS = {
    "fromfile",
    "genfromtxt",
    "full_load",
    "literal_eval",
    "load",
    "load_all",
    "loads",
    "loadtxt",
    "memmap",
    "safe_load",
    "unsafe_load",
    "ZipFile",
}
# The same under names that say enough.
NAMED = {
    "load_file",
    "literal_eval",
    "ParquetFile",
    "safe_open",
    "SoundFile",
    "load_scene",
    "ZipFile",
}
BYTES = "of bytes that came through the door"
CHECKED = "the path was looked at before"
OURS = "of what this process wrote"
OUT = "writes"
ALLOWED = {
    "bench/child.py": {
        "json.load": "a request of the process that started this one",
        "STATUS.read_text": "the system's",
    },
    "bench/children.py": {"json.loads": "answers of a process of ours"},
    "checkpoints/loading.py": {"load_file": CHECKED},
    "checkpoints/pickles.py": {"torch.load": CHECKED, "zipfile.ZipFile": CHECKED},
    "cli/main.py": {"os.open": "the null device"},
    "data/writing.py": {"av.open": OUT},
    "data/containers.py": {"av.open": BYTES, "soundfile.SoundFile": BYTES},
    "data/deep_pictures.py": {"Image.open": BYTES},
    "data/parquet_files.py": {"import_module('pyarrow.parquet').ParquetFile": CHECKED},
    "data/pictures.py": {"Image.open": BYTES},
    "data/point_files.py": {"np.loadtxt": BYTES, "trimesh.load_scene": BYTES},
    "data/remote.py": {"tarfile.open": "of headers through the door"},
    "files.py": {"path.open": OUT, "temporary.open": OUT},
    "plan/estimates.py": {"path.read_text": "the system's"},
    "report/html.py": {"files('perceivers.report').joinpath('template.html').read_text": "ours"},
    "training/loggers.py": {"sink.open": "a logger, no file"},
    "training/run_lock.py": {
        "os.open": "the lock of a run",
        "(self.folder / OWNER).open": "the lock of a run",
        "Path('/proc/sys/kernel/random/boot_id').read_text": "the system's",
        "Path(f'/proc/{pid}/stat').read_text": "the system's",
    },
    "training/sharding.py": {"safe_open": CHECKED},
    "training/watchdog.py": {"json.loads": OURS, "os.open": "the null device"},
    "workflows/embedding.py": {"np.memmap": OURS, "path.open": OUT, "spool.open": OUT},
    "machine.py": {"path.read_text": "/proc/cpuinfo"},
    "workflows/opening.py": {"path.read_text": "packaged recipes"},
}


def find_calls(text: str) -> Iterator[str]:
    """The calls of a file that open or parse, as they are written up to the parenthesis."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func
        if isinstance(name, ast.Name) and name.id in {"open", *NAMED}:
            yield name.id
        elif isinstance(name, ast.Attribute):
            library = isinstance(name.value, ast.Name) and name.value.id in LIBRARIES
            if name.attr in OPENING | NAMED or (library and name.attr in PARSERS):
                yield ast.unparse(name)


def list_modules() -> list[str]:
    paths = (path.relative_to(SOURCE).as_posix() for path in sorted(SOURCE.rglob("*.py")))
    return [path for path in paths if path not in DOORS]


@pytest.mark.parametrize("module", list_modules())
def test_nobody_else_opens_or_parses_what_comes_from_outside(module: str) -> None:
    found = set(find_calls((SOURCE / module).read_text(encoding="utf-8")))
    assert found <= set(ALLOWED.get(module, {})), "go through reading, foreign or array_files"


def test_the_list_of_exceptions_names_what_there_is() -> None:
    for module, calls in ALLOWED.items():
        found = set(find_calls((SOURCE / module).read_text(encoding="utf-8")))
        assert set(calls) <= found, module


@pytest.mark.parametrize(
    "text",
    [
        "open('x')",
        "Path('x').open('rb')",
        "path.read_text()",
        "json.loads(text)",
        "yaml.safe_load(text)",
        "np.load(path)",
        "torch.load(path)",
        "Image.open(path)",
        "av.open(path)",
        "tarfile.open(path)",
        "zipfile.ZipFile(path)",
        "load_file(path)",
        "ast.literal_eval(text)",
    ],
)
def test_such_calls_are_found(text: str) -> None:
    assert list(find_calls(text))
    assert not list(find_calls("read_file(path); cells.load(3); int(x)"))


# Modules that read text, JSON or the environment, and what they make numbers of besides: arrays,
# and what a library has parsed.
READERS = {
    "cli/signatures.py": set[str](),
    "data/hugging_face.py": set[str](),
    "data/http_ranges.py": set[str](),
    "data/labels.py": {
        "int(value)",  # a float without fraction
        "float(np.finfo(np.float32).max)",
        "float('nan')",
        "float('inf')",
        "float(value)",  # which may fail
        "int(name)",
        "int(wrong[0])",
    },
    "data/remote.py": set[str](),
    "data/shards.py": {"int(value)"},  # places in an array
    "data/tables.py": {"int(value)"},  # a float without fraction
    "report/metrics.py": set[str](),
    "training/launching.py": {"int(found.getsockname()[1])"},
}


def find_numbers(text: str) -> set[str]:
    """Calls of ``int`` and ``float``."""
    calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    return {
        ast.unparse(call)
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id in {"int", "float"}
    }


@pytest.mark.parametrize("module", READERS)
def test_nobody_else_makes_numbers_of_text(module: str) -> None:
    found = find_numbers((SOURCE / module).read_text(encoding="utf-8"))
    assert found <= READERS[module], "use foreign.read_int or foreign.read_float"


def test_conversions_are_found() -> None:
    assert find_numbers("x = int(match[1]) + float(text)") == {"int(match[1])", "float(text)"}
