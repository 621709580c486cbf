"""Verbs about the library itself: models, recipes, convert, doctor."""

import sys
from pathlib import Path

from perceivers.checkpoints.catalogue import OwnWeights, list_own_weights
from perceivers.cli.parser import VerbParser, fail, print_table
from perceivers.errors import ConfigError
from perceivers.models.registry import list_models
from perceivers.workflows.conversion import POSITIONS, TARGETS, Conversion
from perceivers.workflows.conversion import convert as run_conversion
from perceivers.workflows.inspection import describe_models, describe_weights, diagnose
from perceivers.workflows.opening import copy_recipe, find_recipe, list_recipes


def models(argv: list[str]) -> int:
    """List the named models and their sizes, or the available weights."""
    parser = VerbParser("models", "List the named models with their sizes.")
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern such as 'hip_*'")
    parser.add_argument(
        "--weights",
        action="store_true",
        help="list the packaged weights, and the released weights that convert reads",
    )
    args = parser.parse_args(argv)
    if args.weights:
        return _print_weights(args.pattern)
    rows = describe_models(args.pattern)
    if not rows:
        fail(f"no model matches {args.pattern!r}; available: {', '.join(list_models())}")
    print_table(
        ("model", "paper", "parameters", "encoder", "latents", "structure", "input size"),
        [
            (
                row.name,
                row.paper,
                f"{row.total:,}",
                f"{row.core:,}",
                row.latents,
                row.structure,
                row.inputs,
            )
            for row in rows
        ],
    )
    return 0


def _print_weights(pattern: str) -> int:
    own, weights = list_own_weights(pattern), describe_weights(pattern)
    if not own and not weights:
        fail(f"no released weights match {pattern!r}; '*' lists all")
    if own:
        _print_own(own)
    if not weights:
        return 0
    print_table(
        ("weights", "model", "parameters", "licence", "read as", "sha256", "in"),
        [
            (
                w.name,
                w.variant,
                f"{w.parameters:,}",
                w.license,
                w.converter,
                w.sha256[:12] if w.sha256 else "unknown",
                w.source.removesuffix(f"/{w.name}"),
            )
            for w in weights
        ],
    )
    return 0


def _print_own(own: list[OwnWeights]) -> None:
    print_table(
        ("name", "model", "task", "parameters", "size", "licence", "trained on", "metrics"),
        [
            (
                w.name,
                w.variant,
                w.task,
                f"{w.parameters:,}",
                f"{w.size / 1e6:.1f} MB",
                w.license,
                w.data,
                ", ".join(f"{name} {value:.4g}" for name, value in w.figures.items()),
            )
            for w in own
        ],
        title="Packaged weights",
    )


def recipes(argv: list[str]) -> int:
    """List, show or copy packaged training settings."""
    parser = VerbParser("recipes", "List, show or copy packaged training settings.")
    parser.add_argument("name", nargs="?", default=None, help="a recipe; without it, list all")
    parser.add_argument("--copy", action="store_true", help="write NAME.yaml to this folder")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing NAME.yaml")
    args = parser.parse_args(argv)
    if args.name is None:
        if args.copy:
            raise ConfigError("--copy needs the name of a recipe")
        print_table(("recipe", "what it trains"), [(r.name, r.title) for r in list_recipes()])
        return 0
    if args.copy:
        path = copy_recipe(args.name, Path(), overwrite=args.overwrite)
        sys.stdout.write(f"{path}\n{find_recipe(args.name).command}\n")
        return 0
    sys.stdout.write(find_recipe(args.name).text)
    return 0


def convert(argv: list[str]) -> int:
    """Convert released weights to a model folder, or a model folder to another format."""
    parser = VerbParser(
        "convert",
        "Convert a parity bundle (.npz), a Haiku parameter pickle, a file of tensors (.pth, "
        ".ckpt, .safetensors) or a Hugging Face folder to a model folder; with --to, convert a "
        "model folder to another format.",
    )
    parser.add_argument("source", help="file or folder; nothing in it is executed")
    parser.add_argument("out", help="model folder to write; a file for --to haiku, official, timm")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="run the model and compare its outputs with the bundle's or the other library's",
    )
    parser.add_argument(
        "--config",
        default=None,
        help="for a model that was not released: JSON as in a bundle, or settings of a Hiera",
    )
    parser.add_argument(
        "--flavour",
        choices=("official", "hf"),
        default=None,
        help="implementation whose numerics to follow; by default that of the source",
    )
    parser.add_argument("--to", choices=TARGETS, default="perceivers", help="output format")
    parser.add_argument(
        "--positions",
        choices=POSITIONS,
        default="keep",
        help="window: split the position embeddings of a Hiera, for other input sizes",
    )
    parser.add_argument(
        "--dtype",
        choices=("float64", "float32"),
        default="float64",
        help="precision of the comparison with another library",
    )
    parser.add_argument(
        "--weights",
        default=None,
        metavar="SET",
        help="which weights of a checkpoint with several sets: raw, ema, or the name of a set",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is in OUT")
    args = parser.parse_args(argv)
    done = run_conversion(
        args.source,
        args.out,
        verify=args.verify,
        config=args.config,
        flavour=args.flavour,
        to=args.to,
        positions=args.positions,
        dtype=args.dtype,
        weights=args.weights,
        overwrite=args.overwrite,
    )
    _print_conversion(done)
    return 0 if not args.verify or done.is_verified else 1


def _print_conversion(done: Conversion) -> None:
    sys.stdout.write(f"{done.folder}: {done.parameters:,} parameters\n")
    for note in done.notes:
        sys.stdout.write(f"note: {note}\n")
    for difference in done.differences:
        if difference.is_empty:
            sys.stdout.write(f"{difference.output}: empty on both sides, not compared\n")
            continue
        verdict = "ok" if difference.is_within else "TOO LARGE"
        sys.stdout.write(
            f"{difference.output}: largest difference {difference.largest:.3g}, allowed "
            f"{difference.allowed:.3g}: {verdict}\n"
        )


def doctor(argv: list[str]) -> int:
    """Check this machine and installation."""
    VerbParser("doctor", "Check this machine and installation.").parse_args(argv)
    findings = diagnose()
    print_table(
        ("what", "finding", ""), [(what, text, "ok" if ok else "!") for what, text, ok in findings]
    )
    return 0
