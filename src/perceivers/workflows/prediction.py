"""Predict classes, labels, numbers and filled-in texts, as records of files, samples and texts."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from perceivers.checkpoints.loading import Loaded
from perceivers.data import Batch, find_files, make_eval_loader, open_samples, read_files
from perceivers.data.augment import Views
from perceivers.data.byte_codec import text_ids
from perceivers.data.files import pair_files
from perceivers.errors import ConfigError
from perceivers.escaping import write_csv
from perceivers.files import write_atomic
from perceivers.finite import NO_ANSWER, is_answer
from perceivers.models.compiling import Uncompiled
from perceivers.tasks.presence import answer, can_lack, held_modalities
from perceivers.text_names import show_all
from perceivers.types import Bytes
from perceivers.workflows.comparing import average_views
from perceivers.workflows.task_table import tasks

# Files that contain several samples, as rows or members; they are opened as data addresses.
DATA_ENDINGS = (".csv", ".jsonl", ".parquet", ".npz", ".tar")


@torch.no_grad()
def predict_records(
    loaded: Loaded,
    model: str | Path,
    paths: Sequence[str | Path] = (),
    *,
    texts: Sequence[str] = (),
    top: int = 5,
    batch_size: int = 32,
    views: Views,
    compiled: Uncompiled,
) -> Iterator[dict[str, Any]]:
    """Yield a record per file and per text; ``predicting.predict`` describes their content.

    Args:
        loaded: A model of a task whose row has ``records`` or ``fill_texts``.
        model: Name of the model, for messages.
        paths: Files of the kinds that the model reads, or folders searched for them; or one table,
            ``.npz`` file or tar, whose samples are all predicted.
        texts: Texts, for models that read bytes.
        top: Number of classes listed per file, at least 1.
        batch_size: Files per batch; with several views of each file, views per batch.
        views: Views of each file over which a classifier's probabilities are averaged.
        compiled: From ``compile_loaded``.

    Raises:
        UserError: A path does not exist, a text is too long, or the views do not fit.
    """
    if not paths and not texts:
        raise ConfigError(f"{model}: nothing to predict; give files, folders or texts")
    loaded = average_views(loaded, views, batch_size)
    if texts and views.count > 1:
        raise ConfigError(f"views are {views}, but a text has one view; give files without texts")
    fill_texts = tasks()[loaded.info.task].fill_texts
    if fill_texts is not None:
        yield from fill_texts(loaded, paths, texts)
        return
    if texts:
        yield from _answer_texts(loaded, texts, top, compiled)
    if is_data_file(paths):
        yield from _answer_samples(loaded, str(paths[0]), top, batch_size, views, compiled)
    elif paths:
        yield from _answer_files(loaded, paths, top, batch_size, views, compiled)


def _answer_files(
    loaded: Loaded,
    paths: Sequence[str | Path],
    top: int,
    batch_size: int,
    views: Views,
    compiled: Uncompiled,
) -> Iterator[dict[str, Any]]:
    """Yield a record per file, or per group of files paired by name."""
    specs, may_lack = loaded.model.config.data_inputs, can_lack(loaded.model)
    files = find_files([str(path) for path in paths], tuple(specs))
    samples = [list(parts.values()) for parts in pair_files(files, tuple(specs))]
    for names, batch in read_files(files, specs, batch_size, views, may_lack=may_lack):
        if names:
            records = _answer_batch(loaded, batch, top, compiled)
            for index, record in zip(batch.index.tolist(), records, strict=True):
                several = {"files": samples[index]} if len(samples[index]) > 1 else {}
                yield {"file": samples[index][0], **several, **record}
        for text in batch.bad:
            file, _, reason = text.partition(": ")
            yield {"file": file, "error": reason}


def _answer_batch(
    loaded: Loaded, batch: Batch, top: int, compiled: Uncompiled
) -> list[dict[str, Any]]:
    held = held_modalities(loaded.model, batch)
    # A list, not a generator, so that the context ends before the caller uses a record.
    with compiled.batch(len(batch)):
        return _records(loaded, answer(loaded.model, batch.inputs, held), top)


def is_data_file(paths: Sequence[str | Path]) -> bool:
    """Return whether there is a single path, to a file that contains several samples."""
    return len(paths) == 1 and str(paths[0]).lower().endswith(DATA_ENDINGS)


def _answer_samples(
    loaded: Loaded, address: str, top: int, batch_size: int, views: Views, compiled: Uncompiled
) -> Iterator[dict[str, Any]]:
    """Yield a record per sample of a data address; samples may lack modalities."""
    specs = loaded.model.config.data_inputs
    for source in open_samples(address).values():
        loader = make_eval_loader(source, specs, batch_size=batch_size, views=views, strict=True)
        for batch in loader:
            records = _answer_batch(loaded, batch, top, compiled)
            for index, record in zip(batch.index.tolist(), records, strict=True):
                yield {"file": str(source.names[index]), **record}
            for text in batch.bad:
                file, _, reason = text.partition(": ")
                yield {"file": file, "error": reason}


def _answer_texts(
    loaded: Loaded, texts: Sequence[str], top: int, compiled: Uncompiled
) -> Iterator[dict[str, Any]]:
    name, spec = _text_input(loaded)
    for text in texts:
        ids = text_ids(text, spec, f"text {text[:40]!r}")
        with compiled.batch(1):
            record = _records(loaded, loaded.model({name: ids}), top)[0]
        yield {"text": text, **record}


def _text_input(loaded: Loaded) -> tuple[str, Bytes]:
    for name, spec in loaded.model.config.inputs.items():
        if isinstance(spec, Bytes):
            return name, spec
    raise ConfigError(
        f"texts were given, but the model reads {list(loaded.model.config.inputs)}; give files"
    )


def _records(loaded: Loaded, outputs: Any, top: int) -> list[dict[str, Any]]:
    """Convert the outputs for a batch to records; samples with invalid outputs have ``error``."""
    row = tasks()[loaded.info.task]
    assert row.records is not None
    parts = list(outputs.values()) if isinstance(outputs, Mapping) else [outputs]
    check = is_answer if row.checks_choice else lambda part: part.isfinite().all(-1)
    fine = torch.stack([check(part) for part in parts]).all(0)
    return [
        record if is_fine else {"error": NO_ANSWER}
        for record, is_fine in zip(row.records(loaded, outputs, top), fine.tolist(), strict=True)
    ]


def check_out(out: Path, *, overwrite: bool) -> None:
    """Check that predictions can be written to ``out``, before any is computed.

    Raises:
        ConfigError: The extension is not .jsonl or .csv, or the file exists and ``overwrite`` is
            off.
    """
    if out.suffix not in {".jsonl", ".csv"}:
        raise ConfigError(f"--out {out}: predictions are written as .jsonl or .csv")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; pass --overwrite or another --out")


def write_predictions(records: Iterable[dict[str, Any]], out: Path | None) -> str:
    """Return records as JSON lines, or as CSV if ``out`` ends in .csv; write them if it is given.

    A CSV has one column per key; lists and nested entries are written as text.
    """
    if out is not None and out.suffix == ".csv":
        rows = list(records)
        columns = list(dict.fromkeys(key for record in rows for key in record))
        if "error" not in columns:
            columns.append("error")
        buffer = io.StringIO()
        cells = [[_cell(record.get(key, "")) for key in columns] for record in rows]
        write_csv(buffer, [columns, *cells])
        text = buffer.getvalue()
    else:
        shown = map(show_all, records)
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in shown)
    if out is not None:
        write_atomic(out, text)
    return text


def _cell(value: Any) -> str:
    """Format a CSV cell; ranked classes become ``name probability; name probability``."""
    if isinstance(value, dict) and "class" in value:
        return f"{value['class']} {value['probability']:.4f}"
    if isinstance(value, list):
        return "; ".join(_cell(item) for item in value)
    return str(value)
