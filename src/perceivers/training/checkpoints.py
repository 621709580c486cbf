"""Save and resume a run's training state, under any strategy and any number of processes.

Without sharding the state is one file. A sharded run writes a folder ``step_N`` with one part per
process, and then a small file that names the folder, so that a run killed while writing resumes
from the previous state. Both forms can be read under any strategy. The state is copied when a save
begins and written to disk while training continues.
"""

import re
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from perceivers.checkpoints.loading import load_state as load_weights
from perceivers.errors import CheckpointError
from perceivers.files import make_folder, read_json_file, write_json
from perceivers.training.optimizers import Named, WeightAverage, load_by_name, state_by_name
from perceivers.training.run_folder import RunFolder
from perceivers.training.runtime import Runtime
from perceivers.training.sharding import (
    begin_parts,
    finish_parts,
    gather_whole,
    read_parts,
    spread_like,
)
from perceivers.training.state import (
    Progress,
    StateChecker,
    check_names,
    describe,
    load_state,
    save_state,
)

# ------------------------------------------------------------------------------------------------
# Asynchronous saving: the state is copied while the loop waits, and a thread writes the copy.


class HostCopies:
    """Copies of tensors in host memory, in buffers that are reused by every save.

    Allocating fresh memory takes several times as long as copying.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies by name; copies of GPU tensors may only be read after ``wait``."""
        before, self._kept, self._copied = self._kept, {}, None
        for name, tensor in tensors.items():
            on_gpu = tensor.device.type == "cuda"
            copy = before.get(name)
            if copy is None or not _fits(copy, tensor):
                copy = torch.empty_like(tensor, device="cpu", pin_memory=on_gpu)
            # The next step is queued behind the copy on the GPU, so it cannot change the tensor
            # before the copy is complete.
            self._kept[name] = copy.copy_(tensor, non_blocking=on_gpu)
            if on_gpu and self._copied is None:
                self._copied = torch.cuda.Event()
        if self._copied is not None:
            self._copied.record()
        return dict(self._kept)

    def wait(self) -> None:
        """Wait for the device to finish the copies."""
        if self._copied is not None:
            self._copied.synchronize()


def _fits(copy: Tensor, tensor: Tensor) -> bool:
    return copy.shape == tensor.shape and copy.dtype == tensor.dtype


class CheckpointWriter:
    """Runs one task at a time in a background thread.

    The thread is a daemon: call ``finish`` before the process exits wherever the result matters.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Start ``work``; ``finish`` must have been called since the previous start."""
        assert self._thread is None, "call finish() before starting again"

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._failure = error

        self._thread = threading.Thread(target=run, name="saving", daemon=True)
        self._thread.start()

    def finish(self) -> BaseException | None:
        """Wait until the work is done; return the error that ended it, once."""
        if self._thread is not None:
            self._thread.join()  # may raise KeyboardInterrupt; the thread then keeps running
            self._thread = None
        failure, self._failure = self._failure, None
        return failure


# -- Saving and resuming a run, under any strategy and any number of processes -------------------

REST = "progress.pt"
PARTS = re.compile(r"step_[0-9]{1,16}")
WindowState = list[dict[str, Tensor]]
Weights = dict[str, Tensor]


