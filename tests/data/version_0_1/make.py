"""Make the run folders, model folders and exports of version 0.1 that later versions must read.

Run once, in an empty folder, with the version whose files are to be kept::

    PYTHONPATH=OLD_CHECKOUT/src python make.py OUT

Every run is trained twice: to its end (``finished``), and killed between two checkpoints
(``stopped``). ``expected.json`` holds the metrics of both, the stopped one after it was resumed by
that same version.
"""

import json
import os
import shutil
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

STEPS, SAVE_EVERY, KILLED_AT = 8, 4, 6
TRUNK = {"num_latents": 4, "latent_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 1}
FLAT = {"trunk": {**TRUNK, "num_cross_heads": 1}}
DECODER = {"num_heads": 2, "qk_dim": 16, "v_dim": 16, "mlp_ratio": 1}

# name: (verb, settings); what is not given is the version's default.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "pretrain_hip": (
        "pretrain",
        {"model": "inputs/hip_digits", "data": "digits", "ema": 0.9},
    ),
    "pretrain_hiera": ("pretrain", {"model": "inputs/hiera_photos", "data": "inputs/photos"}),
    "classify_hiera": ("finetune", {"model": "inputs/hiera_photos", "data": "inputs/photos"}),
    "mlm": (
        "pretrain",
        {
            "task": "mlm",
            "model": "perceiver_io_text_tiny",
            "data": "inputs/topics.csv",
            "inputs": {"bytes": {"length": 32}},
            "model_options": {
                "tokens": {"bytes": {"content": "embedding", "dim": 16}},
                "trunk": {**TRUNK, "num_cross_heads": 2, "qk_dim": 16, "v_dim": 16},
                "decoder": DECODER,
            },
        },
    ),
    "autoencode": (
        "pretrain",
        {
            "task": "autoencode",
            "model": "perceiver_io_nano",
            "data": "inputs/pairs",
            "size": 16,
            "inputs": {"audio": {"samples": 256}},
            "model_options": FLAT,
        },
    ),
    "classify_hip": ("finetune", {"model": "inputs/hip_digits", "data": "digits"}),
    "classify_points": (
        "train",
        {"model": "perceiver_nano", "data": "inputs/clouds.npz", "model_options": FLAT},
    ),
    "choose": ("train", {"model": "entity_set_nano", "data": "selection", "model_options": FLAT}),
    "multilabel": (
        "train",
        {
            "task": "multilabel",
            "model": "perceiver_io_nano",
            "data": "inputs/labels.csv",
            "labels": ["colour", "shape"],
            "inputs": {"bytes": {"length": 32}},
            "model_options": FLAT,
        },
    ),
    "multitask": (
        "train",
        {
            "task": "multitask",
            "model": "perceiver_io_nano",
            "data": "inputs/topics.csv + inputs/intents.csv",
            "inputs": {"bytes": {"length": 32}},
            "model_options": FLAT,
        },
    ),
    "segment": (
        "finetune",
        {"task": "segment", "model": "inputs/hip_streets", "data": "inputs/streets", "size": 16},
    ),
    "regress": (
        "train",
        {
            "task": "regress",
            "model": "perceiver_io_nano",
            "data": "inputs/people.csv",
            "targets": ["age"],
            "inputs": {"bytes": {"length": 32}},
            "model_options": FLAT,
        },
    ),
    "flow": (
        "train",
        {
            "task": "flow",
            "model": "perceiver_io_flow_tiny",
            "data": "warps:inputs/photos",
            "model_options": {
                "trunk": {**TRUNK, "num_cross_heads": 2, "qk_dim": 16, "v_dim": 16},
                "decoder": DECODER,
            },
        },
    ),
    "classify_parts": (
        "finetune",
        {"model": "inputs/hip_digits", "data": "digits", "devices": 2, "strategy": "fsdp"},
    ),
}

WORDS = ("red", "green", "blue", "round", "square", "long", "short", "old", "new", "soft", "hard")


