"""The training loop: batches in, weights out, exactly resumable.

All randomness of a step is a function of (seed, step, process): the global generator is reseeded
for every step, and masks and MixUp draw from a generator of their own. So a run that is killed and
resumed computes the same weights, bit for bit, as one that was not.
"""

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from perceivers.checkpoints.loading import load_state as load_weights
from perceivers.data import Batch
from perceivers.errors import DataError, RunError
from perceivers.files import write_json
from perceivers.models.saving import ModelInfo, save_folder
from perceivers.tasks import Task
from perceivers.training.config import TrainConfig
from perceivers.training.events import Evaluated, Event, Finished, Listener, Noted, Started, Stepped
from perceivers.training.optimizers import make_optimizer, set_learning_rate
from perceivers.training.run_folder import RunFolder
from perceivers.training.runtime import Runtime
from perceivers.training.schedules import schedule_scale
from perceivers.training.state import Progress, load_state, save_state


@dataclass(frozen=True)
class Loaders:
    """Where batches come from.

    Attributes:
        train: Called with the first step; yields one batch per step up to the end of the run.
        val: Called for every evaluation; yields all validation batches.
    """

    train: Callable[[int], Iterable[Batch]]
    val: Callable[[], Iterable[Batch]]


@dataclass
class Window:
    """Figures of the steps since the last record."""

    losses: list[Tensor] = field(default_factory=list)
    parts: list[dict[str, Tensor]] = field(default_factory=list)
    seconds: float = 0.0
    samples: int = 0

    def to_state(self) -> list[dict[str, Tensor]]:
        """The losses alone: a resumed run must report the same figures, times differ anyway."""
        return [{"": loss, **parts} for loss, parts in zip(self.losses, self.parts, strict=True)]

    @classmethod
    def from_state(cls, steps: list[dict[str, Tensor]], device: torch.device) -> "Window":
        """Rebuild from ``to_state``."""
        moved = [{name: value.to(device) for name, value in step.items()} for step in steps]
        return cls(losses=[step.pop("") for step in moved], parts=moved)


class Interrupted(Exception):  # noqa: N818 - not an error: the state is saved
    """Ctrl-C or SIGTERM: the run stopped after saving its state."""


def step_generator(seed: int, step: int, rank: int) -> torch.Generator:
    """Seed the global generator for one step and return another for the objective."""
    words = np.random.SeedSequence((seed, step, rank)).generate_state(2, np.uint64)
    torch.manual_seed(int(words[0] >> np.uint64(1)))
    return torch.Generator().manual_seed(int(words[1] >> np.uint64(1)))


