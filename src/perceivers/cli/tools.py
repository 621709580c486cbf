"""Verbs about the library itself: models, convert, doctor."""

import sys

from perceivers.cli.parser import VerbParser, fail
from perceivers.cli.tables import print_table
from perceivers.models.registry import list_models
from perceivers.workflows.conversion import convert as run_conversion
from perceivers.workflows.inspection import describe_models, diagnose


def models(argv: list[str]) -> int:
    """The named models with their sizes."""
    parser = VerbParser("models", "List the named models, counted for 224 x 224 x 3 pictures.")
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern such as 'hip_*'")
    args = parser.parse_args(argv)
    rows = describe_models(args.pattern)
    if not rows:
        fail(f"no model matches {args.pattern!r}; there are {', '.join(list_models())}")
    print_table(
        ("model", "paper", "encoder", "with decoder", "groups", "inputs per group"),
        [
            (
                row.name,
                row.paper,
                f"{row.encoder:,}",
                f"{row.total:,}",
                row.groups,
                f"{row.first_group:,}",
            )
            for row in rows
        ],
    )
    return 0


def convert(argv: list[str]) -> int:
    """Released parameters to a model folder."""
    parser = VerbParser(
        "convert", "Convert a parity bundle (.npz) or a Haiku parameter pickle to a model folder."
    )
    parser.add_argument("source", help="bundle or pickle; nothing in it is executed")
    parser.add_argument("out", help="model folder to write")
    parser.add_argument(
        "--verify", action="store_true", help="run the model and compare with the bundle's outputs"
    )
    parser.add_argument(
        "--config", default=None, help="for a pickle: JSON with model, kwargs and datasets"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model in OUT")
    args = parser.parse_args(argv)
    done = run_conversion(
        args.source, args.out, verify=args.verify, config=args.config, overwrite=args.overwrite
    )
    sys.stdout.write(f"{done.folder}: {done.parameters:,} parameters\n")
    for difference in done.differences:
        verdict = "ok" if difference.is_within else "TOO LARGE"
        sys.stdout.write(
            f"{difference.output}: largest difference {difference.largest:.3g}, allowed "
            f"{difference.allowed:.3g}: {verdict}\n"
        )
    return 0 if not args.verify or done.is_verified else 1


def doctor(argv: list[str]) -> int:
    """What this machine can do."""
    VerbParser("doctor", "Check this machine and installation.").parse_args(argv)
    findings = diagnose()
    print_table(
        ("what", "finding", ""), [(what, text, "ok" if ok else "!") for what, text, ok in findings]
    )
    return 0
