"""Memory kept for the backward pass, and time of a training step: einsum against SDPA.

    python benchmarks/bench_memory.py --variant hip_mini --size 224 --out results.json

Four workloads of one model: the encoder alone, with a classifier, the reconstruction of every
pixel, and masked autoencoding. The ways to run each: ``einsum`` (the reference path), ``sdpa``,
both with all reconstruction queries alive at once, and ``sdpa, chunked``: the config's chunks,
recomputed in the backward pass. ``all projected`` is SDPA without moving single-head projections to
the side with fewer tokens.

*Kept* counts every storage that autograd saves in one forward pass, without parameters, buffers and
inputs. Recomputed chunks save through hooks of their own, which hide what they drop and nothing
else: their inputs are saved outside. Two allocator figures check that, from torch's profiler:
*live* is what one forward pass leaves allocated (kept tensors and outputs), *peak* the most that a
forward and backward pass have allocated at once, beyond parameters and gradients.

Times are interleaved, A B A B in one process on one thread, after a warm-up; a ratio is the median
of the ratios of neighbours, with its range, in wall and in process CPU time.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

import perceivers as pv
from measuring import allocated, measure_times, mib, show, spread
from perceivers.bench.child import saved_bytes
from perceivers.bench.children import describe_machine
from perceivers.models.hip import HiP
from perceivers.nn.attention import AttentionPath, CrossAttention, use_attention
from perceivers.tasks.mae import mae_losses
from perceivers.types import IMAGENET_MEAN, IMAGENET_STD

NUM_CLASSES = 1000
CHUNKS = (256, 512, 1024, 2048)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to run a workload."""

    path: AttentionPath = "sdpa"
    """Attention path."""
    chunk: int | None = None
    """Reconstruction queries per group alive at once; None: all of them."""
    moved: bool = True
    """Whether single-head reads move their projections to the side with fewer tokens."""


@dataclass(frozen=True)
class Workload:
    """A model and its loss on a fixed batch."""

    name: str
    model: HiP
    loss: Callable[[], Any]
    """Returns the loss, or a tuple that begins with it and holds what a caller would keep."""
    given: tuple[Tensor, ...]

    @contextmanager
    def running(self, way: Way) -> Iterator[None]:
        """Run the model in this way inside the block."""
        with ExitStack() as stack:
            stack.enter_context(use_attention(self.model, way.path))
            if not way.moved:
                stack.enter_context(patch.object(CrossAttention, "forward", project_all))
            if self.model.decoder is not None:
                readout = self.model.decoder.readout
                stack.enter_context(patch.object(readout, "chunk", way.chunk or sys.maxsize))
            yield

    def step(self) -> None:
        """Run forward and backward once."""
        first(self.loss()).backward()


SPEED_WAYS = {"einsum": Way(path="reference"), "sdpa": Way()}


