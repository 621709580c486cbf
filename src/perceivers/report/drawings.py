"""How signals of each kind of modality are drawn and written: one row per kind.

A kind without a row is drawn as an array. To draw a modality in its own way, register a row that
replaces fields of the row of arrays: ``replace(drawing_of("array"), kind="depth", draw=...)``.

What the data layer knows of a modality is a table of its own, ``perceivers.data.modality``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from numpy.typing import NDArray
from torch import Tensor

from perceivers.errors import ConfigError
from perceivers.models.masked import Imagined, MaskSettings

if TYPE_CHECKING:
    from perceivers.report.figures.anomaly import Heat
    from perceivers.report.figures.canvases import Canvas
    from perceivers.report.figures.samples import SampleBox
    from perceivers.report.html import Section
    from perceivers.report.style import Page

# RGB images ``[H, W, 3]`` uint8, and texts.
Parts: TypeAlias = list[NDArray[Any] | str]
# Reconstructions of each batch, and the names of its samples.
Batches: TypeAlias = Sequence[tuple[Imagined, Sequence[str]]]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How one kind of modality is drawn and written.

    Signals are in the raw layout without a batch axis, as floats (images in 0..1), or ids of texts.

    Attributes:
        kind: Kind of the specs.
        draw: ``draw(box, name, mask, num_classes)`` returns the parts of one modality of a sample;
            ``mask`` holds the classes of its elements, or is None.
        compare: ``compare(signal, original)`` returns the parts of a reconstruction, at the scale
            of the original.
        split: Returns ``original``, ``masked`` (without what was hidden) and ``reconstructed``
            signals of a batch, for files and figures.
        words: Returns a signal in words; empty if it has none.
        overview: ``overview(path, batches, spec, title, note)`` draws the first reconstructions.
        example: ``example(folder, imagined, settings)`` returns the section on reconstructions in
            the report of masked autoencoding, with figures in ``folder``; None for no section. Of
            kinds that share a function, only the first modality gets a section.
        canvas: ``canvas(signal, spec, joined)`` returns the background of attention maps, or None
            if the signal cannot be drawn; ``joined`` if tokens cover several frames.
        heat: ``heat(heat, limit, title, note)`` draws a map of errors.
        write: ``write(folder, stem, spec, signal, frame_step, sound)`` writes a signal to files,
            with values clipped to their range. For videos, ``frame_step`` is the number of frames
            of the spec per frame of the signal, and ``sound`` the spec and waveform of the sound.
    """

    kind: str
    draw: "Callable[[SampleBox, str, NDArray[Any] | None, int], Parts]"
    compare: Callable[[NDArray[Any], NDArray[Any]], Parts]
    split: Callable[[Imagined], dict[str, Tensor]]
    words: Callable[[NDArray[Any]], str]
    overview: Callable[[Path, Batches, Any, str, str], Path]
    example: "Callable[[Path, Imagined, MaskSettings], Section] | None"
    canvas: "Callable[[NDArray[Any], Any, bool], Canvas | None]"
    heat: "Callable[[Heat, float, str, str], Page]"
    write: Callable[[Path, str, Any, Tensor, int, Any], list[Path]]


_ROWS: dict[str, Drawing] = {}


def drawings() -> Mapping[str, Drawing]:
    """Return the rows by kind, those of the library first."""
    if not _ROWS:
        # On first use, because the rows need figures that need this table.
        for row in import_module("perceivers.report.by_modality").ROWS:
            _ROWS[row.kind] = row
    return _ROWS


def drawing_of(kind: str) -> Drawing:
    """Return the row of a kind, or that of arrays."""
    return drawings().get(kind, drawings()["array"])


def register_drawing(row: Drawing) -> None:
    """Draw a kind of modality in its own way.

    Raises:
        ConfigError: The kind has a row already.
    """
    if row.kind in drawings():
        raise ConfigError(f"signals of kind {row.kind!r} are drawn already; choose another name")
    _ROWS[row.kind] = row
