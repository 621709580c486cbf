"""Anomaly detection with masked autoencoders (the verb ``anomaly``): scores, maps and files.

Each element is scored by its reconstruction error while it is hidden; a high error means that the
model cannot predict the element from its surroundings, as with a scratch or an unusual sound.

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
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.files import write_atomic, write_json
from perceivers.models.masked import ErrorMaps, MaskSettings
from perceivers.models.registry import FAMILIES
from perceivers.report.console import Grid, Shown, name_skipped
from perceivers.report.figures.anomaly import Heat, draw_heat
from perceivers.settings import Count, Natural, Part, Range, Seed, Settings
from perceivers.tasks import AutoencodingConfig
from perceivers.tasks.base import held_modalities
from perceivers.tasks.metrics import new_metric
from perceivers.training.config import TrainConfig
from perceivers.workflows.embedding import Feed, Portion, open_feed
from perceivers.workflows.opening import run_config
from perceivers.workflows.prediction import write_predictions
from perceivers.workflows.task_table import find_masking, recorded_settings

REFERENCE_SIZE = 512
# Scales the median absolute deviation to the standard deviation of a normal distribution.
MAD_TO_DEVIATION = 1.4826


@dataclass(frozen=True)
class AnomalySettings(Settings, prefix=""):
    """Settings of anomaly scoring."""

    repeats: Count = 8
    """How often each element is hidden, at least 1; more gives smoother maps but takes longer."""
    ratio: Part | None = None
    """Fraction hidden in each pass, between 0 and 1;
    by default the ratio of the training."""
    top: Annotated[float, Range(above=0, most=1)] = 0.1
    """The score averages this fraction of the elements, those with the largest errors; 1 uses
    all."""
    draw: Natural = 32
    """Number of samples to draw maps of, most anomalous first."""
    batch_size: Count = 64
    """Samples per batch."""
    seed: Seed = 0
    """Seed of the masks, which are the same for every sample."""


@dataclass(frozen=True)
class AnomalyRow:
    """Scores of one sample.

    Attributes:
        name: Name or path of the sample.
        known_class: Class of the sample; for a file, its parent folder. Empty if unknown.
        score: Deviations above the median of the reference, averaged over the modalities that are
            present; without a reference, the mean error.
        percentile: Percentage of reference samples with a lower score; None without a reference.
        errors: Error per modality, in the space of the training target.
    """

    name: str
    known_class: str
    score: float
    percentile: float | None
    errors: Mapping[str, float]


@dataclass(frozen=True)
class AnomalyMap:
    """Error maps of one sample.

    Attributes:
        row: Scores of the sample.
        signals: Raw tensors by modality, without a batch axis.
        errors: Mean error of each element, on the modality's grid; NaN where there is no error.
    """

    row: AnomalyRow
    signals: Mapping[str, Tensor]
    errors: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Anomalies:
    """Anomaly scores of all samples, most anomalous first.

    Attributes:
        rows: All samples.
        maps: Maps of the ``draw`` most anomalous samples.
        auroc: Area under the ROC curve for separating abnormal from normal samples; None unless
            normal classes were given.
        reference: Number of reference samples; 0 without a reference.
        passes: Number of forward passes per sample.
        unit: Unit of the errors.
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
    """Error statistics of normal samples by modality, and their combined scores."""

    centre: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def combine(self, errors: Mapping[str, float]) -> float:
        """Average the modalities into one score, in deviations above the centre if known."""
        held = {n: e for n, e in errors.items() if np.isfinite(e)}
        parts = [(e - self.centre.get(n, 0.0)) / self.spread.get(n, 1.0) for n, e in held.items()]
        return float(np.mean(parts)) if parts else float("nan")

    def percentile(self, score: float) -> float | None:
        """Return the percentage of normal samples with a lower score; None without any."""
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
    """Score samples by the error of a masked autoencoder on hidden elements.

    Args:
        model: A HiP or Hiera pre-trained with masking, or a Perceiver IO autoencoder trained with a
            mask ratio; run folder, model folder, or name of pre-trained weights.
        data: Files and folders, or one data address.
        split: Split of a data set; marks ``data`` as an address.
        reference: Address of normal samples; scores are relative to at most 512 of them. Default:
            the validation data of the run; no reference for a model folder.
        normal: Normal classes, to compute the AUROC of separating all other classes from them. The
            reference is then restricted to these classes if it has any of them.
        settings: Settings of the scoring.

    Raises:
        UserError: The model cannot reconstruct hidden elements, nothing can be read, or no sample
            belongs to a normal class.
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
        maker: Computes the error maps of the model.
        feed: Reference data.
        normal: Normal classes; if the data have none of them, all samples count as normal.
        settings: Settings of the scoring.

    Raises:
        DataError: No sample belongs to those classes.
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
        raise DataError(f"no sample of the reference belongs to the classes {sorted(only)}")
    scale = Scale()
    for name in found[0]:
        values = np.array([errors[name] for errors in found])
        values = values[np.isfinite(values)]
        if len(values):
            scale.centre[name] = float(np.median(values))
            spread = MAD_TO_DEVIATION * float(np.median(np.abs(values - scale.centre[name])))
            # Identical errors, as on synthetic data, would divide by zero.
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
    """Score all samples, keeping only the maps of the most anomalous ones in memory."""
    rows: list[AnomalyRow] = []
    kept: list[tuple[float, int, AnomalyMap]] = []
    # Breaks ties by order of arrival; without it the heap would compare maps.
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
    """Return the errors ``[B, *grid]`` of a batch by modality, on the CPU."""
    held = held_modalities(loaded.model, portion.batch)
    return {name: x.cpu() for name, x in maker(portion.batch.inputs, held).items()}


def pool_errors(maps: Mapping[str, Float[Tensor, "B *grid"]], top: float) -> list[dict[str, float]]:
    """Return, per sample and modality, the mean error of the elements with the largest errors.

    Args:
        maps: Errors; NaN is ignored, and a sample with only NaN gets NaN.
        top: Fraction of the elements to average, in (0, 1]; at least one element is used.
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
    """Return the area under the ROC curve for separating samples of other classes from normal ones.

    Samples without a known class are ignored.

    Raises:
        DataError: All samples are normal, or none is.
    """
    known = [row for row in rows if row.known_class and np.isfinite(row.score)]
    classes = sorted({row.known_class for row in known})
    odd = torch.tensor([row.known_class not in normal for row in known])
    if not known or bool(odd.all()) or not bool(odd.any()):
        raise DataError(
            f"normal classes are {list(normal)}, and the samples belong to {classes}; AUROC needs "
            f"both normal and other samples; classes come from the data set or from the folder of "
            f"each file"
        )
    # Ranks in 0..1: torchmetrics applies a sigmoid to values outside, which saturates large scores.
    scores = np.array([row.score for row in known])
    ranks = np.unique(scores, return_inverse=True)[1] / len(scores)
    metric = new_metric("classification.BinaryAUROC", torch.device("cpu"))
    return float(metric(torch.from_numpy(ranks), odd.long()))


