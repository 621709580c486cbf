"""Draw what a trained model attends to: one picture per file, and an overview of all."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from perceivers.adapters.config import covered_grid
from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.data import find_files, make_eval_loader, read_files
from perceivers.data.address import BUILT_IN
from perceivers.data.byte_codec import encode_text, pad_ids
from perceivers.data.files import ENDINGS
from perceivers.data.flow_pairs import WARPS
from perceivers.data.system_files import is_system_file
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.models.entity_set import EntitySet
from perceivers.models.hip import HiP
from perceivers.models.perceiver import Perceiver
from perceivers.models.perceiver_io import PerceiverIO
from perceivers.report.figures.attention import Panel, PanelSection, draw_attention
from perceivers.report.figures.canvases import (
    Canvas,
    ClipCanvas,
    PictureCanvas,
    PointsCanvas,
    TextCanvas,
    WaveCanvas,
)
from perceivers.settings import Range, checked
from perceivers.tasks.flow import FlowConfig
from perceivers.tasks.mlm import WHITESPACE
from perceivers.training.config import TrainConfig
from perceivers.types import FIRST_BYTE, MASK, Audio, Bytes, Image, ModalitySpec, Points, Video
from perceivers.workflows.attention import Speaker, read_flat, read_hip
from perceivers.workflows.attention_maps import WORTH_SAYING, Answer, Explanation, TokenMap
from perceivers.workflows.evaluation import open_for_model
from perceivers.workflows.origin import run_config
from perceivers.workflows.preparing import find_settings

# Samples drawn of a data address, and in the overview.
SAMPLES = 8
SHOWN = 12
MOST_LATENTS = 100
Latents = Annotated[int, Range(0, MOST_LATENTS)]
# Files that hold many samples.
PACKED = (".tar", ".npz", ".csv", ".jsonl")
MASK_IDS = encode_text("[MASK]")


class Sample(NamedTuple):
    """One sample: names, raw tensors ``[1, ...]``, and ids of bytes hidden here by place."""

    name: str
    title: str
    inputs: dict[str, Tensor]
    hidden: dict[int, int]


@dataclass
class Drawn:
    """What a call draws: a picture per sample, and a panel of each for the overview."""

    out: Path
    speaker: Speaker
    written: list[Path] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    last: Explanation | None = None

    def add(self, sample: Sample, found: Explanation) -> None:
        """Draw one sample."""
        canvases = make_canvases(self.speaker.model, sample.inputs)
        says = "; ".join(dict.fromkeys(self.speaker.say(a, sample.hidden) for a in found.answers))
        path = draw_attention(
            _free(self.out, sample.name, self.written),
            arrange(found, canvases, self.speaker, sample),
            title=sample.title,
            note=f"The model's answer: {says}." if says else "",
        )
        self.written.append(path)
        self.panels.append(_overview_panel(found, canvases, self.speaker, sample))
        self.last = found

    def draw_overview(self, path: Path) -> Path:
        """Draw the first samples in one figure, and name what could not be read."""
        assert self.last is not None
        total = len(self.panels)
        shown = f", the first {SHOWN} of {total} samples" if total > SHOWN else ""
        what = "where the answer looks" if self.last.answers else "what the latents read on average"
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
    """Draw where a model reads its input, and where its answer looks, as ``NAME_attention.png``.

    Args:
        model: Run folder, ``RUN@last`` or model folder.
        paths: Pictures, sounds, videos or texts as the model reads them, or folders searched for
            them; in texts for masked language models ``[MASK]`` hides a byte. For models of points,
            of arrays and of generated frame pairs: data addresses, of which the first 8 test
            samples are drawn.
        out: Folder for the pictures and ``overview.png``.
        head: Attention heads of the reads: ``mean``, ``all`` of them one by one, or a number.
        latents: Latents singled out per read, 0 to 100: those that differ most from the mean.
        overwrite: Replace pictures of an earlier call in ``out``.

    Returns:
        The files written; the overview is the last.

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
    out: str | Path,
    *,
    head: str | int,
    latents: Latents,
    overwrite: bool,
) -> Drawn:
    """Do what ``explain`` does, and also tell what could not be read.

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
    """Return the attention maps of one sample with whatever system reads it.

    Raises:
        UserError: As ``read_flat`` and ``read_hip``.
    """
    if isinstance(model, HiP):
        return read_hip(model, inputs, head=head, latents=latents)
    if not isinstance(model, Perceiver | PerceiverIO | EntitySet):
        raise ConfigError(
            f"a {model.family} model has no latents whose attention could be drawn; explain is for "
            f"hip, perceiver, perceiver_io and entity_set models"
        )
    return read_flat(model, inputs, head=head, latents=latents)


# -- samples ---------------------------------------------------------------------------------------


def read_samples(
    loaded: Loaded, config: TrainConfig | None, paths: Sequence[str], bad: list[str]
) -> Iterator[Sample]:
    """Yield single samples of files or of data addresses; ``bad`` collects what is unreadable.

    Raises:
        UserError: A path does not exist, or nothing can be read.
    """
    specs = dict(loaded.model.config.data_inputs)
    kinds = [spec.kind for spec in specs.values()]
    in_files = all(name == spec.kind and name in ENDINGS for name, spec in specs.items())
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
    """Whether a path names a data set rather than single files: built in, packed, or a table."""
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
    """Yield the first samples of a data set's test split, or of its validation split."""
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
    """Hide bytes of the texts that a masked language model is to fill in; leave others as they are.

    ``[MASK]`` in a text hides a byte; in a text without one, the word in the middle is hidden.
    """
    given, hidden = dict(inputs), {}
    # The answer of a HiP that gives its text back is not drawn, so nothing is hidden from it.
    answers_bytes = not isinstance(model, HiP) and bool(getattr(model.config, "byte_outputs", ()))
    for key, tensor in inputs.items():
        spec = model.config.inputs[key]
        if isinstance(spec, Bytes) and answers_bytes:
            ids = replace_masks(tensor[0].numpy(), spec.length)
            if not (ids == MASK).any():
                hidden = {place: int(ids[place]) for place in middle_word(ids)}
                ids[list(hidden)] = MASK
            given[key] = torch.from_numpy(ids)[None]
    return Sample(name, title, given, hidden)


