"""Measure how much a model depends on the order of elements.

Three arms are trained for equal steps with several seeds: elements in place; one permutation shared
by all samples, which keeps the meaning of positions but destroys neighbourhoods; and a different
permutation for every sample, which destroys both. The permutation is a setting of the modality
(``order``), so every model family, task and verb supports it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, get_args

from perceivers.errors import ConfigError
from perceivers.files import write_atomic, write_json
from perceivers.report.console import Shown
from perceivers.report.figures.trials import draw_shuffling
from perceivers.report.style import number
from perceivers.settings import Count, Positive, Seed, Settings
from perceivers.training.run_lock import RunLock
from perceivers.types import ElementOrder
from perceivers.version import __version__
from perceivers.workflows.arms import (
    TABLE,
    Arm,
    Outcome,
    check_shared,
    describe_constant,
    metric_of,
    prepare_folder,
    run_arm,
    score_constant,
)
from perceivers.workflows.candidates import Study, join, make_config, spread_evaluations, study_data
from perceivers.workflows.task_table import Prepared, tasks

RECORD, FIGURE = "shuffle.json", "shuffle.png"
ORDERS: tuple[ElementOrder, ...] = get_args(ElementOrder)
TITLES: Mapping[str, str] = {
    "in_place": "in place",
    "fixed": "one fixed order",
    "per_sample": "another order per sample",
}
# Smaller differences of means, in standard errors of the difference, are not reported.
DEVIATIONS = 2.0
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ShuffleSettings(Settings, prefix=""):
    """Settings of a comparison of element orders."""

    data: str
    """A data address."""
    model: str = ""
    """Variant name; by default the proposal of data check."""
    steps: Count = 300
    """Optimizer steps of every run."""
    seeds: Count = 3
    """Runs per order, with consecutive seeds of weights, batches and permutations."""
    seed: Seed = 0
    """First seed."""
    batch_size: Count | None = None
    """Samples per step; by default the proposal of data check."""
    lr: Positive | None = None
    """Peak learning rate; by default the proposal of data check or the training default."""
    task: str = ""
    """Task to train; chosen from the data if not given."""
    labels: list[str] = field(default_factory=list)
    """Label columns to learn, if the data have several."""
    targets: list[str] = field(default_factory=list)
    """Numeric columns to predict."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Further training settings of all runs, such as {augment: {flip: true}}."""

    def __post_init__(self) -> None:
        """Reject values out of range and settings that the comparison sets itself."""
        super().__post_init__()
        check_shared(self.settings)
        double = [name for name in ("batch_size",) if name in self.settings and self.batch_size]
        if "lr" in self.settings.get("optimizer", {}) and self.lr:
            double.append("optimizer.lr")
        if double:
            raise ConfigError(f"settings hold {double[0]!r}, which is also given separately")


@dataclass(frozen=True)
class ArmSummary:
    """Results of one order of elements over all seeds.

    Args:
        order: ``in_place``, ``fixed`` or ``per_sample``.
        values: Metric values by split, one per seed.
        failures: Reasons why runs failed.
    """

    order: str
    values: Mapping[str, Sequence[float]]
    failures: Sequence[str] = ()

    def mean(self, split: str) -> float:
        """Return the mean over seeds."""
        return mean(self.values[split])

    def deviation(self, split: str) -> float:
        """Return the standard deviation over seeds; NaN for a single seed."""
        values = self.values[split]
        return stdev(values) if len(values) > 1 else float("nan")


@dataclass(frozen=True)
class Shuffle:
    """Result of a comparison of element orders.

    Args:
        folder: Folder with ``shuffle.json``, ``table.md`` and ``shuffle.png``.
        metric: Name of the compared metric.
        higher_is_better: Whether higher values of the metric are better.
        arms: Results of each order.
        conclusion: Conclusion in one sentence.
        table: Markdown table, with the conclusion.
    """

    folder: Path
    metric: str
    higher_is_better: bool
    arms: Sequence[ArmSummary]
    conclusion: str
    table: str