def describe(row: AnomalyRow) -> dict[str, Any]:
    """Convert a row to a table record."""
    record: dict[str, Any] = {"file": row.name, "class": row.known_class, "score": row.score}
    if row.percentile is not None:
        record["percentile"] = row.percentile
    return record | {f"error/{name}": value for name, value in row.errors.items()}


# -- Output files: tables of scores, error maps, and heat maps of the most anomalous samples -----

NOTE = "Left or above: the original; then the reconstruction error of hidden elements."
# Quantile of the drawn errors that gets the strongest colour.
STRONGEST = 0.995


# Rows of the printed table.
PRINTED = 10


def score_files(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    out: str | Path = "anomalies",
    *,
    split: str | None = None,
    reference: str | None = None,
    normal: str | None = None,
    settings: AnomalySettings | None = None,
    overwrite: bool = False,
) -> Anomalies:
    """Score samples by the error of a masked autoencoder on hidden elements, and draw the errors.

    Args:
        model: As for ``find_anomalies``.
        data: As for ``find_anomalies``.
        out: Folder for tables, maps and figures.
        split: As for ``find_anomalies``.
        reference: As for ``find_anomalies``.
        normal: Normal classes, separated by commas, to compute the AUROC of separating all other
            classes from them.
        settings: As for ``find_anomalies``.
        overwrite: Replace earlier files.

    Raises:
        UserError: As for ``find_anomalies``, or ``out`` holds scores already.
    """
    check_folder(Path(out), overwrite=overwrite)
    classes = tuple(normal.split(",")) if normal else ()
    options = {"split": split, "reference": reference, "normal": classes}
    found = find_anomalies(model, data, settings=settings, **options)
    write_anomalies(found, Path(out))
    return found


def show(found: Anomalies, *, out: str | Path) -> Shown:
    """Show the highest scores.

    Args:
        found: From ``score_files``.
        out: As for ``score_files``.
    """
    rows = [
        (
            row.name,
            row.known_class,
            f"{row.score:.3f}",
            "" if row.percentile is None else f"{row.percentile:.1f}",
        )
        for row in found.rows[:PRINTED]
    ]
    relative = (
        f"scores are deviations above the median of {found.reference} normal samples"
        if found.reference
        else "scores are plain errors; give --reference to make them relative to normal samples"
    )
    lines: list[str | Grid] = [
        Grid(("sample", "class", "score", "percentile"), rows, title="Highest scores first"),
        f"{relative}; {found.passes} passes over each sample",
    ]
    if found.auroc is not None:
        lines.append(f"auroc: {found.auroc:.4f}")
    lines.append(f"{len(found.rows)} samples scored, see {Path(out) / 'scores.csv'}")
    return Shown(lines, name_skipped(found.skipped))


def check_folder(out: Path, *, overwrite: bool) -> None:
    """Check that the output folder holds no scores of an earlier call.

    Raises:
        ConfigError: It does and ``overwrite`` is off, or ``out`` is a file.
    """
    if out.is_file():
        raise ConfigError(f"--out {out} is a file; give a folder for the scores and images")
    if (out / "scores.jsonl").exists() and not overwrite:
        raise ConfigError(f"{out} holds scores already; pass --overwrite or another --out")