class Checkpoints:
    """The training state of a run on disk.

    Args:
        folder: Run folder.
        runtime: Processes that save and resume.
        model: Model to save and restore.
        optimizer: Its optimizer.
        average: Average of its parameters; None without one.
    """

    def __init__(
        self,
        folder: RunFolder,
        runtime: Runtime,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage | None,
    ) -> None:
        self.folder = folder
        self.runtime = runtime
        self.model = model
        self.optimizer = optimizer
        self.average = average
        self._copies = HostCopies()
        # A separate group: collectives of the writing thread must not mix with those of the steps.
        self._group = runtime.make_group() if runtime.is_sharded else None

    # -- saving ------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that is saved, by ``kind/name``; sharded ones are not gathered."""
        states, _ = state_by_name(self.optimizer, self.model)
        return flatten(self.model.state_dict(), states, self.average)[0]

    def gather_weights(self, *, copy: bool = False) -> Weights:
        """Gather the current weights on the main process; all processes must call this.

        Args:
            copy: Return copies in host memory, which later steps do not change.

        Returns:
            Weights by name on the main process, an empty dict elsewhere.
        """
        found: Weights = {}
        for name, tensor in self.model.state_dict().items():
            whole = gather_whole(tensor)
            if self.runtime.is_main:
                found[name] = whole.to("cpu", copy=True) if copy else whole
        return found

    def begin(
        self, progress: Progress, window: WindowState, write_model: Callable[[Weights], None]
    ) -> Callable[[], None]:
        """Copy the state and return a function that writes it; all processes must call this.

        Args:
            progress: Counters of the run.
            window: Losses since the last record.
            write_model: Called on the main process before the state is written, with the weights
                used for evaluation.

        Returns:
            Function that writes the copy. All processes must call it; it may run in a thread
            during later steps, and must finish before the next save begins.
        """
        progress = replace(progress)
        if self.runtime.is_sharded:
            return self._begin_parts(progress, window, write_model)
        if self.runtime.is_main:
            return self._begin_whole(progress, window, write_model)
        return lambda: None

    def _begin_whole(
        self, progress: Progress, window: WindowState, write_model: Callable[[Weights], None]
    ) -> Callable[[], None]:
        states, groups = state_by_name(self.optimizer, self.model)
        live, numbers = flatten(self.model.state_dict(), states, self.average)
        copies = self._copies.take(live)
        folder, unused = self.folder, self._unused(states)
        window = [{name: value.cpu() for name, value in step.items()} for step in window]

        def write() -> None:
            self._copies.wait()
            model, moments, average = unflatten(copies, numbers)
            write_model({name: average.get(name, tensor) for name, tensor in model.items()})
            # Record empty states too: without an entry, the parameter would count as lost.
            moments = {name: moments.get(name, {}) for name in states}
            tensors: dict[str, Any] = {
                "model": model,
                "optimizer": {"states": moments, "groups": groups, "unused": unused},
                "window": window,
            }
            if self.average is not None:
                tensors["average"] = average
            save_state(folder.checkpoint, progress, tensors)
            folder.pointer.unlink(missing_ok=True)
            _remove_parts(folder)

        return write

    def _begin_parts(
        self, progress: Progress, window: WindowState, write_model: Callable[[Weights], None]
    ) -> Callable[[], None]:
        states, groups = state_by_name(self.optimizer, self.model)
        tensors, numbers = flatten(self.model.state_dict(), states, self.average)
        run, name = self.folder, f"step_{progress.step}"
        folder = run.pointer.parent / name
        if self.runtime.is_main:
            # All other parts are unfinished, or left over from a run that was resumed elsewhere.
            _remove_parts(run, but=_current_parts(run))
            make_folder(folder)
            shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
            rest = {"groups": groups, "window": window, "numbers": numbers, "shapes": shapes}
            rest["unused"] = self._unused(states)
            save_state(folder / REST, progress, rest)
        with nullcontext() if self.average is None else self.average.swapped():
            weights = self.gather_weights(copy=True)
        # No process may write into the folder before the main process has created it.
        self.runtime.barrier()
        parts = begin_parts(folder, tensors, self._group)

        def write() -> None:
            failure = None
            try:
                if self.runtime.is_main:
                    write_model(weights)
                finish_parts(parts)
            except Exception as error:
                failure = error
            # Every process must get here, even after an error, or the others would wait for it.
            failed: list[Any] = [None] * self.runtime.world_size
            dist.all_gather_object(failed, failure is not None, group=self._group)
            if failure is not None:
                raise failure
            # Point to the new parts only when all are complete; delete the old state last.
            if self.runtime.is_main and not any(failed):
                write_json(run.pointer, {"folder": name, "step": progress.step})
                run.checkpoint.unlink(missing_ok=True)
                _remove_parts(run, but=name)

        return write

    def _unused(self, states: Named) -> list[str]:
        """Return parameters that never had a gradient; others without a state are an error."""
        trained = (n for n, p in self.model.named_parameters() if p.requires_grad)
        return [name for name in trained if name not in states]

    # -- resuming ----------------------------------------------------------------------------

    def restore(self, last_step: int) -> tuple[Progress, WindowState, list[str]]:
        """Check the newest state, then load it into model, optimizer and average.

        Args:
            last_step: Total number of steps of the run.

        Returns:
            Progress, the losses since the last record, and notes on what could not be checked.

        Raises:
            CheckpointError: The state is missing, damaged, or does not match this run; nothing was
                loaded.
        """
        checker = StateChecker(self.model, self.optimizer, averaged=self.average is not None)
        source = self.folder.checkpoint
        try:
            parts = self._newest_parts()
            if parts is None:
                progress, tensors = load_state(source)
            else:
                source = parts
                progress, tensors = self._read_parts(parts, checker)
            try:
                notes = checker.check(progress, tensors, last_step)
            except CheckpointError as error:
                raise CheckpointError(f"{source} does not fit this run: {error}") from error
        except CheckpointError as error:
            raise CheckpointError(f"{error}. {self._way_back()}") from error
        own = self.model.state_dict()
        weights = {name: spread_like(t, own[name]) for name, t in tensors["model"].items()}
        load_weights(self.model, weights, source=str(source))
        optimizer = tensors["optimizer"]
        load_by_name(self.optimizer, self.model, optimizer["states"], optimizer["groups"])
        if self.average is not None:
            self.average.load(tensors["average"])
        return progress, tensors["window"], notes

    def _way_back(self) -> str:
        """Describe what the user can do when the training state is unusable."""
        models = (self.folder.last_model, self.folder.best_model)
        left = [str(path) for path in models if (path / "config.json").is_file()]
        again = "start the run again with --overwrite"
        if not left:
            return f"Restore the file from a copy, or {again}"
        return (
            f"Restore the file from a copy; or start a new run from the weights of "
            f"{' or '.join(map(str, left))} (--model {left[0]}); or {again}"
        )

    def _newest_parts(self) -> Path | None:
        """Return the folder to resume from; None if the single file is newer or the only one.

        Both exist if a run was killed just after it switched between the two forms.
        """
        path = self.folder.pointer
        if not path.is_file():
            return None
        pointer = read_json_file(path)
        name, step = pointer.get("folder"), pointer.get("step")
        if (
            set(pointer) != {"folder", "step"}
            or not isinstance(step, int)
            or isinstance(step, bool)
        ):
            raise CheckpointError(
                f"{path} does not name a training checkpoint: expected folder and step"
            )
        if not isinstance(name, str) or not PARTS.fullmatch(name) or name != f"step_{step}":
            raise CheckpointError(
                f"{path} does not name a training checkpoint: folder is {describe(name)} for step "
                f"{step}, expected step_{step}"
            )
        if self.folder.checkpoint.is_file():
            progress, _ = load_state(self.folder.checkpoint)
            if progress.step > step:
                return None
        return path.parent / name

    def _read_parts(self, folder: Path, checker: StateChecker) -> tuple[Progress, dict[str, Any]]:
        path = folder / REST
        progress, rest = load_state(path)
        try:
            if folder.name != f"step_{progress.step}":
                raise CheckpointError(f"progress.step is {progress.step} in {folder.name}")
            check_names("the state", rest, ("groups", "window", "numbers", "shapes"), ("unused",))
            checker.check_shapes(rest["shapes"])
            check_numbers(rest["numbers"])
        except CheckpointError as error:
            raise CheckpointError(f"{path} does not fit this run: {error}") from error
        parameters, own = checker.parameters, checker.weights
        likes: dict[str, Tensor] = {}
        for key in rest["shapes"]:
            kind, _, name = key.partition("/")
            if kind == "model":
                likes[key] = own[name]
            else:
                likes[key] = parameters[name if kind == "average" else name.partition("/")[2]]
        tensors = read_parts(folder, rest["shapes"], likes)
        model, states, average = unflatten(tensors, rest["numbers"])
        optimizer = {"states": states, "groups": rest["groups"]}
        if "unused" in rest:
            optimizer["unused"] = rest["unused"]
        state = {"model": model, "optimizer": optimizer, "window": rest["window"]}
        return progress, {**state, **({"average": average} if average else {})}


