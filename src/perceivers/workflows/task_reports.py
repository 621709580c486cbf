"""Sections of a report beside those of masked auto-encoding and classification."""

from pathlib import Path
from typing import Any

import torch

from perceivers.checkpoints.loading import Loaded
from perceivers.data import Batch, make_eval_loader
from perceivers.data.byte_codec import decode_ids
from perceivers.report.figures import draw_reconstructions
from perceivers.report.figures.flow import draw_flow
from perceivers.report.html import Section, Table
from perceivers.tasks.autoencoding import Autoencoding, as_floats, decode_raw
from perceivers.tasks.flow import TARGET, flow_modality
from perceivers.tasks.mlm import EVALUATION_SEED, hide_words, text_modality
from perceivers.training.config import (
    AutoencodeConfig,
    FlowTrainConfig,
    MlmConfig,
    TrainConfig,
)
from perceivers.types import FIRST_BYTE, Image, Video
from perceivers.workflows.evaluation import open_for_model
from perceivers.workflows.preparing import rebuild_task

SHOWN = 8
PAIRS_SHOWN = 4


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
    best = loaded.model({name: hidden.ids}, outputs=[name]).argmax(-1)
    lines = []
    for row in range(len(ids)):
        masked = hidden.masked[row]
        shaded = torch.where(masked, FIRST_BYTE + ord("_"), ids[row])
        filled = torch.where(masked, best[row], ids[row])
        for label, text in (("hidden", shaded), ("filled", filled), ("truth ", ids[row])):
            lines.append(f"{label} | {_one_line(decode_ids(text.numpy()))}")
        lines.append("")
    text = (
        "Validation texts, not trained on. Hidden words are shown as underscores (some were shown "
        "to the model as other words); every hidden byte is filled with the likeliest one."
    )
    return Section(title="Masked bytes", text=text, code="\n".join(lines).rstrip())


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
    task = rebuild_task("autoencode", loaded.model, config, loaded.info)
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
