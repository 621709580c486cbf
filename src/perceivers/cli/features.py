"""Verbs that use learned features or reconstructions: embed, probe, anomaly."""

import sys
from collections.abc import Sequence
from pathlib import Path

from perceivers.cli.parser import VerbParser, print_table
from perceivers.cli.using import RUN_HELP, add_compile, tell_note
from perceivers.errors import ConfigError
from perceivers.files import write_json
from perceivers.workflows.anomaly import (
    Anomalies,
    AnomalySettings,
    check_folder,
    find_anomalies,
    write_anomalies,
)
from perceivers.workflows.embedding import POOLS, write_features
from perceivers.workflows.probing import Probed
from perceivers.workflows.probing import probe as run_probe

POOL_HELP = "pooling over latents, or over the last feature map of a Hiera; flat: concatenate"
SHOWN = 10


def embed(argv: list[str]) -> int:
    """Write the features of files or of a data set as arrays."""
    parser = VerbParser("embed", "Write the features of files or of a data set: .npz or .csv.")
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument(
        "data",
        nargs="*",
        help="one data address, or files and folders; by default the data of the run",
    )
    parser.add_argument("--out", default="features.npz", help=".npz or .csv file")
    parser.add_argument("--split", default=None, help="train, val or test; by default all")
    parser.add_argument("--pool", default="mean", choices=POOLS, help=POOL_HELP)
    parser.add_argument("--batch_size", type=int, default=64, help="samples per batch")
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
    """Evaluate frozen features with k-NN and linear probes, next to simple baselines."""
    parser = VerbParser(
        "probe",
        "Fit k-NN and a linear model to frozen features and to simple baseline features: fitted on "
        "train, settings chosen on val, metrics on test.",
    )
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("--data", default=None, help="data address; by default that of the run")
    parser.add_argument("--out", default=None, help=".json file for the metrics")
    parser.add_argument("--pool", default="mean", choices=POOLS, help=POOL_HELP)
    parser.add_argument("--batch_size", type=int, default=64, help="samples per batch")
    parser.add_argument("--workers", type=int, default=0, help="processes that read data")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    args = parser.parse_args(argv)
    out = Path(args.out) if args.out else None
    if out is not None and out.suffix != ".json":
        raise ConfigError(f"--out is {out}, but metrics are written as .json; give a .json file")
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
    # Classification and regression have different metrics, so each gets its own table.
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
        f"{found.chosen_on}, metrics by torchmetrics\n"
    )


def anomaly(argv: list[str]) -> int:
    """Score samples by masked reconstruction error and draw heat maps."""
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
    defaults = AnomalySettings()
    parser = VerbParser(
        "anomaly",
        "Score samples by the error of a masked autoencoder on hidden elements, and draw where the "
        "error is large.",
    )
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("data", nargs="+", help="files and folders, or one data address")
    parser.add_argument("--out", default="anomalies", help="folder for tables, maps and figures")
    parser.add_argument("--split", default=None, help="split of a data address; by default all")
    parser.add_argument(
        "--reference",
        default=None,
        help="address of normal samples that scores are relative to; by default the validation "
        "data of the run",
    )
    parser.add_argument(
        "--normal", default=None, help="normal classes, separated by commas: prints AUROC"
    )
    parser.add_argument(
        "--repeats", type=int, default=defaults.repeats, help="how often each element is hidden"
    )
    parser.add_argument(
        "--ratio", type=float, default=None, help="fraction hidden per pass (as in training)"
    )
    parser.add_argument(
        "--top",
        type=float,
        default=defaults.top,
        help="fraction of the elements, those with the largest errors, that a score averages",
    )
    parser.add_argument(
        "--draw", type=int, default=defaults.draw, help="samples to draw, highest scores first"
    )
    parser.add_argument(
        "--batch_size", type=int, default=defaults.batch_size, help="samples per batch"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="seed of the masks")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier files")
    return parser


def _print_anomalies(found: Anomalies) -> None:
    rows = [
        (
            row.name,
            row.known_class,
            f"{row.score:.3f}",
            "" if row.percentile is None else f"{row.percentile:.1f}",
        )
        for row in found.rows[:SHOWN]
    ]
    print_table(("sample", "class", "score", "percentile"), rows, title="Highest scores first")
    relative = (
        f"scores are deviations above the median of {found.reference} normal samples"
        if found.reference
        else "scores are plain errors; give --reference to make them relative to normal samples"
    )
    sys.stdout.write(f"{relative}; {found.passes} passes over each sample\n")
    if found.auroc is not None:
        sys.stdout.write(f"auroc: {found.auroc:.4f}\n")


def _tell_skipped(skipped: Sequence[str]) -> None:
    for text in skipped:
        sys.stderr.write(f"skipped: {text}\n")
