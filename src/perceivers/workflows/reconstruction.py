"""Reconstruct files with masked autoencoders and Perceiver IO, and draw overview figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch import Tensor

from perceivers.checkpoints.loading import Loaded
from perceivers.data import Batch, find_files, read_files
from perceivers.data.byte_codec import decode_ids
from perceivers.data.writing import AXES, list_sound_rates, write_clip, write_ply, write_wav
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.files import write_atomic
from perceivers.finite import check_answer
from perceivers.models.masked import Imagined, MaskSettings
from perceivers.report.figures import draw_reconstructions
from perceivers.report.figures.reconstruction import FilledRow, SoundRow, draw_filled, draw_sounds
from perceivers.report.figures.samples import SampleBox, draw_parts, show_points
from perceivers.tasks.autoencoding import (
    Autoencoding,
    AutoencodingConfig,
    as_floats,
    decode_raw,
)
from perceivers.tasks.base import can_lack, held_modalities
from perceivers.tasks.mae import objective_of
from perceivers.types import FIRST_BYTE, PAD, Audio, Bytes, Image, ModalitySpec, Points, Video

# -- Figures of reconstructions: one per modality ------------------------------------------------

# Maximum number of rows of a figure.
SHOWN_PER_KIND = 6
COLUMNS = ("visible input", "reconstructed", "original")
# Values in place of hidden elements; other kinds are grey.
BLANKS: dict[str, float] = {"audio": 0.0, "bytes": FIRST_BYTE + ord("_"), "points": float("nan")}
GREY = 0.5


def split_parts(imagined: Imagined, spec: ModalitySpec) -> dict[str, Tensor]:
    """Return ``original``, ``masked`` and ``reconstructed`` signals for files and figures.

    Hidden elements become grey, silence, underscores or missing points; padding of texts is kept.
    """
    parts = {
        "original": imagined.original,
        "masked": torch.where(imagined.visible, imagined.original, BLANKS.get(spec.kind, GREY)),
        "reconstructed": imagined.reconstructed,
    }
    if isinstance(spec, Bytes):
        blank = imagined.original == PAD
        return {name: torch.where(blank, PAD, part) for name, part in parts.items()}
    return {name: part.float() for name, part in parts.items()}


def draw_signals(
    path: Path,
    batches: Sequence[tuple[Imagined, Sequence[str]]],
    spec: ModalitySpec,
    *,
    title: str,
    note: str,
) -> Path:
    """Draw the first samples of a modality that is neither images nor video.

    Args:
        path: Path of the PNG.
        batches: Reconstructions of each batch, and the names of its samples.
        spec: Spec of the modality.
        title: Title of the figure.
        note: Explanation below the figure.
    """
    first = (
        ""
        if sum(len(names) for _, names in batches) <= SHOWN_PER_KIND
        else f" The first {SHOWN_PER_KIND}."
    )
    if isinstance(spec, Audio):
        sounds = [row for each, names in batches for row in _sound_rows(each, names, spec)]
        about = f"{note} Left: 40 milliseconds around the loudest sample.{first}"
        return draw_sounds(path, sounds[:SHOWN_PER_KIND], title=title, note=about)
    rows = [row for each, names in batches for row in _filled_rows(each, names, spec)]
    return draw_filled(path, rows[:SHOWN_PER_KIND], columns=COLUMNS, title=title, note=note + first)


def _sound_rows(imagined: Imagined, names: Sequence[str], spec: Audio) -> list[SoundRow]:
    """Return one row per recording, with its first channel."""
    rows = []
    for row, name in enumerate(names):
        waves = (imagined.original[row, 0], imagined.reconstructed[row, 0])
        original, made = (wave.double().numpy() for wave in waves)
        visible = imagined.visible[row, 0].numpy()
        rows.append(SoundRow(name, original, made, visible, float(sound_rate(spec))))
    return rows


def _filled_rows(imagined: Imagined, names: Sequence[str], spec: ModalitySpec) -> list[FilledRow]:
    parts = split_parts(imagined, spec)
    columns = [parts[name] for name in ("masked", "reconstructed", "original")]
    return [
        FilledRow(name, *(_draw(column[row], parts["original"][row], spec) for column in columns))
        for row, name in enumerate(names)
    ]


def _draw(signal: Tensor, original: Tensor, spec: ModalitySpec) -> list[NDArray[np.uint8] | str]:
    """Return a text, or an image of other signals; clouds are drawn at the original's scale."""
    if isinstance(spec, Bytes):
        return [decode_ids(signal[signal != PAD].numpy())]
    if isinstance(spec, Points):
        return [show_points(signal.numpy(), None, 0, original.numpy())]
    box = SampleBox({"x": signal.numpy()}, {"x": spec.kind}, "", "", {})
    return draw_parts(box, 0)


