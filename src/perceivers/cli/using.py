"""Verbs that use a trained model, from evaluate and predict to explain, embed and anomaly."""

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
from perceivers.files import write_json
from perceivers.report.tables import fill_table, per_class_table
from perceivers.training.run_folder import RunFolder
from perceivers.workflows.anomaly import (
    Anomalies,
    AnomalySettings,
    check_folder,
    find_anomalies,
    write_anomalies,
)
from perceivers.workflows.comparing import compare_runs
from perceivers.workflows.embedding import POOLS, write_features
from perceivers.workflows.evaluation import SubsetFigures, evaluate_subsets
from perceivers.workflows.evaluation import evaluate as run_evaluation
from perceivers.workflows.explaining import draw_all
from perceivers.workflows.exporting import export as run_export
from perceivers.workflows.filling import Filled
from perceivers.workflows.predicting import describe_predictions
from perceivers.workflows.predicting import predict as run_prediction
from perceivers.workflows.probing import Probed
from perceivers.workflows.probing import probe as run_probe
from perceivers.workflows.reconstructing import describe_target, reconstruct_files
from perceivers.workflows.run import Run

# -- The verb that draws attention: explain ------------------------------------------------------


def explain(argv: list[str]) -> int:
    """Pictures of what a model attends to."""
    parser = VerbParser(
        "explain", "Draw what a model reads of its input, and where its answer looks."
    )
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument(
        "files",
        nargs="+",
        help="pictures, sounds, videos or texts, or folders searched for them; for other inputs a "
        "data address",
    )
    parser.add_argument("--out", default="explained", help="folder for the pictures")
    parser.add_argument("--head", default="mean", help="heads: mean, all, or a number from 0")
    parser.add_argument("--latents", type=int, default=4, help="latents singled out per read")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier pictures")
    args = parser.parse_args(argv)
    drawn = draw_all(
        args.run,
        args.files,
        args.out,
        head=args.head,
        latents=args.latents,
        overwrite=args.overwrite,
    )
    for text in drawn.bad:
        sys.stderr.write(f"skipped: {text}\n")
    sys.stdout.write(
        f"{len(drawn.written) - 1} pictures in {args.out}; see {drawn.written[-1]}\n"
        f"Attention shows where information was read, not what decided the answer.\n"
    )
    return 0


# -- Verbs that use what a model has learned without a task: embed, probe, anomaly ---------------


POOL_HELP = "over latents, or the cells of a Hiera's last map; flat: side by side"
SHOWN = 10


def embed(argv: list[str]) -> int:
    """Features of files or of a data set, as arrays."""
    parser = VerbParser("embed", "Write the features of files or of a data set: .npz or .csv.")
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument(
        "data",
        nargs="*",
        help="one data address, or files and folders; the run's own data when not given",
    )
    parser.add_argument("--out", default="features.npz", help=".npz or .csv file")
    parser.add_argument("--split", default=None, help="train, val or test; all when not given")
    parser.add_argument("--pool", default="mean", choices=POOLS, help=POOL_HELP)
    parser.add_argument("--batch_size", type=int, default=64, help="samples at once")
    parser.add_argument("--workers", type=int, default=0, help="processes that read a data set")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    add_compile(parser)
    args = parser.parse_args(argv)
    done = write_features(
        args.run,
        args.data or None,
        args.out,
        split=args.split,
        pool=args.pool,
        batch_size=args.batch_size,
        workers=args.workers,
        overwrite=args.overwrite,
        compile=args.compile,
        note=tell_note,
    )
    _tell_skipped(done.skipped)
    sys.stdout.write(f"{done.path}: {done.count} features of {done.width} values\n")
    return 0


def probe(argv: list[str]) -> int:
    """How much frozen features know, beside simple ones."""
    parser = VerbParser(
        "probe",
        "Fit k-NN and a linear model to frozen features, and to simple ones: fitted on train, "
        "chosen on val, figures of test.",
    )
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("--data", default=None, help="data address; the run's own when not given")
    parser.add_argument("--out", default=None, help=".json file for the figures")
    parser.add_argument("--pool", default="mean", choices=POOLS, help=POOL_HELP)
    parser.add_argument("--batch_size", type=int, default=64, help="samples at once")
    parser.add_argument("--workers", type=int, default=0, help="processes that read data")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    args = parser.parse_args(argv)
    out = Path(args.out) if args.out else None
    if out is not None and out.suffix != ".json":
        raise ConfigError(f"--out {out}: figures are written as .json")
    if out is not None and out.exists() and not args.overwrite:
        raise ConfigError(f"{out} exists; pass --overwrite or another --out")
    found = run_probe(
        args.run,
        data=args.data,
        pool=args.pool,
        batch_size=args.batch_size,
        workers=args.workers,
    )
    _tell_skipped(found.skipped)
    _print_probes(found)
    if out is not None:
        write_json(out, found.to_json())
        sys.stdout.write(f"{out}\n")
    return 0


