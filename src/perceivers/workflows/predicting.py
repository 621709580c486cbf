"""Predict with a model of any task: the verb ``predict``, which picks the way its task answers.

Classes, labels, numbers and filled-in texts are records (``prediction``). Masks, labelled clouds,
flow and reconstructions are files, and the records say where they were written.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.data.augment import Views
from perceivers.errors import CheckpointError, ConfigError
from perceivers.settings import Count, checked
from perceivers.tasks.mae import OBJECTIVES
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
# Classes that a line about a file names.
NAMED = 4


@dataclass(frozen=True)
class Request:
    """What is asked of a model whose answers are files."""

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
    """Yield a record per file, and per text; a file that cannot be read has ``error`` instead.

    A classifier gives ``class``, ``probability`` and ``top``; several labels give ``labels`` and
    ``top``; several tasks a class and probability each; regression a number per target, in its own
    unit; a model of masked bytes gives the text with every ``[MASK]`` filled in.

    Other tasks write files into the folder ``out``. Segmentation gives ``mask`` and ``overlay`` of
    an image, ``labelled`` and ``views`` of a point cloud, and ``fractions`` by class. Optical flow
    of two images gives ``flow``, ``picture``, ``tiles``, ``mean_motion`` and ``largest_motion`` in
    pixels. An autoencoder gives one record, ``written``.

    Args:
        model: Run folder, ``RUN@last`` or model folder.
        paths: Files of the model's kind, or folders searched for them; two images for flow; or one
            table, ``.npz`` file or tar, of which every sample is predicted.
        texts: Texts, for models that read bytes.
        top: Classes listed per file.
        batch_size: Files at once; where there are several views of each, views at once.
        views: Parts of each file over which a classifier's probabilities are averaged; one in the
            middle when not given.
        out: ``.jsonl`` or ``.csv`` file to write the records to as well; of tasks that write files
            their folder: ``masks``, ``flow`` or ``reconstructed`` when not given.
        pad: Flow: repeat the edge of images below a tile's size instead of refusing them.
        overwrite: Replace what is in ``out``.
        compile: Compile the model for full batches; pays where there are many, and serves answers
            that are records of files.
        note: Told how long compilation took.

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
    found = list(records)
    tell(compiled, note)
    write_predictions(found, Path(out))
    yield from found


def check_compiled(loaded: Loaded, model: str | Path, kind: str) -> None:
    """Refuse to compile where a model is given one sample at a time.

    Args:
        loaded: The model.
        model: Names it, for messages.
        kind: How it answers.

    Raises:
        ConfigError: It answers with files, or fills in texts.
    """
    if kind == "records" and loaded.info.task != "mlm":
        return
    does = FILES[kind].does if kind in FILES else "fills in [MASK] of texts"
    raise ConfigError(
        f"compile=True has no effect on {model}: it {does}, one sample at a time, and batches are "
        f"what is compiled; leave it out"
    )


def find_kind(loaded: Loaded, model: str | Path) -> str:
    """Return how a model answers: ``records``, or a key of ``FILES``.

    Args:
        loaded: The model.
        model: Names it, for messages.

    Raises:
        CheckpointError: It was trained for no task that predicts; says what it can be used for.
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
    if loaded.model.family in OBJECTIVES and loaded.model.decoder is not None:
        raise CheckpointError(
            f"{model} fills in what is hidden from it (its task is {task or 'not recorded'}) and "
            f"predicts nothing else: see what it fills in with perceivers reconstruct {model} "
            f"FILE..., or fine-tune it for a task: {finetune}"
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
            f"{request.model} computes flow between two pictures; give exactly two files, got "
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
    """A way to answer with files: what the model does, where to, what counts, and the function."""

    does: str
    folder: str
    counted: str
    answer: Callable[[Request], Iterator[Record]]


FILES: Mapping[str, FileTask] = {
    "masks": FileTask("finds masks of pictures", "masks", "pictures segmented", _write_masks),
    "clouds": FileTask(
        "finds classes of points", "masks", "files of points segmented", _write_clouds
    ),
    "flow": FileTask("computes flow between two pictures", "flow", "", _write_flow),
    "signals": FileTask("passes files through an autoencoder", "reconstructed", "", _write_signals),
}


def describe_predictions(
    model: str | Path, records: Sequence[Record], out: str | Path | None
) -> str:
    """Return what to tell a user of ``predict``'s records: the records, or lines about files.

    Args:
        model: As for ``predict``.
        records: What it gave.
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
    """One line on the files of one record."""
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
