"""Training state on disk: written atomically, and checked when read, without executing code."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isclose, isfinite
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from perceivers.checkpoints.pickles import read_pickled
from perceivers.errors import CheckpointError
from perceivers.files import write_atomic
from perceivers.training.optimizers import StateLayout, group_rates, state_layout
from perceivers.training.sharding import own_part

MOST_STEPS = 2**53


@dataclass
class Progress:
    """Counters of a run, as plain numbers; ``best`` is the metric, negated if lower is better."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0
    samples_read: int = 0
    samples_bad: int = 0
    seconds: float = 0.0


def save_state(path: Path, progress: Progress, tensors: dict[str, Any]) -> None:
    """Write progress and state dicts atomically.

    Raises:
        OSError: The file could not be written.
    """

    def write(file: IO[bytes]) -> None:
        sink = _Sink(file)
        torch.save({"progress": vars(progress), **tensors}, sink)  # pyright: ignore[reportArgumentType]
        if sink.error is not None:
            raise sink.error

    write_atomic(path, write)


class _Sink:
    """File for torch.save that remembers disk errors, which torch would replace by its own.

    It writes straight to disk: a copy of the whole state in memory would take as long as writing.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write data, or remember the error."""
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Do nothing; the caller that opened the file flushes it."""


def load_state(path: Path) -> tuple[Progress, dict[str, Any]]:
    """Read a file of ``save_state``; of its contents only the progress has been checked.

    Raises:
        CheckpointError: The file is missing or truncated, or contains more than tensors and
            numbers.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist: the run stopped before its first checkpoint; start it again "
            f"with --overwrite"
        )
    try:
        state = read_pickled(path, intact=True)
        if not isinstance(state, dict) or "progress" not in state:
            raise CheckpointError(f"{path}: expected entries by name with 'progress' among them")
        progress = read_progress(state.pop("progress"))
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not a complete training checkpoint: {error}") from error
    return progress, state


def read_progress(found: Any) -> Progress:
    """Check the progress in a file and return it.

    Raises:
        CheckpointError: A field is missing, unknown, of the wrong type or out of range.
    """
    if not isinstance(found, Mapping):
        raise CheckpointError(f"progress is {describe(found)}, expected numbers by name")
    known = [field.name for field in fields(Progress)]
    check_names("progress", found, known)
    for name in known:
        value = found[name]
        if name == "best":
            # A metric may have any value, even NaN if it is undefined.
            right = value is None or isinstance(value, int | float)
            wanted = "a number or None"
        elif name == "seconds":
            right = isinstance(value, int | float) and isfinite(value) and value >= 0
            wanted = "a finite number of at least 0"
        else:
            right = isinstance(value, int) and 0 <= value <= MOST_STEPS
            wanted = "a whole number of at least 0"
        if isinstance(value, bool) or not right:
            raise CheckpointError(f"progress.{name} is {describe(value)}, expected {wanted}")
    progress = Progress(**found)
    for name, most in (("best_step", "step"), ("evaluations_since_best", "step")):
        value, limit = getattr(progress, name), getattr(progress, most)
        if value > limit:
            raise CheckpointError(f"progress.{name} is {value}, expected at most {most}={limit}")
    if progress.samples_bad > progress.samples_read:
        raise CheckpointError(
            f"progress.samples_bad is {progress.samples_bad}, expected at most "
            f"samples_read={progress.samples_read}"
        )
    return progress


def check_names(what: str, found: Mapping[Any, Any], wanted: Any, optional: Any = ()) -> None:
    """Check that all wanted names are found, and no others except optional ones.

    Raises:
        CheckpointError: Names are missing or unexpected; the message lists them.
    """
    missing = sorted(name for name in wanted if name not in found)
    known = {*wanted, *optional}
    odd = [name for name in found if not isinstance(name, str) or name not in known]
    problems = [
        f"{kind}: {', '.join(shown)}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for kind, names in (("missing", missing), ("unexpected", odd))
        if (shown := [describe(name) for name in names[:8]])
    ]
    if problems:
        raise CheckpointError(f"{what} has other entries than expected ({'; '.join(problems)})")