# -- Write one signal to a file ------------------------------------------------------------------
#
# Images are written as ``.png``, clips as ``.mp4``, audio as ``.wav``, points as ``.npy`` and,
# with three coordinates, ``.ply``, texts as ``.txt`` and other arrays as ``.npy``.

# Rates that every player supports, for data without a rate.
DEFAULT_FRAME_RATE, DEFAULT_SAMPLE_RATE = 25.0, 16_000


def write_signal(
    folder: Path,
    stem: str,
    spec: ModalitySpec,
    signal: Tensor,
    *,
    frame_step: int = 1,
    sound: tuple[Audio, Tensor] | None = None,
) -> list[Path]:
    """Write one signal to a file; values outside its range are clipped.

    Args:
        folder: Output folder, which must exist.
        stem: Name of the file without extension.
        spec: Spec of the signal.
        signal: Floats in the raw layout without a batch axis; for texts, ids ``[L]``. Rows of NaN
            are missing points.
        frame_step: Frames of the spec per frame of the clip.
        sound: Spec and waveform of the sound of a clip.

    Raises:
        UserError: The signal or its rate cannot be written, or a library is missing.
    """
    if isinstance(spec, Video):
        pixels = (signal.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        wave, rate = None, 0
        if sound is not None:
            rate, wave = sound_rate(sound[0]), sound[1].clamp(-1, 1).numpy()
        frame_rate = (spec.frame_rate or DEFAULT_FRAME_RATE) / frame_step
        return [write_clip(folder / f"{stem}.mp4", pixels, frame_rate, wave, rate)]
    if isinstance(spec, Audio):
        wave = signal.clamp(-1, 1).numpy()
        return [write_wav(folder / f"{stem}.wav", wave, sound_rate(spec))]
    if isinstance(spec, Image):
        return [save_picture(folder / f"{stem}.png", signal.numpy())]
    if isinstance(spec, Bytes):
        return [write_atomic(folder / f"{stem}.txt", decode_ids(signal.numpy()) + "\n")]
    array = signal.numpy()
    if isinstance(spec, Points):
        array = array[np.isfinite(array).all(-1)]
    path = folder / f"{stem}.npy"
    np.save(path, array)
    if not isinstance(spec, Points) or spec.channels < len(AXES):
        return [path]
    return [path, write_ply(folder / f"{stem}.ply", array)]


def sound_rate(spec: Audio) -> int:
    """Return the sample rate of written audio, in Hz."""
    return spec.sample_rate or DEFAULT_SAMPLE_RATE


def fits_clip(spec: Audio) -> bool:
    """Return whether a clip can be written with such audio."""
    return spec.channels <= 2 and sound_rate(spec) in list_sound_rates()


def save_picture(path: Path, array: NDArray[np.float32]) -> Path:
    """Write one ``[C, H, W]`` array in 0..1 as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.round(array.clip(0, 1) * 255).astype(np.uint8)
    # Other numbers of channels have no colour format; their first channel is written in grey.
    if pixels.shape[0] not in {1, 3, 4}:
        pixels = pixels[:1]
    picture = pixels[0] if pixels.shape[0] == 1 else np.moveaxis(pixels, 0, -1)
    Pillow.fromarray(picture).save(path)
    return path


# -- Reconstruct files with a masked autoencoder -------------------------------------------------

TARGET_NOTES: dict[str, str] = {
    "raw": "Trained on raw values; shown as predicted.",
    "per-channel": "Trained on channel-standardised values; shown in the original range.",
    "group-normalised": (
        "Trained on group-standardised values; mean and deviation of every group were borrowed "
        "from the original."
    ),
    "patch-normalised": (
        "Trained on patch-standardised values of hidden patches; mean and deviation of every patch "
        "were borrowed from the original."
    ),
}
TEXT_NOTE = "The most likely byte at every position; hidden bytes are underscores."
SHOWN = 12


@dataclass(frozen=True)
class Pictures:
    """Images ``[n, C, H, W]`` in 0..1; ``visible`` is ``[n, 1, H, W]``."""

    original: NDArray[np.float32]
    visible: NDArray[np.bool_]
    reconstructed: NDArray[np.float32]

    @property
    def pasted(self) -> NDArray[np.float32]:
        """The reconstruction with the visible elements pasted in."""
        return np.where(self.visible, self.original, self.reconstructed)

    @property
    def is_pasted(self) -> bool:
        """Whether the reconstruction already contains the visible elements."""
        return bool(np.allclose(self.pasted, self.reconstructed, rtol=0.0, atol=1e-4))

    @property
    def masked(self) -> NDArray[np.float32]:
        """The visible elements; hidden ones are grey."""
        return np.where(self.visible, self.original, np.float32(GREY))


def picture_modality(model: Any) -> str:
    """Return the name of the model's image or video input.

    Raises:
        DataError: The model has neither.
    """
    for kind in (Image, Video):
        for name, spec in model.config.data_inputs.items():
            if isinstance(spec, kind):
                return name
    raise DataError(
        f"only image and video inputs can be drawn; this model reads {list(model.config.inputs)}"
    )


def imagine(model: Any, batch: Batch, settings: MaskSettings, seed: int) -> dict[str, Imagined]:
    """Mask and reconstruct a batch; each modality contains only the samples that have it."""
    objective = objective_of(model.eval())
    plan = objective.draw(batch.inputs, settings, torch.Generator().manual_seed(seed))
    held = held_modalities(model, batch)
    made = objective.imagine(batch.inputs, plan, settings.target, shown=held)
    return {name: each.take(held[name]) if name in held else each for name, each in made.items()}


def as_pictures(imagined: Imagined) -> Pictures:
    """Convert to images for a figure; clips become their middle frame."""
    parts = (imagined.original, imagined.visible, imagined.reconstructed)
    original, visible, made = (x[:, :, x.shape[2] // 2] if x.ndim == 5 else x for x in parts)
    return Pictures(original.numpy(), visible.numpy(), made.float().clamp(0, 1).numpy())


def reconstruct_masked(
    loaded: Loaded,
    settings: MaskSettings,
    paths: Sequence[str | Path],
    out: Path,
    *,
    seed: int,
    overwrite: bool,
) -> list[Path]:
    """Write ``NAME_original``, ``_masked`` and ``_reconstructed`` per file.

    Images are written as png, clips as mp4, audio as wav, texts as txt (hidden bytes are
    underscores) and point clouds as npy and ply. Files of several modalities are paired by name; a
    sample may lack some of them.

    Args:
        loaded: A masked autoencoder.
        settings: Masking and target space.
        paths: Files of the kinds that the model reads, or folders searched for them.
        out: Folder for the files, ``overview.png``, which names the target space, and, with several
            modalities, ``overview_NAME.png`` for each further one.
        seed: Seed of the masks.
        overwrite: Replace files of an earlier call in ``out``.

    Returns:
        The written files; the overview is the last.

    Raises:
        UserError: The model cannot reconstruct, a path does not exist, nothing is readable, or
            ``out`` holds an earlier overview and ``overwrite`` is off.
    """
    if loaded.model.decoder is None:
        raise CheckpointError(
            f"{loaded.folder} has no decoder, so it cannot reconstruct; give the pre-training run"
        )
    overview = out / "overview.png"
    if overview.exists() and not overwrite:
        raise ConfigError(f"{overview} exists; pass --overwrite or another --out")
    specs = loaded.model.config.data_inputs
    files = find_files([str(path) for path in paths], tuple(specs))
    written: list[Path] = []
    shown: dict[str, list[tuple[Imagined, list[str]]]] = {}
    bad: list[str] = []
    names: list[str] = []
    for found, batch in read_files(files, specs, 16, may_lack=can_lack(loaded.model)):
        bad += batch.bad
        if not found:
            continue
        for file in found:
            names.append(unique_stem(file.stem, names))
        for name, each in imagine(loaded.model, batch, settings, seed).items():
            stems = _stems_holding(batch, name, names[-len(found) :])
            written += save_imagined(out, stems, each, specs[name])
            kept = shown.setdefault(name, [])
            if stems and sum(len(drawn) for _, drawn in kept) < SHOWN:
                kept.append((each, stems))
    if not written:
        raise DataError(f"no readable file among {len(files)}: {'; '.join(bad[:3])}")
    title = f"Reconstruction from {100 * (1 - settings.ratio):.0f} % of the input"
    return [*written, *_draw_overviews(out, shown, specs, title, TARGET_NOTES[settings.target])]


def _draw_overviews(
    out: Path,
    shown: Mapping[str, Sequence[tuple[Imagined, Sequence[str]]]],
    specs: Mapping[str, ModalitySpec],
    title: str,
    note: str,
) -> list[Path]:
    """Draw one figure per modality; ``overview.png`` is that of an image or video if possible."""
    drawn = [name for name in specs if shown.get(name)]
    main = next((n for n in drawn if isinstance(specs[n], Image | Video)), drawn[0])
    written = []
    # The overview comes last, as callers expect.
    for name in sorted(drawn, key=lambda name: name == main):
        path = out / ("overview.png" if name == main else f"overview_{name}.png")
        if isinstance(specs[name], Image | Video):
            pictures = [as_pictures(each) for each, _ in shown[name]]
            stems = [stem for _, stems in shown[name] for stem in stems]
            written.append(draw_overview(path, pictures, stems, title, note))
        else:
            spec = specs[name]
            about = TEXT_NOTE if isinstance(spec, Bytes) else note
            written.append(draw_signals(path, shown[name], spec, title=title, note=about))
    return written


def _stems_holding(batch: Batch, name: str, stems: Sequence[str]) -> list[str]:
    """Return the names of the samples that have a modality."""
    there = batch.present.get(name)
    return [s for row, s in enumerate(stems) if there is None or bool(there[row])]


def save_imagined(
    folder: Path, stems: Sequence[str], imagined: Imagined, spec: ModalitySpec
) -> list[Path]:
    """Write original, masked and reconstructed files of every sample; see ``split_parts``."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for row, stem in enumerate(stems):
        # Missing points are NaN in the original and in the reconstruction.
        real = imagined.original[row].isfinite()
        for kind, signals in split_parts(imagined, spec).items():
            signal = signals[row]
            if kind != "masked":
                check_answer(signal[real], f"{stem}_{kind}")
            step = imagined.frame_step
            written += write_signal(folder, f"{stem}_{kind}", spec, signal, frame_step=step)
    return written


def draw_overview(
    path: Path, batches: Sequence[Pictures], names: Sequence[str], title: str, note: str
) -> Path:
    """Draw the first images of all batches in one figure."""

    def join(part: str) -> NDArray[Any]:
        return np.concatenate([getattr(pictures, part) for pictures in batches])[:SHOWN]

    shown = Pictures(join("original"), join("visible"), join("reconstructed"))
    return draw_imagined(path, shown, names=names[:SHOWN], title=title, note=note)


def draw_imagined(
    path: Path, pictures: Pictures, *, names: Sequence[str] | None = None, title: str, note: str
) -> Path:
    """Draw original, masked and reconstructed images."""
    pasted = pictures.is_pasted
    return draw_reconstructions(
        path,
        original=pictures.original,
        visible=pictures.visible,
        reconstructed=pictures.reconstructed,
        masked_only=None if pasted else pictures.pasted,
        names=names,
        title=title,
        note=f"{note} Visible elements are pasted in." if pasted else note,
    )


def unique_stem(stem: str, taken: Sequence[str]) -> str:
    """Add a number to a stem that is already taken."""
    name, count = stem, 2
    while name in taken:
        name, count = f"{stem}-{count}", count + 1
    return name


# ------------------------------------------------------------------------------------------------
# Reconstruct files with a Perceiver IO autoencoder: images as png, clips as mp4 with sound, wav.
#
# Paper: Perceiver IO (arXiv 2107.14795) Sec. 4.3: joint autoencoding of video, audio and label.

NOTE = "Reconstructed from the latent array alone; clipped to the signal's range."


@torch.no_grad()
def reconstruct_signals(
    loaded: Loaded,
    config: AutoencodingConfig,
    paths: Sequence[str | Path],
    out: Path,
    *,
    seed: int,
    overwrite: bool,
) -> list[Path]:
    """Write the original and the reconstruction of every file, and an overview figure.

    Args:
        loaded: A Perceiver IO autoencoder.
        config: Settings of training; its mask ratio hides tokens here too.
        paths: Files of the kinds that the model reads, or folders searched for them.
        out: Folder for the files and ``overview.png`` (images, middle frames of clips).
        seed: Seed of the masks.
        overwrite: Replace files of an earlier call.

    Raises:
        UserError: The model outputs no signal, no file is readable, or ``out`` holds files.
    """
    task = Autoencoding(loaded.model, config).eval()
    if not task.signals:
        raise CheckpointError("this model outputs no signal, so it cannot reconstruct")
    _make_folder(out, overwrite)
    specs = loaded.model.config.data_inputs
    files = find_files([str(path) for path in paths], tuple(specs))
    written: list[Path] = []
    names: list[str] = []
    drawn: list[str] = []
    bad: list[str] = []
    shown: list[tuple[np.ndarray, ...]] = []
    frames = next((n for n in task.signals if isinstance(specs[n], Image | Video)), None)
    for found, batch in read_files(files, specs, 8, may_lack=can_lack(loaded.model)):
        bad += batch.bad
        if not found:
            continue
        held = held_modalities(loaded.model, batch)
        original, made, visible = _give_back(task, batch, seed)
        for row, file in enumerate(found):
            stem = unique_stem(file.stem, names)
            names.append(stem)
            there = [n for n in task.signals if n not in held or bool(held[n][row])]
            for kind, signals in (("original", original), ("reconstructed", made)):
                parts = {name: signals[name][row] for name in there}
                written += write_signals(out, f"{stem}_{kind}", parts, specs)
            if frames in there:
                drawn.append(stem)
        if frames is not None:
            seen = visible[frames].expand(-1, 1, *original[frames].shape[2:])
            rows = held.get(frames, torch.ones(len(batch), dtype=torch.bool))
            arrays = (original[frames][rows], seen[rows], made[frames][rows])
            shown += zip(*(_middle(array).numpy() for array in arrays), strict=True)
    if not written:
        raise DataError(f"no readable file among {len(files)}: {'; '.join(bad[:3])}")
    if shown:
        written.append(_overview(out / "overview.png", shown[:SHOWN], drawn[:SHOWN], config))
    return written


def write_signals(
    out: Path, stem: str, signals: Mapping[str, Tensor], specs: Mapping[str, ModalitySpec]
) -> list[Path]:
    """Write one sample: a clip with its sound, or a file per modality.

    Args:
        out: Output folder.
        stem: Name of the files without extension.
        signals: Floats in the raw layout, by modality.
        specs: Specs of the modalities.
    """
    sound = None
    has_film = any(isinstance(specs[name], Video) for name in signals)
    for name, signal in signals.items():
        spec = specs[name]
        if isinstance(spec, Audio) and has_film:
            sound = (spec, signal)
    written = []
    for name, signal in signals.items():
        if sound is None or not isinstance(specs[name], Audio):
            written += write_signal(out, stem, specs[name], signal, sound=sound)
    return written


def _make_folder(out: Path, overwrite: bool) -> None:
    """Create the output folder; if it holds files, ``overwrite`` is required."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ConfigError(f"{out} holds files; pass --overwrite or another --out")
    out.mkdir(parents=True, exist_ok=True)


def _give_back(
    task: Autoencoding, batch: Batch, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return originals and reconstructions of a batch, and which elements were visible."""
    if task.labels:
        # Files have no labels; -1 marks unknown ones.
        batch.labels = torch.full((len(batch),), -1)
    encoded, visible = task.encode_for_display(batch, torch.Generator().manual_seed(seed))
    original = {n: as_floats(task.model, n, batch.inputs[n]) for n in task.signals}
    made = {n: decode_raw(task.model, encoded, n) for n in task.signals}
    # Missing points, which are rows of NaN, have no reconstruction.
    for name, signal in made.items():
        check_answer(signal[original[name].isfinite()], f"reconstruction of {name}")
    made = {n: x.where(original[n].isfinite(), torch.nan) for n, x in made.items()}
    return original, made, visible


def _middle(x: Tensor) -> Tensor:
    """Return the middle frame of clips, and images unchanged."""
    return x[:, :, x.shape[2] // 2] if x.ndim == 5 else x


def _overview(
    path: Path,
    shown: Sequence[tuple[np.ndarray, ...]],
    names: Sequence[str],
    config: AutoencodingConfig,
) -> Path:
    original, visible, made = (np.stack(part) for part in zip(*shown, strict=True))
    share = f"{100 * (1 - config.mask_ratio):.0f} %"
    return draw_reconstructions(
        path,
        original=original.clip(0, 1),
        visible=visible,
        reconstructed=made.clip(0, 1),
        names=names,
        title=f"Reconstructed from {share} of the tokens",
        note=NOTE,
    )
