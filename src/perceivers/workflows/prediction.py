"""Predict classes, labels, numbers and filled-in texts, as records of files, samples and texts."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.data import Batch, find_files, make_eval_loader, open_samples, read_files
from perceivers.data.augment import Views
from perceivers.data.byte_codec import text_ids
from perceivers.data.files import is_data_file, pair_files
from perceivers.errors import CheckpointError, ConfigError
from perceivers.files import write_atomic
from perceivers.finite import NO_ANSWER, is_answer
from perceivers.models.compiling import Uncompiled
from perceivers.report.console import Shown
from perceivers.settings import Count, checked
from perceivers.tasks.base import answer, can_lack, held_modalities
from perceivers.tasks.mae import is_masked_autoencoder
from perceivers.text_names import show_all, write_csv
from perceivers.types import Bytes
from perceivers.workflows.comparing import average_views, check_views
from perceivers.workflows.dense_prediction import predicts_flow
from perceivers.workflows.numerics import Note, compile_loaded, tell
from perceivers.workflows.task_table import FileRequest, FileTask, Record, row_of, tasks


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


# -- The verb predict: records, or files whose paths are in the records --------------------------
#
# Classes, labels, numbers and filled-in texts are returned as records. Masks,
# labelled clouds, flow and reconstructions are written to files, whose paths are in the records.


@checked
def predict(
    model: str | Path,
    paths: Sequence[str | Path] = (),
    *,
    texts: str | Sequence[str] = (),
    top: Count = 5,
    batch_size: Count = 32,
    views: Views | None = None,
    out: str | Path | None = None,
    pad: bool = False,
    overwrite: bool = False,
    compile: bool = False,  # noqa: A002 - the setting's name, as in training
    note: Note | None = None,
) -> Iterator[Record]:
    """Classify files, predict numbers, fill in texts, segment, compute flow, or reconstruct files.

    Yields a record per file and per text; unreadable files have ``"error"`` instead. A classifier
    returns ``"class"``, ``"probability"`` and ``"top"``; multi-label classification ``"labels"``
    and ``"top"``; a multitask model a class and probability per task; regression a number per
    target, in its original unit; masked language modelling the text with every ``[MASK]`` filled
    in.

    Other tasks write files into the folder ``out``. Segmentation returns ``"mask"`` and
    ``"overlay"`` for an image, ``"labelled"`` and ``"views"`` for a point cloud, and
    ``"fractions"`` by class. Optical flow between two images returns ``"flow"``, ``"picture"``,
    ``"tiles"``, ``"mean_motion"`` and ``"largest_motion"`` in pixels. An autoencoder returns one
    record, with ``"written"``.

    Args:
        model: Run folder, ``RUN@last`` or model folder.
        paths: Files of the kinds that the model reads, or folders searched for them; two images for
            flow; or one table, ``.npz`` file or tar, whose samples are all predicted.
        texts: A text, for models that read bytes; in Python also several.
        top: Number of classes listed per file.
        batch_size: Files per batch; with several views of each file, views per batch.
        views: Views of each file over which a classifier's probabilities are averaged; default: one
            central view.
        out: ``.jsonl`` or ``.csv`` file that the records are also written to; for tasks that write
            files, their folder (default: ``masks``, ``flow`` or ``reconstructed``).
        pad: For flow: repeat the edges of images smaller than a tile; without it they are an error.
        overwrite: Replace existing files in ``out``.
        compile: Compile the model for full batches, which pays off with many of them; not available
            for masked language modelling and for tasks that write files.
        note: Called with the time that compilation took.

    Raises:
        UserError: The model was not trained for a task that predicts, a path does not exist, a text
            is too long, the views do not fit, or ``out`` exists.
    """
    loaded, views = load_with_info(model), views or Views()
    texts = [texts] if isinstance(texts, str) else texts
    check_views(loaded, views)
    files = find_files_task(loaded, model)
    if pad and not (files and files.pads):
        raise ConfigError(f"{model} computes no flow, so there is nothing to pad; leave out pad")
    if compile:
        check_compiled(loaded, model, files)
    if files is not None and texts:
        raise ConfigError(f"{model} {files.does}; give files, not texts (--text)")
    if files is not None:
        folder = out or files.folder
        yield from files.answer(FileRequest(model, loaded, paths, folder, pad, overwrite))
        return
    compiled = compile_loaded(loaded, batch_size, views, on=compile)
    options: dict[str, Any] = {"texts": texts, "top": top, "batch_size": batch_size, "views": views}
    records = predict_records(loaded, model, paths, compiled=compiled, **options)
    if out is None:
        yield from records
        tell(compiled, note)
        return
    check_out(Path(out), overwrite=overwrite)
    # Written only when complete, so that an error leaves no partial file.
    found = list(records)
    tell(compiled, note)
    write_predictions(found, Path(out))
    yield from found


def check_compiled(loaded: Loaded, model: str | Path, files: FileTask | None) -> None:
    """Check that a model predicts in batches, so that compilation has an effect.

    Args:
        loaded: The model.
        model: Name of the model, for messages.
        files: How predictions are written, from ``find_files_task``.

    Raises:
        ConfigError: The model writes files or fills in texts.
    """
    if files is None and tasks()[loaded.info.task].records is not None:
        return
    does = "fills in [MASK] of texts" if files is None else files.does
    raise ConfigError(
        f"compile=True has no effect on {model}: it {does}, one sample at a time, but only batches "
        f"are compiled; leave it out"
    )


def find_files_task(loaded: Loaded, model: str | Path) -> FileTask | None:
    """Return how the predictions of a model are written to files; None if they are records.

    Args:
        loaded: The model.
        model: Name of the model, for messages.

    Raises:
        CheckpointError: The model was not trained for a task that predicts; the message says what
            it can be used for.
    """
    task, row = loaded.info.task, row_of(loaded)
    if row is not None and (row.records is not None or row.fill_texts is not None):
        return None
    if predicts_flow(loaded):  # converted weights may have no recorded task
        row = tasks()["flow"]
    if row is not None and row.files is not None:
        return row.files(loaded)
    finetune = f"perceivers finetune --model {model} --data ... --out ..."
    if is_masked_autoencoder(loaded.model):
        raise CheckpointError(
            f"{model} only reconstructs hidden parts of its input (its task is "
            f"{task or 'not recorded'}); show its reconstructions with perceivers reconstruct "
            f"{model} FILE..., or fine-tune it for a task: {finetune}"
        )
    raise CheckpointError(
        f"{model} was not trained for a task (its task is {task or 'not recorded'}), so it "
        f"predicts nothing; fine-tune it first: {finetune}"
    )


def show(records: Iterable[Record], *, model: str | Path, out: str | Path | None) -> Shown:
    """Show the records, or a summary of the written files; the status is 2 if all files failed.

    Args:
        records: From ``predict``.
        model: As for ``predict``.
        out: As for ``predict``.
    """
    found = list(records)
    failed = [record for record in found if "error" in record]
    remarks = [f"skipped {record['file']}: {record['error']}" for record in failed]
    status = 2 if len(failed) == len(found) else 0
    return Shown(_describe(found, model, out), remarks, status)


def _describe(found: Sequence[Record], model: str | Path, out: str | Path | None) -> list[str]:
    files = find_files_task(load_with_info(model), model)
    read = [record for record in found if "error" not in record]
    if files is None:
        if out is not None:
            return [f"{len(read)} files predicted, see {out}"]
        return [write_predictions(found, None).removesuffix("\n")] if found else []
    lines = [files.describe(record) for record in read]
    if files.counted:
        lines.append(f"{len(read)} {files.counted}, see {out or files.folder}")
    return lines
