"""Every set of real data: train, test, compare with classical answers, and write the table.

    python benchmarks/proof.py --data-root DATA                       # everything that is missing
    python benchmarks/proof.py --data-root DATA --rows fsdd dbpedia   # some rows
    python benchmarks/proof.py --table                                # the table alone

Every run and every baseline leaves a JSON file in benchmarks/results/proof; what is there is not
done again, so the script can be stopped at any time. A run that was stopped is resumed. docs/
results.md is written between its two marks.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

import perceivers
from perceivers.bench.children import describe_machine
from perceivers.data.augment import Views
from perceivers.data.dataset import Dataset
from perceivers.training.config import FlowTrainConfig
from perceivers.workflows.opening import open_dataset
from proof_rows import ROWS, Row

HERE = Path(__file__).parent
RECIPES = Path(perceivers.__file__).parent / "recipes"
RESULTS = HERE / "results" / "proof"
PAGE = HERE.parent / "docs" / "results.md"
# What the tiny model of flow reads, height and width.
FRAMES = (48, 64)
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
REPORTED = " (reported with the data)"
HEADER = ("set", "model", "recipe", "figure", "ours", "classical", "minutes", "seeds")


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data-root", type=Path, help="folder that holds the sets")
    parser.add_argument("--runs", type=Path, default=Path("runs/proof"), help="where runs lie")
    parser.add_argument("--rows", nargs="+", default=[row.name for row in ROWS])
    parser.add_argument("--table", action="store_true", help="only write the table")
    parser.add_argument("--no-baselines", action="store_true")
    parser.add_argument("--no-runs", action="store_true")
    args = parser.parse_args(argv)
    known = {row.name: row for row in ROWS}
    unknown = [name for name in args.rows if name not in known]
    if unknown:
        parser.error(f"there is no row {unknown[0]!r}; the rows are {', '.join(known)}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    if not args.table:
        if args.data_root is None:
            parser.error("--data-root names the folder that holds the sets (docs/results.md)")
        for row in (known[name] for name in args.rows):
            for seed in row.seeds if not args.no_runs else ():
                run_seed(row, args.data_root, args.runs, seed)
            if not args.no_baselines:
                run_baselines(row, args.data_root, args.runs)
    write_table()


def run_seed(row: Row, root: Path, runs: Path, seed: int) -> None:
    """Train and test one seed of a row, unless its result is there."""
    target = RESULTS / f"{row.name}.seed{seed}.json"
    if target.exists():
        return
    out = folder = run_folder(row, runs, seed)
    for number, stage in enumerate(row.stages):
        folder = out / str(number)
        recipe = str(RECIPES / stage.recipe)
        arguments = [stage.verb, "--config", recipe, *stage.options, "--seed", str(seed)]
        arguments += ["--data", _trained_on(row, root), "--out", str(folder), "--quiet"]
        if number:
            arguments += ["--model", str(out / str(number - 1))]
        if _is_finished(folder):
            continue
        if (folder / "checkpoints" / "last.pt").exists():
            arguments = ["resume", str(folder), "--quiet"]
        elif folder.exists():
            arguments += ["--overwrite"]
        _perceivers(arguments)
    minutes = sum(_training_minutes(out / str(number)) for number in range(len(row.stages)))
    data = str(root / row.folder) if row.trained_on else None
    views = Views(temporal=row.views)
    figures = perceivers.evaluate(folder, data=data, split=row.split, views=views).figures
    model = json.loads((folder / "model" / "config.json").read_text())
    record = {
        "row": asdict(row),
        "seed": seed,
        "value": figures[row.metric],
        "figures": figures,
        "minutes": minutes,
        "family": model.get("family"),
        "commands": shown(row),
        "machine": describe_machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{row.name}, seed {seed}: {row.metric} {figures[row.metric]:.4f} in {minutes:.1f} min")


def _is_finished(folder: Path) -> bool:
    """Tell whether a run took all its steps."""
    if not (folder / "metrics.jsonl").exists():
        return False
    steps = yaml.safe_load((folder / "config.yaml").read_text())["steps"]
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return last["step"] == steps


def _training_minutes(folder: Path) -> float:
    """Return the training clock of a run, which goes on where it was resumed."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return max(record.get("seconds", 0.0) for record in records) / 60


def run_folder(row: Row, runs: Path, seed: int) -> Path:
    """Where the runs of a row's stages lie."""
    return runs / f"{row.run_of or row.name}.seed{seed}"