def write_anomalies(found: Anomalies, out: Path) -> list[Path]:
    """Write ``scores.jsonl``, ``scores.csv``, ``summary.json`` and the maps ``NNN_NAME``.

    Each map is a ``.npz`` with the error of every element by modality (float32, on the modality's
    grid) and a ``.png``; a sample of several modalities has one ``.png`` per modality.

    Args:
        found: Scores and maps.
        out: Output folder, created if missing.

    Returns:
        The tables, the summary and the images; the ``.npz`` files are not listed.
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
    """Return the error of the strongest colour per modality, the same for all images."""
    limits = {}
    for name in found.maps[0].errors if found.maps else ():
        values = np.concatenate([each.errors[name].ravel() for each in found.maps])
        values = values[np.isfinite(values)]
        limits[name] = max(float(np.quantile(values, STRONGEST)), 1e-9) if len(values) else 1.0
    return limits


def _draw(found: Anomalies, each: AnomalyMap, stem: Path, limits: dict[str, float]) -> list[Path]:
    specs, written = found.loaded.model.config.inputs, []
    relative = f"{each.row.score:.2f} deviations above normal" if found.reference else ""
    title = f"{Path(each.row.name).name}: {relative or f'error {each.row.score:.4g}'}"
    for name in each.row.errors:
        spec: Any = specs[name]
        heat = Heat(
            kind=spec.kind,
            signal=found.loaded.model.adapter(name).to_floats(each.signals[name][None])[0].numpy(),
            errors=each.errors[name],
            rate=float(getattr(spec, "frame_rate", 0) or getattr(spec, "sample_rate", 0)),
        )
        ending = f"_{name}.png" if len(each.row.errors) > 1 else ".png"
        path = stem.with_name(f"{stem.name}{ending}")
        written.append(
            draw_heat(path, heat, limit=limits[name], unit=found.unit, title=title, note=NOTE)
        )
    return written


# -- Errors of hidden elements, by model family --------------------------------------------------


def error_maps(
    loaded: Loaded,
    config: TrainConfig | None,
    *,
    repeats: int,
    ratio: float | None,
    seed: int,
) -> ErrorMaps:
    """Prepare error maps of a model that was trained to reconstruct hidden elements.

    Args:
        loaded: A HiP or Hiera with a decoder, or a Perceiver IO that was trained with a mask ratio.
        config: Settings of its run, if there is one.
        repeats: How often each element is hidden, at least 1.
        ratio: Fraction hidden in each pass, between 0 and 1; default: as in training.
        seed: Seed of the masks.

    Raises:
        CheckpointError: The model was not trained to reconstruct hidden elements.
        ConfigError: ``repeats`` or ``ratio`` is out of range.
    """
    if ratio is not None and not 0.0 < ratio < 1.0:
        raise ConfigError(f"mask ratio is {ratio}; it must lie strictly between 0 and 1")
    model, generator = loaded.model.eval(), torch.Generator().manual_seed(seed)
    family = FAMILIES[model.family]
    if family.token_errors is not None and loaded.info.task in {"", "autoencode"}:
        known = recorded_settings(AutoencodingConfig, loaded, config)
        if known is None and ratio is None:
            raise CheckpointError(
                f"{loaded.folder} does not record which fraction of its tokens was hidden in "
                f"training; state it with --ratio, or give the run folder"
            )
        if known is not None and not known.mask_ratio:
            raise CheckpointError(
                f"{loaded.folder} was trained without hidden tokens (autoencode.mask_ratio is 0), "
                f"so it cannot reconstruct them; pre-train with --autoencode.mask_ratio 0.75"
            )
        hidden = ratio or (known.mask_ratio if known is not None else 0.0)
        return family.token_errors(model, hidden, repeats, generator)
    if loaded.info.task == "mlm":
        raise CheckpointError(
            f"{loaded.folder} ({model.family}, task mlm) hides bytes by replacing their ids, not "
            f"parts of a signal; {advise(loaded)}"
        )
    if family.hidden_errors is None or model.decoder is None:
        raise CheckpointError(
            f"{loaded.folder} ({model.family}, task {loaded.info.task or 'not recorded'}) does not "
            f"fill in what is hidden; {advise(loaded)}"
        )
    settings = find_masking(loaded, config)
    if ratio is not None:
        settings = MaskSettings(ratio, settings.kind, settings.target)
    return family.hidden_errors(model, settings, repeats, generator)


def advise(loaded: Loaded) -> str:
    """Suggest a model that can score anomalies in the modalities of ``loaded``, which cannot."""
    kinds = {spec.kind for spec in loaded.model.config.data_inputs.values()}
    # A HiP identifies hidden points only by their index in the file, which says little about them.
    if "points" in kinds and "bytes" not in kinds:
        return (
            "give an autoencoder with hidden tokens: perceivers pretrain --task autoencode --model "
            "perceiver_io_nano --autoencode.mask_ratio 0.75 --data ... --out ..."
        )
    return "give a masked autoencoder: perceivers pretrain --model hip_tiny --data ... --out ..."
