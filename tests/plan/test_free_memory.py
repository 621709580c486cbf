"""Free memory: of the machine, of control groups of both versions, of the process."""

import resource
from pathlib import Path

import pytest

from perceivers.plan.estimates import free_host_memory


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINE = {"proc__meminfo": "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 4000 kB\n"}


@pytest.fixture(autouse=True)
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)


def test_the_machine_says_what_is_available(tmp_path: Path) -> None:
    found = free_host_memory(write(tmp_path, **MACHINE))
    assert found == (4000 * 1024, "the machine's free memory")


def test_a_container_limits_less_what_it_may_drop(tmp_path: Path) -> None:
    group = "sys__fs__cgroup__a__"
    files = {
        "proc__self__cgroup": "0::/a/b\n",
        f"{group}b__memory.max": "max\n",
        f"{group}b__memory.current": "600000\n",
        f"{group}memory.max": "1000000\n",
        f"{group}memory.current": "700000\n",
        f"{group}memory.stat": "anon 5\ninactive_file 50000\n",
    }
    found = free_host_memory(write(tmp_path, **MACHINE, **files))
    assert found == (350_000, "the memory limit of the container")


def test_containers_of_the_first_version_limit_too(tmp_path: Path) -> None:
    group = "sys__fs__cgroup__memory__"
    files = {
        "proc__self__cgroup": "3:cpu,memory:/not/visible/here\n1:name=systemd:/x\n",
        f"{group}memory.limit_in_bytes": "1000000",
        f"{group}memory.usage_in_bytes": "900000",
    }
    assert free_host_memory(write(tmp_path, **MACHINE, **files)).bytes == 100_000


def test_a_limit_of_the_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2_000_000, -1))
    files = {"proc__self__statm": "100 5 1 1 0 1 0\n"}
    found = free_host_memory(write(tmp_path, **MACHINE, **files))
    assert found.bytes == 2_000_000 - 100 * resource.getpagesize()
    assert "ulimit" in found.limit


def test_this_machine_has_memory() -> None:
    assert free_host_memory().bytes > 1e7