def run_baselines(row: Row, root: Path, runs: Path) -> None:
    """Measure a row's classical answers, unless they are there or must wait for a run."""
    target = RESULTS / f"{row.name}.baselines.json"
    known: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    missing = [name for name in row.baselines if name not in known]
    if not missing:
        return
    from proof_baselines import BASELINES, OF_RUNS

    data = open_row(row, root)
    for name in missing:
        began = time.perf_counter()
        if name in OF_RUNS:
            # These answer what a run's own masks ask.
            run = run_folder(row, runs, 0) / str(len(row.stages) - 1)
            if not _is_finished(run):
                continue
            value = OF_RUNS[name](run, row.split)
        else:
            value = BASELINES[name](data)
        known[name] = {"value": value, "seconds": time.perf_counter() - began}
        target.write_text(json.dumps(known, indent=1) + "\n")
        print(f"{row.name}, {name}: {value:.4f}")


def open_row(row: Row, root: Path) -> Dataset:
    """Open what a row is tested on, as its model's run does."""
    address = str(root / row.folder)
    if not row.warped:
        return perceivers.open_data(address, labels=row.labels)
    settings = yaml.safe_load((RECIPES / row.stages[-1].recipe).read_text())
    if not row.trained_on:
        address = f"warps:{address}"
    config = FlowTrainConfig(model="", data=address, out="", max_flow=settings["max_flow"])
    return open_dataset(config, frame_size=FRAMES)


def write_table() -> None:
    """Write the table of all results into the page."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    for row in ROWS:
        found = [
            json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{row.name}.seed*.json"))
        ]
        path = RESULTS / f"{row.name}.baselines.json"
        baselines = json.loads(path.read_text()) if path.exists() else {}
        if found:
            lines.append("| " + " | ".join(_cells(row, found, baselines)) + " |")
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    commands = [line for row in ROWS for line in ("", f"# {row.title}", *shown(row))][1:]
    lines += ["", "The commands, in the folder of the sets:", "", "```bash", *commands, "```"]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)


def _cells(row: Row, found: list[dict[str, Any]], baselines: dict[str, Any]) -> list[str]:
    """One line of the table; the better side is bold."""
    values = [record["value"] for record in found]
    others = {name: baselines[name]["value"] for name in row.baselines if name in baselines}
    sign = 1 if row.higher_is_better else -1
    # Those who prepared the data may know a stronger baseline than ours of the same name.
    others |= {f"{name}{REPORTED}": value for name, value in row.reported}
    best = max(others.values(), key=lambda value: sign * value, default=None)
    wins = best is None or sign * mean(values) > sign * best
    ours = _show(row, mean(values)) + (f" +- {_show(row, stdev(values))}" if values[1:] else "")
    texts = [
        f"{name} **{_show_other(row, name, value)}**" if value == best and not wins else
        f"{name} {_show_other(row, name, value)}"
        for name, value in others.items()
    ]  # fmt: skip
    return [
        row.title,
        row.model,
        ", ".join(f"`{stage.recipe}`" for stage in row.stages),
        row.metric,
        f"**{ours}**" if wins else ours,
        "; ".join(texts),
        f"{mean(record['minutes'] for record in found):.0f}",
        str(len(found)),
    ]


def _show_other(row: Row, name: str, value: float) -> str:
    """Show a baseline; those that were reported with the data have two digits."""
    return f"{100 * value:.0f} %" if name.endswith(REPORTED) else _show(row, value)


def _show(row: Row, value: float) -> str:
    return f"{100 * value:.1f} %" if row.unit == "%" else f"{value:.3f} {row.unit}".strip()


def shown(row: Row) -> list[str]:
    """The commands of a row as a reader would type them, in the folder of the sets."""
    run, lines = f"runs/{row.run_of or row.name}", []
    for number, stage in enumerate(row.stages if not row.run_of else ()):
        words = [stage.verb, "--config", stage.recipe.removesuffix(".yaml"), *stage.options]
        words += ["--data", _trained_on(row, None)]
        words += ["--model", f"{run}/{number - 1}"] if number else []
        lines.append(shlex.join(["perceivers", *words, "--out", f"{run}/{number}"]))
    words = ["perceivers", "evaluate", f"{run}/{len(row.stages) - 1}"]
    words += ["--data", row.folder] if row.trained_on else []
    words += ["--split", row.split] if row.split != "test" else []
    words += ["--temporal_views", str(row.views)] if row.views > 1 else []
    return [*lines, shlex.join(words)]


def _trained_on(row: Row, root: Path | None) -> str:
    """The address of the data of training."""
    folder = row.trained_on or row.folder
    return ("warps:" if row.warped else "") + (str(root / folder) if root else folder)


def _perceivers(arguments: list[str]) -> None:
    """Run a verb in a process of its own; the script ends with its message when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "perceivers", *arguments], env=os.environ, check=False
    )
    if done.returncode:
        raise SystemExit(f"perceivers {shlex.join(arguments)} ended with {done.returncode}")


if __name__ == "__main__":
    main()
