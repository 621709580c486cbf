"""Show what a pre-trained model imagines: original, masked and reconstructed pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch import Tensor

from perceivers.checkpoints.loading import Loaded
from perceivers.data import find_files, read_files
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.masking import draw_mask_plan
from perceivers.report.figures import draw_reconstructions
from perceivers.tasks import MaskedAutoencodingConfig
from perceivers.tasks.mae import Target, reconstruct_inputs, visible_elements
from perceivers.types import Image

TARGET_NOTES: dict[str, str] = {
    "raw": "Trained on raw values; shown as predicted.",
    "per-channel": "Trained on channel-standardised values; shown with that undone.",
    "group-normalised": (
        "Trained on group-standardised values; mean and deviation of every group were borrowed "
        "from the original picture."
    ),
}
MASK_GREY = 0.5
SHOWN = 12


@dataclass(frozen=True)
class Pictures:
    """Arrays ``[n, C, H, W]`` in 0..1; ``visible`` is ``[n, 1, H, W]``."""

    original: NDArray[np.float32]
    visible: NDArray[np.bool_]
    reconstructed: NDArray[np.float32]

    @property
    def pasted(self) -> NDArray[np.float32]:
        """The reconstruction with the visible elements put back."""
        return np.where(self.visible, self.original, self.reconstructed)

    @property
    def masked(self) -> NDArray[np.float32]:
        """What the model saw, the rest grey."""
        return np.where(self.visible, self.original, np.float32(MASK_GREY))


def picture_modality(model: Any) -> str:
    """Return the name of the model's picture input.

    Raises:
        DataError: It has none.
    """
    for name, spec in model.config.data_inputs.items():
        if isinstance(spec, Image):
            return name
    raise DataError(
        f"pictures can be drawn of image inputs; this model reads {list(model.config.inputs)}"
    )


def imagine(
    model: Any, raw: dict[str, Tensor], mask: MaskedAutoencodingConfig, target: Target, seed: int
) -> Pictures:
    """Mask a batch of pictures and reconstruct them."""
    name = picture_modality(model)
    generator = torch.Generator().manual_seed(seed)
    plan = draw_mask_plan(
        model.layout(),
        len(raw[name]),
        ratio=mask.ratio,
        kind=mask.kind,
        generator=generator,
    )
    adapter = model.adapter(name)
    tokens = adapter.normalise(adapter.flatten(raw[name]), torch.float32)
    imagined = reconstruct_inputs(model.eval(), raw, plan, target)[name]
    return Pictures(
        original=adapter.restore(tokens).numpy(),
        visible=visible_elements(model, plan, name).numpy(),
        reconstructed=imagined.float().clamp(0, 1).numpy(),
    )


def reconstruct_pictures(
    loaded: Loaded,
    mask: MaskedAutoencodingConfig,
    paths: Sequence[str | Path],
    out: Path,
    *,
    seed: int,
    overwrite: bool,
) -> list[Path]:
    """Write ``NAME_original.png``, ``_masked.png`` and ``_reconstructed.png`` per picture (HiP).

    Args:
        loaded: A masked auto-encoder.
        mask: What is hidden.
        paths: Pictures, or folders searched for pictures.
        out: Folder for the pictures and ``overview.png``, which names the target space.
        seed: Seed of the masks.
        overwrite: Replace pictures of an earlier call in ``out``.

    Returns:
        The files written; the overview is the last.

    Raises:
        UserError: The model cannot reconstruct, a path does not exist, no picture is readable, or
            ``out`` holds an earlier overview and ``overwrite`` is off.
    """
    if loaded.model.decoder is None:
        raise CheckpointError(
            f"{loaded.folder} has no decoder, so it cannot reconstruct; give the pre-training run"
        )
    overview = out / "overview.png"
    if overview.exists() and not overwrite:
        raise ConfigError(f"{overview} exists; pass --overwrite or another --out")
    target: Target = loaded.info.target or "per-channel"  # pyright: ignore[reportAssignmentType]
    files = find_files([str(path) for path in paths])
    written: list[Path] = []
    batches: list[Pictures] = []
    bad: list[str] = []
    names: list[str] = []
    for batch_files, batch in read_files(files, loaded.model.config.data_inputs, 16):
        bad += batch.bad
        if batch_files:
            batches.append(imagine(loaded.model, batch.inputs, mask, target, seed))
            written += save_pictures(out, batches[-1], batch_files, names)
    if not batches:
        raise DataError(f"no readable picture among {len(files)} files: {'; '.join(bad[:3])}")
    title = f"Reconstruction from {100 * (1 - mask.ratio):.0f} % of the pixels"
    return [*written, draw_overview(overview, batches, names, title, TARGET_NOTES[target])]


def save_pictures(
    folder: Path, pictures: Pictures, files: Sequence[Path], names: list[str]
) -> list[Path]:
    """Write three files per picture; ``names`` collects the stems that are taken."""
    written = []
    for row, file in enumerate(files):
        stem = unique_stem(file.stem, names)
        names.append(stem)
        for kind in ("original", "masked", "reconstructed"):
            path = folder / f"{stem}_{kind}.png"
            written.append(save_picture(path, getattr(pictures, kind)[row]))
    return written


def draw_overview(
    path: Path, batches: Sequence[Pictures], names: Sequence[str], title: str, note: str
) -> Path:
    """Draw the first pictures of all batches in one figure."""

    def join(part: str) -> NDArray[Any]:
        return np.concatenate([getattr(pictures, part) for pictures in batches])[:SHOWN]

    return draw_reconstructions(
        path,
        original=join("original"),
        visible=join("visible"),
        reconstructed=join("reconstructed"),
        masked_only=join("pasted"),
        names=names[:SHOWN],
        title=title,
        note=note,
    )


def unique_stem(stem: str, taken: Sequence[str]) -> str:
    """Number a stem that another file has used already."""
    name, count = stem, 2
    while name in taken:
        name, count = f"{stem}-{count}", count + 1
    return name


def save_picture(path: Path, array: NDArray[np.float32]) -> Path:
    """Write one ``[C, H, W]`` array in 0..1 as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.round(array.clip(0, 1) * 255).astype(np.uint8)
    if pixels.shape[0] not in {1, 3, 4}:
        pixels = pixels[:1]
    picture = pixels[0] if pixels.shape[0] == 1 else np.moveaxis(pixels, 0, -1)
    Pillow.fromarray(picture).save(path)
    return path
