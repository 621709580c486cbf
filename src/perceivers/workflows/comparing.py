"""Compare runs on one HTML page, and average the predictions of several views of a sample."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import log
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.data.augment import Views
from perceivers.errors import ConfigError, RunError
from perceivers.files import read_json_file, real_path
from perceivers.foreign import read_text
from perceivers.report.console import Shown
from perceivers.report.figures.curves import draw_comparison
from perceivers.report.html import (
    Section,
    Summary,
    costs_table,
    differences_table,
    results_table,
    short_names,
    write_html,
)
from perceivers.report.metrics import read_metrics
from perceivers.tasks.base import answer
from perceivers.training.run_folder import RunFolder
from perceivers.version import __version__
from perceivers.workflows.reporting import write_run_report
from perceivers.workflows.task_table import tasks

# More panels would be hard to read; the tables contain all metrics.
_MOST_PANELS = 9


def compare_runs(
    runs: Sequence[str | Path],
    out: str | Path = "comparison.html",
    *,
    overwrite: bool = False,
) -> Path:
    """Write a self-contained HTML page that compares finished or unfinished runs.

    Args:
        runs: Two or more run folders, of any task and model.
        out: Path of the page.
        overwrite: Replace an existing file.

    Returns:
        Path of the page.

    Raises:
        RunError: There are fewer than two runs, a run is named twice, a folder is not a run, or
            ``out`` exists.
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
        text = "Metrics of the best model and of the last evaluation, and training costs."
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
    """Read settings, metrics and curves of a run folder.

    Raises:
        UserError: The folder is not a run, or its records are damaged.
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


def report(
    runs: Sequence[str | Path], *, out: str | Path | None = None, overwrite: bool = False
) -> Shown:
    """Regenerate a run's report.html, or write one page that compares several runs.

    Args:
        runs: Run folder; two or more are compared.
        out: Page for several runs; by default comparison.html.
        overwrite: Replace an existing page.

    Raises:
        ConfigError: ``out`` is given for a single run.
        RunError: As for ``compare_runs``.
    """
    if len(runs) > 1:
        page = compare_runs(runs, out or "comparison.html", overwrite=overwrite)
        return Shown([f"comparison: {page}"])
    if out is not None:
        raise ConfigError(
            f"--out {out} is for several runs; the report of one run is always its report.html"
        )
    return Shown([f"report: {write_run_report(RunFolder(Path(runs[0])))}"])


def _check(folders: Sequence[RunFolder], out: Path, *, overwrite: bool) -> None:
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
    """Return the training loss and all validation metrics that any run recorded."""
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
    path = folder.path / "command.txt"
    command = read_text(path, error=RunError).strip() if path.exists() else "(not recorded)"
    return f"# {folder.path}\n{command}\n"


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


# -- Multi-view evaluation: average the class probabilities of several views of a sample ---------
#
# Legend: B samples, V views of each, K classes.

# Tasks whose outputs are probabilities of the whole sample.


def check_views(loaded: Loaded, views: Views) -> None:
    """Check that a model supports several views.

    Raises:
        ConfigError: The model is not a classifier, or its inputs have no time axis for temporal
            views or no spatial axes for spatial views.
    """
    averaged = [row.name for row in tasks().values() if row.averages_views]
    if views.count > 1 and loaded.info.task not in averaged:
        raise ConfigError(
            f"views are {views}, but only the outputs of classifiers are averaged "
            f"({', '.join(averaged)}), and the model's task is "
            f"{loaded.info.task or 'not recorded'}; use 1 temporal and 1 spatial view"
        )
    views.check(loaded.model.config.data_inputs)


def average_views(loaded: Loaded, views: Views, at_once: int) -> Loaded:
    """Wrap a model so that it averages over all views of a sample; unchanged for a single view.

    Args:
        loaded: A trained model.
        views: Numbers of temporal and spatial views per sample.
        at_once: Number of views per forward pass, at least 1.

    Raises:
        ConfigError: As ``check_views``.
    """
    check_views(loaded, views)
    if views.count == 1:
        return loaded
    model = ViewAverage(loaded.model, views.count, loaded.info.task == "multilabel", at_once)
    return replace(loaded, model=model)


class ViewAverage(nn.Module):
    """Wraps a classifier to average its probabilities over the views of each sample.

    It returns logits whose softmax or sigmoid is the mean probability, so losses and metrics need
    no change.

    Args:
        model: Classifier that returns logits ``[B * V, K]``, or several of them by name.
        num_views: Number V of views per sample; the views of a sample are consecutive.
        independent: Whether each output has an independent probability (sigmoid) instead of a
            softmax over all outputs.
        at_once: Number of views per forward pass, at least 1.
    """

    def __init__(self, model: Any, num_views: int, independent: bool, at_once: int) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.num_views = num_views
        self.independent = independent
        self.at_once = max(1, at_once)

    def forward(
        self, inputs: Mapping[str, Tensor], *, present: Mapping[str, Tensor] | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Return logits ``[B, K]`` for inputs ``[B * V, ...]``, or several of them by name.

        Args:
            inputs: Raw tensors by name.
            present: Bool ``[B * V]`` by name, whether a view has the modality; default: all do.
        """
        num_inputs = len(next(iter(inputs.values())))
        rows = [slice(i, i + self.at_once) for i in range(0, num_inputs, self.at_once)]
        answers = [
            answer(self.model, _take(inputs, part), _take(present or {}, part)) for part in rows
        ]
        if isinstance(answers[0], Mapping):
            return {name: self._average([a[name] for a in answers]) for name in answers[0]}
        return self._average(answers)

    def _average(self, parts: list[Tensor]) -> Tensor:
        logits = torch.cat(parts).unflatten(0, (-1, self.num_views))  # [B, V, K]
        return average_sigmoids(logits) if self.independent else average_softmaxes(logits)


def _take(tensors: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: tensor[rows] for name, tensor in tensors.items()}


def average_softmaxes(logits: Float[Tensor, "B V K"]) -> Float[Tensor, "B K"]:
    """Return logits whose softmax is the mean of the softmaxes over the views."""
    return logits.float().log_softmax(-1).logsumexp(1) - log(logits.shape[1])


def average_sigmoids(logits: Float[Tensor, "B V K"]) -> Float[Tensor, "B K"]:
    """Return logits whose sigmoid is the mean of the sigmoids over the views."""
    logits = logits.float()
    return F.logsigmoid(logits).logsumexp(1) - F.logsigmoid(-logits).logsumexp(1)
