"""Masked Hiera beside Hugging Face's and the official package's: same weights, one process.

    python benchmarks/bench_hiera.py --models tiny base --rounds 9 --out results.json

Needs ``transformers``; the official package (``pip install --no-deps hiera-transformer``) joins in
where it is installed. All dropout is off, and the largest difference of the outputs is printed.
Times are interleaved, A B A B on one thread after a warm-up; a ratio is the median of the ratios of
neighbours, with its range, in wall and in processor time. The second table compares a step of
masked autoencoding with a dense training step of the same encoder, beside the ratio of what is
computed. Classifiers are measured by ``perceivers bench``, each in a process of its own.
"""

import argparse
import datetime
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import perceivers as pv
from measuring import (
    count_flops,
    keep_freed_memory,
    measure_times,
    mib,
    ratios,
    show,
    show_ratios,
)
from perceivers.bench.child import saved_bytes
from perceivers.bench.children import describe_machine
from perceivers.bench.subjects import import_official
from perceivers.checkpoints.hiera_files import class_of_hiera, save_hiera_folder, save_official
from perceivers.checkpoints.hiera_names import constructor_arguments
from perceivers.checkpoints.verify import load_hugging_face
from perceivers.models.saving import ModelInfo

SIZES = ("tiny", "small", "base", "base_plus", "large")
Run = Callable[[], Tensor]


def make_theirs(ours: Any, plan: pv.MaskPlan) -> dict[str, tuple[nn.Module, Any]]:
    """Return the other libraries' modules with our weights, and how each is called."""
    made: dict[str, tuple[nn.Module, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        save_hiera_folder(ours, Path(folder) / "hf", ModelInfo())
        name = class_of_hiera(ours.config)
        hugging_face = load_hugging_face(Path(folder) / "hf", name).eval()
        save_official(ours, Path(folder) / "model.pth")
        state = torch.load(Path(folder) / "model.pth", weights_only=True)["model_state"]
    # It keeps the units of least noise.
    noise = torch.ones(len(plan.kept["image"]), 49).scatter(1, plan.kept["image"], 0.0)
    made["hugging face"] = hugging_face, lambda x: hugging_face(x, noise=noise).loss
    try:
        official = import_official()
    except ImportError:
        return made
    theirs = official.MaskedAutoencoderHiera(**constructor_arguments(ours.config, "official"))
    theirs.load_state_dict(state)
    theirs.eval()
    keep = torch.zeros(len(plan.kept["image"]), 49, dtype=torch.bool)
    keep.scatter_(1, plan.kept["image"], True)
    made["official"] = theirs, lambda x: theirs(x, mask=keep)[0]
    return made


def step(run: Run, model: nn.Module) -> Callable[[], None]:
    """A forward and backward pass of the mean square of what comes out."""

    def call() -> None:
        model.zero_grad(set_to_none=True)
        run().square().mean().backward()

    return call


def plain(run: Run) -> Callable[[], None]:
    """A forward pass without gradients."""

    def call() -> None:
        with torch.no_grad():
            run()

    return call


def compare(name: str, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Measure one size against every library that is here."""
    torch.manual_seed(0)
    ours = pv.create_model(f"mae_hiera_{name}_224").eval()
    raw = torch.rand(batch, 3, 224, 224)
    given = ours.input.normalise(raw.movedim(1, -1), torch.float32).movedim(-1, 1).contiguous()
    plan = pv.draw_unit_plan("image", 49, batch, ratio=0.6)

    def run_ours() -> Tensor:
        return pv.mae_losses(ours, {"image": raw}, plan).total

    rows = []
    for library, (theirs, call) in make_theirs(ours, plan).items():

        def run_theirs(call: Any = call) -> Tensor:
            return call(given)

        with torch.no_grad():
            a, b = run_ours(), run_theirs()
        pairs = {
            "forward": {"theirs": plain(run_theirs), "ours": plain(run_ours)},
            "step": {"theirs": step(run_theirs, theirs), "ours": step(run_ours, ours)},
        }
        kept = [
            saved_bytes(run, (*model.parameters(), *model.buffers(), raw, given))
            for run, model in ((run_ours, ours), (run_theirs, theirs))
        ]
        row: dict[str, Any] = {
            "model": name,
            "library": library,
            "relative_difference": float((a - b).abs().max() / b.abs().max()),
            "kept": kept,
        }
        for what, runs in pairs.items():
            row[what] = ratios(measure_times(runs, rounds))
        rows.append(row)
    return rows


def compare_sparse(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """Measure a step of masked autoencoding beside a dense one."""
    torch.manual_seed(0)
    dense, masked = (pv.create_model(f"{prefix}hiera_{name}_224") for prefix in ("", "mae_"))
    raw = torch.rand(batch, 3, 224, 224)
    plan = pv.draw_unit_plan("image", 49, batch, ratio=0.6)
    steps = {
        "theirs": step(lambda: dense(raw), dense),
        "ours": step(lambda: pv.mae_losses(masked, {"image": raw}, plan).total, masked),
    }
    flops = {who: count_flops(run) for who, run in steps.items()}
    return {
        "model": name,
        "flops": flops["theirs"] / flops["ours"],
        "time": ratios(measure_times(steps, rounds)),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["tiny", "base"], choices=SIZES)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()
    results: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "batch": args.batch,
        "beside": [],
        "sparse": [],
    }
    for name in args.models:
        results["beside"] += compare(name, args.batch, args.rounds)
        results["sparse"].append(compare_sparse(name, args.batch, args.rounds))
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    rows = [
        (
            row["model"],
            row["library"],
            f"{row['relative_difference']:.1e}",
            show_ratios(row["forward"]),
            show_ratios(row["step"]),
            f"{row['kept'][0] / row['kept'][1]:.3f} ({mib(row['kept'][0])} MiB)",
        )
        for row in results["beside"]
    ]
    columns = ("model", "library", "difference", "forward", "step", "kept")
    show("theirs / ours in time (wall / processor), ours / theirs in memory", columns, rows)
    rows = [
        (row["model"], f"{row['flops']:.2f}", show_ratios(row["time"])) for row in results["sparse"]
    ]
    show("dense step / masked step", ("model", "operations", "time"), rows)


if __name__ == "__main__":
    main()
