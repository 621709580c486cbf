"""Predict classes, labels, numbers and filled-in texts, as records of files, samples and texts."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceivers.checkpoints.loading import Loaded
from perceivers.data import Batch, find_files, make_eval_loader, open_samples, read_files
from perceivers.data.augment import Views
from perceivers.data.byte_codec import decode_ids, encode_text, pad_ids, wrap_ids
from perceivers.data.files import pair_files
from perceivers.errors import ConfigError, DataError
from perceivers.escaping import write_csv
from perceivers.files import write_atomic
from perceivers.finite import NO_ANSWER, check_answer, is_answer
from perceivers.models.compiling import Uncompiled
from perceivers.reading import read_file
from perceivers.tasks.mlm import score_bytes, text_modality
from perceivers.tasks.presence import answer, can_lack, held_modalities
from perceivers.text_names import show_all
from perceivers.types import FIRST_BYTE, MASK, Bytes
from perceivers.workflows.comparing import average_views

# Files that contain several samples, as rows or members; they are opened as data addresses.
DATA_ENDINGS = (".csv", ".jsonl", ".parquet", ".npz", ".tar")
# Tasks whose predictions are records; the others write files (``predicting``).
RECORD_TASKS = ("classify", "multilabel", "multitask", "mlm", "regress")


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
        loaded: A model of one of ``RECORD_TASKS``.
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
    if loaded.info.task == "mlm":
        yield from _fill(loaded, paths, texts)
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


def text_ids(text: str | bytes, spec: Bytes, where: str, *, parse_masks: bool = False) -> Tensor:
    """Return the padded ids of one text ``[1, L]``.

    Args:
        text: The text.
        spec: Defines the length L and whether CLS and SEP are added.
        where: Name of the text, for messages.
        parse_masks: Interpret ``[MASK]`` as one hidden byte.

    Raises:
        DataError: The text is longer than the spec, or empty.
    """
    ids = encode_text(text, parse_masks=parse_masks)
    if len(ids) == 0:
        raise DataError(f"{where} is empty; there is nothing to read")
    wrapped = wrap_ids(ids) if spec.wrap == "cls_sep" else ids
    if len(wrapped) > spec.length:
        raise DataError(
            f"{where} takes {len(wrapped)} ids, but the model reads {spec.length}; cut it, or "
            f"train a model with inputs: {{bytes: {{length: {len(wrapped)}}}}}"
        )
    return torch.from_numpy(pad_ids(wrapped, spec.length)).unsqueeze(0)


def _text_input(loaded: Loaded) -> tuple[str, Bytes]:
    for name, spec in loaded.model.config.inputs.items():
        if isinstance(spec, Bytes):
            return name, spec
    raise ConfigError(
        f"texts were given, but the model reads {list(loaded.model.config.inputs)}; give files"
    )


def _records(loaded: Loaded, answer: Any, top: int) -> list[dict[str, Any]]:
    """Convert the output for a batch to records; samples with invalid output have ``error``."""
    parts = list(answer.values()) if isinstance(answer, Mapping) else [answer]
    named = loaded.info.task in {"multitask", "classify"}
    fine = torch.stack([is_answer(p) if named else p.isfinite().all(-1) for p in parts]).all(0)
    return [
        record if is_fine else {"error": NO_ANSWER}
        for record, is_fine in zip(_all_records(loaded, answer, top), fine.tolist(), strict=True)
    ]


def _all_records(loaded: Loaded, answer: Any, top: int) -> list[dict[str, Any]]:
    info = loaded.info
    if info.task == "multitask":
        tables = {n: _ranked(answer[n].float().softmax(-1), info.columns[n], 1) for n in answer}
        return [
            {name: rows[index][0] for name, rows in tables.items()}
            for index in range(len(next(iter(tables.values()))))
        ]
    if info.task == "multilabel":
        ranked = _ranked(answer.float().sigmoid(), info.classes, max(top, 1))
        every = _ranked(answer.float().sigmoid(), info.classes, len(info.classes))
        return [
            {"labels": [r["class"] for r in rows if r["probability"] > 0.5], "top": best}
            for rows, best in zip(every, ranked, strict=True)
        ]
    if info.task == "regress":
        return [
            {
                name: float(f"{value * deviation + mean:.7g}")
                for value, (name, (mean, deviation)) in zip(row, info.targets.items(), strict=True)
            }
            for row in answer.double().tolist()
        ]
    rows = _ranked(answer.float().softmax(-1), info.classes, top)
    return [{**best[0], "top": best} for best in rows]


def _ranked(probabilities: Tensor, classes: Sequence[str], top: int) -> list[list[dict[str, Any]]]:
    """Return the most probable classes of every row, best first."""
    best = probabilities.topk(min(top, len(classes)))
    return [
        [
            {"class": classes[i], "probability": round(p, 6)}
            for p, i in zip(values, indices, strict=True)
        ]
        for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _fill(
    loaded: Loaded, paths: Sequence[str | Path], texts: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Fill every ``[MASK]`` of texts and text files with the most likely byte."""
    name = text_modality(loaded.model)
    spec = loaded.model.config.inputs[name]
    given: list[tuple[str, str, str | bytes]] = [("text", f"text {t[:40]!r}", t) for t in texts]
    for path in find_files([str(path) for path in paths], ("bytes",)) if paths else ():
        given.append(("file", str(path), read_file(path)))
    for kind, where, text in given:
        try:
            ids = text_ids(text, spec, where, parse_masks=True)
            if not (ids == MASK).any():
                raise DataError(f"{where} has no [MASK]; write one for every byte to be filled in")
            # Predict bytes only: special ids do not occur within a text.
            scores = score_bytes(loaded.model, {name: ids}, {})[..., FIRST_BYTE:]
            check_answer(scores, where)
        except DataError as error:
            if kind == "text":
                raise
            yield {"file": where, "error": str(error).removeprefix(where).lstrip(": ")}
            continue
        hidden = ids == MASK
        best = scores.softmax(-1).max(-1)
        filled = torch.where(hidden, best.indices + FIRST_BYTE, ids)
        yield {
            kind: text if kind == "text" else where,
            "filled": decode_ids(filled[0].numpy()),
            "answer": decode_ids(filled[0][hidden[0]].numpy()),
            "probability": round(float(best.values[hidden].mean()), 6),
        }


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
