"""How much a model leans on the order of elements: in place, in one other order, in many.

Three arms train alike, for equal steps and with several seeds: elements in place; under one
permutation that all samples share, which keeps what each position means and takes away what is
near what; and under another permutation for every sample, which takes away both. The permutation is
a setting of the modality (``order``), so every family, task and verb knows it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, get_args

from perceivers.errors import ConfigError
from perceivers.files import write_atomic, write_json
from perceivers.report.figures.trials import draw_shuffling
from perceivers.report.style import number
from perceivers.settings import Count, Positive, Seed, Settings
from perceivers.tasks.segmentation import TARGET as MASKS
from perceivers.training.run_lock import RunLock
from perceivers.types import ElementOrder, Labels
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
from perceivers.workflows.preparing import PREPARE, Prepared

RECORD, FIGURE = "shuffle.json", "shuffle.png"
ORDERS: tuple[ElementOrder, ...] = get_args(ElementOrder)
TITLES: Mapping[str, str] = {
    "in_place": "in place",
    "fixed": "one fixed order",
    "per_sample": "another order per sample",
}
# Differences of fewer standard deviations are not called differences.
DEVIATIONS = 2.0
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ShuffleSettings(Settings, prefix=""):
    """What is trained three times over."""

    data: str
    """A data address."""
    model: str = ""
    """A variant name; what data check proposes when not given."""
    steps: Count = 300
    """Optimizer steps of every run."""
    seeds: Count = 3
    """Runs per arm: with the seed, the seed + 1, ... of weights, batches and permutations."""
    seed: Seed = 0
    """The first seed."""
    batch_size: Count | None = None
    """Samples per step; what data check proposes when not given."""
    lr: Positive | None = None
    """Peak learning rate; the proposal's, or the training verbs' own, when not given."""
    task: str = ""
    """What is learned; what the data are for when not given."""
    labels: list[str] = field(default_factory=list)
    """Label columns to learn, where the data have several."""
    targets: list[str] = field(default_factory=list)
    """Columns of numbers to be predicted."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Further training settings of all runs, such as {augment: {flip: true}}."""

    def __post_init__(self) -> None:
        """Reject values out of range, and settings that are decided here."""
        super().__post_init__()
        check_shared(self.settings)
        double = [name for name in ("batch_size",) if name in self.settings and self.batch_size]
        if "lr" in self.settings.get("optimizer", {}) and self.lr:
            double.append("optimizer.lr")
        if double:
            raise ConfigError(f"settings hold {double[0]!r}, which is also given by itself")


@dataclass(frozen=True)
class ArmSummary:
    """One order of elements, over all seeds.

    Args:
        order: ``in_place``, ``fixed`` or ``per_sample``.
        values: The metric by split, one per seed.
        failures: Why runs failed.
    """

    order: str
    values: Mapping[str, Sequence[float]]
    failures: Sequence[str] = ()

    def mean(self, split: str) -> float:
        """Return the mean over seeds."""
        return mean(self.values[split])

    def deviation(self, split: str) -> float:
        """Return the standard deviation over seeds; NaN of a single one."""
        values = self.values[split]
        return stdev(values) if len(values) > 1 else float("nan")


@dataclass(frozen=True)
class Shuffle:
    """What was found.

    Args:
        folder: With ``shuffle.json``, ``table.md`` and ``shuffle.png``.
        metric: The metric that is compared.
        higher_is_better: Its direction.
        arms: One per order.
        conclusion: One sentence.
        table: The table as Markdown, with the conclusion.
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
    """Train with elements in place, in one other order and in many, and compare.

    The same call continues where an earlier one was stopped.

    Args:
        data: A data address.
        out: Folder for the runs, ``shuffle.json``, ``table.md`` and ``shuffle.png``.
        overwrite: Replace what an earlier call left there instead of continuing it.
        report: Called with a line per run.
        options: Fields of ``ShuffleSettings``, such as ``model`` and ``steps``.

    Raises:
        UserError: The data, the model or a setting is not usable, or ``out`` holds runs of other
            settings.
        Interrupted: Stopped; the same call continues.
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
    """Do what ``shuffle`` does, with settings that were made before."""
    folder, say = Path(out), report or (lambda line: None)
    asked = asdict(settings)
    # More seeds only add runs.
    prepare_folder(folder, RECORD, asked, overwrite=overwrite, may_change=("seeds",))
    with RunLock(folder):
        study = study_data(
            settings.data, task=settings.task, labels=settings.labels, targets=settings.targets
        )
        base = choose_settings(settings, study)
        prepared = PREPARE[study.task](make_config(study.task, base, settings.data))
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
        # Seed by seed, so that a comparison is there as soon as possible.
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
    """Return the training settings of all runs, beside data, out, seed, steps and orders."""
    model = settings.model or study.proposed
    own = model == study.proposed and study.is_own_task
    plain = study.proposal if own else study.settings_for(model)
    if settings.batch_size:
        plain["batch_size"] = settings.batch_size
    if settings.lr:
        plain["optimizer"] = {**plain.get("optimizer", {}), "lr": settings.lr}
    return join(plain, settings.settings)


def shuffled_modalities(prepared: Prepared) -> list[str]:
    """Return the modalities whose elements have an order: all inputs but labels.

    Raises:
        ConfigError: There are none.
    """
    names = [
        name
        for name, spec in prepared.specs.items()
        if name != MASKS and not isinstance(spec, Labels) and spec.num_tokens > 1
    ]
    if not names:
        raise ConfigError(f"{sorted(prepared.specs)} have one element each, which has no order")
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
    """Return one run: an order of elements and a seed."""
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
    """Bring the seeds of one order together."""
    done = [outcome for outcome in outcomes if not outcome.has_failed]
    splits = list(done[0].metrics) if done else []
    values = {split: [float(o.metrics[split][metric]) for o in done] for split in splits}
    return ArmSummary(order, values, [o.reason for o in outcomes if o.has_failed])


def conclude(arms: Sequence[ArmSummary], metric: str, split: str, *, higher_is_better: bool) -> str:
    """Say in one sentence what the numbers show; a difference within the spread is none.

    Two arms differ where their means do by more than two standard errors of the difference.

    Args:
        arms: One per order, that in place first.
        metric: Its name.
        split: Whose values are compared.
        higher_is_better: Direction of the metric.
    """
    first, *others = arms
    if any(not arm.values.get(split) for arm in arms):
        return "Not all arms have a result, so nothing follows."
    if any(len(arm.values[split]) < 2 for arm in arms):
        return "One seed has no spread, so nothing follows; give --seeds 2 or more."
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
        f"Against elements in place ({split} {metric} {number(first.mean(split), 4)}, mean of "
        f"{len(first.values[split])} seeds), {', and '.join(words)}."
    )


def write_table(
    arms: Sequence[ArmSummary], metric: str, constant: Mapping[str, Any], conclusion: str
) -> str:
    """Return a row per order with mean and deviation, and the conclusion, as Markdown."""
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
    """Return mean and standard deviation over seeds."""
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
    """Write table, figure and record."""
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
            note=f"{settings['steps']:,} steps per run; a point per seed, a bar at their mean. "
            + conclusion,
        )
    return Shuffle(folder, metric, higher, arms, conclusion, table)
