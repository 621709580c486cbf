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
from perceivers.report.tables import fill_table, per_class_table
from perceivers.training.run_folder import RunFolder
from perceivers.workflows.comparing import compare_runs
from perceivers.workflows.evaluation import SubsetFigures, evaluate_subsets
from perceivers.workflows.evaluation import evaluate as run_evaluation
from perceivers.workflows.exporting import export as run_export
from perceivers.workflows.filling import Filled
from perceivers.workflows.predicting import describe_predictions
from perceivers.workflows.predicting import predict as run_prediction
from perceivers.workflows.reconstructing import describe_target, reconstruct_files
from perceivers.workflows.run import Run

FILLED_HEADER = ("file", "filled in", "from", "error", "as")
RUN_HELP = "run folder, RUN@last, or model folder"


def evaluate(argv: list[str]) -> int:
    """Figures on held-back data, and a table per class."""
    parser = VerbParser("evaluate", "Evaluate a trained model on held-back data.")
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("--data", default=None, help="data address; the run's own when not given")
    parser.add_argument("--split", default="test", help="test, val or train")
    parser.add_argument("--batch_size", type=int, default=64, help="samples at once")
    parser.add_argument("--workers", type=int, default=0, help="processes that read data")
    parser.add_argument("--limit", type=int, default=0, help="dry run: at most this many batches")
    parser.add_argument(
        "--subsets", action="store_true", help="figures of every combination of modalities too"
    )
    parser.add_argument(
        "--fill",
        action="store_true",
        help="also fill in each modality from all others, against the mean sample and against "
        "another sample's input",
    )
    _add_views(parser)
    add_compile(parser)
    args = parser.parse_args(argv)
    views = Views(temporal=args.temporal_views, spatial=args.spatial_views)
    if args.subsets:
        _check_subsets(views, compiled=args.compile)
    # First, since it refuses models of one modality.
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
    """Refuse settings without effect on combinations of modalities."""
    if compiled:
        raise ConfigError(
            "--compile has no effect with --subsets, whose batches have sizes of their own; leave "
            "one of them out"
        )
    if views.count > 1:
        raise ConfigError(f"views are {views}, but combinations are evaluated in one view each")


def _evaluate_subsets(args: Any) -> list[SubsetFigures]:
    """Evaluate every combination of modalities."""
    return evaluate_subsets(
        args.run,
        data=args.data,
        split=args.split,
        batch_size=args.batch_size,
        workers=args.workers,
        limit=args.limit,
    )


def _print_subsets(found: Sequence[SubsetFigures], split: str) -> None:
    """Print a row for each combination of modalities that was shown, where samples hold them."""
    names = list(dict.fromkeys(name for each in found for name in each.figures))
    rows = [
        [
            " + ".join(each.modalities),
            str(each.samples),
            *(f"{each.figures[name]:.4f}" if name in each.figures else "" for name in names),
        ]
        for each in found
    ]
    header = ["shown, where held", "samples with any", *names]
    print_table(header, rows, title=f"By modality, {split}")


def predict(argv: list[str]) -> int:
    """A record per file or text; flow as files."""
    parser = VerbParser(
        "predict",
        "Classify files, predict numbers, fill in [MASK] of texts (a JSON line or CSV row each), "
        "find the masks of pictures or the classes of points, compute the flow between two "
        "pictures (a .flo file and a picture), or pass files through an auto-encoder.",
    )
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument(
        "files", nargs="*", help="files, or folders searched for them; for flow: two pictures"
    )
    parser.add_argument("--text", default=None, help="a text, for models that read bytes")
    parser.add_argument(
        "--out",
        default=None,
        help=".jsonl or .csv file (stdout when not given); masks, flow, auto-encoders: a folder",
    )
    parser.add_argument("--top", type=int, default=5, help="classes listed per file")
    parser.add_argument(
        "--pad", action="store_true", help="flow: repeat the edge of pictures below a tile's size"
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
    """Add the option that compiles the model."""
    parser.add_argument(
        "--compile", action="store_true", help="compile the model first: pays for many full batches"
    )


def tell_note(text: str) -> None:
    """Say something beside the output."""
    sys.stderr.write(f"{text}\n")


def _add_views(parser: VerbParser) -> None:
    """Add the options that say how many parts of each sample are looked at."""
    parser.add_argument(
        "--temporal_views", type=int, default=1, help="clips over the time of a film or a sound"
    )
    parser.add_argument(
        "--spatial_views", type=int, default=1, help="crops along the longer side of pictures"
    )


def reconstruct(argv: list[str]) -> int:
    """Pictures of what the model imagines."""
    parser = VerbParser(
        "reconstruct", "Write originals, and what a pre-trained model gives back of them."
    )
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("files", nargs="+", help="files, or folders searched for files")
    parser.add_argument("--out", default="reconstructed", help="folder for what is written")
    parser.add_argument(
        "--fill",
        nargs="+",
        default=[],
        metavar="MODALITY",
        help="modalities to imagine as a whole, from the others; after the files",
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
    """Return a row on one modality of one file."""
    error = "not known" if filled.error is None else f"{filled.error:.4f} {filled.unit}"
    answer = filled.answer or Path(filled.written[0]).name
    return [Path(filled.file).name, filled.modality, " + ".join(filled.given), error, answer]


def report(argv: list[str]) -> int:
    """Draw a run's report anew, or compare runs."""
    parser = VerbParser(
        "report", "Write a run's report.html anew, or one page that compares several runs."
    )
    parser.add_argument("runs", nargs="+", help="run folder; two or more are compared")
    parser.add_argument(
        "--out", default=None, help="several runs: the page (comparison.html when not given)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    args = parser.parse_args(argv)
    if len(args.runs) > 1:
        page = compare_runs(args.runs, args.out or "comparison.html", overwrite=args.overwrite)
        sys.stdout.write(f"comparison: {page}\n")
        return 0
    if args.out is not None:
        raise ConfigError(
            f"--out {args.out} is for comparing runs; the report of one is its own report.html"
        )
    sys.stdout.write(f"report: {Run(args.runs[0]).write_report()}\n")
    return 0


def export(argv: list[str]) -> int:
    """A file for other programs, compared with the model."""
    parser = VerbParser("export", "Export a model, run the exported file and compare.")
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("--format", default="onnx", choices=sorted(SUFFIXES), help="file format")
    parser.add_argument("--part", default=None, choices=PARTS, help="what to export")
    parser.add_argument("--output", default=None, help="decoder: which output it answers")
    parser.add_argument("--out", default=None, help="file; in the run folder when not given")
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
