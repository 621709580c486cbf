"""Model selection by successive halving: all candidates train equally long, the best advance.

Only validation metrics decide; the test split is used once, for the winner. Each rung trains from
scratch with a complete learning rate schedule, since continuing the previous rung would compare
runs whose learning rate had not yet decayed.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from perceivers.errors import ConfigError, RunError
from perceivers.files import write_json
from perceivers.report.console import Shown
from perceivers.training.run_lock import RunLock
from perceivers.workflows.arms import (
    TABLE,
    Outcome,
    describe_constant,
    metric_of,
    prepare_folder,
    run_arm,
    score_constant,
    verb_of,
)
from perceivers.workflows.bakeoff_state import (
    FIGURE,
    RECORD,
    Bakeoff,
    BakeoffSettings,
    Rung,
    arm_of,
    load_state,
    read_outcomes,
    save_state,
    write_report,
)
from perceivers.workflows.candidates import (
    Entrant,
    choose_survivors,
    comparable,
    drop_repeats,
    examine,
    fit_steps,
    list_candidates,
    make_config,
    plan_rungs,
    rank,
    spread_evaluations,
    study_data,
)
from perceivers.workflows.evaluation import evaluate
from perceivers.workflows.proposing import free_run, train_line
from perceivers.workflows.task_table import tasks

# Fewer steps say nothing about a model.
LEAST_STEPS = 5
# The proposed command trains the winner this many times longer than the last rung.
LONGER = 4
Say = Callable[[str], None]


@dataclass(frozen=True)
class BakeoffResult:
    """A finished bake-off.

    Args:
        folder: Folder with ``bakeoff.json``, ``table.md`` and ``bakeoff.png``.
        state: Candidates, rungs and results.
        table: The tables as Markdown.
    """

    folder: Path
    state: Bakeoff
    table: str

    @property
    def winner(self) -> Entrant:
        """The entry that won."""
        return self.state.entry(self.state.winner)

    @property
    def run(self) -> Path:
        """Run folder of the winner from the last rung."""
        return arm_of(self.state, self.folder, len(self.state.rungs) - 1, self.winner).run


def bakeoff(
    data: str,
    *,
    out: str | Path = "runs/bakeoff",
    overwrite: bool = False,
    report: Say | None = None,
    **options: Any,
) -> BakeoffResult:
    """Find the best model for some data: small models of every family train for equal time.

    The best on validation continue, and the winner is evaluated once on the test split. After an
    interruption, the same call or command continues.

    Args:
        data: Data address, as for training.
        out: Folder for the runs, ``bakeoff.json``, ``table.md`` and ``bakeoff.png``.
        overwrite: Replace an earlier bake-off in ``out`` instead of continuing it.
        report: Called with one line per candidate.
        options: Fields of ``BakeoffSettings``; ``minutes`` or ``steps`` is required.

    Raises:
        UserError: The data or a setting is not usable, no candidate fits, or ``out`` holds a
            bake-off with other settings.
        Interrupted: Training was stopped; the same call continues it.
    """
    settings = BakeoffSettings(data=data, **options)
    return run_bakeoff(settings, out, overwrite=overwrite, report=report)


def run_bakeoff(
    settings: BakeoffSettings,
    out: str | Path,
    *,
    overwrite: bool = False,
    report: Say | None = None,
) -> BakeoffResult:
    """Run ``bakeoff`` with existing settings; see there for arguments and errors."""
    folder = Path(out)
    prepare_folder(folder, RECORD, asdict(settings), overwrite=overwrite)
    with RunLock(folder):
        return _Runner(settings, folder, report or (lambda line: None)).run()


class _Runner:
    def __init__(self, settings: BakeoffSettings, folder: Path, say: Say) -> None:
        self.settings, self.folder, self.say = settings, folder, say

    def run(self) -> BakeoffResult:
        state = load_state(self.folder) or self._enter()
        counts = plan_rungs(len(state.competing), self.settings.reduce)
        for number in range(len(counts)):
            state = self._run_rung(state, number, counts)
        if not state.winner:
            state = self._crown(state)
        table = write_report(state, self.folder, read_outcomes(state, self.folder))
        return BakeoffResult(self.folder, state, table)

    def _save(self, state: Bakeoff) -> Bakeoff:
        return save_state(state, self.folder)

    def _enter(self) -> Bakeoff:
        """Find and examine the candidates, and score the constant baseline."""
        asked = self.settings
        study = study_data(asked.data, task=asked.task, labels=asked.labels, targets=asked.targets)
        listed = list_candidates(
            study, models=asked.models, rates=asked.rates, settings=asked.settings
        )
        entries: list[Entrant] = []
        known: dict[str, Entrant] = {}
        for candidate in listed:
            own = {key: value for key, value in candidate.settings.items() if key != "optimizer"}
            key = json.dumps(own, sort_keys=True)
            if key not in known:
                known[key] = examine(candidate, study.task, asked.data, timed=bool(asked.minutes))
            elif known[key].reason:
                continue  # another learning rate would not help
            # Candidates that differ only in learning rate share one timing, so noise in separate
            # measurements cannot give them different numbers of steps.
            entry = replace(
                known[key],
                name=candidate.name,
                slug=candidate.slug,
                settings=candidate.settings,
            )
            self.say(f"{entry.name}: {entry.reason or f'{entry.parameters:,} parameters'}")
            entries.append(entry)
        entries = comparable(drop_repeats(entries, study.task, asked.data))
        metric, higher = metric_of(study.task)
        state = Bakeoff(asdict(asked), study.task, metric, higher, list(study.splits), entries)
        if not state.competing:
            raise ConfigError(
                f"none of {len(entries)} candidates fits {asked.data}; the first: "
                f"{entries[0].name}: {entries[0].reason}"
            )
        return self._save(replace(state, constant=self._constant(state)))

    def _constant(self, state: Bakeoff) -> dict[str, Any]:
        """Describe the constant baseline and compute its metric by split."""
        config = make_config(state.task, state.competing[0].settings, self.settings.data)
        prepared = tasks()[state.task].prepare(config)
        words = describe_constant(prepared)
        held = [split for split in ("val", "test") if split in state.splits]
        return {"what": words, **{s: score_constant(prepared, s) for s in held}} if words else {}

    def _run_rung(self, state: Bakeoff, number: int, counts: Sequence[int]) -> Bakeoff:
        """Train all candidates of a rung and select those that advance."""
        if number == len(state.rungs):
            state = self._save(self._begin_rung(state, number))
        rung = state.rungs[number]
        if rung.kept:
            return state
        found: list[Outcome] = []
        for slug in rung.steps:
            outcome = self._train(state, number, slug)
            found.append(outcome)
            self.say(
                f"rung {number + 1} of {len(counts)}, {state.entry(slug).name}, "
                f"{rung.steps[slug]:,} steps: {self._show(state, outcome)}"
            )
        higher = state.higher_is_better
        keep = counts[number + 1] if number + 1 < len(counts) else 1
        kept = choose_survivors(found, keep, higher_is_better=higher)
        if not kept:
            first = rank(found, higher_is_better=higher)[0]
            raise RunError(
                f"every candidate failed in rung {number + 1}; the first: "
                f"{state.entry(first.name).name}: {first.reason}"
            )
        # The next rung trains from scratch, so only the weights of the winner are needed.
        needed = kept if number + 1 == len(counts) else []
        self._drop_weights(state, number, [slug for slug in rung.steps if slug not in needed])
        rungs = [*state.rungs[:number], replace(rung, kept=kept)]
        state = self._save(replace(state, rungs=rungs))
        write_report(state, self.folder, read_outcomes(state, self.folder))
        return state

    def _train(self, state: Bakeoff, number: int, slug: str) -> Outcome:
        """Train one candidate of a rung, or read its recorded outcome."""
        rung, arm = state.rungs[number], arm_of(state, self.folder, number, state.entry(slug))
        if rung.steps[slug] < LEAST_STEPS and self.settings.minutes:
            words = f"only {rung.steps[slug]} steps fit into {rung.seconds:.1f} s"
            late = Outcome(arm.name, reason=f"{words}; at least {LEAST_STEPS} are required")
            write_json(arm.record, asdict(late))
        return replace(run_arm(arm), name=slug)

    def _begin_rung(self, state: Bakeoff, number: int) -> Bakeoff:
        """Fix the length of all trainings of a rung before any of them starts."""
        asked = self.settings
        names = state.rungs[-1].kept if number else [entry.slug for entry in state.competing]
        if asked.steps:
            count = int(asked.steps * asked.reduce**number)
            steps = dict.fromkeys(names, count)
            every = {slug: spread_evaluations(count) for slug, count in steps.items()}
            return replace(state, rungs=[*state.rungs, Rung(0.0, steps, every)])
        rungs = len(plan_rungs(len(state.competing), asked.reduce))
        seconds = 60 * asked.minutes / rungs / len(names)
        before = read_outcomes(state, self.folder)[-1] if number else {}
        fitted = {}
        for slug in names:
            entry = state.entry(slug)
            step = entry.step_seconds
            if slug in before and before[slug].seconds:
                # The previous rung gives a better estimate than the few steps timed at the start.
                step = before[slug].seconds / before[slug].steps
            fitted[slug] = fit_steps(seconds, step + entry.read_seconds, entry.eval_seconds)
        if all(steps < LEAST_STEPS for steps, _ in fitted.values()):
            raise ConfigError(
                f"minutes={asked.minutes:g} gives each of {len(names)} candidates {seconds:.1f} s, "
                f"too little for {LEAST_STEPS} steps of any; give more minutes or fewer models"
            )
        steps = {slug: count for slug, (count, _) in fitted.items()}
        every = {slug: each for slug, (_, each) in fitted.items()}
        return replace(state, rungs=[*state.rungs, Rung(round(seconds, 2), steps, every)])

    def _drop_weights(self, state: Bakeoff, number: int, slugs: Sequence[str]) -> None:
        """Delete weights and checkpoints; settings and curves stay."""
        for slug in slugs:
            run = arm_of(state, self.folder, number, state.entry(slug)).run
            for name in ("checkpoints", "last", "model"):
                shutil.rmtree(run / name, ignore_errors=True)

    def _crown(self, state: Bakeoff) -> Bakeoff:
        """Evaluate the winner on the test split, and record a command that trains it longer."""
        last = len(state.rungs) - 1
        slug = state.rungs[last].kept[0]
        entry = state.entry(slug)
        arm = arm_of(state, self.folder, last, entry)
        test: dict[str, float] = {}
        if "test" in state.splits:
            found = evaluate(arm.run, split="test").figures
            test = {name: float(v) for name, v in found.items() if isinstance(v, int | float)}
        settings = {k: v for k, v in entry.settings.items() if k != "model"}
        if state.task != "classify":
            settings = {"task": state.task, **settings}
        steps = LONGER * state.rungs[last].steps[slug]
        every = spread_evaluations(steps)
        settings |= {"seed": self.settings.seed, "steps": steps, "eval_every": every}
        address = self.settings.data
        command = train_line(
            verb_of(state.task), str(entry.settings["model"]), settings, address, free_run(address)
        )
        return self._save(replace(state, winner=slug, test=test, command=command))

    def _show(self, state: Bakeoff, outcome: Outcome) -> str:
        if outcome.has_failed:
            return f"failed: {outcome.reason}"
        return f"{state.metric} {outcome.value:.4g} after {outcome.seconds:.1f} s"


def show(result: BakeoffResult) -> Shown:
    """Show the tables, and the files."""
    return Shown([result.table, *(str(result.folder / name) for name in (RECORD, TABLE, FIGURE))])