def replace_masks(ids: np.ndarray, length: int) -> np.ndarray:
    """Return ids ``[L]`` in which the letters ``[MASK]`` are the one id that hides a byte."""
    kept: list[int] = []
    place, size = 0, len(MASK_IDS)
    while place < len(ids):
        found = np.array_equal(ids[place : place + size], MASK_IDS)
        kept.append(MASK if found else int(ids[place]))
        place += size if found else 1
    return pad_ids(np.array(kept, np.int64), length)


def middle_word(ids: np.ndarray) -> list[int]:
    """Return the places of the word nearest to the middle of a text ``[L]``, if there is one."""
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
    """Return where a picture goes, numbered if another sample has used the name already."""
    path, count = folder / f"{name}_attention.png", 2
    while path in taken:
        path, count = folder / f"{name}-{count}_attention.png", count + 1
    return path


# -- panels ----------------------------------------------------------------------------------------


def make_canvases(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Canvas]:
    """Return what heat is drawn on, by modality.

    Raises:
        CheckpointError: An input has more axes than can be drawn.
    """
    canvases: dict[str, Canvas] = {}
    for name, raw in inputs.items():
        spec = model.config.inputs[name]
        if isinstance(spec, Bytes):
            canvases[name] = TextCanvas(raw[0].numpy())
            continue
        adapter = model.adapter(name)
        values = adapter.restore(adapter.normalise(adapter.flatten(raw), torch.float32))[0].numpy()
        if isinstance(spec, Image):
            canvases[name] = PictureCanvas(values)
        elif isinstance(spec, Video):
            joint = _sees_both_frames(model, name)
            words = "frame 1; each token sees both frames"
            canvases[name] = PictureCanvas(values[:, 0], words) if joint else ClipCanvas(values)
        elif isinstance(spec, Audio):
            canvases[name] = WaveCanvas(values, float(spec.sample_rate))
        elif isinstance(spec, Points):
            canvases[name] = PointsCanvas(values)
        elif len(spec.grid) == 1:
            canvases[name] = WaveCanvas(np.moveaxis(values, -1, 0))
        elif len(spec.grid) == 2:
            low, high = float(values.min()), float(values.max())
            canvases[name] = PictureCanvas(
                np.moveaxis((values - low) / max(high - low, 1e-9), -1, 0)
            )
        else:
            raise CheckpointError(
                f"input {name!r} is an array of {len(spec.grid)} axes {spec.grid}; attention can "
                f"be drawn on arrays of 1 or 2 axes, pictures, sounds, videos, points and texts"
            )
    return canvases


def _sees_both_frames(model: Any, name: str) -> bool:
    """Whether a token holds two frames, so that there is but one map for both."""
    if not isinstance(model, PerceiverIO | Perceiver):
        return False
    spec = model.config.inputs[name]
    return covered_grid(spec, model.inputs.reader(name).config) != spec.grid


def arrange(
    found: Explanation, canvases: Mapping[str, Canvas], speaker: Speaker, sample: Sample
) -> list[PanelSection]:
    """Lay out a sample: where its answers look, then what the latents read."""
    captions = [canvas.caption for canvas in canvases.values() if canvas.caption]
    answers = [Panel(canvases, "the input", notes=captions)]
    for answer in found.answers:
        assert answer.map is not None
        words = speaker.say(answer, sample.hidden)
        answers.append(make_panel(canvases, answer.map, words, answer))
    sections = [PanelSection("Where the answer looks", found.route, answers)]
    for number, read in enumerate(found.reads):
        text = (
            "Attention of the latents to the input: the mean over all, then those that differ most "
            "from it."
        )
        panels = [make_panel(canvases, each, each.label) for each in read.maps]
        sections.append(PanelSection(read.title, "" if number else text, panels))
    return sections


def make_panel(
    canvases: Mapping[str, Canvas], found: TokenMap, label: str, answer: Answer | None = None
) -> Panel:
    """Turn a map into a panel; tokens of inputs that cannot be drawn are named."""
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
    """The map of one answer, or the mean of the first read, under the sample's name.

    Answers for the whole sample come before those for one element of it.
    """
    if not found.answers:
        return make_panel(canvases, found.reads[0].maps[0], sample.name)
    answer = min(found.answers, key=lambda each: bool(each.modality))
    assert answer.map is not None
    words = f"{sample.name}: {speaker.say(answer, sample.hidden)}"
    return make_panel(canvases, answer.map, words, answer)
