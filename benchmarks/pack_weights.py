"""Turn a finished run into weights that come with the package: half precision, card, curve.

    python benchmarks/pack_weights.py RUN NAME --variant hip_nano --data-license BSD-3-Clause \
        --source "scikit-learn's digits" --recipe run.yaml --command "perceivers train ..."

Figures are measured anew, after rounding, on the test split of the run's data. Writes
``src/perceivers/weights/NAME``.
"""

import argparse
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

import perceivers as pv
from perceivers.checkpoints.catalogue import FOLDER
from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.files import write_atomic
from perceivers.models.saving import ModelInfo, model_card, save_folder
from perceivers.report.figures import draw_curves

CURVE_WIDTH = 800


def main(argv: Sequence[str] | None = None) -> None:
    """Pack one run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("name")
    parser.add_argument("--variant", required=True)
    parser.add_argument("--data-license", required=True)
    parser.add_argument("--source", required=True, help="the data, in words, and where from")
    parser.add_argument("--recipe", required=True, nargs="+", help="YAML files, copied")
    parser.add_argument("--command", required=True, nargs="+", help="what was run, in order")
    parser.add_argument("--about", required=True, help="a sentence: what it is good for, and not")
    parser.add_argument("--data", default=None, help="where the data lie now; the run's own place")
    args = parser.parse_args(argv)
    loaded, folder = load_with_info(args.run), FOLDER / args.name
    state = {name: tensor.half() for name, tensor in loaded.model.state_dict().items()}
    run = pv.Run(args.run)
    figures = measure(loaded, state, args.data or run.config.data)
    info = replace(
        loaded.info,
        license="Apache-2.0",
        metrics=figures,
        provenance={
            "variant": args.variant,
            "parameters": sum(p.numel() for p in loaded.model.parameters()),
            "data": Path(run.config.data).name,
            "data_license": args.data_license,
            "source": args.source,
            "seed": run.config.seed,
            "step": loaded.info.provenance.get("step"),
            "command": " && ".join(args.command),
        },
    )
    save_folder(loaded.model, folder, info, state=state, overwrite=True)
    for path in map(Path, args.recipe):
        write_atomic(folder / path.name, path.read_text())
    write_atomic(folder / "curve.png", draw_curve(run))
    write_atomic(folder / "README.md", card(loaded.model, info, state, args, run))


def measure(loaded: Loaded, state: dict[str, torch.Tensor], data: str) -> dict[str, float]:
    """Evaluate the rounded weights on the test split, as whoever has the folder alone would."""
    with TemporaryDirectory() as place:
        save_folder(loaded.model, Path(place) / "model", loaded.info, state=state)
        found = pv.evaluate(Path(place) / "model", data=data, split="test").figures
    return {f"test {name}": value for name, value in found.items() if isinstance(value, float)}


def draw_curve(run: pv.Run) -> bytes:
    """Draw the losses, and accuracy where there is one, in few colours."""
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    keys = [key for key in ("loss", "top1") if any(key in record for record in records)]
    with TemporaryDirectory() as place:
        path = draw_curves(Path(place) / "c.png", records=records, keys=keys, title="Training")
        picture = Image.open(path).convert("RGB")
    picture.thumbnail((CURVE_WIDTH, CURVE_WIDTH))
    buffer = io.BytesIO()
    picture.quantize(32).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def card(model: Any, info: ModelInfo, state: Any, args: Any, run: pv.Run) -> str:
    """Return the card of every model folder, with what a stranger asks of these weights."""
    seconds = [
        json.loads(line).get("seconds", 0.0)
        for line in (run.path / "metrics.jsonl").read_text().splitlines()
    ]
    commands = "\n".join(args.command)
    recipes = ", ".join(f"[{Path(path).name}]({Path(path).name})" for path in args.recipe)
    body = model_card(model, info, state).partition("\n")[2]
    return (
        f"# {args.name}\n\n{args.about}\n\n"
        f"Weights: Apache-2.0, made by this project. Trained on {args.source} "
        f"({args.data_license}), on its train split alone; figures are of its test split, with the "
        f"weights rounded to half precision as they are here.\n\n"
        f"```bash\n{commands}\n```\n\n"
        f"Settings: {recipes}. The last of these commands took {max(seconds):.0f} s on one thread "
        f"of a shared CPU.\n\n![training curve](curve.png)\n{body}"
    )


if __name__ == "__main__":
    main()
