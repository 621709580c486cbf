"""Compare runs: one self-contained page of settings, figures and curves side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from perceivers.checkpoints.loading import load_with_info
from perceivers.errors import RunError
from perceivers.files import read_json_file, real_path
from perceivers.foreign import read_text
from perceivers.report.comparison import (
    Summary,
    costs_table,
    differences_table,
    results_table,
    short_names,
)
from perceivers.report.figures.curves import draw_comparison
from perceivers.report.html import Section, write_html
from perceivers.report.tables import read_metrics
from perceivers.training.run_folder import RunFolder
from perceivers.version import __version__

# More panels than this hide what matters; the table holds every figure.
_MOST_PANELS = 9


def compare_runs(
    runs: Sequence[str | Path],
    out: str | Path = "comparison.html",
    *,
    overwrite: bool = False,
) -> Path:
    """Write a page that compares runs, finished or not.

    Args:
        runs: Two or more run folders, of any task and model.
        out: The page.
        overwrite: Replace a file that is there.

    Returns:
        The page.

    Raises:
        RunError: Fewer than two runs, one named twice, a folder that is no run, or ``out`` exists.
    """
    out = Path(out)
    folders = [RunFolder(Path(run)) for run in runs]
    _check(folders, out, overwrite=overwrite)
    names = short_names([folder.path for folder in folders])
    summaries = [summarise(folder, name) for folder, name in zip(folders, names, strict=True)]
    with TemporaryDirectory() as scratch:
        curves = draw_comparison(
            Path(scratch) / "curves.png",
            runs={run.name: run.records for run in summaries},
            quantities=_quantities(summaries),
            title="Training",
        )
        commands = "\n".join(_command(folder) for folder in folders)
        text = "What the best model and the last evaluation reached, and what it took."
        return write_html(
            out,
            title=f"Comparison of {len(folders)} runs",
            subtitle=", ".join(names),
            sections=[
                Section(title="Settings that differ", tables=[differences_table(summaries)]),
                Section(
                    title="Results",
                    text=text,
                    tables=[results_table(summaries), costs_table(summaries)],
                ),
                Section(title="Curves", figures=[(curves, "From each run's metrics.jsonl.")]),
                Section(title="Commands", code=commands),
            ],
            footer=f"Written by perceivers {__version__}.",
        )


def summarise(folder: RunFolder, name: str) -> Summary:
    """Read what is compared from a run folder.

    Raises:
        UserError: It is not one, or its records are damaged.
    """
    task, config = folder.read_config()
    settings = {"task": task, **_flatten(config.to_json())}
    record = folder.path / "environment.json"
    environment = read_json_file(record) if record.exists() else {}
    settings |= {f"environment.{key}": value for key, value in environment.items()}
    best: dict[str, float] = {}
    step = parameters = None
    if (folder.best_model / "config.json").is_file():
        loaded = load_with_info(folder.path)
        best = {key.removeprefix("val "): v for key, v in loaded.info.metrics.items()}
        step = loaded.info.provenance.get("step")
        parameters = sum(weights.numel() for weights in loaded.model.parameters())
    results = folder.read_results()
    return Summary(
        name=name,
        settings=settings,
        records=read_metrics(folder.metrics) if folder.metrics.exists() else [],
        best=best,
        best_step=step,
        results={split: entry.get("figures", {}) for split, entry in results.items()},
        parameters=parameters,
    )


def _check(folders: Sequence[RunFolder], out: Path, *, overwrite: bool) -> None:
    """Find what would stop the comparison, before anything is read."""
    if len(folders) < 2:
        raise RunError(f"a comparison needs two runs or more, got {len(folders)}")
    seen: set[Path] = set()
    for folder in folders:
        if real_path(folder.path) in seen:
            raise RunError(f"{folder.path} is named twice; name each run once")
        seen.add(real_path(folder.path))
    if out.is_dir():
        raise RunError(f"--out {out} is a folder; give a file, such as {out}/comparison.html")
    if out.exists() and not overwrite:
        raise RunError(f"{out} already exists; replace it with --overwrite, or give another --out")


def _quantities(runs: Sequence[Summary]) -> list[tuple[str, str]]:
    """Return training loss, and the validation figures that any run recorded."""
    keys = dict.fromkeys(
        key
        for run in runs
        for record in run.records
        if record.get("split") == "val"
        for key, value in record.items()
        if key not in {"step", "split"} and isinstance(value, int | float)
    )
    return [("train", "loss"), *(("val", key) for key in keys)][:_MOST_PANELS]


def _command(folder: RunFolder) -> str:
    """Return the command that made a run."""
    path = folder.path / "command.txt"
    command = read_text(path, error=RunError).strip() if path.exists() else "(not recorded)"
    return f"# {folder.path}\n{command}\n"


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
