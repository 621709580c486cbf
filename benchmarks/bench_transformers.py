"""Our Perceiver IO beside Hugging Face's, with the same weights, in one process.

    python benchmarks/bench_transformers.py --models language flow --out results.json

Classifiers of pictures are measured by ``perceivers bench``, each in a process of its own.

Every model is built here in the flavour ``hf``, written as a Hugging Face folder and loaded by
that library, dropout off, so that both hold the same weights and compute the same function; the
largest difference of their outputs is printed. Times are interleaved, A B A B on one thread after
a warm-up; a ratio is the median of the ratios of neighbours, with its range, in wall time and in
processor time, which other jobs on the machine disturb less. Freed memory stays in the process, as
fetching it anew costs up to 4 % of a training step, unevenly from one step to the next. *Kept*
counts every storage that autograd saves in one forward pass of training, without parameters,
buffers and inputs; *peak* is the most that a forward pass without gradients has allocated at once.
"""

import argparse
import datetime
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import perceivers as pv
from measuring import (
    allocated,
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
from perceivers.checkpoints.hugging_face import (
    class_of,
    config_from_hugging_face,
    config_to_hugging_face,
    save_hugging_face,
)
from perceivers.checkpoints.names import kind_of, with_flavour
from perceivers.checkpoints.verify import load_hugging_face
from perceivers.models import PerceiverIO
from perceivers.models.saving import ModelInfo
from perceivers.types import FIRST_BYTE

MODELS = ("language", "flow", "multimodal")
SUBSAMPLED = {"image": 1024, "audio": 64}


@dataclass(frozen=True)
class Pair:
    """The same computation in both libraries; each call returns outputs that can be compared."""

    name: str
    ours: PerceiverIO
    theirs: torch.nn.Module
    run_ours: Callable[[], list[Tensor]]
    run_theirs: Callable[[], list[Tensor]]
    given: tuple[Tensor, ...]


def build(name: str, *, small: bool) -> PerceiverIO:
    """Build a preset in the flavour of the port; ``small`` shrinks what 24 GB cannot train."""
    torch.manual_seed(0)
    model = pv.create_model(f"perceiver_io_{name}")
    config = with_flavour(model.config, "hf")
    if small:
        kind = kind_of(config)
        stated = config_to_hugging_face(config, kind)
        if name == "flow":
            stated["train_size"] = [64, 96]
        elif name == "multimodal":
            stated |= {"num_frames": 4, "output_shape": [1, 4, 224, 224]}
        labels = {"id2label": {str(i): str(i) for i in range(700)}}
        config = config_from_hugging_face(class_of(config, kind), {**stated, **labels}, {}, name)
    model = PerceiverIO(config)
    for head in model.decoder.heads.values():
        if isinstance(head, torch.nn.Linear):  # flow's starts at zero, which would hide differences
            torch.nn.init.normal_(head.weight, std=head.in_features**-0.5)
    return model


def make_pair(name: str, *, small: bool) -> Pair:
    """Build one model in both libraries with the same weights, and inputs for both."""
    ours = build(name, small=small).eval()
    with tempfile.TemporaryDirectory() as folder:
        save_hugging_face(ours, Path(folder), ModelInfo())
        theirs = load_hugging_face(Path(folder))
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    draw = torch.Generator().manual_seed(0)
    if name == "multimodal":
        return make_multimodal(ours, theirs, draw)
    ((key, spec),) = ours.config.inputs.items()
    if name == "language":
        ids = torch.randint(FIRST_BYTE, spec.channels, (1, spec.num_tokens), generator=draw)
        return Pair(
            name, ours, theirs, lambda: [ours(ids)], lambda: [theirs(inputs=ids).logits], (ids,)
        )
    raw = torch.rand(1, *spec.raw_shape, generator=draw)
    adapter = ours.adapter(key)
    given = adapter.unflatten(adapter.normalise(adapter.flatten(raw), torch.float32))
    frames = given.transpose(1, 2).flatten(0, 1)
    windows = F.unfold(frames, 3, padding=1).unflatten(1, (spec.channels, 9))
    given = windows.transpose(1, 2).reshape(1, 2, -1, *spec.grid[1:])

    def run() -> list[Tensor]:
        return [ours(raw).movedim(1, -1)]

    return Pair(name, ours, theirs, run, lambda: [theirs(inputs=given).logits], (raw, given))


def make_multimodal(ours: PerceiverIO, theirs: Any, draw: torch.Generator) -> Pair:
    """One clip; some pixels and sound patches are answered, as both libraries can."""
    inputs = ours.config.inputs
    video = torch.rand(1, *inputs["video"].raw_shape, generator=draw)
    audio = torch.rand(1, *inputs["audio"].raw_shape, generator=draw) * 2 - 1
    label = torch.full((1,), -1)
    ids = {
        "image": torch.randperm(ours.num_queries("video"), generator=draw)[: SUBSAMPLED["image"]],
        "audio": torch.randperm(ours.num_queries("audio"), generator=draw)[: SUBSAMPLED["audio"]],
    }
    blank = torch.zeros(1, inputs["label"].channels)

    def run_ours() -> list[Tensor]:
        encoded = ours.encode({"audio": audio, "video": video, "label": label})
        return [
            ours.decode(encoded, "video", ids=ids["image"]),
            ours.decode(encoded, "audio", ids=ids["audio"]).flatten(1),
            ours.decode(encoded, "label"),
        ]

    def run_theirs() -> list[Tensor]:
        answer = theirs(
            inputs={
                "image": video.transpose(1, 2),
                "audio": audio.transpose(1, 2),
                "label": blank,
            },
            subsampled_output_points={**ids, "label": None},
        ).logits
        return [answer["image"], answer["audio"].flatten(1), answer["label"]]

    return Pair("multimodal", ours, theirs, run_ours, run_theirs, (video, audio, blank))


def training_step(run: Callable[[], list[Tensor]], model: torch.nn.Module) -> Callable[[], None]:
    """A forward and backward pass of the mean square of all outputs."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        torch.stack([x.square().mean() for x in run()]).sum().backward()

    return step


def compare(pair: Pair, rounds: int, *, train: bool) -> dict[str, Any]:
    """Measure one model."""
    flops = [count_flops(run) for run in (pair.run_ours, pair.run_theirs)]
    with torch.no_grad():
        answers = zip(pair.run_ours(), pair.run_theirs(), strict=True)
        difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in answers)

        def plain(run: Callable[[], list[Tensor]]) -> Callable[[], None]:
            def call() -> None:
                with torch.no_grad():
                    run()

            return call

        forward = measure_times(
            {"theirs": plain(pair.run_theirs), "ours": plain(pair.run_ours)}, rounds
        )
        peaks = [allocated(run)[1] for run in (pair.run_ours, pair.run_theirs)]
    figures: dict[str, Any] = {
        "relative_difference": difference,
        "gflops": [round(f / 1e9, 1) for f in flops],
        "forward": ratios(forward),
        "peak": peaks,
    }
    if train:
        steps = {
            "theirs": training_step(pair.run_theirs, pair.theirs),
            "ours": training_step(pair.run_ours, pair.ours),
        }
        pair.theirs.train()
        pair.ours.train()
        figures["step"] = ratios(measure_times(steps, rounds))
        figures["kept"] = [
            saved_bytes(run, (*model.parameters(), *model.buffers(), *pair.given))
            for run, model in ((pair.run_ours, pair.ours), (pair.run_theirs, pair.theirs))
        ]
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="flow at 64x96, clips of 4 frames")
    parser.add_argument("--no-train", action="store_true", help="forward passes only")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()
    results: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "small": args.small,
    }
    rows = []
    for name in args.models:
        pair = make_pair(name, small=args.small)
        done = results[name] = compare(pair, args.rounds, train=not args.no_train)
        step, kept = done.get("step"), done.get("kept")
        rows.append(
            (
                name,
                f"{done['relative_difference']:.1e}",
                " / ".join(f"{f:,.1f}" for f in done["gflops"]),
                show_ratios(done["forward"]),
                show_ratios(step) if step else "-",
                f"{done['peak'][0] / done['peak'][1]:.3f}",
                f"{kept[0] / kept[1]:.3f} ({mib(kept[0])} / {mib(kept[1])} MiB)" if kept else "-",
            )
        )
        del pair
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    columns = ("model", "difference", "GFLOP", "forward", "step", "peak", "kept")
    show("theirs / ours in time (wall / processor), ours / theirs in memory", columns, rows)


if __name__ == "__main__":
    main()