def _print_probes(found: Probed) -> None:
    """A table per kind of figures: of classes, and of numbers."""
    for figures in dict.fromkeys(tuple(row.figures) for row in found.rows):
        rows = [
            (
                row.column,
                row.features if row.features == "none" else f"{row.features} ({row.width})",
                row.probe,
                ", ".join(f"{name} {value}" for name, value in row.chosen.items()),
                f"{row.chosen_figure:.4f}",
                *(f"{row.figures[name]:.4f}" for name in figures),
            )
            for row in found.rows
            if tuple(row.figures) == figures
        ]
        names = [f"{found.reported} {name}" for name in figures]
        header = ("column", "features", "probe", "chosen", f"on {found.chosen_on}", *names)
        keep = [place for place in range(len(header)) if place or any(row[0] for row in rows)]
        print_table([header[i] for i in keep], [[row[i] for i in keep] for row in rows])
    counts = ", ".join(f"{split} {count}" for split, count in found.counts.items())
    sys.stdout.write(
        f"samples: {counts}; fitted by scikit-learn on train, settings chosen on "
        f"{found.chosen_on}, figures by torchmetrics\n"
    )


def anomaly(argv: list[str]) -> int:
    """Scores of samples by what a masked auto-encoder cannot fill in, with heat maps."""
    args = _anomaly_parser().parse_args(argv)
    out = Path(args.out)
    check_folder(out, overwrite=args.overwrite)
    found = find_anomalies(
        args.run,
        args.data,
        split=args.split,
        reference=args.reference,
        normal=tuple(args.normal.split(",")) if args.normal else (),
        settings=AnomalySettings(
            repeats=args.repeats,
            ratio=args.ratio,
            top=args.top,
            draw=args.draw,
            batch_size=args.batch_size,
            seed=args.seed,
        ),
    )
    written = write_anomalies(found, out)
    _tell_skipped(found.skipped)
    _print_anomalies(found)
    sys.stdout.write(f"{len(found.rows)} samples scored, see {written[1]}\n")
    return 0


def _anomaly_parser() -> VerbParser:
    """Return the verb's parser."""
    defaults = AnomalySettings()
    parser = VerbParser(
        "anomaly",
        "Score samples by the error of a masked auto-encoder on elements that it does not see, and "
        "draw where it is wrong.",
    )
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("data", nargs="+", help="files and folders, or one data address")
    parser.add_argument("--out", default="anomalies", help="folder for tables, maps and pictures")
    parser.add_argument("--split", default=None, help="of a data address; all when not given")
    parser.add_argument(
        "--reference",
        default=None,
        help="address of normal samples that scores are relative to; the run's own validation "
        "data when not given",
    )
    parser.add_argument(
        "--normal", default=None, help="class that is normal, or several with commas: prints AUROC"
    )
    parser.add_argument(
        "--repeats", type=int, default=defaults.repeats, help="how often each element is hidden"
    )
    parser.add_argument(
        "--ratio", type=float, default=None, help="share hidden at once; as in training by default"
    )
    parser.add_argument(
        "--top", type=float, default=defaults.top, help="share of the elements, the most wrong ones"
    )
    parser.add_argument(
        "--draw", type=int, default=defaults.draw, help="samples to draw, the strangest first"
    )
    parser.add_argument(
        "--batch_size", type=int, default=defaults.batch_size, help="samples at once"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="seed of the masks")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier files")
    return parser


def _print_anomalies(found: Anomalies) -> None:
    """Print the strangest samples, and what their scores mean."""
    rows = [
        (
            row.name,
            row.known_class,
            f"{row.score:.3f}",
            "" if row.percentile is None else f"{row.percentile:.1f}",
        )
        for row in found.rows[:SHOWN]
    ]
    print_table(("sample", "class", "score", "percentile"), rows, title="Strangest first")
    relative = (
        f"scores are deviations above the median of {found.reference} normal samples"
        if found.reference
        else "scores are plain errors; give --reference to make them relative to normal samples"
    )
    sys.stdout.write(f"{relative}; {found.passes} passes over each sample\n")
    if found.auroc is not None:
        sys.stdout.write(f"auroc: {found.auroc:.4f}\n")


def _tell_skipped(skipped: Sequence[str]) -> None:
    """Name what could not be read."""
    for text in skipped:
        sys.stderr.write(f"skipped: {text}\n")


# -- Verbs that use a trained model: evaluate, predict, reconstruct, report, export --------------


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