def project_all(
    self: CrossAttention,
    queries: Tensor,
    kv: Tensor,
    mask: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """Stand in for ``CrossAttention.forward``: project every token where it is, then SDPA."""
    assert keep is None, "no workload drops queries"
    parts = (self.q(queries).expand(len(kv), -1, -1, -1), self.k(kv), self.v(kv))
    q, k, v = (self._fold(part) for part in parts)
    return self.out(self._attend(q, k, v, mask, kv.shape[1]))


def first(result: Any) -> Tensor:
    """Return the loss of a workload's result."""
    return result[0] if isinstance(result, tuple) else result


def make_workloads(variant: str, size: int, batch: int, names: Sequence[str]) -> list[Workload]:
    """Build the workloads of one variant on random pictures."""
    generator = torch.Generator().manual_seed(0)
    inputs = {"image": pv.Image(height=size, width=size, mean=IMAGENET_MEAN, std=IMAGENET_STD)}
    pictures = torch.rand(batch, 3, size, size, generator=generator)
    classes = torch.randint(NUM_CLASSES, (batch,), generator=generator)
    found = []
    if "encoder" in names or "classifier" in names:
        classifier = pv.create_model(variant, inputs=inputs, num_classes=NUM_CLASSES)

        def encode(model: HiP = classifier) -> tuple[Tensor, Any]:
            encoded = model.forward_features(pictures)
            return encoded.processor.sum(), encoded

        def classify(model: HiP = classifier) -> Tensor:
            return F.cross_entropy(model(pictures), classes)

        found.append(Workload("encoder", classifier, encode, (pictures,)))
        found.append(Workload("classifier", classifier, classify, (pictures, classes)))
    if "reconstruction" in names or "mae" in names:
        full = pv.create_model(variant, inputs=inputs)
        plan = pv.draw_mask_plan(full.layout(), batch, ratio=0.85, generator=generator)
        ids = (*plan.kept.values(), *plan.masked.values())

        def reconstruct(model: HiP = full) -> Tensor:
            return F.mse_loss(model(pictures)["image"], pictures)

        def mask(model: HiP = full) -> Tensor:
            return mae_losses(model, {"image": pictures}, plan).total

        found.append(Workload("reconstruction", full, reconstruct, (pictures,)))
        found.append(Workload("mae", full, mask, (pictures, *ids)))
    return [workload for workload in found if workload.name in names]


def kept_bytes(workload: Workload, way: Way) -> int:
    """Count what one forward pass of a workload saves for its backward pass."""
    own = (*workload.model.parameters(), *workload.model.buffers(), *workload.given)
    with workload.running(way):
        return saved_bytes(workload.loss, own)


def measure_memory(workload: Workload, way: Way) -> dict[str, int]:
    """Measure kept, live and peak bytes."""
    kept = kept_bytes(workload, way)
    with workload.running(way):
        workload.step()  # gradients exist from here on
        live, _ = allocated(workload.loss)
        _, peak = allocated(workload.step)
    return {"kept": kept, "live": live, "peak": peak}


def time_ways(workload: Workload, ways: Mapping[str, Way], rounds: int) -> dict[str, Any]:
    """Time a workload in several ways; ratios are to the first of them."""

    def runner(way: Way) -> Callable[[], None]:
        def run() -> None:
            with workload.running(way):
                workload.step()

        return run

    times = measure_times({name: runner(way) for name, way in ways.items()}, rounds)
    base = times[next(iter(ways))]
    figures: dict[str, Any] = {}
    for name, clocks in times.items():
        figures[name] = {}
        for clock, values in clocks.items():
            ratios = [b / a for a, b in zip(values, base[clock], strict=True)]
            figures[name][clock] = {
                "seconds": round(median(values), 4),
                "speedup": [round(f(ratios), 3) for f in (median, min, max)],
            }
    return figures


def slope(variant: str, sizes: tuple[int, int], batch: int, rounds: int) -> dict[str, Any]:
    """Return what one more pixel costs the encoder: bytes kept, and CPU microseconds."""
    small, large = (make_workloads(variant, size, batch, ["encoder"])[0] for size in sizes)
    more = batch * (sizes[1] ** 2 - sizes[0] ** 2)
    ways = {
        "einsum": Way(path="reference"),
        "sdpa, all projected": Way(moved=False),
        "sdpa": Way(),
    }
    figures = {}
    times = []
    for workload in (small, large):
        times.append(time_ways(workload, ways, rounds))
    for name, way in ways.items():
        kept = kept_bytes(large, way) - kept_bytes(small, way)
        seconds = [at[name]["cpu"]["seconds"] for at in times]
        figures[name] = {
            "kept_bytes": round(kept / more, 1),
            "cpu_us": round((seconds[1] - seconds[0]) / more * 1e6, 2),
        }
    return {"sizes": list(sizes), **figures}


def show_memory(memory: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
    """Print bytes per workload and way."""
    rows = []
    for name, ways in memory.items():
        base = ways["einsum"]["kept"]
        for way, figures in ways.items():
            ratio = f"{figures['kept'] / base:.3f}"
            rows.append([name, way, *(mib(figures[k]) for k in figures), ratio])
    columns = ["workload", "way", *next(iter(next(iter(memory.values())).values()))]
    show("Memory, MiB", [*columns, "kept / einsum"], rows)


def show_times(title: str, times: Mapping[str, Mapping[str, Any]], base: str) -> None:
    """Print times and speed-ups per workload and way."""
    rows = []
    for name, ways in times.items():
        for way, at in ways.items():
            clocks = [at[clock] for clock in ("wall", "cpu")]
            rows.append(
                [
                    name,
                    way,
                    *(f"{clock['seconds']:.3f}" for clock in clocks),
                    *(spread(clock["speedup"]) for clock in clocks),
                ]
            )
    columns = ["workload", "way", "wall s", "CPU s", f"{base} / this, wall", f"{base} / this, CPU"]
    show(title, columns, rows)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and return everything."""
    names = ["encoder"] if args.encoder_only else ["encoder", "classifier", "reconstruction", "mae"]
    workloads = make_workloads(args.variant, args.size, args.batch, names)
    results: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "variant": args.variant,
        "size": args.size,
        "batch": args.batch,
        "rounds": args.rounds,
        "machine": describe_machine(),
    }
    head = f"{args.variant}, {args.size} px, batch {args.batch}, {results['machine']}"
    print(head)
    memory: dict[str, Any] = {}
    for workload in workloads:
        ways = {
            "einsum": Way(path="reference"),
            "sdpa, all projected": Way(moved=False),
            "sdpa": Way(),
        }
        if workload.model.decoder is not None:
            ways["sdpa, chunked"] = Way(chunk=workload.model.config.decode_chunk)
        memory[workload.name] = {n: measure_memory(workload, way) for n, way in ways.items()}
    results["memory_bytes"] = memory
    show_memory(memory)
    if args.rounds == 0:
        return results

    times = {workload.name: time_ways(workload, SPEED_WAYS, args.rounds) for workload in workloads}
    results["times"] = times
    show_times("Forward and backward (nothing recomputed)", times, "einsum")
    moved: dict[str, Any] = {}
    pair = {"all projected": Way(moved=False), "moved": Way()}
    for workload in workloads:
        moved[workload.name] = time_ways(workload, pair, args.rounds)
    results["moved_projections"] = moved
    show_times("Projections where the tokens are, or moved, both SDPA", moved, "all projected")

    chunks: dict[str, Any] = {}
    rows = []
    for workload in workloads:
        if workload.model.decoder is None:
            continue
        ways = {"all at once": Way()} | {str(size): Way(chunk=size) for size in CHUNKS}
        timed = time_ways(workload, ways, args.rounds)
        at = {name: {**measure_memory(workload, way), **timed[name]} for name, way in ways.items()}
        chunks[workload.name] = at
        for name, f in at.items():
            sizes = [mib(f[k]) for k in ("kept", "live", "peak")]
            speed = [f"{f['cpu']['seconds']:.3f}", spread(f["cpu"]["speedup"])]
            rows.append([workload.name, name, *sizes, *speed])
    results["decode_chunk"] = chunks
    if chunks:
        columns = ["workload", "decode_chunk", "kept", "live", "peak", "CPU s", "all / this, CPU"]
        show("Chunks of the reconstruction, SDPA (MiB)", columns, rows)

    sizes = (max(args.size * 4 // 7, 8), args.size)
    results["encoder_per_pixel"] = slope(args.variant, sizes, args.batch, args.rounds)
    rows = [
        [name, str(f["kept_bytes"]), str(f["cpu_us"])]
        for name, f in results["encoder_per_pixel"].items()
        if name != "sizes"
    ]
    title = f"Encoder, one more pixel ({sizes[0]} to {sizes[1]} px)"
    show(title, ["way", "kept bytes", "CPU us, forward and backward"], rows)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--variant", default="hip_mini", help="a name from 'perceivers models'")
    parser.add_argument("--size", type=int, default=224, help="picture size in pixels")
    parser.add_argument("--batch", type=int, default=1, help="pictures per step")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds; 0: memory only")
    parser.add_argument("--encoder-only", action="store_true", help="leave out the other workloads")
    parser.add_argument("--out", type=Path, help="also write the numbers here, as JSON")
    args = parser.parse_args(argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        results = run(args)
    finally:
        torch.set_num_threads(threads)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
