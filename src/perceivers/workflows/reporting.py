"""Write a run's self-contained ``report.html`` with figures and tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.checkpoints.loading import load_with_info
from perceivers.errors import RunError, UserError, plain_reason
from perceivers.files import make_folder
from perceivers.foreign import read_text
from perceivers.reading import load_npz
from perceivers.report.figures import (
    draw_curves,
    draw_positions,
)
from perceivers.report.html import HtmlTable, Section, fill_table, write_html
from perceivers.report.metrics import read_metrics
from perceivers.training.launching import as_typed
from perceivers.training.run_folder import RunFolder
from perceivers.version import __version__
from perceivers.workflows.task_table import Report, tasks

SHARES = {"val top1", "val macro", "val map", "val miou", "val pixel_accuracy"}
# Metrics that are plotted over training if the task has them.
CURVES = (
    *("top1", "macro", "map", "epe", "miou", "r2", "bits_per_byte"),
    *("psnr/image", "psnr/video", "psnr/audio"),
)
# Columns and maximum rows of the table of unreadable samples.
UNREADABLE = ("step", "split", "sample", "reason")
MAX_UNREADABLE = 50


def open_report(folder: RunFolder) -> Report:
    """Read a run folder.

    Raises:
        UserError: It is not a run folder, or has no model yet.
    """
    return Report(
        folder=folder,
        config=folder.read_config()[1],
        loaded=load_with_info(folder.path),
        records=read_metrics(folder.metrics),
        results=folder.read_results(),
    )


def write_run_report(folder: RunFolder) -> Path:
    """Draw all figures of a run and write its ``report.html``."""
    report = open_report(folder)
    make_folder(folder.figures)
    task = folder.read_config()[0]
    row = tasks()[task]
    sections = [overview_section(report)]
    sections += [metrics_section(report)] if row.shows_metrics else []
    sections += row.report(report)
    positions = positions_section(report)
    sections += [positions] if positions and row.draws_positions else []
    sections += [fill_section(split, e) for split, e in report.results.items() if "fill" in e]
    unreadable = unreadable_section(report.folder)
    sections += [unreadable] if unreadable else []
    sections += [curves_section(report), settings_section(report), commands_section(report)]
    typed = as_typed(report.config, folder.read_addresses())
    return write_html(
        folder.report,
        title=f"{row.title}: {typed.model} on {typed.data}",
        subtitle=str(folder.path),
        sections=sections,
        footer=f"Written by perceivers {__version__}.",
    )


def metrics_section(report: Report) -> Section:
    """Return a table of all metrics, on validation and on evaluated splits."""
    columns = {"validation": dict(report.loaded.info.metrics)}
    columns["validation"] = {
        name.removeprefix("val "): value for name, value in columns["validation"].items()
    }
    columns |= {split: entry["figures"] for split, entry in report.results.items()}
    names = list(dict.fromkeys(name for figures in columns.values() for name in figures))
    rows = [
        (
            name,
            *(f"{figures[name]:.4f}" if name in figures else "-" for figures in columns.values()),
        )
        for name in names
    ]
    note = "" if report.results else "Not evaluated on a test split yet: perceivers evaluate RUN"
    return Section(
        title="Metrics", tables=[HtmlTable(header=("metric", *columns), rows=rows, note=note)]
    )


def overview_section(report: Report) -> Section:
    """Return the key numbers of a run."""
    model = report.loaded.model
    parameters = sum(p.numel() for p in model.parameters())
    last = report.records[-1] if report.records else {"step": 0}
    seconds = max((float(r.get("seconds", 0.0)) for r in report.records), default=0.0)
    tokens = sum(spec.num_tokens for spec in model.config.data_inputs.values())
    facts = [
        (f"{parameters / 1e6:.2f} M", "parameters"),
        (f"{tokens:,}", "raw inputs per sample"),
        (f"{last['step']:,}", "steps"),
        (f"{seconds:,.0f} s", "training time"),
    ]
    facts += [
        (f"{100 * value:.2f} %" if name in SHARES else f"{value:.4f}", name)
        for name, value in report.loaded.info.metrics.items()
        if name in SHARES | {"val loss", "val epe", "val r2"}
    ]
    for split, entry in report.results.items():
        figures = entry["figures"]
        if "top1" in figures:
            facts.append((f"{100 * figures['top1']:.2f} %", f"{split} top-1"))
            if "macro" in figures:
                facts.append((f"{100 * figures['macro']:.2f} %", f"{split} macro accuracy"))
        elif "loss" in figures:
            facts.append((f"{figures['loss']:.4f}", f"{split} loss"))
    return Section(title="Overview", facts=facts)


def read_start_positions(folder: RunFolder) -> tuple[dict[str, NDArray[Any]], str]:
    """Return the position embeddings before training, and an error if their file is damaged."""
    path = folder.figures / "positions_before.npz"
    if not path.exists():
        return {}, ""
    try:
        return load_npz(path), ""
    except UserError as error:
        # A damaged file only costs this panel, not the whole report.
        return {}, f"The embeddings before training cannot be read ({plain_reason(error)})."


def _has_shape(tables: Mapping[str, NDArray[Any]], name: str, shape: Sequence[int]) -> bool:
    table = tables.get(name)
    return table is not None and table.shape == tuple(shape) and bool(np.isfinite(table).all())


def fill_section(split: str, entry: Mapping[str, Any]) -> Section:
    """Show the errors of modalities that were filled in from the others."""
    return Section(title=f"Filled in ({split})", tables=[fill_table(entry["fill"])])


def positions_section(report: Report) -> Section | None:
    """Show learned position embeddings before and after training; None if there are none."""
    figures = []
    before, problem = read_start_positions(report.folder)
    for name, module in report.loaded.model.position_tables().items():
        spec = report.loaded.model.config.inputs[name]
        path = draw_positions(
            report.folder.figures / f"positions_{name}.png",
            before=before[name] if _has_shape(before, name, module().shape) else None,
            after=module().detach().numpy(),
            grid=spec.grid,
            title=f"Learned positions of {name}",
        )
        figures.append((path, f"One row per {name} element, {module().shape[1]} channels."))
    if not figures:
        return None
    text = (
        "The model is not told where an element lies: every element has a learned position "
        "embedding, random at the start. In training, those of neighbours become similar."
    )
    text = f"{text} {problem}".strip()
    return Section(title="Learned positions", text=text, figures=figures)


def curves_section(report: Report) -> Section:
    """Show loss, metrics and learning rate over the run."""
    keys = ["loss"]
    keys += [k for k in CURVES if any(k in r for r in report.records)]
    path = draw_curves(
        report.folder.figures / "curves.png",
        records=report.records,
        keys=[*keys, "lr"],
        title="Training",
    )
    waits = [record["data_wait"] for record in report.records if "data_wait" in record]
    text = (
        f"Waiting for data took {100 * median(waits):.0f} % of the time (median)." if waits else ""
    )
    return Section(title="Curves", text=text, figures=[(path, "From metrics.jsonl.")])


def unreadable_section(folder: RunFolder) -> Section | None:
    """List samples that could not be read; None if there are none."""
    if not folder.unreadable.exists():
        return None
    records = read_metrics(folder.unreadable)
    rows = [[str(r.get(key, "")) for key in UNREADABLE] for r in records[:MAX_UNREADABLE]]
    text = (
        f"{len(records)} samples could not be read: training took another sample instead, and "
        f"evaluation left them out. {folder.unreadable.name} lists all of them."
    )
    return Section(title="Unreadable samples", text=text, tables=[HtmlTable(UNREADABLE, rows)])


def settings_section(report: Report) -> Section:
    """Show the complete configuration."""
    return Section(title="Configuration", code=read_text(report.folder.config, error=RunError))


def commands_section(report: Report) -> Section:
    """Show the command of this run, and commands for the reader's own data."""
    run = report.folder.path
    command = read_text(report.folder.path / "command.txt", error=RunError).strip()
    row = tasks()[report.folder.read_config()[0]]
    again = f"perceivers {row.verb} --config {run}/config.yaml --data MY_DATA --out runs/mine"
    lines = [again, *(line.format(run=run) for line in row.next)]
    if row.verb == "pretrain":
        lines.append(f"perceivers finetune --model {run} --data MY_LABELLED_DATA --out runs/mine2")
    else:
        lines.append(f"perceivers export {run} --format onnx --out model.onnx")
    text = "MY_DATA is a folder or another data address (see the documentation on data)."
    code = "\n".join(["# this run", command, "", "# next", *lines])
    return Section(title="Commands", text=text, code=code)
