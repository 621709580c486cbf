"""What the benchmarks measure with: allocations, interleaved times, operations, tables."""

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

MIB = 2**20
# mallopt's names in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what the profiler's native code writes to stderr; exceptions still get out."""
    sys.stderr.flush()
    saved = os.dup(2)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def allocated(run: Callable[[], Any]) -> tuple[int, int]:
    """Return the bytes ``run`` leaves allocated while its result is held, and its peak."""
    with quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    recorded: Any = profiler.profiler  # its raw events are missing from torch's stubs
    events = [e for e in recorded.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    del result
    return now, peak


def measure_times(
    runs: Mapping[str, Callable[[], None]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Time every run once per round, in turn, after one warm-up round; seconds, wall and CPU."""
    times: dict[str, dict[str, list[float]]] = {n: {"wall": [], "cpu": []} for n in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if turn:
                times[name]["wall"].append(time.perf_counter() - wall)
                times[name]["cpu"].append(time.process_time() - cpu)
    return times


def ratios(times: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """The time of ``theirs`` over that of ``ours``, with its range, and both in seconds.

    Medians, by either clock.
    """
    figures: dict[str, Any] = {}
    for clock in ("wall", "cpu"):
        ours, theirs = times["ours"][clock], times["theirs"][clock]
        each = [a / b for a, b in zip(theirs, ours, strict=True)]
        figures[clock] = {
            "speedup": [round(f(each), 3) for f in (median, min, max)],
            "seconds": [round(median(ours), 3), round(median(theirs), 3)],
        }
    return figures


def keep_freed_memory() -> None:
    """Stop glibc from handing freed memory back to the system between steps."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, -1)
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**31 - 1)


def count_flops(run: Callable[[], Any]) -> int:
    """Count the operations of a forward pass; PyTorch leaves out fused attention on the CPU."""

    def attention(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(q, k, v)

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={fused: attention}) as counter:
        run()
    return counter.get_total_flops()


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    print(f"\n{title}\n")
    for cells in (columns, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |")


def mib(count: float) -> str:
    """Format bytes as MiB."""
    return f"{count / MIB:.1f}"


def spread(values: Sequence[float]) -> str:
    """Format a median with its range."""
    return f"{values[0]:.2f} [{values[1]:.2f}-{values[2]:.2f}]"


def show_ratios(figures: dict[str, Any]) -> str:
    """Format the ratios of both clocks."""
    return " / ".join(spread(figures[clock]["speedup"]) for clock in ("wall", "cpu"))
