"""Which samples a masked auto-encoder finds strange, and where: the verb ``anomaly``.

Every element is scored while it is hidden. What the model cannot fill in from its surroundings is
strange to it: a scratch, a wrong part, a noise that does not belong.

Legend: B batch.
"""

import heapq
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.errors import ConfigError, DataError
from perceivers.files import write_atomic, write_json
from perceivers.report.figures.anomaly import Heat, draw_heat
from perceivers.settings import Count, Natural, Part, Range, Seed, Settings
from perceivers.tasks.metrics import new_metric
from perceivers.tasks.presence import held_modalities
from perceivers.training.config import TrainConfig
from perceivers.workflows.embedding import Feed, Portion, open_feed
from perceivers.workflows.hidden_errors import ErrorMaps, error_maps
from perceivers.workflows.origin import run_config
from perceivers.workflows.prediction import write_predictions

REFERENCE_SIZE = 512
# Deviations that the median absolute deviation of normal errors stands for.
MAD_TO_DEVIATION = 1.4826


@dataclass(frozen=True)
class AnomalySettings(Settings, prefix=""):
    """How samples are scored."""

    repeats: Count = 8
    """How often each element is hidden, at least 1; more makes smoother maps and takes longer."""
    ratio: Part | None = None
    """Share hidden in each pass, between 0 and 1; None takes what the model was trained with."""
    top: Annotated[float, Range(above=0, most=1)] = 0.1
    """The score is the mean over this share of the elements, the most wrong ones; 1 takes all."""
    draw: Natural = 32
    """Samples of which maps are kept, the strangest first."""
    batch_size: Count = 64
    """Samples at once."""
    seed: Seed = 0
    """Of the masks, which are the same for every sample."""


@dataclass(frozen=True)
class AnomalyRow:
    """One sample.

    Attributes:
        name: Its name, or path.
        known_class: Its class, of a file the folder it lies in; empty where unknown.
        score: Deviations above the median of the reference, mean over the modalities that the
            sample holds; without a reference the mean error.
        percentile: Share of the reference with a lower score, in percent; None without one.
        errors: Error per modality, in the space that the model was trained in.
    """

    name: str
    known_class: str
    score: float
    percentile: float | None
    errors: Mapping[str, float]


@dataclass(frozen=True)
class AnomalyMap:
    """A strange sample with its map.

    Attributes:
        row: Its scores.
        signals: Raw tensors by modality, without a batch axis.
        errors: Mean error of every element, on the modality's grid; NaN where there is none.
    """

    row: AnomalyRow
    signals: Mapping[str, Tensor]
    errors: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Anomalies:
    """What was found, strangest first.

    Attributes:
        rows: All samples.
        maps: The first of them, as many as were asked for.
        auroc: Area under the curve of telling abnormal samples from normal ones; None where that
            was not asked.
        reference: Samples that scores are relative to; 0 without a reference.
        passes: Times that every sample was looked at.
        unit: What errors are.
        skipped: Samples that could not be read, as ``path: reason``.
        loaded: The model.
    """

    rows: tuple[AnomalyRow, ...]
    maps: tuple[AnomalyMap, ...]
    auroc: float | None
    reference: int
    passes: int
    unit: str
    skipped: list[str]
    loaded: Loaded


@dataclass
class Scale:
    """Errors of normal samples, by modality, and what they combine to."""

    centre: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def combine(self, errors: Mapping[str, float]) -> float:
        """Return one score: deviations above the centre where there is one."""
        held = {n: e for n, e in errors.items() if np.isfinite(e)}
        parts = [(e - self.centre.get(n, 0.0)) / self.spread.get(n, 1.0) for n, e in held.items()]
        return float(np.mean(parts)) if parts else float("nan")

    def percentile(self, score: float) -> float | None:
        """Return which share of normal samples has a lower score, in percent."""
        return 100.0 * float((self.scores < score).mean()) if len(self.scores) else None