def make_inputs(folder: Path) -> None:
    """Write small data of every kind; files of the same seed are the same."""
    rng = np.random.default_rng(0)
    for kind in ("dark", "light"):
        for number in range(8):
            values = rng.integers(0, 128, (64, 64, 3)) + (100 if kind == "light" else 0)
            path = folder / "photos" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            blocks = np.repeat(np.repeat(values[:16, :16], 4, 0), 4, 1)
            Image.fromarray(blocks.astype(np.uint8)).save(path)
            tone = np.sin(np.arange(256) * rng.uniform(0.05, 0.5)) * 12000
            path = folder / "pairs" / kind / f"{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values[:16, :16].astype(np.uint8)).save(path.with_suffix(".png"))
            with wave.open(str(path), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes(tone.astype("<i2").tobytes())
    for split, count in (("train", 12), ("val", 4)):
        for number in range(count):
            mask = np.zeros((16, 16), np.uint8)
            mask[:, int(rng.integers(4, 12)) :] = 1
            picture = mask[..., None] * 120 + rng.integers(0, 100, (16, 16, 3))
            for part, array in (("images", picture.astype(np.uint8)), ("masks", mask)):
                path = folder / "streets" / split / part / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    texts = [" ".join(rng.choice(WORDS, 4)) for _ in range(40)]
    write_table(folder / "topics.csv", ["text", "label"], [(t, t.split()[0][0]) for t in texts])
    write_table(folder / "intents.csv", ["text", "label"], [(t, t.split()[1]) for t in texts])
    write_table(
        folder / "labels.csv",
        ["text", "colour", "shape"],
        [(t, t.split()[0], t.split()[1]) for t in texts],
    )
    write_table(folder / "people.csv", ["text", "age"], [(t, len(t)) for t in texts])
    clouds = rng.normal(size=(24, 10, 3)).astype(np.float32)
    labels = rng.integers(0, 2, 24)
    clouds[labels == 1] *= 0.2
    np.savez(folder / "clouds.npz", points=clouds, label=labels)


def make_models(folder: Path) -> None:
    """Write models much smaller than any variant, for training to start from."""
    import torch

    import perceivers as pv
    from perceivers.models.hiera.config import HieraDecoder
    from perceivers.models.hip.config import HiPLevel

    torch.manual_seed(0)
    levels = tuple(
        HiPLevel(num_groups=groups, num_latents=4, latent_dim=16, depth=1, num_heads=2)
        for groups in (4, 1, 4)
    )
    small = {"levels": levels, "token_dim": 8, "position_dim": 8}
    for name, spec in (("digits", pv.Image(8, 8, 1)), ("streets", pv.Image(16, 16, 3))):
        hip = pv.create_model("hip_nano", inputs={"image": spec}, **small)
        hip.save_pretrained(folder / f"hip_{name}")
    hiera = pv.create_model(
        "mae_hiera_nano",
        inputs={"image": pv.Image(64, 64, 3)},
        dim=8,
        depths=(1, 1, 1),
        decoder=HieraDecoder(dim=16, depth=1, num_heads=1),
    )
    hiera.save_pretrained(folder / "hiera_photos")


def write_table(path: Path, header: list[str], rows: list[tuple[Any, ...]]) -> None:
    """Write a comma-separated table."""
    lines = [",".join(header), *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def train_all(name: str, *, kill: bool) -> None:
    """Train one run; with ``kill`` the process ends at a step between two checkpoints."""
    import perceivers as pv
    from perceivers.training.events import Stepped
    from perceivers.training.loop import Trainer

    verb, settings = RUNS[name]
    emit = Trainer.emit

    def emit_and_die(trainer: Trainer, event: Any) -> None:
        emit(trainer, event)
        if isinstance(event, Stepped) and event.step == KILLED_AT:
            os._exit(9)

    skip_reports()
    if kill:
        mock.patch.object(Trainer, "emit", emit_and_die).start()
    getattr(pv, verb)(
        **settings,
        out=f"runs/{'stopped' if kill else 'finished'}/{name}",
        steps=STEPS,
        batch_size=4,
        log_every=1,
        eval_every=SAVE_EVERY,
        checkpoint_every=SAVE_EVERY,
        quiet=True,
    )


def describe(folder: Path) -> dict[str, Any]:
    """Return the records of training and the metrics on the validation split."""
    from perceivers.workflows.evaluation import evaluate

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return {
        "losses": losses,
        "val": evaluate(str(folder), split="val").figures,
        "outputs": {
            name: summarise(folder / name) for name in ("model", "last") if (folder / name).is_dir()
        },
    }


def summarise(folder: Path) -> dict[str, Any]:
    """Return shape, sum and largest absolute value of what a model answers to a fixed input."""
    import torch

    import perceivers as pv

    model = pv.load(folder).eval()
    inputs = {}
    for name, spec in model.config.inputs.items():
        ramp = torch.arange(2 * int(np.prod(spec.raw_shape))).reshape(2, *spec.raw_shape)
        if isinstance(spec, pv.Bytes | pv.Labels):
            inputs[name] = ramp % (251 if isinstance(spec, pv.Bytes) else spec.channels)
        else:
            inputs[name] = (ramp % 97).float() / 97
    with torch.inference_mode():
        outputs = model(inputs)
    found = outputs if isinstance(outputs, dict) else {"": outputs}
    return {
        name: [list(each.shape), float(each.double().sum()), float(each.abs().max())]
        for name, each in found.items()
    }


def skip_reports() -> None:
    """Draw nothing: later versions draw reports from the records."""
    from perceivers.workflows.run import Run

    mock.patch.object(Run, "write_report", lambda run: run.folder.report).start()


def drop_parts(folder: Path, expected: dict[str, Any]) -> None:
    """Delete what takes room and is not read again: pictures, and states of finished runs."""
    for path in [*folder.rglob("*.png"), *folder.rglob("report.html")]:
        path.unlink()
    for path in [*folder.glob("*/*/last"), *folder.glob("finished/*/checkpoints")]:
        shutil.rmtree(path)
    for found in expected.values():
        del found["finished"]["outputs"]["last"]


def main(out: Path) -> None:
    """Train, stop, resume a copy, export, and write down what came out."""
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)
    if not Path("inputs").is_dir():
        make_inputs(Path("inputs"))
        make_models(Path("inputs"))
    import perceivers as pv

    skip_reports()
    expected: dict[str, Any] = {}
    for name in RUNS:
        if Path(f"runs/finished/{name}.json").exists():  # from before this was stopped
            continue
        for folder in ("runs/finished", "runs/stopped", "resumed"):
            shutil.rmtree(f"{folder}/{name}", ignore_errors=True)
        for mode in ("train", "kill"):
            code = subprocess.run([sys.executable, __file__, mode, name], check=False).returncode
            if (code == 0) != (mode == "train"):
                raise SystemExit(f"{mode} {name}: exit {code}")
        shutil.copytree(f"runs/stopped/{name}", f"resumed/{name}")
        pv.resume(f"resumed/{name}", quiet=True)
        found = {
            "finished": describe(Path("runs/finished") / name),
            "resumed": describe(Path("resumed") / name),
        }
        Path(f"runs/finished/{name}.json").write_text(json.dumps(found))
    for name in RUNS:
        expected[name] = json.loads(Path(f"runs/finished/{name}.json").read_text())
        Path(f"runs/finished/{name}.json").unlink()
    pv.export("runs/finished/classify_hip", out="classify_hip.onnx")
    drop_parts(Path("runs"), expected)
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    shutil.rmtree("resumed")


if __name__ == "__main__":
    if sys.argv[1] in {"train", "kill"}:
        train_all(sys.argv[2], kill=sys.argv[1] == "kill")
    else:
        main(Path(sys.argv[1]))
