"""Saving and resuming one run, whatever its strategy and number of processes.

A run whose processes hold the whole model writes one file. One that spreads it over processes
writes a folder ``step_N`` of parts, and then a small file that names the folder: a run that is
killed while writing goes on from the one before. Either is read under any strategy and by any
number of processes.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perceivers.checkpoints.loading import load_state as load_weights
from perceivers.errors import CheckpointError
from perceivers.files import read_json_file, write_json
from perceivers.training.averaging import WeightAverage
from perceivers.training.optimizer_state import Named, load_by_name, state_by_name
from perceivers.training.run_folder import RunFolder
from perceivers.training.runtime import Runtime
from perceivers.training.sharded_state import read_parts, write_parts
from perceivers.training.sharding import spread_like
from perceivers.training.state import Progress, load_state, save_state

REST = "progress.pt"
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
            "optimizer": {"states": states, "groups": groups},
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
            folder.mkdir(parents=True, exist_ok=True)
            shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
            rest = {"groups": groups, "window": window, "numbers": numbers, "shapes": shapes}
            save_state(folder / REST, progress, rest)
        self.runtime.barrier()
        write_parts(folder, tensors)
        self.runtime.barrier()
        if self.runtime.is_main:
            write_json(self.folder.pointer, {"folder": name, "step": progress.step})
            self.folder.checkpoint.unlink(missing_ok=True)
            self._remove_parts(but=name)

    def _remove_parts(self, but: str = "") -> None:
        for path in self.folder.pointer.parent.glob("step_*"):
            if path.name != but:
                shutil.rmtree(path)

    def _current_parts(self) -> str:
        pointer = self.folder.pointer
        return str(read_json_file(pointer)["folder"]) if pointer.is_file() else ""

    # -- resuming ----------------------------------------------------------------------------

    def restore(self) -> tuple[Progress, WindowState]:
        """Load the newest state into model, optimizer and average.

        Raises:
            CheckpointError: There is none, it is damaged, or it does not fit.
        """
        parts = self._newest_parts()
        if parts is None:
            progress, tensors = load_state(self.folder.checkpoint)
        else:
            progress, tensors = self._read_parts(parts)
        own = self.model.state_dict()
        weights = {
            name: spread_like(tensor, own[name]) if name in own else tensor
            for name, tensor in tensors["model"].items()
        }
        load_weights(self.model, weights, source=str(parts or self.folder.checkpoint))
        optimizer = tensors["optimizer"]
        load_by_name(self.optimizer, self.model, optimizer["states"], optimizer["groups"])
        if self.average is not None:
            self.average.load(tensors["average"])
        return progress, tensors["window"]

    def _newest_parts(self) -> Path | None:
        """Return the folder to resume from; None where the file is newer, or alone.

        Both are there when a run was killed just after it went from one kind to the other.
        """
        if not self.folder.pointer.is_file():
            return None
        pointer = read_json_file(self.folder.pointer)
        if set(pointer) != {"folder", "step"}:
            raise CheckpointError(f"{self.folder.pointer} names no training checkpoint")
        if self.folder.checkpoint.is_file():
            progress, _ = load_state(self.folder.checkpoint)
            if progress.step > pointer["step"]:
                return None
        return self.folder.pointer.parent / str(pointer["folder"])

    def _read_parts(self, folder: Path) -> tuple[Progress, dict[str, Any]]:
        progress, rest = load_state(folder / REST)
        parameters = dict(self.model.named_parameters())
        own = self.model.state_dict()
        likes: dict[str, Tensor] = {}
        for key in rest["shapes"]:
            kind, _, name = key.partition("/")
            like = own.get(name) if kind == "model" else parameters.get(name.partition("/")[2])
            like = parameters.get(name) if kind == "average" else like
            if like is not None:
                likes[key] = like
        tensors = read_parts(folder, rest["shapes"], likes)
        model, states, average = unflatten(tensors, rest["numbers"])
        return progress, {
            "model": model,
            "optimizer": {"states": states, "groups": rest["groups"]},
            "average": average,
            "window": rest["window"],
        }


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