def find_anomalies(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    split: str | None = None,
    reference: str | None = None,
    normal: str | Sequence[str] = (),
    settings: AnomalySettings | None = None,
) -> Anomalies:
    """Score samples by the error of a masked auto-encoder where it does not see.

    Args:
        model: A HiP or Hiera that was pre-trained by masking, or a Perceiver IO that was
            auto-encoded with a mask ratio; run folder, model folder, or the name of weights of
            ours.
        data: Files and folders, or one data address.
        split: The split of a data set; says that ``data`` is an address.
        reference: Address of normal samples, up to 512 of which scores are made relative to; the
            run's own validation data when not given, and none for a model folder.
        normal: Classes that are normal, to compute how well scores tell the others from them; the
            reference is then of these classes alone, if it has them.
        settings: How samples are scored.

    Raises:
        UserError: The model cannot fill in what is hidden, nothing can be read, or no sample is of
            a class that is called normal.
    """
    settings = settings or AnomalySettings()
    loaded, config = load_with_info(model), run_config(model)
    maker = error_maps(
        loaded, config, repeats=settings.repeats, ratio=settings.ratio, seed=settings.seed
    )
    words = [str(data)] if isinstance(data, str | Path) else [str(each) for each in data]
    feed = open_feed(
        loaded, config, words, split=split, batch_size=settings.batch_size, folders_are_files=True
    )
    wanted = (normal,) if isinstance(normal, str) else tuple(normal)
    normals = _open_reference(loaded, config, reference, settings.batch_size)
    scale = Scale() if normals is None else measure(loaded, maker, normals, wanted, settings)
    skipped: list[str] = []
    rows, maps = _score(loaded, maker, feed, scale, settings, skipped)
    rows.sort(key=lambda row: -row.score)
    return Anomalies(
        rows=tuple(rows),
        maps=tuple(maps),
        auroc=area(rows, wanted) if wanted else None,
        reference=len(scale.scores),
        passes=maker.passes,
        unit=maker.unit,
        skipped=skipped,
        loaded=loaded,
    )


def _open_reference(
    loaded: Loaded, config: TrainConfig | None, reference: str | None, batch_size: int
) -> Feed | None:
    """Open what is normal: what was given, or the run's own validation data."""
    if reference is not None:
        return open_feed(loaded, config, [reference], batch_size=batch_size, folders_are_files=True)
    if config is None:
        return None
    return open_feed(loaded, config, [config.data], split="val", batch_size=batch_size)


def measure(
    loaded: Loaded, maker: ErrorMaps, feed: Feed, normal: Sequence[str], settings: AnomalySettings
) -> Scale:
    """Measure the errors of normal samples.

    Args:
        loaded: The model.
        maker: Makes its maps.
        feed: What is normal.
        normal: Classes that are; where the data have none of them, all samples are.
        settings: How samples are scored.

    Raises:
        DataError: No sample is of those classes.
    """
    only = set(normal) & set(feed.classes)
    found: list[dict[str, float]] = []
    for portion in feed.read():
        maps = make_maps(loaded, maker, portion)
        for errors, word in zip(pool_errors(maps, settings.top), portion.classes, strict=True):
            if not only or word in only:
                found.append(errors)
        if len(found) >= REFERENCE_SIZE:
            break
    found = found[:REFERENCE_SIZE]
    if not found:
        raise DataError(f"no sample of the reference is of the classes {sorted(only)}")
    scale = Scale()
    for name in found[0]:
        values = np.array([errors[name] for errors in found])
        values = values[np.isfinite(values)]
        if len(values):
            scale.centre[name] = float(np.median(values))
            spread = MAD_TO_DEVIATION * float(np.median(np.abs(values - scale.centre[name])))
            scale.spread[name] = max(spread, 1e-9)
    scale.scores = np.array([scale.combine(errors) for errors in found])
    return scale


