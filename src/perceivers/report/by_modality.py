"""The rows of the library's modalities in the table of drawings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch import Tensor

from perceivers.data.byte_codec import decode_ids
from perceivers.data.writing import AXES, list_sound_rates, write_clip, write_ply, write_wav
from perceivers.files import write_atomic
from perceivers.models.masked import Imagined, MaskSettings
from perceivers.report.drawings import Batches, Drawing, Parts, drawing_of
from perceivers.report.figures.anomaly import (
    heat_of_clip,
    heat_of_picture,
    heat_of_points,
    heat_of_text,
    heat_of_values,
    heat_of_wave,
)
from perceivers.report.figures.canvases import (
    Canvas,
    ClipCanvas,
    PictureCanvas,
    PointsCanvas,
    TextCanvas,
    WaveCanvas,
)
from perceivers.report.figures.flow import flow_to_colour
from perceivers.report.figures.reconstruction import (
    FilledRow,
    SoundRow,
    draw_filled,
    draw_reconstructions,
    draw_sounds,
)
from perceivers.report.figures.samples import (
    SampleBox,
    show_array,
    show_frames,
    show_picture,
    show_points,
    show_wave,
)
from perceivers.report.figures.scores import overlay_mask
from perceivers.report.html import Section
from perceivers.types import (
    FIRST_BYTE,
    PAD,
    Array,
    Audio,
    Bytes,
    Image,
    ModalitySpec,
    Points,
    Video,
)

# Maximum number of rows of a figure, and of its columns of images.
SHOWN_PER_KIND = 6
SHOWN = 12
COLUMNS = ("visible input", "reconstructed", "original")
# Value in place of hidden elements, where a kind has no other.
GREY = 0.5
UNDERSCORE = FIRST_BYTE + ord("_")
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
# Rates that every player supports, for data without a rate.
DEFAULT_FRAME_RATE, DEFAULT_SAMPLE_RATE = 25.0, 16_000


# -- Arrays, and what holds for every kind without a better function -----------------------------


def draw_array(box: SampleBox, name: str, mask: NDArray[Any] | None, num_classes: int) -> Parts:
    """Draw optical flow in colours, and any other array in grey or as its shape."""
    array = box.arrays[name]
    return [flow_to_colour(array) if name == "flow" else show_array(name, array)]


def compare_alone(kind: str, signal: NDArray[Any]) -> Parts:
    """Draw a reconstruction like a sample."""
    box = SampleBox({"x": signal}, {"x": kind}, "", "")
    return drawing_of(kind).draw(box, "x", None, 0)


def split_values(imagined: Imagined, blank: float) -> dict[str, Tensor]:
    """Return the signals of a batch, with ``blank`` in place of hidden elements."""
    return {
        "original": imagined.original.float(),
        "masked": torch.where(imagined.visible, imagined.original, blank).float(),
        "reconstructed": imagined.reconstructed.float(),
    }


def draw_rows(path: Path, batches: Batches, spec: ModalitySpec, title: str, note: str) -> Path:
    """Draw the first samples in rows: visible input, reconstructed, original."""
    rows = [row for each, names in batches for row in _filled_rows(each, names, spec)]
    about = note + first_note(batches)
    return draw_filled(path, rows[:SHOWN_PER_KIND], columns=COLUMNS, title=title, note=about)


def first_note(batches: Batches) -> str:
    """Tell that only the first samples are shown; empty if all are."""
    total = sum(len(names) for _, names in batches)
    return "" if total <= SHOWN_PER_KIND else f" The first {SHOWN_PER_KIND}."


def _filled_rows(imagined: Imagined, names: Sequence[str], spec: ModalitySpec) -> list[FilledRow]:
    row = drawing_of(spec.kind)
    parts = {name: part.numpy() for name, part in row.split(imagined).items()}
    columns = [parts[name] for name in ("masked", "reconstructed", "original")]
    return [
        FilledRow(
            name, *(row.compare(column[place], parts["original"][place]) for column in columns)
        )
        for place, name in enumerate(names)
    ]


def array_canvas(signal: NDArray[Any], spec: ModalitySpec, joined: bool) -> Canvas | None:
    """Draw one axis as a curve, two as an image; more axes cannot be drawn."""
    if len(spec.grid) == 1:
        return WaveCanvas(np.moveaxis(signal, -1, 0))
    if len(spec.grid) != 2:
        return None
    low, high = float(signal.min()), float(signal.max())
    return PictureCanvas(np.moveaxis((signal - low) / max(high - low, 1e-9), -1, 0))


def write_array(
    folder: Path, stem: str, spec: ModalitySpec, signal: Tensor, frame_step: int, sound: Any
) -> list[Path]:
    """Write an array as ``.npy``."""
    path = folder / f"{stem}.npy"
    np.save(path, signal.numpy())
    return [path]


ARRAY = Drawing(
    kind=Array.kind,
    draw=draw_array,
    compare=lambda signal, original: compare_alone(Array.kind, signal),
    split=lambda imagined: split_values(imagined, GREY),
    words=lambda signal: "",
    overview=draw_rows,
    example=None,
    canvas=array_canvas,
    heat=heat_of_values,
    write=write_array,
)

# -- Images and videos ---------------------------------------------------------------------------


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


def as_pictures(imagined: Imagined) -> Pictures:
    """Convert to images for a figure; clips become their middle frame."""
    parts = (imagined.original, imagined.visible, imagined.reconstructed)
    original, visible, made = (x[:, :, x.shape[2] // 2] if x.ndim == 5 else x for x in parts)
    return Pictures(original.numpy(), visible.numpy(), made.float().clamp(0, 1).numpy())


def draw_overview(path: Path, batches: Batches, spec: ModalitySpec, title: str, note: str) -> Path:
    """Draw the first images of all batches, or the middle frames of clips, in one figure."""
    pictures = [as_pictures(each) for each, _ in batches]
    names = [name for _, stems in batches for name in stems]

    def join(part: str) -> NDArray[Any]:
        return np.concatenate([getattr(each, part) for each in pictures])[:SHOWN]

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


def pictures_section(folder: Path, imagined: Imagined, settings: MaskSettings) -> Section:
    """Show held-out images or video frames: original, masked, reconstructed."""
    share = f"{100 * (1 - settings.ratio):.0f} %"
    path = draw_imagined(
        folder / "reconstructions.png",
        as_pictures(imagined),
        title=f"Reconstructed from {share} of the input",
        note=TARGET_NOTES[settings.target],
    )
    text = (
        f"Validation images, not used in training. Masking is {settings.kind}: {share} of the "
        f"input was visible, and the model reconstructed the rest. {TARGET_NOTES[settings.target]}"
    )
    return Section(title="Reconstruction", text=text, figures=[(path, "Held-out images.")])


def draw_image(box: SampleBox, name: str, mask: NDArray[Any] | None, num_classes: int) -> Parts:
    """Draw an image, and again under the classes of its mask."""
    picture = show_picture(box.arrays[name])
    if mask is None or mask.shape != picture.shape[:2]:
        return [picture]
    return [picture, overlay_mask(picture, mask, num_classes)]


def clip_canvas(signal: NDArray[Any], spec: Video, joined: bool) -> Canvas:
    """Draw all frames, or the first if tokens cover both."""
    words = "frame 1; each token covers both frames"
    return PictureCanvas(signal[:, 0], words) if joined else ClipCanvas(signal)


def write_image(
    folder: Path, stem: str, spec: Image, signal: Tensor, frame_step: int, sound: Any
) -> list[Path]:
    """Write an image as ``.png``."""
    return [save_picture(folder / f"{stem}.png", signal.numpy())]


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


def write_video(
    folder: Path, stem: str, spec: Video, signal: Tensor, frame_step: int, sound: Any
) -> list[Path]:
    """Write a clip as ``.mp4``, with its sound if there is any.

    Raises:
        UserError: The rate cannot be written, or a library is missing.
    """
    pixels = (signal.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    wave, rate = None, 0
    if sound is not None:
        rate, wave = sound_rate(sound[0]), sound[1].clamp(-1, 1).numpy()
    frame_rate = (spec.frame_rate or DEFAULT_FRAME_RATE) / frame_step
    return [write_clip(folder / f"{stem}.mp4", pixels, frame_rate, wave, rate)]


IMAGE = replace(
    ARRAY,
    kind=Image.kind,
    draw=draw_image,
    overview=draw_overview,
    example=pictures_section,
    canvas=lambda signal, spec, joined: PictureCanvas(signal),
    heat=heat_of_picture,
    write=write_image,
)
VIDEO = replace(
    IMAGE,
    kind=Video.kind,
    draw=lambda box, name, mask, num_classes: [show_frames(box.arrays[name])],
    canvas=clip_canvas,
    heat=heat_of_clip,
    write=write_video,
)

# -- Audio ---------------------------------------------------------------------------------------


def draw_waves(path: Path, batches: Batches, spec: Audio, title: str, note: str) -> Path:
    """Draw the first channels of recordings and their reconstructions."""
    sounds = [row for each, names in batches for row in _sound_rows(each, names, spec)]
    first = first_note(batches)
    about = f"{note} Left: 40 milliseconds around the loudest sample.{first}"
    return draw_sounds(path, sounds[:SHOWN_PER_KIND], title=title, note=about)


def _sound_rows(imagined: Imagined, names: Sequence[str], spec: Audio) -> list[SoundRow]:
    """Return one row per recording, with its first channel."""
    rows = []
    for row, name in enumerate(names):
        waves = (imagined.original[row, 0], imagined.reconstructed[row, 0])
        original, made = (wave.double().numpy() for wave in waves)
        visible = imagined.visible[row, 0].numpy()
        rows.append(SoundRow(name, original, made, visible, float(sound_rate(spec))))
    return rows


def sound_rate(spec: Audio) -> int:
    """Return the sample rate of written audio, in Hz."""
    return spec.sample_rate or DEFAULT_SAMPLE_RATE


def fits_clip(spec: Audio) -> bool:
    """Return whether a clip can be written with such audio."""
    return spec.channels <= 2 and sound_rate(spec) in list_sound_rates()


def write_sound(
    folder: Path, stem: str, spec: Audio, signal: Tensor, frame_step: int, sound: Any
) -> list[Path]:
    """Write audio as ``.wav``.

    Raises:
        UserError: The rate cannot be written.
    """
    wave = signal.clamp(-1, 1).numpy()
    return [write_wav(folder / f"{stem}.wav", wave, sound_rate(spec))]


AUDIO = replace(
    ARRAY,
    kind=Audio.kind,
    draw=lambda box, name, mask, num_classes: [show_wave(box.arrays[name])],
    split=lambda imagined: split_values(imagined, 0.0),
    overview=draw_waves,
    canvas=lambda signal, spec, joined: WaveCanvas(signal, float(spec.sample_rate)),
    heat=heat_of_wave,
    write=write_sound,
)

# -- Points --------------------------------------------------------------------------------------


def draw_cloud(box: SampleBox, name: str, mask: NDArray[Any] | None, num_classes: int) -> Parts:
    """Draw points from above, by height or class."""
    return [show_points(box.arrays[name], mask, num_classes)]


def write_points(
    folder: Path, stem: str, spec: Points, signal: Tensor, frame_step: int, sound: Any
) -> list[Path]:
    """Write points as ``.npy`` and, with three coordinates, ``.ply``, without rows of NaN."""
    signal = signal[signal.isfinite().all(-1)]
    written = write_array(folder, stem, spec, signal, frame_step, sound)
    if spec.channels < len(AXES):
        return written
    return [*written, write_ply(folder / f"{stem}.ply", signal.numpy())]


POINTS = replace(
    ARRAY,
    kind=Points.kind,
    draw=draw_cloud,
    compare=lambda signal, original: [show_points(signal, None, 0, original)],
    split=lambda imagined: split_values(imagined, float("nan")),
    canvas=lambda signal, spec, joined: PointsCanvas(signal),
    heat=heat_of_points,
    write=write_points,
)

# -- Texts ---------------------------------------------------------------------------------------


def split_text(imagined: Imagined) -> dict[str, Tensor]:
    """Return the ids of a batch, with underscores in place of hidden bytes; padding is kept."""
    original, blank = imagined.original, imagined.original == PAD
    shown = torch.where(imagined.visible, original, UNDERSCORE)
    parts = {"original": original, "masked": shown, "reconstructed": imagined.reconstructed}
    return {name: torch.where(blank, PAD, part) for name, part in parts.items()}


def draw_text_rows(path: Path, batches: Batches, spec: Bytes, title: str, note: str) -> Path:
    """Draw the first texts; the note on target values does not concern them."""
    return draw_rows(path, batches, spec, title, TEXT_NOTE)


def texts_section(folder: Path, imagined: Imagined, settings: MaskSettings) -> Section:
    """Show held-out texts: masked, reconstructed, original."""
    text = (
        f"Validation texts, not used in training. Masking is {settings.kind}: "
        f"{100 * (1 - settings.ratio):.0f} % of the input was visible; hidden bytes are "
        f"underscores, and each is replaced by the most likely byte."
    )
    code = list_texts(imagined.original, ~imagined.visible, imagined.reconstructed)
    return Section(title="Reconstructed texts", text=text, code=code)


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
        shaded = torch.where(hidden, UNDERSCORE, ids[row])
        filled = torch.where(hidden, best[row], ids[row])
        for label, text in (("hidden", shaded), ("filled", filled), ("truth ", ids[row])):
            lines.append(f"{label} | {_one_line(decode_ids(text.numpy()))}")
        lines.append("")
    return "\n".join(lines).rstrip()


def _one_line(text: str, width: int = 150) -> str:
    return " ".join(text.split("\n"))[:width]


def write_text(
    folder: Path, stem: str, spec: Bytes, signal: Tensor, frame_step: int, sound: Any
) -> list[Path]:
    """Write a text as ``.txt``."""
    return [write_atomic(folder / f"{stem}.txt", decode_ids(signal.numpy()) + "\n")]


TEXT = replace(
    ARRAY,
    kind=Bytes.kind,
    draw=lambda box, name, mask, num_classes: [decode_ids(box.arrays[name])],
    compare=lambda signal, original: [decode_ids(signal[signal != PAD])],
    split=split_text,
    words=decode_ids,
    overview=draw_text_rows,
    example=texts_section,
    canvas=lambda signal, spec, joined: TextCanvas(signal),
    heat=heat_of_text,
    write=write_text,
)

# Masks are drawn with their images or points.
MASKS = [
    replace(ARRAY, kind=kind, draw=lambda box, name, mask, num_classes: [])
    for kind in ("mask", "point_mask")
]
# The first row with a section decides which modality it shows.
ROWS = (IMAGE, VIDEO, AUDIO, POINTS, TEXT, ARRAY, *MASKS)
