"""The verb ``data``: check data before training, and index tar shards."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from perceivers.cli.parser import VerbParser, fail, print_table
from perceivers.data.inspecting import LIMIT, DataFacts
from perceivers.data.inspecting_labels import LabelFacts, ModalityFacts, title_modality
from perceivers.data.remote import write_shard_index
from perceivers.data.shards import expand_braces
from perceivers.errors import ConfigError, suggest
from perceivers.files import write_json
from perceivers.workflows.checking import DataReport, check_data

ACTIONS = ("check", "index")
# Smaller classes are summed up in one row.
SHOWN_CLASSES = 30
SHOWN_VALUES = 4
UNITS = {"width": "pixels", "height": "pixels"}
UNUSABLE = 2


def data(argv: list[str]) -> int:
    """Check the data at an address and propose commands, or index tar shards."""
    if argv and not argv[0].startswith("-") and argv[0] not in ACTIONS:
        fail(
            f"data: {argv[0]!r} is unknown; choose from {' and '.join(ACTIONS)}"
            f"{suggest(argv[0], ACTIONS)}"
        )
    if argv and argv[0] == "index":
        return _index(argv[1:])
    parser = VerbParser(
        "data check", "Check the data at an address: contents, problems and the commands to run."
    )
    parser.add_argument("address", help="data address, as for the training verbs")
    parser.add_argument(
        "--labels", type=list[str], default=[], help="label columns, such as '[\"topic\"]'"
    )
    parser.add_argument(
        "--targets", type=list[str], default=[], help="columns of numbers to predict"
    )
    parser.add_argument(
        "--limit", type=int, default=LIMIT, help="samples to decode, spread evenly over the splits"
    )
    parser.add_argument("--json", default=None, help="also write the report to this .json file")
    parser.add_argument(
        "--preview", default=None, help="folder for sheets of samples as model inputs"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an existing --json file or --preview"
    )
    args = parser.parse_args(
        [word for number, word in enumerate(argv) if number or word != "check"]
    )
    out = None if args.json is None else Path(args.json)
    if out is not None and out.exists() and not args.overwrite:
        raise ConfigError(f"{out} exists; pass --overwrite or another --json")
    report = _check(
        args.address,
        labels=args.labels,
        targets=args.targets,
        limit=args.limit,
        preview=args.preview,
        overwrite=args.overwrite,
    )
    _print_report(report)
    if report.sheets:
        sys.stdout.write(f"\npreview: {report.sheets[-1]} and {len(report.sheets) - 1} sheets\n")
    if out is not None:
        write_json(out, report.to_json())
    return 0 if report.is_usable else UNUSABLE


def _index(argv: list[str]) -> int:
    """Write an index next to each tar, which makes opening it over HTTP fast."""
    parser = VerbParser(
        "data index", "Write x.tar.index.json next to each tar; upload both to the same place."
    )
    parser.add_argument("tars", nargs="+", help="tar files, or ranges such as 'x-{000..012}.tar'")
    args = parser.parse_args(argv)
    for tar in (path for address in args.tars for path in expand_braces(address)):
        sys.stdout.write(f"{write_shard_index(Path(tar))}\n")
    return 0


def _check(address: str, **options: Any) -> DataReport:
    """Check with a progress bar if stderr is a terminal."""
    if not sys.stderr.isatty():
        return check_data(address, **options)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("checking samples", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return check_data(address, progress=show, **options)


def _print_report(report: DataReport) -> None:
    facts = report.facts
    total = sum(split.samples for split in facts.splits.values())
    what = f"tiles of {facts.scenes:,} scenes" if facts.scenes else "samples"
    sys.stdout.write(f"{report.address}: {total:,} {what}; counts by split and modality:\n")
    _print_splits(facts)
    if facts.modalities:
        _print_modalities(facts)
    for column in facts.labels:
        _print_classes(column)
    if facts.targets:
        _print_rows(
            ("target", "min", "median", "max", "unknown"),
            [
                (t.name, f"{t.least:.4g}", f"{t.median:.4g}", f"{t.most:.4g}", str(t.unknown))
                for t in facts.targets
            ],
        )
    write = sys.stdout.write
    for text in facts.broken:
        write(f"broken: {text}\n")
    if facts.num_broken > len(facts.broken):
        write(f"broken: {facts.num_broken - len(facts.broken)} more\n")
    for group in facts.repeats.groups:
        write(f"identical: {' = '.join(group[:3])}{' = ...' if len(group) > 3 else ''}\n")
    for text in facts.notes:
        write(f"note: {text}\n")
    for text in facts.problems:
        write(f"problem: {text}\n")
    if report.proposal is None:
        write("no training sample can be read, so there is nothing to propose\n")
        return
    proposal = report.proposal
    recipe = f", based on the recipe {proposal.recipe}" if proposal.recipe else ""
    write(f"\nproposed: task {proposal.task}{recipe}. {proposal.reason}\n\n")
    write("".join(f"{line}\n" for line in proposal.commands))
    for text in proposal.hints:
        write(f"\nhint: {text}\n")


def _print_splits(facts: DataFacts) -> None:
    combinations = list(
        dict.fromkeys(name for split in facts.splits.values() for name in split.combinations)
    )
    counted = ("tiles", "scenes") if facts.scenes else ("samples",)
    titles = {name: title_modality(name, found) for name, found in facts.modalities.items()}
    held = [" + ".join(titles.get(n, n) for n in c.split(" + ")) for c in combinations]
    _print_rows(
        ("split", *counted, "checked", "broken", *held),
        [
            (
                name,
                f"{split.samples:,}",
                *([f"{split.scenes:,}"] if facts.scenes else []),
                f"{split.looked_at:,}",
                f"{split.broken:,}",
                *(f"{split.combinations.get(c, 0):,}" for c in combinations),
            )
            for name, split in facts.splits.items()
        ],
    )


def _print_modalities(facts: DataFacts) -> None:
    rows = [row for name, found in facts.modalities.items() for row in _modality_rows(name, found)]
    _print_rows(("modality", "property", "min", "median", "max", "values"), rows)


def _modality_rows(name: str, facts: ModalityFacts) -> list[tuple[str, ...]]:
    """Return one row per size, and one per property with counts of its values."""
    title = title_modality(name, facts)
    rows = [
        (
            title,
            f"{what} in {UNITS[what]}" if what in UNITS else what,
            _number(size.least),
            _number(size.median),
            _number(size.most),
            "",
        )
        for what, size in facts.sizes.items()
    ]
    for what, counts in facts.values.items():
        shown = list(counts.items())[:SHOWN_VALUES]
        listed = ", ".join(f"{value} ({count:,})" for value, count in shown)
        more = f", {len(counts) - len(shown)} more" if len(counts) > len(shown) else ""
        rows.append((title, what, "", "", "", listed + more))
    return rows


def _print_classes(column: LabelFacts) -> None:
    splits = list(column.counts)
    order = sorted(range(len(column.classes)), key=lambda k: -column.counts["train"][k])
    rows = [
        (column.classes[k], *(f"{column.counts[split][k]:,}" for split in splits))
        for k in order[:SHOWN_CLASSES]
    ]
    rest = order[SHOWN_CLASSES:]
    if rest:
        sums = (f"{sum(column.counts[split][k] for k in rest):,}" for split in splits)
        rows.append((f"{len(rest)} more classes", *sums))
    sys.stdout.write(
        f"{column.name}: {len(column.classes)} classes; the largest has {column.imbalance:.1f} "
        f"times the training samples of the smallest\n"
    )
    _print_rows(("class", *splits), rows)


def _number(value: float) -> str:
    """Format whole numbers without decimals."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.2f}"


def _print_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with borders on a terminal, and plain columns to a file or pipe."""
    print_table(header, rows, plain=not sys.stdout.isatty())
    sys.stdout.write("\n")