def _score(
    loaded: Loaded,
    maker: ErrorMaps,
    feed: Feed,
    scale: Scale,
    settings: AnomalySettings,
    skipped: list[str],
) -> tuple[list[AnomalyRow], list[AnomalyMap]]:
    """Score all samples; the maps of the strangest alone are kept meanwhile."""
    rows: list[AnomalyRow] = []
    kept: list[tuple[float, int, AnomalyMap]] = []
    # Of equal scores the first come first, and maps are never compared.
    order = count()
    for portion in feed.read():
        skipped += portion.batch.bad
        maps = make_maps(loaded, maker, portion)
        for place, errors in enumerate(pool_errors(maps, settings.top)):
            score = scale.combine(errors)
            row = AnomalyRow(
                portion.names[place],
                portion.classes[place],
                score,
                scale.percentile(score),
                {name: value for name, value in errors.items() if np.isfinite(value)},
            )
            rows.append(row)
            if settings.draw == 0 or (len(kept) == settings.draw and score <= kept[0][0]):
                continue
            signals = {name: x[place] for name, x in portion.batch.inputs.items()}
            found = AnomalyMap(row, signals, {n: e[place].numpy() for n, e in maps.items()})
            push = heapq.heappush if len(kept) < settings.draw else heapq.heappushpop
            push(kept, (score, -next(order), found))
    return rows, [found for *_, found in sorted(kept, key=lambda each: (-each[0], -each[1]))]


def make_maps(loaded: Loaded, maker: ErrorMaps, portion: Portion) -> dict[str, Tensor]:
    """Return the errors ``[B, *grid]`` of a batch by modality."""
    held = held_modalities(loaded.model, portion.batch)
    return {name: x.cpu() for name, x in maker(portion.batch.inputs, held).items()}


def pool_errors(maps: Mapping[str, Float[Tensor, "B *grid"]], top: float) -> list[dict[str, float]]:
    """Return one number per sample and modality: the mean of its most wrong elements.

    Args:
        maps: Errors; NaN does not count, and a sample of NaN alone has none.
        top: Share of the elements that count, above 0 and at most 1; at least one does.
    """
    columns: dict[str, list[float]] = {}
    for name, errors in maps.items():
        rows = []
        for row in errors.flatten(1):
            known = row[torch.isfinite(row)]
            number = max(1, round(top * len(known)))
            rows.append(float(known.topk(number).values.mean()) if len(known) else float("nan"))
        columns[name] = rows
    size = len(next(iter(columns.values())))
    return [{name: rows[place] for name, rows in columns.items()} for place in range(size)]


def area(rows: Iterable[AnomalyRow], normal: Sequence[str]) -> float:
    """Return the area under the curve of telling samples of other classes from normal ones.

    Samples of no known class are left out.

    Raises:
        DataError: No class is called normal, or all are.
    """
    known = [row for row in rows if row.known_class and np.isfinite(row.score)]
    classes = sorted({row.known_class for row in known})
    odd = torch.tensor([row.known_class not in normal for row in known])
    if not known or bool(odd.all()) or not bool(odd.any()):
        raise DataError(
            f"normal classes are {list(normal)}, and the samples are of {classes}; AUROC needs "
            f"some of both, by the classes of a data set or the folders that files lie in"
        )
    # Ranks in 0..1: the metric takes what lies outside for logits, whose ends become equal.
    scores = np.array([row.score for row in known])
    ranks = np.unique(scores, return_inverse=True)[1] / len(scores)
    metric = new_metric("classification.BinaryAUROC", torch.device("cpu"))
    return float(metric(torch.from_numpy(ranks), odd.long()))


def describe(row: AnomalyRow) -> dict[str, Any]:
    """Return a row as a record for a table."""
    record: dict[str, Any] = {"file": row.name, "class": row.known_class, "score": row.score}
    if row.percentile is not None:
        record["percentile"] = row.percentile
    return record | {f"error/{name}": value for name, value in row.errors.items()}