def shuffle(
    data: str,
    *,
    out: str | Path = "runs/shuffle",
    overwrite: bool = False,
    report: Say | None = None,
    **options: Any,
) -> Shuffle:
    """Measure how much a model depends on the order of elements.

    It is trained on the original order, on one permutation for all samples, and on a different
    permutation per sample. After an interruption, the same call or command continues.

    Args:
        data: Data address, as for training.
        out: Folder for the runs, ``shuffle.json``, ``table.md`` and ``shuffle.png``.
        overwrite: Replace an earlier comparison in ``out`` instead of continuing it.
        report: Called with one line per run.
        options: Fields of ``ShuffleSettings``, such as ``model`` and ``steps``.

    Raises:
        UserError: The data, the model or a setting cannot be used, or ``out`` holds runs with other
            settings.
        Interrupted: Training was stopped; the same call continues it.
    """
    settings = ShuffleSettings(data=data, **options)
    return run_shuffle(settings, out, overwrite=overwrite, report=report)


def run_shuffle(
    settings: ShuffleSettings,
    out: str | Path,
    *,
    overwrite: bool = False,
    report: Say | None = None,
) -> Shuffle:
    """Run ``shuffle`` with existing settings; see there for arguments and errors."""
    folder, say = Path(out), report or (lambda line: None)
    asked = asdict(settings)
    # More seeds only add runs, so an earlier comparison can be continued with another number.
    prepare_folder(folder, RECORD, asked, overwrite=overwrite, may_change=("seeds",))
    with RunLock(folder):
        study = study_data(
            settings.data, task=settings.task, labels=settings.labels, targets=settings.targets
        )
        base = choose_settings(settings, study)
        prepared = tasks()[study.task].prepare(make_config(study.task, base, settings.data))
        names = shuffled_modalities(prepared)
        splits = [split for split in ("val", "test") if split in study.splits]
        constant = {split: score_constant(prepared, split) for split in splits}
        record = {
            "version": __version__,
            "settings": asked,
            "task": study.task,
            "training": base,
            "modalities": names,
            "constant": {"what": describe_constant(prepared), **constant},
        }
        write_json(folder / RECORD, record)
        del prepared
        metric, higher = metric_of(study.task)
        found: dict[str, list[Outcome]] = {order: [] for order in ORDERS}
        # Seeds in the outer loop, so that all orders can be compared as early as possible.
        for number in range(settings.seeds):
            for order in ORDERS:
                arm = arm_of(settings, study, base, names, order, number, folder)
                outcome = run_arm(arm, splits=[s for s in splits if s != "val"])
                found[order].append(outcome)
                shown = outcome.reason if outcome.has_failed else f"{outcome.value:.4g}"
                say(f"{TITLES[order]}, seed {settings.seed + number}: validation {metric} {shown}")
        arms = [summarise_arm(order, outcomes, metric) for order, outcomes in found.items()]
        return _write(folder, record, arms, metric, higher)


def choose_settings(settings: ShuffleSettings, study: Study) -> dict[str, Any]:
    """Return the common training settings, without data, out, seed, steps and orders."""
    model = settings.model or study.proposed
    own = model == study.proposed and study.is_own_task
    plain = study.proposal if own else study.settings_for(model)
    if settings.batch_size:
        plain["batch_size"] = settings.batch_size
    if settings.lr:
        plain["optimizer"] = {**plain.get("optimizer", {}), "lr": settings.lr}
    return join(plain, settings.settings)


def shuffled_modalities(prepared: Prepared) -> list[str]:
    """Return the modalities whose elements have an order: all inputs except labels.

    Raises:
        ConfigError: No modality has more than one element.
    """
    names = [
        name for name, spec in prepared.specs.items() if spec.has_order and spec.num_tokens > 1
    ]
    if not names:
        raise ConfigError(f"{sorted(prepared.specs)} have only one element each, so no order")
    return names


def arm_of(
    settings: ShuffleSettings,
    study: Study,
    base: Mapping[str, Any],
    names: Sequence[str],
    order: str,
    number: int,
    folder: Path,
) -> Arm:
    """Return the run with an order of elements and a seed."""
    seed, every = settings.seed + number, spread_evaluations(settings.steps)
    length = {
        "data": settings.data,
        "seed": seed,
        "steps": settings.steps,
        "eval_every": every,
        "log_every": every,
        "checkpoint_every": every,
    }
    ordered = {"order": order, "order_seed": seed} if order != "in_place" else {}
    inputs = {"inputs": dict.fromkeys(names, ordered)} if ordered else {}
    return Arm(f"{order}_seed{seed}", study.task, {**join(base, inputs), **length}, folder)


