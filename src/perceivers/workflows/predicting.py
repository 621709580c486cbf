"""Predict with a model of any task: the verb ``predict``.

Classes, labels, numbers and filled-in texts are returned as records (``prediction``). Masks,
labelled clouds, flow and reconstructions are written to files, whose paths are in the records.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.data.augment import Views
from perceivers.errors import CheckpointError, ConfigError
from perceivers.settings import Count, checked
from perceivers.tasks.mae import is_masked_autoencoder
from perceivers.tasks.segmentation import segmented_modality
from perceivers.types import Points
from perceivers.workflows.comparing import check_views
from perceivers.workflows.compiling import Note, compile_loaded, tell
from perceivers.workflows.dense_prediction import (
    predict_clouds,
    predict_flow,
    predict_masks,
    predicts_flow,
)
from perceivers.workflows.prediction import (
    RECORD_TASKS,
    check_out,
    predict_records,
    write_predictions,
)
from perceivers.workflows.reconstructing import reconstruct

Record = dict[str, Any]
# Number of classes listed in the summary of a file.
NAMED = 4


@dataclass(frozen=True)
class Request:
    """Arguments of a prediction that is written to files."""

    model: str | Path
    loaded: Loaded
    paths: Sequence[str | Path]
    out: str | Path
    pad: bool
    overwrite: bool


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
    kind = find_kind(loaded, model)
    if pad and kind != "flow":
        raise ConfigError(f"{model} computes no flow, so there is nothing to pad; leave out pad")
    if compile:
        check_compiled(loaded, model, kind)
    if kind != "records":
        if texts:
            raise ConfigError(f"{model} {FILES[kind].does}; give files, not texts (--text)")
        folder = out or FILES[kind].folder
        yield from FILES[kind].answer(Request(model, loaded, paths, folder, pad, overwrite))
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


def check_compiled(loaded: Loaded, model: str | Path, kind: str) -> None:
    """Check that a model predicts in batches, so that compilation has an effect.

    Args:
        loaded: The model.
        model: Name of the model, for messages.
        kind: Kind of prediction, from ``find_kind``.

    Raises:
        ConfigError: The model writes files or fills in texts.
    """
    if kind == "records" and loaded.info.task != "mlm":
        return
    does = FILES[kind].does if kind in FILES else "fills in [MASK] of texts"
    raise ConfigError(
        f"compile=True has no effect on {model}: it {does}, one sample at a time, but only batches "
        f"are compiled; leave it out"
    )


def find_kind(loaded: Loaded, model: str | Path) -> str:
    """Return the kind of a model's predictions: ``records``, or a key of ``FILES``.

    Args:
        loaded: The model.
        model: Name of the model, for messages.

    Raises:
        CheckpointError: The model was not trained for a task that predicts; the message says what
            it can be used for.
    """
    task = loaded.info.task
    if task in RECORD_TASKS:
        return "records"
    if predicts_flow(loaded):
        return "flow"
    if task == "segment":
        spec = loaded.model.config.inputs[segmented_modality(loaded.model)]
        return "clouds" if isinstance(spec, Points) else "masks"
    if task == "autoencode":
        return "signals"
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


def _write_masks(request: Request) -> Iterator[Record]:
    for made in predict_masks(
        request.model, request.paths, request.out, overwrite=request.overwrite
    ):
        if made.error:
            yield {"file": str(made.file), "error": made.error}
        else:
            files = {"mask": str(made.mask), "overlay": str(made.overlay)}
            yield {"file": str(made.file), **files, "fractions": dict(made.shares or {})}


def _write_clouds(request: Request) -> Iterator[Record]:
    for made in predict_clouds(
        request.loaded, request.paths, request.out, overwrite=request.overwrite
    ):
        if made.error:
            yield {"file": str(made.file), "error": made.error}
        else:
            files = {"labelled": str(made.labelled), "views": [str(path) for path in made.views]}
            yield {"file": str(made.file), **files, "fractions": dict(made.shares or {})}


def _write_flow(request: Request) -> Iterator[Record]:
    if len(request.paths) != 2:
        raise ConfigError(
            f"{request.model} computes flow between two images; give exactly two files, got "
            f"{len(request.paths)}"
        )
    first, second = request.paths
    done = predict_flow(
        request.model, first, second, request.out, pad=request.pad, overwrite=request.overwrite
    )
    length = done.flow.norm(dim=0)
    yield {
        "files": [str(first), str(second)],
        "flow": str(done.paths[0]),
        "picture": str(done.paths[1]),
        "tiles": done.tiles,
        "mean_motion": round(float(length.mean()), 6),
        "largest_motion": round(float(length.max()), 6),
    }


def _write_signals(request: Request) -> Iterator[Record]:
    if not request.paths:
        raise ConfigError("nothing to predict; give files or folders")
    written = reconstruct(request.model, request.paths, request.out, overwrite=request.overwrite)
    files = [str(path) for path in request.paths]
    yield {"files": files, "written": [str(path) for path in written]}


@dataclass(frozen=True)
class FileTask:
    """A kind of prediction that is written to files.

    Attributes:
        does: What the model does, for messages.
        folder: Default output folder.
        counted: What the summary counts; empty for no count.
        answer: Function that writes the files and yields the records.
    """

    does: str
    folder: str
    counted: str
    answer: Callable[[Request], Iterator[Record]]


FILES: Mapping[str, FileTask] = {
    "masks": FileTask("segments images", "masks", "images segmented", _write_masks),
    "clouds": FileTask("segments points", "masks", "files of points segmented", _write_clouds),
    "flow": FileTask("computes flow between two images", "flow", "", _write_flow),
    "signals": FileTask("passes files through an autoencoder", "reconstructed", "", _write_signals),
}


def describe_predictions(
    model: str | Path, records: Sequence[Record], out: str | Path | None
) -> str:
    """Return the console output of ``predict``: the records, or a summary of the written files.

    Args:
        model: As for ``predict``.
        records: Records from ``predict``.
        out: As for ``predict``.
    """
    kind = find_kind(load_with_info(model), model)
    read = [record for record in records if "error" not in record]
    if kind == "records":
        if out is None:
            return write_predictions(records, None)
        return f"{len(read)} files predicted, see {out}\n"
    task = FILES[kind]
    lines = [_describe(record) for record in read]
    if kind == "signals":
        written = read[0]["written"]
        lines = [f"{len(written)} files in {out or task.folder}; see {written[-1]}"]
    elif task.counted:
        lines.append(f"{len(read)} {task.counted}, see {out or task.folder}")
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
