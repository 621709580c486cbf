"""Report sections of all tasks except masked autoencoding and classification."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from perceivers.checkpoints.loading import Loaded
from perceivers.data import AugmentConfig, Batch, make_eval_loader
from perceivers.data.byte_codec import decode_ids
from perceivers.data.fitting import SampleReader
from perceivers.data.loaders import read_readable
from perceivers.report.figures import draw_reconstructions
from perceivers.report.figures.canvases import choose_side, look_down, shade_heights
from perceivers.report.figures.flow import draw_flow
from perceivers.report.figures.scores import draw_regression
from perceivers.report.figures.segmentation import draw_masks
from perceivers.report.html import Section, Table
from perceivers.tasks.autoencoding import Autoencoding, as_floats, decode_raw
from perceivers.tasks.flow import TARGET, flow_modality
from perceivers.tasks.mlm import EVALUATION_SEED, hide_words, score_bytes, text_modality
from perceivers.tasks.presence import answer, held_modalities
from perceivers.tasks.regression import Regression
from perceivers.tasks.segmentation import IGNORED, Segmentation, element_logits, segmented_modality
from perceivers.tasks.segmentation import TARGET as MASKS
from perceivers.training.config import (
    AutoencodeConfig,
    FlowTrainConfig,
    MlmConfig,
    RegressConfig,
    SegmentConfig,
    TrainConfig,
)
from perceivers.types import FIRST_BYTE, PAD, Image, Points, Video
from perceivers.workflows.evaluation import open_for_model
from perceivers.workflows.preparing import rebuild_task

SHOWN = 8
PAIRS_SHOWN = 4
MASKS_SHOWN = 6
NUMBERS_SHOWN = 512


def figures_table(loaded: Loaded, results: dict[str, Any]) -> Section:
    """Return a table of all metrics, on validation and on evaluated splits."""
    columns = {"validation": dict(loaded.info.metrics)}
    columns["validation"] = {
        name.removeprefix("val "): value for name, value in columns["validation"].items()
    }
    columns |= {split: entry["figures"] for split, entry in results.items()}
    names = list(dict.fromkeys(name for figures in columns.values() for name in figures))
    rows = [
        (
            name,
            *(f"{figures[name]:.4f}" if name in figures else "-" for figures in columns.values()),
        )
        for name in names
    ]
    note = "" if results else "Not evaluated on a test split yet: perceivers evaluate RUN"
    return Section(
        title="Metrics", tables=[Table(header=("metric", *columns), rows=rows, note=note)]
    )


def example_section(task: str, loaded: Loaded, config: TrainConfig, folder: Path) -> Section | None:
    """Show held-out samples with predictions; None if there is nothing to draw."""
    if task == "mlm" and isinstance(config, MlmConfig):
        return _texts(loaded, config)
    if task == "autoencode" and isinstance(config, AutoencodeConfig):
        return _reconstructions(loaded, config, folder)
    if task == "flow" and isinstance(config, FlowTrainConfig):
        return _flows(loaded, config, folder)
    if task == "segment" and isinstance(config, SegmentConfig):
        return _masks(loaded, config, folder)
    if task == "regress" and isinstance(config, RegressConfig):
        return _numbers(loaded, config, folder)
    return None


def _first_batch(loaded: Loaded, config: TrainConfig, size: int) -> Batch:
    dataset, specs = open_for_model(loaded, config, config.data)
    return next(iter(make_eval_loader(dataset.splits["val"], specs, batch_size=size)))


@torch.no_grad()
def _texts(loaded: Loaded, config: MlmConfig) -> Section:
    name = text_modality(loaded.model)
    ids = _first_batch(loaded, config, SHOWN).inputs[name].long()
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    hidden = hide_words(ids, config.mlm, generator)
    best = score_bytes(loaded.model, {name: hidden.ids}, {}).argmax(-1)
    text = (
        "Validation texts, not used in training. Hidden words are shown as underscores (in some "
        "places the model read another word); every hidden byte is replaced by the most likely one."
    )
    return Section(title="Masked bytes", text=text, code=list_texts(ids, hidden.masked, best))


def list_texts(
    ids: Int[Tensor, "B L"], masked: Bool[Tensor, "B L"], best: Int[Tensor, "B L"]
) -> str:
    """Return three lines per text: hidden bytes as underscores, filled in, and the original.

    Args:
        ids: Ids of the original texts.
        masked: Which bytes were hidden.
        best: Predicted ids.
    """
    lines = []
    for row in range(len(ids)):
        hidden = masked[row] & (ids[row] != PAD)
        shaded = torch.where(hidden, FIRST_BYTE + ord("_"), ids[row])
        filled = torch.where(hidden, best[row], ids[row])
        for label, text in (("hidden", shaded), ("filled", filled), ("truth ", ids[row])):
            lines.append(f"{label} | {_one_line(decode_ids(text.numpy()))}")
        lines.append("")
    return "\n".join(lines).rstrip()


def _one_line(text: str, width: int = 150) -> str:
    return " ".join(text.split("\n"))[:width]


@torch.no_grad()
def _reconstructions(loaded: Loaded, config: AutoencodeConfig, folder: Path) -> Section | None:
    """Show reconstructed images, or the middle frames of clips; None without these outputs."""
    name = next(
        (
            n
            for n, spec in loaded.model.config.inputs.items()
            if isinstance(spec, Image | Video) and n in loaded.model.config.outputs
        ),
        None,
    )
    if name is None:
        return None
    batch = _first_batch(loaded, config, SHOWN)
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


@torch.no_grad()
def _flows(loaded: Loaded, config: FlowTrainConfig, folder: Path) -> Section:
    """Show frame pairs with true and predicted flow."""
    batch = _first_batch(loaded, config, PAIRS_SHOWN)
    name = flow_modality(loaded.model)
    predicted = loaded.model({name: batch.inputs[name]}).float() * config.flow.scale
    path = draw_flow(
        folder / "flow.png",
        video=batch.inputs[name].numpy(),
        true=batch.inputs[TARGET].numpy(),
        predicted=predicted.numpy(),
        title="Optical flow",
        note="Hue is the direction, intensity the length of motion; the key gives the scale.",
    )
    return Section(
        title="Flow",
        text="Validation pairs, not used in training.",
        figures=[(path, "Frames, true flow, predicted flow, error.")],
    )


@torch.no_grad()
def _masks(loaded: Loaded, config: SegmentConfig, folder: Path) -> Section:
    """Show images or point clouds with true and predicted masks."""
    dataset, specs = open_for_model(loaded, config, config.data)
    source = dataset.splits["val"]
    # Neighbouring samples may be similar, so they are spread over the split.
    places = torch.linspace(0, len(source) - 1, min(MASKS_SHOWN, len(source))).round().long()
    reader = SampleReader(source, specs, AugmentConfig())
    batch = read_readable(reader, places.tolist())
    name = segmented_modality(loaded.model)
    inputs = {key: raw for key, raw in batch.inputs.items() if key != MASKS}
    task = rebuild_task(loaded, config)
    assert isinstance(task, Segmentation)
    logits = answer(loaded.model, inputs, held_modalities(loaded.model, batch))
    found = element_logits(loaded.model, logits).argmax(1)
    true = task.true_classes(batch).to(torch.uint8).numpy()
    if isinstance(specs[name], Points):
        clouds = inputs[name].numpy()
        return _clouds(clouds, true, found.to(torch.uint8).numpy(), loaded.info.classes, folder)
    adapter = loaded.model.adapter(name)
    pictures = adapter.restore(adapter.normalise(adapter.flatten(inputs[name]), torch.float32))
    path = draw_masks(
        folder / "masks.png",
        pictures=pictures.numpy(),
        true=true,
        found=found.to(torch.uint8).numpy(),
        classes=loaded.info.classes,
        title="Segmentation",
        note="As the model reads them; black is void, which is ignored in training and metrics.",
    )
    return Section(
        title="Masks",
        text="Validation images, not used in training, spread over the split.",
        figures=[
            (path, "Image, true mask, predicted mask, and the latter where the truth is known.")
        ],
    )


def _clouds(
    clouds: NDArray[np.float32],
    true: NDArray[np.uint8],
    found: NDArray[np.uint8],
    classes: Sequence[str],
    folder: Path,
) -> Section:
    """Show tiles of points ``[B, P, C]`` from above, with true and predicted classes ``[B, P]``."""
    side = choose_side(clouds.shape[1])
    seen = [look_down(cloud, side) for cloud in clouds]
    shaded = [shade_heights(cloud, view) for cloud, view in zip(clouds, seen, strict=True)]
    drawn = [
        [np.where(view < 0, IGNORED, ids[view]) for ids, view in zip(table, seen, strict=True)]
        for table in (true, found)
    ]
    path = draw_masks(
        folder / "masks.png",
        pictures=np.stack(shaded),
        true=np.stack(drawn[0]).astype(np.uint8),
        found=np.stack(drawn[1]).astype(np.uint8),
        classes=classes,
        title="Segmentation",
        note="From above, high points are light. Black: no point, or a point of another tile.",
    )
    return Section(
        title="Points",
        text="Tiles of validation scenes, not used in training, spread over the split.",
        figures=[(path, "Height, true classes, predicted classes, and those that are counted.")],
    )


@torch.no_grad()
def _numbers(loaded: Loaded, config: RegressConfig, folder: Path) -> Section:
    """Plot predicted against true numbers."""
    task = rebuild_task(loaded, config)
    assert isinstance(task, Regression)
    dataset, specs = open_for_model(loaded, config, config.data)
    true, made, count = [], [], 0
    for batch in make_eval_loader(dataset.splits["val"], specs, batch_size=SHOWN * 8):
        if batch.targets is None or count >= NUMBERS_SHOWN:
            break
        answers = answer(loaded.model, batch.inputs, held_modalities(loaded.model, batch))
        true.append(batch.targets)
        made.append(task.restore(answers))
        count += len(batch)
    path = draw_regression(
        folder / "numbers.png",
        true=torch.cat(true).numpy(),
        predicted=torch.cat(made).numpy(),
        names=task.names,
        title="Predicted and true numbers",
    )
    text = f"{count} validation samples, not used in training; points on the line are exact."
    return Section(title="Predictions", text=text, figures=[(path, "One point per sample.")])