def summarise_arm(order: str, outcomes: Sequence[Outcome], metric: str) -> ArmSummary:
    """Combine the runs of one order over all seeds."""
    done = [outcome for outcome in outcomes if not outcome.has_failed]
    splits = list(done[0].metrics) if done else []
    values = {split: [float(o.metrics[split][metric]) for o in done] for split in splits}
    return ArmSummary(order, values, [o.reason for o in outcomes if o.has_failed])


def conclude(arms: Sequence[ArmSummary], metric: str, split: str, *, higher_is_better: bool) -> str:
    """Summarise a comparison in one sentence.

    Two arms differ if their means differ by more than two standard errors of the difference.

    Args:
        arms: One per order; elements in place come first.
        metric: Name of the metric.
        split: Split whose values are compared.
        higher_is_better: Whether higher values of the metric are better.
    """
    first, *others = arms
    if any(not arm.values.get(split) for arm in arms):
        return "Not all arms have a result, so no conclusion is possible."
    if any(len(arm.values[split]) < 2 for arm in arms):
        return "One seed has no spread, so no conclusion is possible; give --seeds 2 or more."
    words = []
    for arm in others:
        difference = arm.mean(split) - first.mean(split)
        error = sum(a.deviation(split) ** 2 / len(a.values[split]) for a in (arm, first)) ** 0.5
        title = TITLES[arm.order]
        if abs(difference) <= DEVIATIONS * error:
            words.append(f"with {title} no difference was seen")
        else:
            verdict = "better" if (difference > 0) == higher_is_better else "worse"
            words.append(f"{title} is {verdict} by {number(abs(difference))}")
    return (
        f"Compared with elements in place ({split} {metric} {number(first.mean(split), 4)}, mean "
        f"of {len(first.values[split])} seeds), {', and '.join(words)}."
    )


def write_table(
    arms: Sequence[ArmSummary], metric: str, constant: Mapping[str, Any], conclusion: str
) -> str:
    """Return a Markdown table of mean and deviation per order, with the conclusion."""
    splits = list(dict.fromkeys(split for arm in arms for split in arm.values))
    header = ["order of elements", *(f"{split} {metric}" for split in splits), "seeds"]
    rows = []
    for arm in arms:
        cells = [_spread(arm, split) for split in splits]
        count = max((len(values) for values in arm.values.values()), default=0)
        rows.append([TITLES[arm.order], *cells, str(count)])
    if constant.get("what"):
        values = [constant.get(split) for split in splits]
        cells = ["-" if value is None else number(value, 4) for value in values]
        rows.append([f"constant: {constant['what']}", *cells, "-"])
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    lines.insert(1, f"|{'---|' * len(header)}")
    failed = [
        f"{TITLES[arm.order]}: a run failed: {reason}" for arm in arms for reason in arm.failures
    ]
    return "\n".join([*lines, "", *failed, conclusion]) + "\n"


def _spread(arm: ArmSummary, split: str) -> str:
    values = arm.values.get(split)
    if not values:
        return "failed"
    spread = f" +- {number(arm.deviation(split), 2)}" if len(values) > 1 else ""
    return number(arm.mean(split), 4) + spread


def _write(
    folder: Path,
    record: Mapping[str, Any],
    arms: Sequence[ArmSummary],
    metric: str,
    higher: bool,
) -> Shuffle:
    splits = list(dict.fromkeys(split for arm in arms for split in arm.values))
    constant = record["constant"]
    split = "test" if "test" in splits else "val"
    conclusion = conclude(arms, metric, split, higher_is_better=higher)
    table = write_table(arms, metric, constant, conclusion)
    write_atomic(folder / TABLE, table)
    results = {
        "metric": metric,
        "higher_is_better": higher,
        "arms": [asdict(arm) for arm in arms],
        "conclusion": conclusion,
    }
    write_json(folder / RECORD, {**record, **results})
    if splits:
        settings = record["settings"]
        draw_shuffling(
            folder / FIGURE,
            values={TITLES[arm.order]: arm.values for arm in arms},
            constant={s: constant.get(s) for s in splits},
            metric=metric,
            title=f"{record['training']['model']} on {settings['data']}: order of elements",
            note=f"{settings['steps']:,} steps per run; one point per seed, bars at the mean. "
            + conclusion,
        )
    return Shuffle(folder, metric, higher, arms, conclusion, table)


def show(result: Shuffle) -> Shown:
    """Show the tables, and the files."""
    return Shown([result.table, *(str(result.folder / name) for name in (RECORD, TABLE, FIGURE))])
