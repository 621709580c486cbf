"""Saving and resuming one run, whatever its strategy and number of processes.

A run whose processes hold the whole model writes one file. One that spreads it over processes
writes a folder ``step_N`` of parts, and then a small file that names the folder: a run that is
killed while writing goes on from the one before. Either is read under any strategy and by any
number of processes.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perceivers.checkpoints.loading import load_state as load_weights
from perceivers.errors import CheckpointError
from perceivers.files import make_folder, read_json_file, write_json
from perceivers.training.averaging import WeightAverage
from perceivers.training.optimizer_state import Named, load_by_name, state_by_name
from perceivers.training.run_folder import RunFolder
from perceivers.training.runtime import Runtime
from perceivers.training.sharded_state import read_parts, write_parts
from perceivers.training.sharding import spread_like
from perceivers.training.state import Progress, check_names, describe, load_state, save_state
from perceivers.training.state_checks import StateChecker

REST = "progress.pt"
PARTS = re.compile(r"step_[0-9]{1,16}")
WindowState = list[dict[str, Tensor]]


class Checkpoints:
    """The training state of a run on disk.

    Args:
        folder: Of the run.
        runtime: Which processes save and resume.
        model: What is trained.
        optimizer: Its optimizer.
        average: Of its parameters, if there is one.
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

    # -- saving ------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that is saved, by ``kind/name``; spread ones as they are."""
        states, _ = state_by_name(self.optimizer, self.model)
        return flatten(self.model.state_dict(), states, self.average)[0]

    def save(self, progress: Progress, window: WindowState) -> None:
        """Write the state; all processes must call this, and return when it is complete."""
        if self.runtime.is_sharded:
            self._save_parts(progress, window)
        elif self.runtime.is_main:
            self._save_whole(progress, window)
        self.runtime.barrier()

    def _save_whole(self, progress: Progress, window: WindowState) -> None:
        states, groups = state_by_name(self.optimizer, self.model)
        tensors: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": {
                "states": states,
                "groups": groups,
                "unused": self._unused(states),
            },
            "window": window,
        }
        if self.average is not None:
            tensors["average"] = self.average.parameters
        save_state(self.folder.checkpoint, progress, tensors)
        self.folder.pointer.unlink(missing_ok=True)
        self._remove_parts()

    def _save_parts(self, progress: Progress, window: WindowState) -> None:
        states, groups = state_by_name(self.optimizer, self.model)
        tensors, numbers = flatten(self.model.state_dict(), states, self.average)
        name = f"step_{progress.step}"
        folder = self.folder.pointer.parent / name
        if self.runtime.is_main:
            # What stands there was never finished, or was left by a run that went on elsewhere.
            self._remove_parts(but=self._current_parts())
            make_folder(folder)
            shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
            rest = {"groups": groups, "window": window, "numbers": numbers, "shapes": shapes}
            rest["unused"] = self._unused(states)
            save_state(folder / REST, progress, rest)
        self.runtime.barrier()
        write_parts(folder, tensors)
        self.runtime.barrier()
        if self.runtime.is_main:
            write_json(self.folder.pointer, {"folder": name, "step": progress.step})
            self.folder.checkpoint.unlink(missing_ok=True)
            self._remove_parts(but=name)

    def _unused(self, states: Named) -> list[str]:
        """Parameters that never had a gradient, so that a lost state is told from none."""
        trained = (n for n, p in self.model.named_parameters() if p.requires_grad)
        return [name for name in trained if name not in states]

    def _remove_parts(self, but: str = "") -> None:
        for path in self.folder.pointer.parent.glob("step_*"):
            if path.name != but:
                shutil.rmtree(path)

    def _current_parts(self) -> str:
        pointer = self.folder.pointer
        return str(read_json_file(pointer)["folder"]) if pointer.is_file() else ""

    # -- resuming ----------------------------------------------------------------------------

    def restore(self, last_step: int) -> tuple[Progress, WindowState, list[str]]:
        """Check the newest state, then load it into model, optimizer and average.

        Args:
            last_step: Of the run.

        Returns:
            Progress, the losses since the last record, and what could not be checked.

        Raises:
            CheckpointError: There is none, it is damaged, or it is not what this run would save;
                nothing was loaded.
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
        """Say what is left of the run where its training state cannot be used."""
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
        """Return the folder to resume from; None where the file is newer, or alone.

        Both are there when a run was killed just after it went from one kind to the other.
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
            raise CheckpointError(f"{path} names no training checkpoint: expected folder and step")
        if not isinstance(name, str) or not PARTS.fullmatch(name) or name != f"step_{step}":
            raise CheckpointError(
                f"{path} names no training checkpoint: folder is {describe(name)} for step {step}, "
                f"expected step_{step}"
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


def check_numbers(numbers: Any) -> None:
    """Refuse anything but values by name by parameter.

    Raises:
        CheckpointError: Says what it is instead.
    """
    if not isinstance(numbers, Mapping) or not all(
        isinstance(x, Mapping) for x in numbers.values()
    ):
        raise CheckpointError(f"numbers is {describe(numbers)}, expected them by parameter")


def flatten(
    weights: Mapping[str, Tensor], states: Named, average: WeightAverage | None
) -> tuple[dict[str, Tensor], Named]:
    """Return all tensors by ``kind/name``, and what of the optimizer's state is no tensor."""
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
    """Undo ``flatten``: weights, optimizer states, average."""
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
