"""Predict with a model of any task: the verb ``predict``.

Classes, labels, numbers and filled-in texts are returned as records (``prediction``). Masks,
labelled clouds, flow and reconstructions are written to files, whose paths are in the records.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.data.augment import Views
from perceivers.errors import CheckpointError, ConfigError
from perceivers.settings import Count, checked
from perceivers.tasks.mae import is_masked_autoencoder
from perceivers.workflows.by_task.autoencoding import SIGNALS
from perceivers.workflows.by_task.flow import FLOW_FILES
from perceivers.workflows.comparing import check_views
from perceivers.workflows.compiling import Note, compile_loaded, tell
from perceivers.workflows.dense_prediction import predicts_flow
from perceivers.workflows.prediction import (
    check_out,
    predict_records,
    write_predictions,
)
from perceivers.workflows.task_table import FileTask, Record, Request, row_of, tasks

# Number of classes listed in the summary of a file.
NAMED = 4


@checked
def predict(
    model: str | Path,
    paths: Sequence[str | Path] = (),
    *,
    texts: Sequence[str] = (),
    top: Count = 5,
    batch_size: Count = 32,
    views: Views | None = None,
    out: str | Path | None = None,
    pad: bool = False,
    overwrite: bool = False,
    compile: bool = False,  # noqa: A002 - the setting's name, as in training
    note: Note | None = None,
) -> Iterator[Record]:
    """Yield a record per file and per text; unreadable files have ``error`` instead.

    A classifier returns ``class``, ``probability`` and ``top``; multi-label classification
    ``labels`` and ``top``; a multitask model a class and probability per task; regression a number
    per target, in its original unit; masked language modelling the text with every ``[MASK]``
    filled in.

    Other tasks write files into the folder ``out``. Segmentation returns ``mask`` and ``overlay``
    for an image, ``labelled`` and ``views`` for a point cloud, and ``fractions`` by class. Optical
    flow between two images returns ``flow``, ``picture``, ``tiles``, ``mean_motion`` and
    ``largest_motion`` in pixels. An autoencoder returns one record, with ``written``.

    Args:
        model: Run folder, ``RUN@last`` or model folder.
        paths: Files of the kinds that the model reads, or folders searched for them; two images for
            flow; or one table, ``.npz`` file or tar, whose samples are all predicted.
        texts: Texts, for models that read bytes.
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
    check_views(loaded, views)
    files = find_files_task(loaded, model)
    if pad and files is not FLOW_FILES:
        raise ConfigError(f"{model} computes no flow, so there is nothing to pad; leave out pad")
    if compile:
        check_compiled(loaded, model, files)
    if files is not None:
        if texts:
            raise ConfigError(f"{model} {files.does}; give files, not texts (--text)")
        folder = out or files.folder
        yield from files.answer(Request(model, loaded, paths, folder, pad, overwrite))
        return
    compiled = compile_loaded(loaded, batch_size, views, on=compile)
    records = predict_records(
        loaded,
        model,
        paths,
        texts=texts,
        top=top,
        batch_size=batch_size,
        views=views,
        compiled=compiled,
    )
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
        return FLOW_FILES
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


def describe_predictions(
    model: str | Path, records: Sequence[Record], out: str | Path | None
) -> str:
    """Return the console output of ``predict``: the records, or a summary of the written files.

    Args:
        model: As for ``predict``.
        records: Records from ``predict``.
        out: As for ``predict``.
    """
    files = find_files_task(load_with_info(model), model)
    read = [record for record in records if "error" not in record]
    if files is None:
        if out is None:
            return write_predictions(records, None)
        return f"{len(read)} files predicted, see {out}\n"
    lines = [_describe(record) for record in read]
    if files is SIGNALS:
        written = read[0]["written"]
        lines = [f"{len(written)} files in {out or files.folder}; see {written[-1]}"]
    elif files.counted:
        lines.append(f"{len(read)} {files.counted}, see {out or files.folder}")
    return "".join(f"{line}\n" for line in lines)


def _describe(record: Record) -> str:
    if "flow" in record:
        return (
            f"{record['flow']}, {record['picture']}: {record['tiles']} tiles; motion "
            f"{record['mean_motion']:.2f} pixels on average, {record['largest_motion']:.2f} at most"
        )
    largest = list(record.get("fractions", {}).items())[:NAMED]
    shown = ", ".join(f"{name} {100 * fraction:.1f} %" for name, fraction in largest)
    if "labelled" in record:
        count = len(record["views"])
        views = "1 view" if count == 1 else f"{count} views"
        return f"{record['labelled']} and {views} from above: {shown}"
    return f"{record.get('mask')}, {record.get('overlay')}: {shown}"