def _remove_parts(folder: RunFolder, but: str = "") -> None:
    for path in folder.pointer.parent.glob("step_*"):
        if path.name != but:
            shutil.rmtree(path)


def _current_parts(folder: RunFolder) -> str:
    pointer = folder.pointer
    return str(read_json_file(pointer)["folder"]) if pointer.is_file() else ""


def check_numbers(numbers: Any) -> None:
    """Check that ``numbers`` maps parameter names to dicts of values.

    Raises:
        CheckpointError: It does not.
    """
    if not isinstance(numbers, Mapping) or not all(
        isinstance(x, Mapping) for x in numbers.values()
    ):
        raise CheckpointError(f"numbers is {describe(numbers)}, expected values by parameter")


def flatten(
    weights: Mapping[str, Tensor], states: Named, average: WeightAverage | None
) -> tuple[dict[str, Tensor], Named]:
    """Return all tensors by ``kind/name``, and the non-tensor values of the optimizer's state."""
    tensors = {f"model/{name}": tensor.detach() for name, tensor in weights.items()}
    numbers: Named = {}
    for name, state in states.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{key}/{name}"] = value
            else:
                numbers.setdefault(name, {})[key] = value
    if average is not None:
        tensors |= {f"average/{name}": tensor for name, tensor in average.parameters.items()}
    return tensors, numbers


def unflatten(
    tensors: Mapping[str, Tensor], numbers: Named
) -> tuple[dict[str, Tensor], Named, dict[str, Tensor]]:
    """Invert ``flatten``: return weights, optimizer states and average."""
    model: dict[str, Tensor] = {}
    average: dict[str, Tensor] = {}
    states: Named = {name: dict(state) for name, state in numbers.items()}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        if kind == "model":
            model[name] = tensor
        elif kind == "average":
            average[name] = tensor
        else:
            what, _, owner = name.partition("/")
            states.setdefault(owner, {})[what] = tensor
    return model, states, average
