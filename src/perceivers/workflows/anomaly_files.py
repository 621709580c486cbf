"""Anomalies as files: tables of scores, maps as arrays, and heat over the strangest samples."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceivers.errors import ConfigError
from perceivers.files import write_atomic, write_json
from perceivers.report.figures.anomaly import Heat, draw_heat
from perceivers.workflows.anomaly import Anomalies, AnomalyMap, describe
from perceivers.workflows.prediction import write_predictions

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
