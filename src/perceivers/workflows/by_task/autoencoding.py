"""The task ``autoencode``: reconstruct all elements through the latents."""

from collections.abc import Iterator
from pathlib import Path

import torch

from perceivers.errors import ConfigError, DataError
from perceivers.report.figures import draw_reconstructions
from perceivers.report.html import Section
from perceivers.tasks import Autoencoding, AutoencodingConfig
from perceivers.tasks.autoencoding import EVALUATION_SEED, as_floats, decode_raw
from perceivers.training.config import AutoencodeConfig
from perceivers.types import Labels
from perceivers.workflows.building import fresh_or_continued
from perceivers.workflows.opening import open_dataset
from perceivers.workflows.reconstructing import reconstruct
from perceivers.workflows.task_table import (
    FileRequest,
    FileTask,
    Prepared,
    Record,
    Report,
    TaskRow,
    first_batch,
    model_info,
    rebuild_task,
)

SHOWN = 8


def prepare_autoencoding(config: AutoencodeConfig) -> Prepared:
    """Prepare autoencoding through the latents; a label of the data becomes a modality."""
    dataset = open_dataset(config)
    extra = {"label": Labels(len(dataset.classes))} if dataset.classes else {}
    model, notes = fresh_or_continued(config, dataset, extra)
    task = Autoencoding(model, config.autoencode)
    known = [model.config.inputs[name].num_classes for name in task.labels]
    if known and known[0] != len(dataset.classes):
        raise DataError(
            f"{config.model} autoencodes a label of {known[0]} classes, but {config.data} has "
            f"{len(dataset.classes)}; give data with those classes, or start from a variant"
        )
    info = model_info(config, "autoencode", dataset.classes if task.labels else ())
    return Prepared(task, dataset, model.config.data_inputs, info, [*dataset.notes, *notes])


def _write_signals(request: FileRequest) -> Iterator[Record]:
    if not request.paths:
        raise ConfigError("nothing to predict; give files or folders")
    written = reconstruct(request.model, request.paths, request.out, overwrite=request.overwrite)
    files = [str(path) for path in request.paths]
    yield {"files": files, "written": [str(path) for path in written]}


@torch.no_grad()
def _reconstructions(report: Report) -> Section | None:
    """Show reconstructed images, or the middle frames of clips; None without these outputs."""
    loaded, config, folder = report.loaded, report.config, report.folder.figures
    assert isinstance(config, AutoencodeConfig)
    name = next(
        (
            n
            for n, spec in loaded.model.config.inputs.items()
            if spec.has_pixels and n in loaded.model.config.outputs
        ),
        None,
    )
    if name is None:
        return None
    batch = first_batch(loaded, config, SHOWN)
    task = rebuild_task(loaded, config)
    assert isinstance(task, Autoencoding)
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    encoded, visible = task.encode_for_display(batch, generator)
    original = as_floats(loaded.model, name, batch.inputs[name])
    made = decode_raw(loaded.model, encoded, name).clamp(0, 1)
    seen = visible[name].expand(-1, 1, *original.shape[2:])
    if original.ndim == 5:
        middle = original.shape[2] // 2
        original, made, seen = original[:, :, middle], made[:, :, middle], seen[:, :, middle]
    share = f"{100 * (1 - config.autoencode.mask_ratio):.0f} %"
    path = draw_reconstructions(
        folder / "reconstructions.png",
        original=original.clamp(0, 1).numpy(),
        visible=seen.numpy(),
        reconstructed=made.numpy(),
        title=f"Reconstructed from {share} of the tokens",
        note="Reconstructed from the latents alone; clipped to 0..1.",
    )
    what = "images" if batch.inputs[name].ndim == 4 else "clips (their middle frames)"
    text = f"Validation {what}, not used in training, reconstructed from the latent array alone."
    return Section(title="Reconstruction", text=text, figures=[(path, "Held-out samples.")])


def sections(report: Report) -> list[Section]:
    """Return reconstructed images or frames."""
    found = _reconstructions(report)
    return [found] if found else []


def _describe(record: Record) -> str:
    written = record["written"]
    return f"{len(written)} files in {Path(written[-1]).parent}; see {written[-1]}"


FILES = FileTask("passes files through an autoencoder", "reconstructed", _write_signals, _describe)
ROW = TaskRow(
    name="autoencode",
    verb="pretrain",
    title="Autoencoding",
    config=AutoencodeConfig,
    settings=("autoencode", AutoencodingConfig),
    prepare=prepare_autoencoding,
    rebuild=lambda loaded, settings: Autoencoding(loaded.model, settings),
    files=lambda loaded: FILES,
    report=sections,
    next=("perceivers reconstruct {run} FILE... --out files/",),
)
