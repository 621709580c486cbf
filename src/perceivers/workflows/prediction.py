"""Classify pictures on disk: JSON lines or CSV, one record per file."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from perceivers.checkpoints.loading import load_with_info
from perceivers.data import find_files, read_files
from perceivers.errors import CheckpointError, ConfigError
from perceivers.files import write_atomic


@torch.no_grad()
def predict(
    model: str | Path, paths: Sequence[str | Path], *, top: int = 5, batch_size: int = 32
) -> Iterator[dict[str, Any]]:
    """Yield a record per file: file, class, probability and top; or file and error.

    Args:
        model: Run folder, ``RUN@last`` or model folder of a classifier.
        paths: Pictures, or folders searched for pictures.
        top: Classes listed per file.
        batch_size: Pictures at once.

    Raises:
        UserError: The model is no classifier, or a path does not exist. A file that cannot be read
            becomes a record with ``error`` instead.
    """
    if top < 1:
        raise ConfigError(f"top is {top}; it must be at least 1")
    loaded = load_with_info(model)
    if loaded.info.task != "classify":
        raise CheckpointError(
            f"{model} is not a classifier (its task is {loaded.info.task or 'not recorded'}); "
            f"fine-tune it first: perceivers finetune --model {model} --data ... --out ..."
        )
    classes = loaded.info.classes
    files = find_files([str(path) for path in paths])
    for names, batch in read_files(files, loaded.model.config.data_inputs, batch_size):
        if names:
            probabilities = loaded.model(batch.inputs).float().softmax(-1)
            best = probabilities.topk(min(top, len(classes)))
            for file, values, indices in zip(names, best.values, best.indices, strict=True):
                ranked = [
                    {"class": classes[i], "probability": round(p, 6)}
                    for p, i in zip(values.tolist(), indices.tolist(), strict=True)
                ]
                yield {"file": str(file), **ranked[0], "top": ranked}
        for text in batch.bad:
            file, _, reason = text.partition(": ")
            yield {"file": file, "error": reason}


def check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse a file that predictions cannot be written to, before any is made.

    Raises:
        ConfigError: Another extension than .jsonl or .csv, or the file exists.
    """
    if out.suffix not in {".jsonl", ".csv"}:
        raise ConfigError(f"--out {out}: predictions are written as .jsonl or .csv")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; pass --overwrite or another --out")


def write_predictions(records: Iterable[dict[str, Any]], out: Path | None) -> str:
    """Return the records as JSON lines, or write them to ``out`` (.jsonl or .csv)."""
    if out is not None and out.suffix == ".csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        writer.writerow(["file", "class", "probability", "top", "error"])
        for record in records:
            ranked = "; ".join(
                f"{r['class']} {r['probability']:.4f}" for r in record.get("top", ())
            )
            row = [record["file"], record.get("class", ""), record.get("probability", "")]
            writer.writerow([*row, ranked, record.get("error", "")])
        text = buffer.getvalue()
    else:
        text = "".join(json.dumps(record) + "\n" for record in records)
    if out is not None:
        write_atomic(out, text)
    return text
