"""Verbs that use a trained model: evaluate, predict, reconstruct, report, export."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perceivers.checkpoints.loading import split_address
from perceivers.cli.parser import VerbParser, print_table
from perceivers.data.augment import Views
from perceivers.errors import ConfigError
from perceivers.exporting.files import SUFFIXES
from perceivers.exporting.graphs import PARTS
from perceivers.report.html import fill_table, per_class_table
from perceivers.training.run_folder import RunFolder
from perceivers.workflows.comparing import compare_runs
from perceivers.workflows.evaluation import SubsetFigures, evaluate_subsets
from perceivers.workflows.evaluation import evaluate as run_evaluation
from perceivers.workflows.exporting import export as run_export
from perceivers.workflows.filling import Filled
from perceivers.workflows.prediction import describe_predictions
from perceivers.workflows.prediction import predict as run_prediction
from perceivers.workflows.reconstructing import describe_target, reconstruct_files
from perceivers.workflows.run import Run

FILLED_HEADER = ("file", "filled in", "from", "error", "as")
RUN_HELP = "run folder, RUN@last, or model folder"


def evaluate(argv: list[str]) -> int:
    """Compute metrics on a held-out split, and a table per class."""
    parser = VerbParser("evaluate", "Evaluate a trained model on a held-out split.")
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("--data", default=None, help="data address; by default that of the run")
    parser.add_argument("--split", default="test", help="test, val or train")
    parser.add_argument("--batch_size", type=int, default=64, help="samples per batch")
    parser.add_argument("--workers", type=int, default=0, help="processes that read data")
    parser.add_argument("--limit", type=int, default=0, help="dry run: at most this many batches")
    parser.add_argument(
        "--subsets", action="store_true", help="also metrics for every combination of modalities"
    )
    parser.add_argument(
        "--fill",
        action="store_true",
        help="also reconstruct each modality from all others, and compare with the mean sample and "
        "with the input of another sample",
    )
    _add_views(parser)
    add_compile(parser)
    args = parser.parse_args(argv)
    views = Views(temporal=args.temporal_views, spatial=args.spatial_views)
    if args.subsets:
        _check_subsets(views, compiled=args.compile)
    # Runs first because it rejects models of one modality.
    combinations = _evaluate_subsets(args) if args.subsets else []
    result = run_evaluation(
        args.run,
        data=args.data,
        split=args.split,
        batch_size=args.batch_size,
        workers=args.workers,
        limit=args.limit,
        views=views,
        fill=args.fill,
        compile=args.compile,
        note=tell_note,
    )
    for name, value in result.figures.items():
        shown = f"{value:.4f}" if isinstance(value, float) else str(value)
        sys.stdout.write(f"{name}: {shown}\n")
    if views.count > 1:
        sys.stdout.write(f"views: {views} of each sample, probabilities averaged\n")
    if combinations:
        _print_subsets(combinations, args.split)
    if args.fill:
        table = fill_table({each.modality: each.to_json() for each in result.fill})
        print_table(table.header, table.rows, title=f"Filled in, {args.split}")
        sys.stdout.write(f"{table.note}\n")
    if result.matrix is not None:
        table = per_class_table(result.matrix.numpy(), result.classes)
        print_table(table.header, table.rows, title=f"Per class, {args.split}")
    for text in result.skipped:
        sys.stderr.write(f"skipped: {text}\n")
    folder = RunFolder(Path(split_address(args.run)[0]))
    if folder.config.is_file() and args.data is None and not args.limit:
        sys.stdout.write(f"report: {Run(folder.path).write_report()}\n")
    return 0


def _check_subsets(views: Views, *, compiled: bool) -> None:
    if compiled:
        raise ConfigError(
            "--compile has no effect with --subsets, whose batch sizes vary; leave one of them out"
        )
    if views.count > 1:
        raise ConfigError(
            f"views are {views}, but --subsets evaluates one view per sample; leave one of them out"
        )


def _evaluate_subsets(args: Any) -> list[SubsetFigures]:
    return evaluate_subsets(
        args.run,
        data=args.data,
        split=args.split,
        batch_size=args.batch_size,
        workers=args.workers,
        limit=args.limit,
    )


def _print_subsets(found: Sequence[SubsetFigures], split: str) -> None:
    """Print a row for each combination of modalities that was visible to the model."""
    names = list(dict.fromkeys(name for each in found for name in each.figures))
    rows = [
        [
            " + ".join(each.modalities),
            str(each.samples),
            *(f"{each.figures[name]:.4f}" if name in each.figures else "" for name in names),
        ]
        for each in found
    ]
    header = ["visible modalities", "samples with any", *names]
    print_table(header, rows, title=f"By modality, {split}")


def predict(argv: list[str]) -> int:
    """Predict one record per file or text; masks and flow are written as files."""
    parser = VerbParser(
        "predict",
        "Classify files, predict numbers, fill in [MASK] in texts (a JSON line or CSV row each), "
        "segment images or points, compute the optical flow between two images (a .flo file and "
        "an image), or reconstruct files with an autoencoder.",
    )
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument(
        "files", nargs="*", help="files, or folders searched for them; for flow: two images"
    )
    parser.add_argument("--text", default=None, help="a text, for models of bytes")
    parser.add_argument(
        "--out",
        default=None,
        help=".jsonl or .csv file (default: stdout); masks, flow, autoencoders: a folder",
    )
    parser.add_argument("--top", type=int, default=5, help="classes listed per file")
    parser.add_argument(
        "--pad", action="store_true", help="flow: pad images smaller than a tile by repeating edges"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    _add_views(parser)
    add_compile(parser)
    args = parser.parse_args(argv)
    views = Views(temporal=args.temporal_views, spatial=args.spatial_views)
    texts = [] if args.text is None else [args.text]
    records = list(
        run_prediction(
            args.run,
            args.files,
            texts=texts,
            top=args.top,
            views=views,
            out=args.out,
            pad=args.pad,
            overwrite=args.overwrite,
            compile=args.compile,
            note=tell_note,
        )
    )
    sys.stdout.write(describe_predictions(args.run, records, args.out))
    failed = [record for record in records if "error" in record]
    for record in failed:
        sys.stderr.write(f"skipped {record['file']}: {record['error']}\n")
    return 2 if len(failed) == len(records) else 0


def add_compile(parser: VerbParser) -> None:
    """Add the option ``--compile``."""
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the model first; pays off for many full batches",
    )


def tell_note(text: str) -> None:
    """Print a note to stderr, apart from the output."""
    sys.stderr.write(f"{text}\n")


def _add_views(parser: VerbParser) -> None:
    parser.add_argument(
        "--temporal_views", type=int, default=1, help="clips along the time of a video or audio"
    )
    parser.add_argument(
        "--spatial_views", type=int, default=1, help="crops along the longer side of images"
    )


def reconstruct(argv: list[str]) -> int:
    """Reconstruct files with a pre-trained model."""
    parser = VerbParser("reconstruct", "Write the originals of files and their reconstructions.")
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("files", nargs="+", help="files, or folders searched for files")
    parser.add_argument("--out", default="reconstructed", help="output folder")
    parser.add_argument(
        "--fill",
        nargs="+",
        default=[],
        metavar="MODALITY",
        help="modalities to reconstruct as a whole from the others; give them after the files",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the masks")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier files")
    args = parser.parse_args(argv)
    done = reconstruct_files(
        args.run,
        args.files,
        args.out,
        fill=args.fill,
        seed=args.seed,
        overwrite=args.overwrite,
        note=tell_note,
    )
    sys.stdout.write(f"{len(done.written)} files in {args.out}; see {done.written[-1]}\n")
    if done.filled:
        print_table(FILLED_HEADER, [_describe_filled(each) for each in done.filled])
    note = describe_target(args.run)
    if note:
        sys.stdout.write(f"{note}\n")
    return 0


def _describe_filled(filled: Filled) -> list[str]:
    error = "unknown" if filled.error is None else f"{filled.error:.4f} {filled.unit}"
    answer = filled.answer or Path(filled.written[0]).name
    return [Path(filled.file).name, filled.modality, " + ".join(filled.given), error, answer]


def report(argv: list[str]) -> int:
    """Regenerate a run's report, or compare several runs."""
    parser = VerbParser(
        "report", "Regenerate a run's report.html, or write one page that compares several runs."
    )
    parser.add_argument("runs", nargs="+", help="run folder; two or more are compared")
    parser.add_argument(
        "--out", default=None, help="page for several runs (default: comparison.html)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    args = parser.parse_args(argv)
    if len(args.runs) > 1:
        page = compare_runs(args.runs, args.out or "comparison.html", overwrite=args.overwrite)
        sys.stdout.write(f"comparison: {page}\n")
        return 0
    if args.out is not None:
        raise ConfigError(
            f"--out {args.out} is for several runs; the report of one run is always its report.html"
        )
    sys.stdout.write(f"report: {Run(args.runs[0]).write_report()}\n")
    return 0


def export(argv: list[str]) -> int:
    """Export a model to a file and compare its outputs with the model."""
    parser = VerbParser("export", "Export a model, run the exported file and compare.")
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("--format", default="onnx", choices=sorted(SUFFIXES), help="file format")
    parser.add_argument("--part", default=None, choices=PARTS, help="what to export")
    parser.add_argument("--output", default=None, help="output of the decoder to export")
    parser.add_argument("--out", default=None, help="file; by default in the run folder")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    args = parser.parse_args(argv)
    done = run_export(
        args.run,
        out=args.out,
        format=args.format,
        part=args.part,
        output=args.output,
        overwrite=args.overwrite,
    )
    sys.stdout.write(
        f"{done.path}: ran at batch sizes 1 and 3; largest difference {done.largest:.3g} "
        f"(largest output {done.absmax:.3g})\npreprocessing: {done.description}\n"
    )
    return 0
