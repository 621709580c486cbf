"""Sections of a report beside those of masked auto-encoding and classification."""

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
    """Every figure of the best weights on validation, and of evaluated splits."""
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
        title="Figures", tables=[Table(header=("figure", *columns), rows=rows, note=note)]
    )


def example_section(task: str, loaded: Loaded, config: TrainConfig, folder: Path) -> Section | None:
    """Held-back samples and what the model makes of them; None where there is nothing to draw."""
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
    """Hidden and filled-in texts."""
    name = text_modality(loaded.model)
    ids = _first_batch(loaded, config, SHOWN).inputs[name].long()
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    hidden = hide_words(ids, config.mlm, generator)
    best = score_bytes(loaded.model, {name: hidden.ids}, {}).argmax(-1)
    text = (
        "Validation texts, not trained on. Hidden words are shown as underscores (some were shown "
        "to the model as other words); every hidden byte is filled with the likeliest one."
    )
    return Section(title="Masked bytes", text=text, code=list_texts(ids, hidden.masked, best))


def list_texts(
    ids: Int[Tensor, "B L"], masked: Bool[Tensor, "B L"], best: Int[Tensor, "B L"]
) -> str:
    """Return three lines per text: with underscores for what was hidden, filled in, and the truth.

    Args:
        ids: The texts.
        masked: What was hidden.
        best: What a model puts there.
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
    """Pictures, or the middle frame of clips, as they are given back."""
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
        note="Through the latents alone; clipped to 0..1, nothing else is borrowed.",
    )
    what = "pictures" if batch.inputs[name].ndim == 4 else "clips (their middle frames)"
    text = f"Validation {what}, not trained on: all that is shown below passed the latent array."
    return Section(title="Reconstruction", text=text, figures=[(path, "Held-back samples.")])


@torch.no_grad()
def _flows(loaded: Loaded, config: FlowTrainConfig, folder: Path) -> Section:
    """Frame pairs with true and predicted flow."""
    batch = _first_batch(loaded, config, PAIRS_SHOWN)
    name = flow_modality(loaded.model)
    predicted = loaded.model({name: batch.inputs[name]}).float() * config.flow.scale
    path = draw_flow(
        folder / "flow.png",
        video=batch.inputs[name].numpy(),
        true=batch.inputs[TARGET].numpy(),
        predicted=predicted.numpy(),
        title="Optical flow",
        note="Colour is direction, strength is length; the key gives the scale.",
    )
    return Section(
        title="Flow",
        text="Validation pairs, not trained on.",
        figures=[(path, "Frames, true flow, predicted flow, error.")],
    )


@torch.no_grad()
def _masks(loaded: Loaded, config: SegmentConfig, folder: Path) -> Section:
    """Pictures with true and found masks, spread over the validation split."""
    dataset, specs = open_for_model(loaded, config, config.data)
    source = dataset.splits["val"]
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
        note="As the model sees them; black is void, which is neither learned nor counted.",
    )
    return Section(
        title="Masks",
        text="Validation pictures, not trained on, spread over the split.",
        figures=[
            (path, "Picture, true mask, found mask, and the latter where the truth is known.")
        ],
    )


def _clouds(
    clouds: NDArray[np.float32],
    true: NDArray[np.uint8],
    found: NDArray[np.uint8],
    classes: Sequence[str],
    folder: Path,
) -> Section:
    """Tiles of points ``[B, P, C]`` from above, with true and found classes ``[B, P]``."""
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
        note="From above, high points light; black: no point, or one that belongs to another tile.",
    )
    return Section(
        title="Points",
        text="Tiles of validation scenes, not trained on, spread over the split.",
        figures=[(path, "Height, true classes, found classes, and those that are counted.")],
    )


@torch.no_grad()
def _numbers(loaded: Loaded, config: RegressConfig, folder: Path) -> Section:
    """Predicted against true numbers."""
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
    text = f"{count} validation samples, not trained on; on the line a prediction is exact."
    return Section(title="Predictions", text=text, figures=[(path, "A point per sample.")])
