"""Training loop with evaluation, checkpoints and exact resume.

All randomness of a step is a function of (seed, step, process): the global random generator is
reseeded at every step, and objectives sample from a second generator that is seeded identically in
all processes. So a run that is killed and resumed computes the same weights, bit for bit, as an
uninterrupted run.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from perceivers.data import Batch
from perceivers.errors import DataError, FolderLostError, RunError
from perceivers.files import check_held, write_json
from perceivers.models.compiling import compile_parts
from perceivers.models.saving import ModelInfo, save_folder
from perceivers.tasks import Task
from perceivers.tasks.base import dropout_rates
from perceivers.training.checkpoints import Checkpoints, CheckpointWriter
from perceivers.training.config import TrainConfig
from perceivers.training.events import (
    Evaluated,
    Event,
    Finished,
    Listener,
    Noted,
    Rescued,
    Started,
    Stepped,
    Unreadable,
)
from perceivers.training.optimizers import (
    WeightAverage,
    make_optimizer,
    schedule_scale,
    set_learning_rate,
)
from perceivers.training.run_folder import RunFolder, keep_records, make_rescue_folder
from perceivers.training.runtime import Runtime
from perceivers.training.sharding import free_gathered
from perceivers.training.state import Progress
from perceivers.training.watchdog import Interrupted, StopRequest, watch
from perceivers.training.window import SETTINGS, FiniteGuard, Window, state_error, step_error

__all__ = ["Interrupted", "Loaders", "Trainer", "step_generator"]

# Minimum number of samples before the unreadable fraction is judged.
JUDGED_SAMPLES = 200


@dataclass(frozen=True)
class Loaders:
    """Sources of batches.

    Attributes:
        train: Called with the first step; yields one batch per step up to the end of the run.
        val: Called for every evaluation; yields all validation batches.
    """

    train: Callable[[int], Iterable[Batch]]
    val: Callable[[], Iterable[Batch]]


def step_generator(seed: int, step: int, rank: int) -> torch.Generator:
    """Seed the global generator for one step and process; return a generator for the objective.

    The objective's generator is the same in all processes: what an objective samples depends on a
    sample's position in the data stream, not on how a batch is split over processes.
    """
    own, shared = (
        np.random.SeedSequence((seed, step, process)).generate_state(2, np.uint64)
        for process in (rank, 0)
    )
    torch.manual_seed(int(own[0] >> np.uint64(1)))
    return torch.Generator().manual_seed(int(shared[1] >> np.uint64(1)))


class Trainer:
    """Trains, evaluates and saves one run.

    Args:
        task: Model, loss and metrics.
        config: Settings.
        loaders: Sources of training and validation batches.
        folder: Run folder, for state and models.
        runtime: Device, precision and processes.
        info: Metadata stored with the saved models.
        listeners: Called with every event, on the main process.
    """

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        loaders: Loaders,
        folder: RunFolder,
        runtime: Runtime,
        info: ModelInfo,
        listeners: list[Listener],
    ) -> None:
        self.config = config
        self.loaders = loaders
        self.folder = folder
        self.runtime = runtime
        self.info = info
        self.listeners = listeners
        self.task = task
        task.model.set_recompute(config.recompute)
        whole = config.batch_size
        sizes = (whole // config.accumulate, whole)  # of training, and of evaluation
        self.compiled = compile_parts(task.model, sizes, on=config.compile)
        task.modality_dropout = dropout_rates(task.model, config.modality_dropout)
        self.module, self.optimizer = runtime.setup(
            task, lambda: make_optimizer(task.model, config.optimizer)
        )
        # After ``setup``, which moves and shards the parameters.
        self.average = WeightAverage(task.model, config.ema) if config.ema else None
        task.averaged = self._averaged
        self.checkpoints = Checkpoints(folder, runtime, task.model, self.optimizer, self.average)
        self.progress = Progress()
        self._stop = StopRequest(
            lambda: self.emit(Noted("finishing this step and saving; repeat to stop at once"))
        )
        self._guard = FiniteGuard(runtime, self.checkpoints.tensors, config.log_every)
        self._writer = CheckpointWriter()
        # Step of the last save that was started; it is on disk after ``_finish_saving``.
        self._saved_step = self._finite_step = self._evaluated_step = -1
        self._window = Window()
        self._records: dict[str, bytes] = {}
        self._reported_bad: set[tuple[str, str]] = set()
        # Unreadable samples found by this process, not yet sent to the main process.
        self._unsaid_bad: list[Unreadable] = []
        # Samples read by this process since the last ``_add_up_counts``.
        self._fresh_read = self._fresh_bad = 0

    def emit(self, event: Event) -> None:
        """Send an event to the listeners; on the main process only."""
        if self.runtime.is_main:
            for listener in self.listeners:
                listener(event)

    def run(self, *, resume: bool = False) -> Progress:
        """Train to the last step or to an early stop.

        Args:
            resume: Continue from the newest training state in the run folder.

        Raises:
            Interrupted: Ctrl-C, SIGTERM or SIGHUP; the state is saved.
            RunError: Loss, gradients, weights or optimizer state became non-finite, or no
                evaluation was finite; the last finite state is on disk.
            DataError: Too many samples cannot be read.
            FolderLostError: The run folder is gone; the state is saved beside it.
        """
        if resume:
            self._restore()
        try:
            return self._train(resume=resume)
        except FolderLostError as error:
            lost = self._rescue(error)
        finally:
            # Wait for a save in progress; its own error is dropped in favour of the one raised.
            self._writer.finish()
        raise lost

    def _train(self, *, resume: bool) -> Progress:
        total = self.config.total_steps
        self.emit(Started(step=self.progress.step, total=total))
        if self.runtime.is_main:
            self._records = keep_records(self.folder)  # in case the folder is lost
        if self.progress.step == total:
            self.emit(Noted(f"all {total} steps are done; there is nothing left to train"))
        reason = "all steps done"
        # Steps reseed the global generator, whose state belongs to the caller.
        with torch.random.fork_rng(), self._stop.listening():
            self._window.began = time.perf_counter()
            if not resume:
                self._save()  # a finite state must exist even if the first step diverges
            for batch in self._training_batches():
                self._step(batch)
                step = self.progress.step
                # Before saving, so that the saved progress includes the result.
                if step % self.config.eval_every == 0 or step == total:
                    self._evaluate()
                over_budget, asked = self._decide()
                if over_budget:
                    reason = "stopped early"
                    break
                if step % self.config.checkpoint_every == 0:
                    self._begin_saving()
                if asked:
                    self._save()
                    self.emit(Finished(step=step, reason="interrupted"))
                    raise Interrupted(f"stopped at step {step}")
            if self.progress.best is None or reason == "stopped early":
                self._evaluate()
            self._save()
        self._require_best()
        progress = self.progress
        if progress.samples_bad:
            self.emit(
                Noted(
                    f"{progress.samples_bad} of {progress.samples_read} samples could not be read "
                    f"and were skipped"
                )
            )
        self.emit(Finished(step=progress.step, reason=reason))
        return self.progress

    # -- one step ----------------------------------------------------------------------------

    def _step(self, batch: Batch) -> None:
        began = time.perf_counter()
        step, config = self.progress.step, self.config
        self._count_bad(batch)
        self.module.train()
        generator = step_generator(config.seed, step, self.runtime.rank)
        lr = config.optimizer.lr * schedule_scale(config.schedule, step, config.total_steps)
        set_learning_rate(self.optimizer, lr)
        loss = torch.zeros((), device=self.runtime.device)
        parts: dict[str, Tensor] = {}
        cut = batch.split(config.accumulate)
        # Weighted by size, since parts may differ; gradients are exchanged only with the last part.
        for number, part in enumerate(cut, start=1):
            share = len(part.index) / len(batch.index)
            with (
                self.compiled.batch(len(part.index)),
                self.runtime.without_sync(self.module, on=number < len(cut)),
            ):
                with self.runtime.autocast():
                    losses = self.module(part.to(self.runtime.device), generator)
                self.runtime.backward(losses.total * share)
            loss += losses.total.detach() * share
            for name, value in losses.parts.items():
                parts[name] = parts.get(name, 0.0) + value.detach() * share
        norm = self.runtime.clip(self.module, self.optimizer, config.optimizer.clip)
        # Check before the optimizer step, so that a bad gradient does not reach the weights.
        if self._guard.add(step, loss, norm, batch.index.tolist()):
            self._check_steps()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.runtime.average_norms(self.task)  # in place of DDP's broadcast of buffers
        if self.average is not None:
            self.average.update(first=step == 0)
        self.progress.step += 1
        self.progress.seconds += time.perf_counter() - began
        self._tell_compiled()
        self._log(loss, parts, lr, len(batch.index), time.perf_counter() - began)

    def _tell_compiled(self) -> None:
        """Report the compilation time if anything was compiled."""
        if text := self.compiled.news():
            self.emit(Noted(text))

    def _check_steps(self) -> None:
        """Stop at a non-finite loss or gradient, before it reaches the weights.

        On a GPU, which is checked once per record, the weights may already be affected; then the
        last checkpoint is kept.
        """
        found = self._guard.find_step()
        if found is None:
            return
        path = self.folder.path / f"bad_batch_step_{found.step}.json"
        if self.runtime.is_main:
            write_json(path, {"step": found.step, "indices": found.indices})
        if found.step == self.progress.step and not self._guard.find_tensors():
            self._save()
            kept = f"the weights before this step are saved in {self._newest}"
        else:
            kept = self._describe_kept()
        raise step_error(found, str(path), kept, self._remedy)

    def _require_finite(self) -> None:
        """Stop before a non-finite state is written or chosen as the best."""
        step = self.progress.step
        if self._finite_step == step:
            return
        self._check_steps()
        names = self._guard.find_tensors()
        if names:
            raise state_error(names, step, self._describe_kept(), self._remedy)
        self._finite_step = step

    def _require_best(self) -> None:
        """Stop with an error if no evaluation has chosen a best model."""
        if self.progress.best is None:
            raise RunError(
                f"no evaluation gave a finite {self.task.best_metric}, so there is no best model; "
                f"the last weights, which are finite, are saved in {self._newest}. Check the "
                f"validation samples"
            )

    @property
    def _newest(self) -> Path:
        """The newest training state, or the file that names the folder of its parts."""
        folder = self.folder
        return folder.checkpoint if folder.checkpoint.is_file() else folder.pointer

    def _describe_kept(self) -> str:
        """Say which state is on disk, after waiting for it; all processes must call this."""
        self._finish_saving()
        return (
            f"the last finite state, after {self._saved_step} steps, is kept in {self._newest} "
            f"(perceivers resume {self.folder.path}) and {self.folder.last_model}"
        )

    @property
    def _remedy(self) -> str:
        optimizer = self.config.optimizer
        return SETTINGS.format(lr=optimizer.lr, clip=optimizer.clip)

    def _log(
        self, loss: Tensor, parts: dict[str, Tensor], lr: float, samples: int, seconds: float
    ) -> None:
        """Average metrics over ``log_every`` steps and emit them."""
        window = self._window
        window.add(loss, parts, samples=samples * self.runtime.world_size, seconds=seconds)
        step = self.progress.step
        if step % self.config.log_every and step != self.config.total_steps:
            return
        mean, means = window.means(self.runtime)
        self._window = Window()
        self.emit(
            Stepped(
                step=step,
                total=self.config.total_steps,
                loss=mean,
                parts=means if len(means) > 1 else {},
                lr=lr,
                samples_per_second=window.samples / max(window.seconds, 1e-9),
                seconds=self.progress.seconds,
                data_wait=window.data_wait,
            )
        )
        self._check_folder()

    def _count_bad(self, batch: Batch) -> None:
        """Count unreadable samples, report each once, and stop if there are too many."""
        self._fresh_read += len(batch.index)
        self._fresh_bad += len(batch.bad)
        self._report_bad(batch, "train")
        allowed = self.config.max_bad_share
        read = self.progress.samples_read + self._fresh_read
        bad = self.progress.samples_bad + self._fresh_bad
        if bad > allowed * max(read, JUDGED_SAMPLES):
            raise DataError(
                f"{bad} of {read} samples could not be read, "
                f"more than max_bad_share={allowed}; the last was "
                f"{batch.bad[-1] if batch.bad else 'in an earlier batch'}"
            )

    def _add_up_counts(self) -> None:
        """Add the counts of all processes to ``progress``; all processes must call this."""
        counts = self.runtime.gather((self._fresh_read, self._fresh_bad, self._unsaid_bad))
        self.progress.samples_read += sum(read for read, _, _ in counts)
        self.progress.samples_bad += sum(bad for _, bad, _ in counts)
        self._fresh_read = self._fresh_bad = 0
        for _, _, found in counts:
            self._emit_bad(found)
        self._unsaid_bad = []

    def _report_bad(self, batch: Batch, split: str) -> None:
        """Report unreadable samples; other processes queue them for the main process."""
        found = [Unreadable(self.progress.step, split, text) for text in batch.bad]
        if self.runtime.is_main:
            self._emit_bad(found)
        else:
            self._unsaid_bad += found

    def _emit_bad(self, found: list[Unreadable]) -> None:
        for event in found:
            if (event.split, event.text) not in self._reported_bad:
                self._reported_bad.add((event.split, event.text))
                self.emit(event)

    # -- evaluation and state ----------------------------------------------------------------

    def _averaged(self) -> AbstractContextManager[None]:
        """Put the weights that are evaluated and saved into the model."""
        return nullcontext() if self.average is None else self.average.swapped()

    def _evaluate(self) -> None:
        """Evaluate, and save the model when it is the best so far."""
        task, progress = self.task, self.progress
        if self._evaluated_step == progress.step:
            return
        self._require_finite()
        # Loaders may fork, which is unsafe while the saving thread is running.
        self._finish_saving()
        with self._averaged():
            with self.runtime.autocast():
                figures = task.evaluate(self.compiled.batches(self._validation_batches()))
            self._tell_compiled()
            free_gathered(task)
            # All processes must make the same decisions, so they use the same values bit for bit.
            figures = self.runtime.from_main(figures)
            value = figures[task.best_metric]
            signed = value if task.higher_is_better else -value
            # ``not <=`` rather than ``>``: any finite value beats a best value that is NaN.
            is_best = isfinite(value) and (progress.best is None or not signed <= progress.best)
            self._check_folder()
            if is_best:
                progress.best, progress.best_step = signed, progress.step
                progress.evaluations_since_best = 0
                weights = self.checkpoints.gather_weights()
                if self.runtime.is_main:
                    self._write_model(self.folder.best_model, weights, progress.step, figures)
            else:
                progress.evaluations_since_best += 1
        self._evaluated_step = progress.step
        self.emit(Evaluated(step=progress.step, figures=figures, is_best=is_best))
        if not isfinite(value):
            self.emit(
                Noted(
                    f"validation {task.best_metric} is {value} at step {progress.step}, so these "
                    f"weights cannot become the best; check the validation samples"
                )
            )

    def _training_batches(self) -> Iterator[Batch]:
        """Yield training batches, watched for stalls; on a stall the state is saved.

        With several processes, one cannot save alone: the last checkpoint is kept.
        """
        return watch(
            self.loaders.train(self.progress.step),
            self.config.loader_timeout,
            step=self.progress.step,
            workers=self.config.workers,
            note=lambda text: self.emit(Noted(text)),
            on_stall=self._save if self.runtime.world_size == 1 else None,
            on_wait=self._add_wait,
        )

    def _add_wait(self, seconds: float) -> None:
        self._window.waited += seconds

    def _validation_batches(self) -> Iterator[Batch]:
        """Yield validation batches on the device and report unreadable samples."""
        step, config = self.progress.step, self.config
        batches = self.loaders.val()
        for batch in watch(batches, config.loader_timeout, step=step, workers=config.workers):
            self._report_bad(batch, "val")
            yield batch.to(self.runtime.device)

    def _write_model(
        self, folder: Path, weights: dict[str, Tensor], step: int, figures: dict[str, float]
    ) -> None:
        """Write a model folder with ``weights``, not with the model's current ones."""
        info = replace(
            self.info,
            provenance={**self.info.provenance, "step": step},
            metrics={f"val {key}": value for key, value in figures.items()},
        )
        save_folder(self.task.model, folder, info, state=weights, overwrite=True)

    def _save(self) -> None:
        """Save the training state, once per step, and wait until it is on disk."""
        self._begin_saving()
        self._finish_saving()

    def _begin_saving(self) -> None:
        """Copy the training state, once per step, and write it in the background."""
        step = self.progress.step
        if self._saved_step == step:
            return
        self._require_finite()
        self._finish_saving()
        # The main process alone saves progress and window: make both cover all processes.
        self._add_up_counts()
        self._window.share(self.runtime)
        last = self.folder.last_model
        work = self.checkpoints.begin(
            self.progress,
            self._window.to_state(),
            lambda weights: self._write_model(last, weights, step, {}),
        )
        self._writer.start(work)
        self._saved_step = step

    def _finish_saving(self) -> None:
        """Wait until a save in progress is on disk; all processes must call this.

        Raises:
            FolderLostError: The run folder is gone.
            OSError: The state could not be written; the previous one is kept.
        """
        failure = self._writer.finish()
        self._check_folder(str(failure) if isinstance(failure, FolderLostError) else "")
        if failure is not None:
            raise failure

    def _check_folder(self, found: str = "") -> None:
        """Stop if the run folder is lost or taken over; all processes must call this.

        Args:
            found: Message, if the main process already knows that the folder is lost.
        """
        if self.runtime.is_main and not found:
            try:
                check_held(self.folder.path)
            except FolderLostError as error:
                found = str(error)
        found = self.runtime.from_main(found)
        if found:
            lost = FolderLostError(found)
            lost.agreed = True
            raise lost

    def _rescue(self, lost: FolderLostError) -> FolderLostError:
        """Save the state beside the lost folder; return the error to raise."""
        if self.runtime.world_size > 1 and not lost.agreed:
            return lost  # the other processes do not know yet, and would not save with this one
        self._writer.finish()  # its result does not matter: everything is written again
        step, progress = self.progress.step, self.progress
        # The best model was in the lost folder; the next evaluation chooses a new one.
        progress.best, progress.best_step, progress.evaluations_since_best = None, 0, 0
        made = None
        if self.runtime.is_main:
            made = make_rescue_folder(self.folder, self.config, self._records)
            self.emit(Rescued(made.path))
        self.folder = self.checkpoints.folder = self.runtime.from_main(made)
        self._saved_step = -1
        self._save()
        self.emit(Finished(step=step, reason="the run folder was lost"))
        saved = FolderLostError(
            f"{lost}. The state after {step} steps is saved in {self.folder.path} (without the "
            f"best model so far): perceivers resume {self.folder.path}"
        )
        saved.agreed = True
        return saved

    def _restore(self) -> None:
        self.progress, window, notes = self.checkpoints.restore(self.config.total_steps)
        for note in notes:
            self.emit(Noted(note))
        self._window = Window.from_state(window, self.runtime.device)
        self._saved_step = self.progress.step

    def _decide(self) -> tuple[bool, bool]:
        """Return whether time or patience has run out, and whether the user asked to stop.

        All processes get the same result. On CUDA they communicate only once per record, because
        it makes them wait for each other.
        """
        config, progress = self.config, self.progress
        out_of_patience = bool(config.patience) and (
            progress.evaluations_since_best >= config.patience
        )
        late = bool(config.minutes) and progress.seconds > 60 * config.minutes
        asks = self.runtime.device.type != "cuda" or progress.step % config.log_every == 0
        if self.runtime.world_size > 1 and not asks:
            return out_of_patience, False
        late, asked = self.runtime.any(late, self._stop.is_made)
        return out_of_patience or late, asked
