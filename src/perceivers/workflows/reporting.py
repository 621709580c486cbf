"""Write a run's self-contained ``report.html`` with figures and tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perceivers.array_files import load_npz
from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.data import make_eval_loader
from perceivers.errors import DataError, RunError, UserError, plain_reason
from perceivers.files import make_folder
from perceivers.foreign import read_text
from perceivers.report.figures import (
    draw_confusion,
    draw_curves,
    draw_mistakes,
    draw_positions,
)
from perceivers.report.html import Section, Table, write_html
from perceivers.report.metrics import read_metrics
from perceivers.report.tables import fill_table, per_class_table
from perceivers.training.config import PretrainConfig, TrainConfig
from perceivers.training.launching import as_typed
from perceivers.training.run_folder import RunFolder
from perceivers.types import Bytes, Image
from perceivers.version import __version__
from perceivers.workflows.opening import open_dataset
from perceivers.workflows.preparing import find_masking
from perceivers.workflows.reconstruction import (
    TARGET_NOTES,
    as_pictures,
    draw_imagined,
    imagine,
    picture_modality,
)
from perceivers.workflows.task_reports import example_section, figures_table, list_texts

TITLES = {
    "pretrain": "Masked auto-encoding",
    "mlm": "Masked bytes",
    "autoencode": "Auto-encoding",
    "classify": "Classification",
    "multilabel": "Multi-label",
    "multitask": "Several tasks",
    "flow": "Optical flow",
    "segment": "Segmentation",
    "regress": "Regression",
}
SHARES = {"val top1", "val macro", "val map", "val miou", "val pixel_accuracy"}
VERBS = dict.fromkeys(TITLES, "train") | dict.fromkeys(
    ("pretrain", "mlm", "autoencode"), "pretrain"
)
# Suggested commands for a model of each task.
NEXT = {
    "pretrain": ("perceivers reconstruct {run} FILE... --out files/",),
    "mlm": ('perceivers predict {run} --text "a [MASK][MASK][MASK] byte each"',),
    "autoencode": ("perceivers reconstruct {run} FILE... --out files/",),
    "classify": ("perceivers evaluate {run}", "perceivers predict {run} FILE..."),
    "multilabel": ("perceivers evaluate {run}", "perceivers predict {run} FILE..."),
    "multitask": ("perceivers evaluate {run}", "perceivers predict {run} FILE..."),
    "flow": ("perceivers evaluate {run}", "perceivers predict {run} FRAME1 FRAME2 --out flow/"),
    "segment": ("perceivers evaluate {run}", "perceivers predict {run} FILE... --out masks/"),
    "regress": ("perceivers evaluate {run}", "perceivers predict {run} FILE..."),
}
# Metrics that are plotted over training if the task has them.
CURVES = (
    *("top1", "macro", "map", "epe", "miou", "r2", "bits_per_byte"),
    *("psnr/image", "psnr/video", "psnr/audio"),
)
SHOWN = 10
# Columns and maximum rows of the table of unreadable samples.
UNREADABLE = ("step", "split", "sample", "reason")
MAX_UNREADABLE = 50
SHOWN_SEED = 7


@dataclass(frozen=True)
class Report:
    """Content of a run folder that the sections are made from."""

    folder: RunFolder
    config: TrainConfig
    loaded: Loaded
    records: Sequence[Mapping[str, Any]]
    results: Mapping[str, Any]


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
    sections = [overview_section(report)]
    if task == "pretrain":
        examples = (pictures_section(report), texts_section(report))
        sections += [s for s in (*examples, positions_section(report)) if s]
    elif task == "classify":
        sections += classification_sections(report)
    else:
        example = example_section(task, report.loaded, report.config, folder.figures)
        found = [figures_table(report.loaded, dict(report.results)), example]
        sections += [s for s in (*found, positions_section(report)) if s]
    sections += [fill_section(split, e) for split, e in report.results.items() if "fill" in e]
    unreadable = unreadable_section(report.folder)
    sections += [unreadable] if unreadable else []
    sections += [curves_section(report), settings_section(report), commands_section(report)]
    kind = TITLES[task]
    typed = as_typed(report.config, folder.read_addresses())
    return write_html(
        folder.report,
        title=f"{kind}: {typed.model} on {typed.data}",
        subtitle=str(folder.path),
        sections=sections,
        footer=f"Written by perceivers {__version__}.",
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


def pictures_section(report: Report) -> Section | None:
    """Show held-out images or video frames: original, masked, reconstructed; None without any."""
    config, loaded = report.config, report.loaded
    assert isinstance(config, PretrainConfig)
    try:
        name = picture_modality(loaded.model)
    except DataError:
        return None
    dataset = open_dataset(config)
    loader = make_eval_loader(
        dataset.splits["val"], loaded.model.config.data_inputs, batch_size=SHOWN
    )
    batch = next(iter(loader))
    settings = find_masking(loaded, config)
    made = imagine(loaded.model, batch, settings, SHOWN_SEED)[name]
    if not len(made.original):
        return None
    pictures = as_pictures(made)
    share = f"{100 * (1 - settings.ratio):.0f} %"
    path = draw_imagined(
        report.folder.figures / "reconstructions.png",
        pictures,
        title=f"Reconstructed from {share} of the input",
        note=TARGET_NOTES[settings.target],
    )
    text = (
        f"Validation images, not used in training. Masking is {settings.kind}: {share} of the "
        f"input was visible, and the model reconstructed the rest. {TARGET_NOTES[settings.target]}"
    )
    return Section(title="Reconstruction", text=text, figures=[(path, "Held-out images.")])


def texts_section(report: Report) -> Section | None:
    """Show held-out texts: masked, reconstructed, original; None without a text input."""
    config, loaded = report.config, report.loaded
    assert isinstance(config, PretrainConfig)
    specs = loaded.model.config.data_inputs
    name = next((n for n, spec in specs.items() if isinstance(spec, Bytes)), None)
    if name is None:
        return None
    source = open_dataset(config).splits["val"]
    batch = next(iter(make_eval_loader(source, specs, batch_size=SHOWN)))
    settings = find_masking(loaded, config)
    found = imagine(loaded.model, batch, settings, SHOWN_SEED)[name]
    text = (
        f"Validation texts, not used in training. Masking is {settings.kind}: "
        f"{100 * (1 - settings.ratio):.0f} % of the input was visible; hidden bytes are "
        f"underscores, and each is replaced by the most likely byte."
    )
    code = list_texts(found.original, ~found.visible, found.reconstructed)
    return Section(title="Reconstructed texts", text=text, code=code)


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


def classification_sections(report: Report) -> list[Section]:
    """Show confusion matrix, per-class table and mistakes on an evaluated split."""
    if not report.results:
        text = f"Not evaluated on held-out data yet: perceivers evaluate {report.folder.path}"
        return [Section(title="Held-out data", text=text)]
    split = "test" if "test" in report.results else next(iter(report.results))
    matrix = np.asarray(report.results[split]["confusion"])
    classes = report.loaded.info.classes
    path = draw_confusion(
        report.folder.figures / f"confusion_{split}.png",
        matrix=matrix,
        classes=classes,
        title=f"Confusion on {split}",
    )
    sections = [
        Section(
            title=f"Held-out data ({split})",
            text=views_note(report.results[split].get("views", "")),
            figures=[(path, "Rows are the truth, columns the prediction.")],
            tables=[per_class_table(matrix, classes)],
        )
    ]
    mistakes = mistakes_section(report, split)
    return [*sections, mistakes] if mistakes else sections


def views_note(views: str) -> str:
    """Describe the views over which probabilities were averaged; empty for a single view."""
    return f"Probabilities are the mean over {views} views of each sample." if views else ""


def mistakes_section(report: Report, split: str) -> Section | None:
    """Show the most confident wrong predictions; None if there are none or no images."""
    loaded, classes = report.loaded, report.loaded.info.classes
    try:
        name = picture_modality(loaded.model)
    except DataError:
        return None
    dataset = open_dataset(report.config)
    if split not in dataset.splits or not isinstance(loaded.model.config.inputs[name], Image):
        return None
    wrong: list[tuple[float, int, int, Any]] = []
    loader = make_eval_loader(dataset.splits[split], loaded.model.config.data_inputs, batch_size=64)
    adapter = loaded.model.adapter(name)
    for batch in loader:
        if batch.labels is None:
            return None
        with torch.no_grad():
            best = loaded.model(batch.inputs).float().softmax(-1).max(-1)
        for row in (best.indices != batch.labels).nonzero().flatten().tolist():
            raw = batch.inputs[name][row : row + 1]
            picture = adapter.restore(adapter.normalise(adapter.flatten(raw), torch.float32))
            truth, predicted = int(batch.labels[row]), int(best.indices[row])
            wrong.append((float(best.values[row]), truth, predicted, picture[0].numpy()))
    if not wrong:
        return None
    wrong = sorted(wrong, key=lambda entry: -entry[0])[: 2 * SHOWN]
    path = draw_mistakes(
        report.folder.figures / f"mistakes_{split}.png",
        images=np.stack([entry[3] for entry in wrong]),
        truth=[classes[entry[1]] for entry in wrong],
        predicted=[classes[entry[2]] for entry in wrong],
        confidence=[entry[0] for entry in wrong],
        title="Most confident mistakes",
    )
    return Section(title="Mistakes", figures=[(path, "Truth, prediction, confidence.")])


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
    return Section(title="Unreadable samples", text=text, tables=[Table(UNREADABLE, rows)])


def settings_section(report: Report) -> Section:
    """Show the complete configuration."""
    return Section(title="Configuration", code=read_text(report.folder.config, error=RunError))


def commands_section(report: Report) -> Section:
    """Show the command of this run, and commands for the reader's own data."""
    run = report.folder.path
    command = read_text(report.folder.path / "command.txt", error=RunError).strip()
    task = report.folder.read_config()[0]
    again = f"perceivers {VERBS[task]} --config {run}/config.yaml --data MY_DATA --out runs/mine"
    lines = [again, *(line.format(run=run) for line in NEXT[task])]
    if VERBS[task] == "pretrain":
        lines.append(f"perceivers finetune --model {run} --data MY_LABELLED_DATA --out runs/mine2")
    else:
        lines.append(f"perceivers export {run} --format onnx --out model.onnx")
    text = "MY_DATA is a folder or another data address (see the documentation on data)."
    code = "\n".join(["# this run", command, "", "# next", *lines])
    return Section(title="Commands", text=text, code=code)
