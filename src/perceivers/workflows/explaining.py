"""Draw attention maps of trained models: one image per sample, and an overview.

This file reads samples, describes outputs in words and lays out panels; the model families compute
the maps.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.data import find_files, make_eval_loader, read_files
from perceivers.data.address import BUILT_IN
from perceivers.data.byte_codec import encode_text, pad_ids
from perceivers.data.flow_pairs import WARPS
from perceivers.data.modality import FILE_ENDINGS
from perceivers.data.system_files import is_system_file
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.finite import is_answer
from perceivers.models.attention_maps import WORTH_SAYING, Answer, Explanation, TokenMap
from perceivers.models.registry import FAMILIES, families_with
from perceivers.models.saving import ModelInfo
from perceivers.report import style
from perceivers.report.console import Shown, name_skipped
from perceivers.report.drawings import drawing_of
from perceivers.report.figures.attention import Panel, PanelSection, draw_attention
from perceivers.report.figures.canvases import Canvas
from perceivers.settings import Range, checked
from perceivers.tasks.flow import FLOW_SCALE, TARGET, FlowConfig
from perceivers.tasks.mlm import WHITESPACE
from perceivers.training.config import TrainConfig
from perceivers.types import (
    FIRST_BYTE,
    MASK,
    Bytes,
    Labels,
    ModalitySpec,
)
from perceivers.workflows.opening import run_config
from perceivers.workflows.task_table import find_settings, open_for_model

# Number of samples drawn from a data address, and shown in the overview.
SAMPLES = 8
SHOWN = 12
MOST_LATENTS = 100
Latents = Annotated[int, Range(0, MOST_LATENTS)]
# Files that contain many samples.
PACKED = (".tar", ".npz", ".csv", ".jsonl")
MASK_IDS = encode_text("[MASK]")
# Labels listed for a multi-label model.
LISTED = 3
SHOWN_VALUES = 4
SURE = 0.9995


class Sample(NamedTuple):
    """One sample: names, raw tensors ``[1, ...]``, and the ids of hidden bytes by position."""

    name: str
    title: str
    inputs: dict[str, Tensor]
    hidden: dict[int, int]


@dataclass(frozen=True)
class Speaker:
    """Describes a model's outputs in words.

    Args:
        model: The model.
        info: Information stored with the model: its task and class names.
        flow_scale: Pixels per unit of a flow model's output.
    """

    model: Any
    info: ModelInfo
    flow_scale: float = FLOW_SCALE

    def say(self, answer: Answer, truth: Mapping[int, int]) -> str:
        """Describe one output in words.

        Args:
            answer: The model's output.
            truth: Original ids of bytes hidden by ``explain``, by position.
        """
        output = getattr(self.model.config, "outputs", {}).get(answer.output)
        if not bool(is_answer(answer.values.flatten())):
            return "no output: it contains NaN or infinity"
        if answer.is_choice:
            chance = float(answer.values.softmax(-1)[answer.index])
            return f"chosen: row {answer.index}, {show_chance(chance)}"
        if answer.output in getattr(self.model.config, "byte_outputs", ()):
            return _say_byte(answer, truth.get(answer.index))
        if answer.output == TARGET and self.info.task in {"", "flow"} and answer.modality:
            # Adding zero turns a rounded -0.0 into 0.0.
            values = self._at_the_mark(answer) * self.flow_scale
            right, down = (round(v, 1) + 0.0 for v in values.tolist())
            return f"flow at the cross: {right:.1f} px to the right, {down:.1f} px down"
        if output is not None and answer.modality and not self._is_label(answer.output):
            return f"{answer.output} at the mark: {self._say_values(answer)}"
        if self.info.task == "multilabel":
            return _say_labels(answer.values.sigmoid(), self.info.classes)
        names = self.info.columns.get(answer.output) or self.info.classes
        chance = answer.values.softmax(-1)
        best = int(chance.argmax())
        name = names[best] if len(names) == len(chance) else f"class {best}"
        words = f"{name}, {show_chance(float(chance[best]))}"
        return f"{answer.output}: {words}" if answer.output and self._is_one_of_many else words

    def _at_the_mark(self, answer: Answer) -> Tensor:
        """Return the middle element, since one query may decode a whole patch."""
        output = self.model.config.outputs[answer.output]
        middle = tuple(size // 2 for size in output.patch)
        return answer.values.reshape(*output.patch, output.channels)[middle]

    @property
    def _is_one_of_many(self) -> bool:
        return len(getattr(self.model.config, "outputs", {})) > 1

    def _is_label(self, output: str) -> bool:
        return isinstance(self.model.config.inputs.get(output), Labels)

    def _say_values(self, answer: Answer) -> str:
        """Return the first element of an output, in the units of the raw input."""
        spec = self.model.config.inputs[answer.modality]
        values = answer.values[: spec.channels].reshape(1, 1, -1)
        adapter = self.model.adapter(answer.modality)
        if values.shape[-1] == spec.channels:
            values = values * adapter.std.to(values) + adapter.mean.to(values)
        shown = [style.number(value) for value in values.flatten()[:SHOWN_VALUES].tolist()]
        return ", ".join(shown)


def show_chance(chance: float) -> str:
    """Format a probability in percent with few digits."""
    return "over 99.9 %" if chance > SURE else style.percent(chance)


def show_byte(number: int) -> str:
    """Format a byte id as a printable character, or as hexadecimal."""
    if number < FIRST_BYTE:
        return f"special id {number}"
    char = chr(number - FIRST_BYTE)
    return repr(char) if char.isascii() and char.isprintable() else f"byte {number - FIRST_BYTE:#x}"


def _say_byte(answer: Answer, truth: int | None) -> str:
    chance = answer.values.softmax(-1)
    best = int(chance.argmax())
    hidden = "" if truth is None else f" (hidden: {show_byte(truth)})"
    return f"position {answer.index}{hidden}: {show_byte(best)}, {show_chance(float(chance[best]))}"


def _say_labels(chances: Tensor, names: Sequence[str]) -> str:
    best = torch.topk(chances, min(LISTED, len(chances)))
    found = []
    for chance, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        name = names[place] if len(names) == len(chances) else f"label {place}"
        found.append(f"{name} {show_chance(chance)}")
    return f"likeliest labels: {', '.join(found)}"


@dataclass
class Drawn:
    """Images drawn by one call, and the panel of each sample for the overview."""

    out: Path
    speaker: Speaker
    written: list[Path] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    last: Explanation | None = None

    def add(self, sample: Sample, found: Explanation) -> None:
        """Draw one sample, and add it to the overview."""
        canvases = make_canvases(self.speaker.model, sample.inputs)
        says = "; ".join(dict.fromkeys(self.speaker.say(a, sample.hidden) for a in found.answers))
        path = draw_attention(
            _free(self.out, sample.name, self.written),
            arrange(found, canvases, self.speaker, sample),
            title=sample.title,
            note=f"Model output: {says}." if says else "",
        )
        self.written.append(path)
        self.panels.append(_overview_panel(found, canvases, self.speaker, sample))
        self.last = found

    def draw_overview(self, path: Path) -> Path:
        """Draw the first samples in one figure, with a note on unreadable samples."""
        assert self.last is not None
        total = len(self.panels)
        shown = f", the first {SHOWN} of {total} samples" if total > SHOWN else ""
        what = "map of the output" if self.last.answers else "what the latents read on average"
        left = f"Not readable and left out: {'; '.join(self.bad)}." if self.bad else ""
        return draw_attention(
            path,
            [PanelSection("", "", self.panels[:SHOWN])],
            title=f"Attention: {what}{shown}",
            note=f"{self.last.route} {left}".strip(),
        )


@checked
def explain(
    model: str | Path,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    head: str | int = "mean",
    latents: Latents = 4,
    overwrite: bool = False,
) -> list[Path]:
    """Draw attention maps of the latents and of the output as ``NAME_attention.png``.

    Args:
        model: Run folder, ``RUN@last`` or model folder.
        paths: Image, audio, video or text files, or folders searched for them. In texts for masked
            language models, ``[MASK]`` hides a byte. For models that read points, arrays or
            generated frame pairs: data addresses, of which the first 8 test samples are drawn.
        out: Folder for the images and ``overview.png``.
        head: Attention heads of the cross-attention: ``mean``, ``all`` (one by one) or a number.
        latents: Number of single latents to show per read, 0 to 100: those that differ most from
            the mean.
        overwrite: Replace images of an earlier call in ``out``.

    Returns:
        The files written; the overview comes last.

    Raises:
        UserError: A setting is out of range, a path does not exist, nothing is readable, the maps
            do not fit into memory, or ``out`` holds an earlier overview and ``overwrite`` is off.
    """
    return draw_all(model, paths, out, head=head, latents=latents, overwrite=overwrite).written


@torch.no_grad()
@checked
def draw_all(
    model: str | Path,
    paths: Sequence[str | Path],
    out: str | Path = "explained",
    *,
    head: str | int = "mean",
    latents: Latents = 4,
    overwrite: bool = False,
) -> Drawn:
    """Run ``explain``, and also return the unreadable samples.

    Raises:
        UserError: As ``explain``.
    """
    overview = Path(out) / "overview.png"
    if overview.exists() and not overwrite:
        raise ConfigError(f"{overview} exists; pass --overwrite or another --out")
    loaded = load_with_info(model)
    config = run_config(model)
    scale = find_settings(FlowConfig, loaded, config).scale
    drawn = Drawn(Path(out), Speaker(loaded.model, loaded.info, scale))
    for sample in read_samples(loaded, config, [str(path) for path in paths], drawn.bad):
        drawn.add(sample, read_maps(loaded.model, sample.inputs, head=head, latents=latents))
    if not drawn.panels:
        raise DataError(f"nothing readable in {len(paths)} paths: {'; '.join(drawn.bad[:3])}")
    drawn.written.append(drawn.draw_overview(overview))
    return drawn


def read_maps(
    model: Any, inputs: Mapping[str, Tensor], *, head: str | int, latents: int
) -> Explanation:
    """Return the attention maps of one sample.

    Raises:
        UserError: The family has no latents, the head does not exist, or the maps do not fit into
            memory.
    """
    read = FAMILIES[model.family].read_attention
    if read is None:
        able = families_with("read_attention")
        raise ConfigError(
            f"a {model.family} model has no latents whose attention could be drawn; explain "
            f"supports {', '.join(able[:-1])} and {able[-1]} models"
        )
    return read(model, inputs, head=head, latents=latents)


# -- samples ---------------------------------------------------------------------------------------


def read_samples(
    loaded: Loaded, config: TrainConfig | None, paths: Sequence[str], bad: list[str]
) -> Iterator[Sample]:
    """Yield single samples of files or data addresses; ``bad`` collects the unreadable ones.

    Raises:
        UserError: A path does not exist, or nothing can be read.
    """
    specs = dict(loaded.model.config.data_inputs)
    kinds = [spec.kind for spec in specs.values()]
    in_files = all(name == spec.kind and name in FILE_ENDINGS for name, spec in specs.items())
    addresses = [path for path in paths if not in_files or is_data_set(path)]
    files = find_files([path for path in paths if path not in addresses], kinds) if in_files else []
    for names, batch in read_files(files, specs, 1) if files else ():
        bad += batch.bad
        for row, name in enumerate(names):
            raw = {key: tensor[row : row + 1] for key, tensor in batch.inputs.items()}
            yield prepare(loaded.model, name.stem, name.name, raw)
    for address in addresses:
        yield from _read_address(loaded, config, address, specs, bad)


def is_data_set(path: str) -> bool:
    """Whether a path is a data set (built-in, packed or a table) rather than single files."""
    if path in BUILT_IN or path.startswith(WARPS) or path.endswith(PACKED):
        return True
    folder = Path(path).expanduser()
    return folder.is_dir() and any(
        file.suffix in PACKED and not is_system_file(file.name) for file in folder.iterdir()
    )


def _read_address(
    loaded: Loaded,
    config: TrainConfig | None,
    address: str,
    specs: Mapping[str, ModalitySpec],
    bad: list[str],
) -> Iterator[Sample]:
    """Yield the first samples of the test split, or of the validation split without one."""
    dataset, _ = open_for_model(loaded, config, address)
    split = "test" if "test" in dataset.splits else "val"
    source = dataset.splits[split]
    count = 0
    for batch in make_eval_loader(source, dict(specs), batch_size=1):
        bad += batch.bad
        for row, index in enumerate(batch.index.tolist()):
            raw = {key: tensor[row : row + 1] for key, tensor in batch.inputs.items()}
            title = f"{address}: {split} sample {index}"
            yield prepare(loaded.model, f"{split}-{index}", title, raw)
            count += 1
            if count == SAMPLES:
                return


def prepare(model: Any, name: str, title: str, inputs: Mapping[str, Tensor]) -> Sample:
    """Hide bytes in texts for a masked language model; other inputs stay unchanged.

    ``[MASK]`` in a text hides a byte; without any ``[MASK]``, the middle word is hidden.
    """
    given, hidden = dict(inputs), {}
    # Only where the attention of decoded bytes is drawn does anything need to be hidden.
    traced = FAMILIES[model.family].traces_bytes and bool(model.config.byte_outputs)
    for key, tensor in inputs.items():
        spec = model.config.inputs[key]
        if isinstance(spec, Bytes) and traced:
            ids = replace_masks(tensor[0].numpy(), spec.length)
            if not (ids == MASK).any():
                hidden = {place: int(ids[place]) for place in middle_word(ids)}
                ids[list(hidden)] = MASK
            given[key] = torch.from_numpy(ids)[None]
    return Sample(name, title, given, hidden)


def replace_masks(ids: np.ndarray, length: int) -> np.ndarray:
    """Replace the bytes of each literal ``[MASK]`` in ids ``[L]`` by the mask id."""
    kept: list[int] = []
    place, size = 0, len(MASK_IDS)
    while place < len(ids):
        found = np.array_equal(ids[place : place + size], MASK_IDS)
        kept.append(MASK if found else int(ids[place]))
        place += size if found else 1
    return pad_ids(np.array(kept, np.int64), length)


def middle_word(ids: np.ndarray) -> list[int]:
    """Return the positions of the word nearest to the middle of a text ``[L]``; may be empty."""
    inside = (ids >= FIRST_BYTE) & ~np.isin(ids, WHITESPACE)
    places = np.flatnonzero(inside)
    if not len(places):
        return []
    middle = (int(np.flatnonzero(ids >= FIRST_BYTE)[-1]) + 1) // 2
    nearest = int(places[np.abs(places - middle).argmin()])
    first, end = nearest, nearest + 1
    while first > 0 and inside[first - 1]:
        first -= 1
    while end < len(ids) and inside[end]:
        end += 1
    return list(range(first, end))


def _free(folder: Path, name: str, taken: Sequence[Path]) -> Path:
    """Return the output path of an image, numbered if another sample has the same name."""
    path, count = folder / f"{name}_attention.png", 2
    while path in taken:
        path, count = folder / f"{name}-{count}_attention.png", count + 1
    return path


# -- panels ----------------------------------------------------------------------------------------


def make_canvases(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Canvas]:
    """Return the background of the heat maps by modality.

    Raises:
        CheckpointError: An input has more axes than can be drawn.
    """
    canvases: dict[str, Canvas] = {}
    for name, raw in inputs.items():
        spec = model.config.inputs[name]
        signal = model.adapter(name).to_floats(raw)[0].numpy()
        canvas = drawing_of(spec.kind).canvas(signal, spec, _sees_both_frames(model, name, spec))
        if canvas is None:
            raise CheckpointError(
                f"input {name!r} is an array of {len(spec.grid)} axes {spec.grid}; attention can "
                f"be drawn on arrays of 1 or 2 axes, images, audio, videos, points and texts"
            )
        canvases[name] = canvas
    return canvases


def _sees_both_frames(model: Any, name: str, spec: ModalitySpec) -> bool:
    """Whether a token covers both frames of a pair, so that there is only one map for them."""
    return spec.has_pixels and spec.has_time and model.covered_grid(name) != spec.grid


def arrange(
    found: Explanation, canvases: Mapping[str, Canvas], speaker: Speaker, sample: Sample
) -> list[PanelSection]:
    """Arrange the panels of a sample: maps of the outputs, then maps of the latents."""
    captions = [canvas.caption for canvas in canvases.values() if canvas.caption]
    answers = [Panel(canvases, "the input", notes=captions)]
    for answer in found.answers:
        assert answer.map is not None
        words = speaker.say(answer, sample.hidden)
        answers.append(make_panel(canvases, answer.map, words, answer))
    sections = [PanelSection("Attention of the output", found.route, answers)]
    for number, read in enumerate(found.reads):
        text = (
            "Attention of the latents to the input: the mean of all latents, then the latents that "
            "differ most from it."
        )
        panels = [make_panel(canvases, each, each.label) for each in read.maps]
        sections.append(PanelSection(read.title, "" if number else text, panels))
    return sections


def make_panel(
    canvases: Mapping[str, Canvas], found: TokenMap, label: str, answer: Answer | None = None
) -> Panel:
    """Convert a map to a panel, with a note on attention to inputs that cannot be drawn."""
    unseen = {name: grid for name, grid in found.shares.items() if name not in canvases}
    lost = sum(float(grid.sum()) for grid in unseen.values())
    notes = [found.note] if found.note else []
    shares = {name: grid for name, grid in found.shares.items() if name in canvases}
    tokens = found.tokens - sum(grid.size for grid in unseen.values())
    if unseen:
        if lost > WORTH_SAYING:
            notes.append(f"{100 * lost:.1f} % on {', '.join(unseen)} left out")
        shares = {name: grid / (1.0 - lost) for name, grid in shares.items()}
    mark = (answer.modality, answer.place) if answer is not None and answer.place else None
    return Panel(canvases, label, shares, tokens, notes, mark)


def _overview_panel(
    found: Explanation, canvases: Mapping[str, Canvas], speaker: Speaker, sample: Sample
) -> Panel:
    """Return a panel with the map of one output, or the mean of the first read without outputs.

    An output for the whole sample is preferred over an output for one of its elements.
    """
    if not found.answers:
        return make_panel(canvases, found.reads[0].maps[0], sample.name)
    answer = min(found.answers, key=lambda each: bool(each.modality))
    assert answer.map is not None
    words = f"{sample.name}: {speaker.say(answer, sample.hidden)}"
    return make_panel(canvases, answer.map, words, answer)


def show(drawn: Drawn) -> Shown:
    """Show where the figures are, and what they do not show."""
    lines = [
        f"{len(drawn.written) - 1} figures in {drawn.out}; see {drawn.written[-1]}",
        "Attention shows where information was read, not what determined the output.",
    ]
    return Shown(lines, name_skipped(drawn.bad))