# -- Anomalies as files: tables of scores, maps as arrays, and heat over the strangest samples ---

NOTE = "Left or above as it is; then where the model was wrong about what it did not see."
# Errors above this share of those drawn get the strongest colour.
STRONGEST = 0.995


def check_folder(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds the scores of an earlier call.

    Raises:
        ConfigError: It does, and ``overwrite`` is off; or it is a file.
    """
    if out.is_file():
        raise ConfigError(f"--out {out} is a file; scores and pictures go into a folder")
    if (out / "scores.jsonl").exists() and not overwrite:
        raise ConfigError(f"{out} holds scores already; pass --overwrite or another --out")


def write_anomalies(found: Anomalies, out: Path) -> list[Path]:
    """Write ``scores.jsonl``, ``scores.csv``, and per sample drawn ``NNN_NAME.png`` and ``.npz``.

    An ``.npz`` holds the error of every element by modality, float32 on the modality's grid. A
    sample of several modalities has a picture of each.

    Args:
        found: What to write.
        out: The folder, created when missing.

    Returns:
        The files written, tables first.
    """
    out.mkdir(parents=True, exist_ok=True)
    records = [describe(row) for row in found.rows]
    tables = [out / "scores.jsonl", out / "scores.csv"]
    for path in tables:
        write_predictions(records, path)
    summary = {
        "samples": len(found.rows),
        "reference": found.reference,
        "passes": found.passes,
        "unit": found.unit,
        "auroc": found.auroc,
        "skipped": found.skipped,
    }
    summary_path = write_json(out / "summary.json", summary)
    limits = _limits(found)
    pictures: list[Path] = []
    for rank, each in enumerate(found.maps, 1):
        stem = out / f"{rank:03d}_{Path(each.row.name).stem}"
        buffer = io.BytesIO()
        arrays: dict[str, Any] = dict(each.errors)
        np.savez_compressed(buffer, **arrays)
        write_atomic(stem.with_name(f"{stem.name}.npz"), buffer.getvalue())
        pictures += _draw(found, each, stem, limits)
    return [*tables, summary_path, *pictures]


def _limits(found: Anomalies) -> dict[str, float]:
    """The strongest colour of every modality, the same in all pictures."""
    limits = {}
    for name in found.maps[0].errors if found.maps else ():
        values = np.concatenate([each.errors[name].ravel() for each in found.maps])
        values = values[np.isfinite(values)]
        limits[name] = max(float(np.quantile(values, STRONGEST)), 1e-9) if len(values) else 1.0
    return limits


def _draw(found: Anomalies, each: AnomalyMap, stem: Path, limits: dict[str, float]) -> list[Path]:
    """Draw every modality that the sample holds."""
    specs, written = found.loaded.model.config.inputs, []
    relative = f"{each.row.score:.2f} deviations above normal" if found.reference else ""
    title = f"{Path(each.row.name).name}: {relative or f'error {each.row.score:.4g}'}"
    for name in each.row.errors:
        spec: Any = specs[name]
        heat = Heat(
            kind=spec.kind,
            signal=_as_floats(found.loaded.model, name, each.signals[name]).numpy(),
            errors=each.errors[name],
            rate=float(getattr(spec, "frame_rate", 0) or getattr(spec, "sample_rate", 0)),
        )
        ending = f"_{name}.png" if len(each.row.errors) > 1 else ".png"
        path = stem.with_name(f"{stem.name}{ending}")
        written.append(
            draw_heat(path, heat, limit=limits[name], unit=found.unit, title=title, note=NOTE)
        )
    return written


def _as_floats(model: Any, name: str, raw: Tensor) -> Tensor:
    """One raw sample as floats in its own layout; the ids of a text as they are."""
    adapter = model.adapter(name)
    if adapter.spec.kind == "bytes":
        return raw
    tokens = adapter.normalise(adapter.flatten(raw.unsqueeze(0)), torch.float32)
    return adapter.restore(tokens).squeeze(0)