def describe(value: Any) -> str:
    """Describe an untrusted value briefly, for messages, whatever it contains."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str):
        return ascii(value if len(value) <= 80 else f"{value[:80]}...")
    # Not its repr: a list that contains itself many times over would fill the memory.
    size = f" of {len(value)}" if isinstance(value, list | tuple | dict) else ""
    return f"a {type(value).__name__}{size}"


# -- Compare a saved training state with what this run would save, before any of it is used ------
#
# A moment of the wrong shape can corrupt memory inside a fused optimizer, and a missing one changes
# the run silently, so every name, shape, type, count and value is checked.

# Largest value up to which a float32 counter can be increased by one.
LAST_COUNT = 2**24
# Optimizer settings for the implementation, whose defaults differ between versions of torch.
SWITCHES = {"foreach", "capturable", "differentiable", "fused"}


class StateChecker:
    """Checks a saved state against the state that this run would save.

    Args:
        model: Model of the run, on its device and sharded.
        optimizer: Its optimizer, before the first step.
        averaged: Whether the run has an average of the parameters.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, averaged: bool
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.averaged = averaged
        self.layouts = _layouts(model, optimizer)
        self.weights: dict[str, Tensor] = model.state_dict()
        self.parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        self.trained = {n for n, p in self.parameters.items() if p.requires_grad}

    def check(self, progress: Progress, state: Mapping[str, Any], last_step: int) -> list[str]:
        """Check the whole state; return notes on what could not be checked.

        Raises:
            CheckpointError: An entry does not fit; the message gives its name, what was found and
                what was expected.
        """
        if progress.step > last_step:
            raise CheckpointError(
                f"progress.step is {progress.step}, but this run has {last_step} steps; if steps "
                f"or limit were lowered in config.yaml, set them to at least {progress.step}"
            )
        average = ("average",) if self.averaged else ()
        check_names("the state", state, ("model", "optimizer", "window", *average))
        self._check_tensors("model", state["model"], self.weights)
        if self.averaged:
            self._check_tensors("average", state["average"], self.parameters)
        self._check_window(progress, state["window"])
        return self._check_optimizer(progress.step, state["optimizer"])

    def check_shapes(self, shapes: Any) -> None:
        """Check the shapes that a state in parts declares, by ``kind/name``, before allocation.

        Raises:
            CheckpointError: A tensor does not belong to this run or has another shape.
        """
        if not isinstance(shapes, Mapping):
            raise CheckpointError(f"shapes is {describe(shapes)}, expected shapes by name")
        for key, found in shapes.items():
            wanted = self._shapes_of(key) if isinstance(key, str) else []
            if not wanted:
                raise CheckpointError(f"{describe(key)} is not a tensor of this run")
            if not isinstance(found, list | tuple) or tuple(found) not in wanted:
                raise CheckpointError(
                    f"{key} has the shape {_dimensions(found)}, expected {wanted[0]}"
                )

    def _shapes_of(self, key: str) -> list[tuple[int, ...]]:
        kind, _, name = key.partition("/")
        if kind == "model" and name in self.weights:
            return [tuple(self.weights[name].shape)]
        if kind == "average" and self.averaged and name in self.parameters:
            return [tuple(self.parameters[name].shape)]
        entry, _, owner = name.partition("/")
        if kind == "optimizer" and owner in self.parameters:
            layout = self.layouts.get(owner, StateLayout(moments=()))
            if entry in layout.moments:
                return [tuple(self.parameters[owner].shape)]
            if entry in {layout.counter, *layout.scalars} - {""}:
                return [()]
        return []

    # -- tensors -----------------------------------------------------------------------------

    def _check_tensors(self, what: str, found: Any, wanted: Mapping[str, Tensor]) -> None:
        if not isinstance(found, Mapping):
            raise CheckpointError(f"{what} is {describe(found)}, expected tensors by name")
        check_names(what, found, wanted)
        for name, like in wanted.items():
            check_tensor(f"{what} entry {name}", found[name], tuple(like.shape), like.dtype)

    def _check_window(self, progress: Progress, window: Any) -> None:
        """Check the losses since the last record; fewer if a finished run was extended."""
        if not isinstance(window, list) or len(window) > progress.step:
            raise CheckpointError(
                f"window is {describe(window)}, expected a list of at most {progress.step} steps"
            )
        for number, losses in enumerate(window):
            what = f"window entry {number}"
            if not isinstance(losses, Mapping):
                raise CheckpointError(f"{what} is {describe(losses)}, expected losses by name")
            check_names(what, losses, window[0] if number else ("",), () if number else losses)
            for name, loss in losses.items():
                # A part may be NaN if a batch has no sample for it; the total ("") never is.
                check_tensor(f"{what}, loss {name!r}", loss, (), None, finite=not name)

    # -- the optimizer -----------------------------------------------------------------------

    def _check_optimizer(self, step: int, found: Any) -> list[str]:
        if not isinstance(found, Mapping):
            raise CheckpointError(f"optimizer is {describe(found)}, expected states and groups")
        check_names("optimizer", found, ("states", "groups"), ("unused",))
        self._check_groups(step, found["groups"])
        states = found["states"]
        if not isinstance(states, Mapping):
            raise CheckpointError(
                f"optimizer states is {describe(states)}, expected states by name"
            )
        check_names("optimizer states", states, (), self.trained)
        if not step and states:
            raise CheckpointError("the optimizer has a state before the first step")
        counts = {name: self._check_moments(name, state, step) for name, state in states.items()}
        if step and not states:
            raise CheckpointError(
                f"the optimizer state is empty at step {step}, expected entries for "
                f"{len(self.trained)} parameters"
            )
        counted = [count for name, count in counts.items() if self.layouts[name].counter]
        if counted and step and max(counted) != min(step, LAST_COUNT):
            raise CheckpointError(
                f"no parameter has counted {step} optimizer steps; the most is {max(counted)}"
            )
        return self._check_unused(step, states, found.get("unused"))

    def _check_unused(self, step: int, states: Mapping[str, Any], unused: Any) -> list[str]:
        """Check that exactly the parameters that never had a gradient have no state."""
        without = self.trained - states.keys()
        if unused is None:
            if not step or not without:
                return []
            return [
                f"{len(without)} parameters have no optimizer state, such as {min(without)}; the "
                f"checkpoint was written by an earlier version, which did not record whether they "
                f"ever had a gradient, so this could not be checked"
            ]
        if not isinstance(unused, list) or not all(isinstance(name, str) for name in unused):
            raise CheckpointError(
                f"optimizer unused is {describe(unused)}, expected a list of names"
            )
        if lost := sorted(without - set(unused)):
            raise CheckpointError(
                f"the optimizer state lacks {len(lost)} parameters that had gradients, such as "
                f"{lost[0]}"
            )
        if odd := sorted(set(unused) - without):
            raise CheckpointError(
                f"optimizer unused names {describe(odd[0])}, expected parameters without a state"
            )
        return []

    def _check_moments(self, name: str, state: Any, step: int) -> int:
        """Check the optimizer state of one parameter; return its step count."""
        what = f"optimizer state of {name}"
        if not isinstance(state, Mapping):
            raise CheckpointError(f"{what} is {describe(state)}, expected entries by name")
        layout, parameter = self.layouts[name], self.parameters[name]
        counter = (layout.counter,) if layout.counter else ()
        check_names(what, state, (*layout.moments, *counter), layout.scalars)
        for entry in layout.moments:
            moment = state[entry]
            check_tensor(f"{what}, {entry}", moment, tuple(parameter.shape), parameter.dtype)
            if entry.endswith("_sq") and bool((own_part(moment) < 0).any()):
                raise CheckpointError(f"{what}, {entry}: expected squares, found values below 0")
        for entry in layout.scalars:
            if entry in state:
                check_tensor(f"{what}, {entry}", state[entry], (), None)
        if not counter:
            return step
        check_tensor(f"{what}, {layout.counter}", state[layout.counter], (), torch.float32)
        count = float(own_part(state[layout.counter]))
        if not count.is_integer() or not 1 <= count <= min(step, LAST_COUNT):
            raise CheckpointError(
                f"{what}, {layout.counter} is {count:g}, expected a whole number from 1 to {step}"
            )
        return int(count)

    def _check_groups(self, step: int, groups: Any) -> None:
        names = {parameter: name for name, parameter in self.parameters.items()}
        own = self.optimizer.param_groups
        order = [[names[p] for p in group["params"]] for group in own]
        if (
            not isinstance(groups, list)
            or not all(isinstance(g, Mapping) for g in groups)
            or [g.get("params") for g in groups] != order
        ):
            raise CheckpointError(
                f"the parameter groups of the saved optimizer ({describe(groups)}) differ from the "
                f"{len(order)} groups of this run; optimizer settings cannot change when a run is "
                f"resumed"
            )
        for number, (group, mine) in enumerate(zip(groups, own, strict=True)):
            what = f"optimizer group {number}"
            layout = state_layout(self.optimizer, mine)
            varying = {layout.group_counter, *layout.group_rates} - {""} if step else set()
            # Newer library versions add settings; settings missing in the file keep our values.
            check_names(what, group, ("params", "lr", *varying), mine)
            wanted = {**mine, **group_rates(self.optimizer, mine.get("betas"), step)}
            if layout.group_counter and step:
                wanted[layout.group_counter] = step
            for key in group.keys() - {"params"} - SWITCHES:
                value = group[key]
                free = key == "lr"  # set again at every step, so any valid rate is accepted
                if not _same(value, value if free else wanted[key]) or (
                    free and not _is_rate(value)
                ):
                    raise CheckpointError(
                        f"{what}, {key} is {_show(value)}, expected {_show(wanted[key])}; "
                        f"optimizer settings cannot change when a run is resumed"
                    )