class Trainer:
    """One run.

    Args:
        task: Model, loss and metrics.
        config: Settings.
        loaders: Batches.
        folder: Where state and models go.
        runtime: Device and precision.
        info: What travels with the saved models.
        listeners: Told about every event.
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
        optimizer = make_optimizer(task.model, config.optimizer)
        self.module, self.optimizer = runtime.setup(task, optimizer)
        average = get_ema_multi_avg_fn(config.ema)
        self.average = AveragedModel(task, multi_avg_fn=average) if config.ema else None
        self.progress = Progress()
        self._stop_signal = 0
        self._saved_step = -1
        self._window = Window()
        self._reported_bad: set[str] = set()

    def emit(self, event: Event) -> None:
        """Tell the listeners (on the main process)."""
        if self.runtime.is_main:
            for listener in self.listeners:
                listener(event)

    def run(self, *, resume: bool = False) -> Progress:
        """Train to the end, or to an early stop.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; the state is saved.
            RunError: The loss is not finite; the state before it and the batch are saved.
            DataError: Too many samples cannot be read.
        """
        if resume:
            self._restore()
        total = self.config.total_steps
        self.emit(Started(step=self.progress.step, total=total))
        reason = "all steps done"
        with torch.random.fork_rng(), self._signals():
            for batch in self.loaders.train(self.progress.step):
                self._step(batch)
                step = self.progress.step
                if step % self.config.eval_every == 0 or step == total:
                    self._evaluate()
                if self._is_over_budget():
                    reason = "stopped early"
                    break
                if step % self.config.checkpoint_every == 0:
                    self._save()
                if self._stop_signal:
                    self._save()
                    self.emit(Finished(step=step, reason="interrupted"))
                    raise Interrupted(f"stopped at step {step}")
            if self.progress.best is None or reason == "stopped early":
                self._evaluate()
            self._save()
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
        """One optimizer step on one batch."""
        began = time.perf_counter()
        step, config = self.progress.step, self.config
        self._count_bad(batch)
        self.module.train()
        generator = step_generator(config.seed, step, self.runtime.rank)
        lr = config.optimizer.lr * schedule_scale(config.schedule, step, config.total_steps)
        set_learning_rate(self.optimizer, lr)
        loss = torch.zeros((), device=self.runtime.device)
        parts: dict[str, Tensor] = {}
        for part in batch.split(config.accumulate):
            share = len(part.index) / len(batch.index)
            losses = self.module(part.to(self.runtime.device), generator)
            self.runtime.backward(losses.total * share)
            loss += losses.total.detach() * share
            for name, value in losses.parts.items():
                parts[name] = parts.get(name, 0.0) + value.detach() * share
        self._guard(loss, batch)
        if config.optimizer.clip:
            self.runtime.clip(self.module, self.optimizer, config.optimizer.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.task)
        self.progress.step += 1
        self.progress.seconds += time.perf_counter() - began
        self._log(loss, parts, lr, len(batch.index), time.perf_counter() - began)

    def _guard(self, loss: Tensor, batch: Batch) -> None:
        """Stop at a loss that is not finite, before it reaches the weights."""
        # Reading the loss waits for the device; on CUDA that is done once per record.
        step = self.progress.step
        if self.runtime.device.type == "cuda" and step % self.config.log_every:
            return
        if bool(torch.isfinite(loss)):
            return
        path = self.folder.path / f"bad_batch_step_{step}.json"
        if self.runtime.is_main:
            write_json(path, {"step": step, "indices": batch.index.tolist()})
        self._save()
        raise RunError(
            f"the loss is {float(loss)} at step {step}; the weights before this step are saved in "
            f"{self.folder.checkpoint} and the batch's sample indices in {path}. Look at those "
            f"samples, or lower optimizer.lr (now {self.config.optimizer.lr}) and start again"
        )

    def _log(
        self, loss: Tensor, parts: dict[str, Tensor], lr: float, samples: int, seconds: float
    ) -> None:
        """Average figures over ``log_every`` steps and emit them."""
        window = self._window
        window.losses.append(loss)
        window.parts.append(parts)
        window.seconds += seconds
        window.samples += samples * self.runtime.world_size
        step = self.progress.step
        if step % self.config.log_every and step != self.config.total_steps:
            return
        mean = self.runtime.mean(torch.stack(window.losses).mean())
        means = {
            name: float(self.runtime.mean(torch.stack([p[name] for p in window.parts]).mean()))
            for name in parts
        }
        self.emit(
            Stepped(
                step=step,
                total=self.config.total_steps,
                loss=float(mean),
                parts=means if len(means) > 1 else {},
                lr=lr,
                samples_per_second=window.samples / max(window.seconds, 1e-9),
                seconds=self.progress.seconds,
            )
        )
        self._window = Window()

    def _count_bad(self, batch: Batch) -> None:
        """Count unreadable samples, name each once, and stop when there are too many."""
        progress = self.progress
        progress.samples_read += len(batch.index)
        progress.samples_bad += len(batch.bad)
        self._report_bad(batch)
        allowed = self.config.max_bad_share
        if progress.samples_bad > max(allowed * progress.samples_read, len(batch.index) * allowed):
            raise DataError(
                f"{progress.samples_bad} of {progress.samples_read} samples could not be read, "
                f"more than max_bad_share={allowed}; the last was "
                f"{batch.bad[-1] if batch.bad else 'in an earlier batch'}"
            )

    def _report_bad(self, batch: Batch) -> None:
        """Name every unreadable sample once."""
        for text in batch.bad:
            if text not in self._reported_bad:
                self._reported_bad.add(text)
                self.emit(Noted(f"skipped an unreadable sample: {text}"))

    # -- evaluation and state ----------------------------------------------------------------

    def _evaluated_task(self) -> Task:
        """The task with the weights that are evaluated and saved."""
        task = self.task if self.average is None else self.average.module
        assert isinstance(task, Task)
        return task

    def _evaluate(self) -> None:
        """Evaluate, and save the model when it is the best so far."""
        task, progress = self._evaluated_task(), self.progress
        batches = self._validation_batches()
        with self.runtime.autocast():
            figures = task.evaluate(batches)
        value = figures[task.best_metric]
        signed = value if task.higher_is_better else -value
        is_best = progress.best is None or signed > progress.best
        if is_best:
            progress.best, progress.best_step = signed, progress.step
            progress.evaluations_since_best = 0
            self._save_model(self.folder.best_model.name, figures)
        else:
            progress.evaluations_since_best += 1
        self.emit(Evaluated(step=progress.step, figures=figures, is_best=is_best))

    def _validation_batches(self) -> Iterator[Batch]:
        """Validation batches on the device; what cannot be read is named."""
        for batch in self.loaders.val():
            self._report_bad(batch)
            yield batch.to(self.runtime.device)

    def _save_model(self, name: str, figures: dict[str, float]) -> None:
        if not self.runtime.is_main:
            return
        info = replace(
            self.info,
            provenance={**self.info.provenance, "step": self.progress.step},
            metrics={f"val {key}": value for key, value in figures.items()},
        )
        save_folder(self._evaluated_task().model, self.folder.path / name, info, overwrite=True)

    def _save(self) -> None:
        """Save the training state, once per step."""
        if self._saved_step == self.progress.step:
            return
        self._save_model(self.folder.last_model.name, {})
        if self.runtime.is_main:
            tensors: dict[str, Any] = {
                "model": self.task.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "window": self._window.to_state(),
            }
            if self.average is not None:
                tensors["average"] = self.average.state_dict()
            save_state(self.folder.checkpoint, self.progress, tensors)
        self._saved_step = self.progress.step
        self.runtime.barrier()

    def _restore(self) -> None:
        """Load the last checkpoint."""
        self.progress, tensors = load_state(self.folder.checkpoint)
        load_weights(self.task.model, tensors["model"], source=str(self.folder.checkpoint))
        self.optimizer.load_state_dict(tensors["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(tensors["average"])
        self._window = Window.from_state(tensors["window"], self.runtime.device)
        self._saved_step = self.progress.step

    def _is_over_budget(self) -> bool:
        """Whether time or patience has run out."""
        config, progress = self.config, self.progress
        if config.patience and progress.evaluations_since_best >= config.patience:
            return True
        return bool(config.minutes) and progress.seconds > 60 * config.minutes

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let the first Ctrl-C or SIGTERM finish the step and save; the second ends at once."""

        def remember(number: int, frame: FrameType | None) -> None:
            if self._stop_signal:
                raise KeyboardInterrupt
            self._stop_signal = number
            self.emit(Noted("finishing this step and saving; once more to stop at once"))

        before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                before[number] = signal.signal(number, remember)
            except ValueError:  # not the main thread: the caller owns signals
                break
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