def _layouts(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, StateLayout]:
    """Return the state layout of each parameter by name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: state_layout(optimizer, group)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def check_tensor(
    what: str, found: Any, shape: tuple[int, ...], dtype: torch.dtype | None, *, finite: bool = True
) -> None:
    """Check one tensor; with ``dtype=None`` any floating-point type is accepted.

    Raises:
        CheckpointError: It is not a dense tensor of this shape and type, its storage is too short,
            or it contains non-finite values although ``finite`` is set.
    """
    kind = "floating point" if dtype is None else dtype
    right = isinstance(found, Tensor) and tuple(found.shape) == shape
    right = right and (found.is_floating_point() if dtype is None else found.dtype == dtype)
    right = right and found.layout is torch.strided and not found.is_meta
    if not right:
        raise CheckpointError(f"{what} is {describe(found)}, expected {kind} and shape {shape}")
    part = own_part(found.detach())
    if part.numel() * part.element_size() > part.untyped_storage().nbytes():
        raise CheckpointError(f"{what} declares the shape {shape}, but the file holds fewer values")
    if finite and part.is_floating_point() and not bool(torch.isfinite(part).all()):
        raise CheckpointError(f"{what} holds values that are not finite")


def _same(found: Any, wanted: Any) -> bool:
    """Compare settings; numbers may differ in the last bits between machines."""
    if isinstance(wanted, list | tuple):
        return (
            isinstance(found, list | tuple)
            and len(found) == len(wanted)
            and all(_same(a, b) for a, b in zip(found, wanted, strict=True))
        )
    if isinstance(wanted, bool) or not isinstance(wanted, int | float):
        return type(found) is type(wanted) and found == wanted
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    return is_number and isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-300)


def _is_rate(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
    )


def _show(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) < 4:
        return f"({', '.join(describe(item) for item in value)})"
    return describe(value)


def _dimensions(found: Any) -> str:
    return _show(found) if isinstance(found, list | tuple) else describe(found)
