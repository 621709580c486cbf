"""A saved training state is compared with what the run would save, before any of it is used."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from perceivers.errors import CheckpointError
from perceivers.models.registry import create_model
from perceivers.models.saving import ModelInfo, save_folder
from perceivers.training.checkpoints import Checkpoints
from perceivers.training.config import OptimizerConfig, TrainConfig
from perceivers.training.optimizers import WeightAverage, make_optimizer
from perceivers.training.run_folder import RunFolder
from perceivers.training.runtime import Runtime
from perceivers.training.state import Progress
from perceivers.types import Image

State = dict[str, Any]
Name = Literal["adamw", "lamb", "muon"]
STEPS, LAST = 3, 10
WEIGHT = "encoder.inputs.embed.image.weight"
PROGRESS = Progress(step=STEPS, best=-0.5, best_step=2, samples_read=24, seconds=1.5)
NAN = float("nan")


def make(folder: Path, name: Name = "adamw", *, seed: int = 0, ema: float = 0.9) -> Checkpoints:
    """A tiny model with its optimizer and average, as a run makes them before it resumes."""
    torch.manual_seed(seed)
    model = create_model("hip_nano", inputs={"image": Image(8, 8, 1)}, num_classes=2)
    runtime = Runtime(TrainConfig(model="", data="", out="", device="cpu"))
    optimizer = make_optimizer(model, OptimizerConfig(name=name))
    average = WeightAverage(model, ema) if ema else None
    return Checkpoints(RunFolder(folder), runtime, model, optimizer, average)


def take_steps(run: Checkpoints, steps: int, seed: int, without: str = "-") -> None:
    rng = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for name, parameter in run.model.named_parameters():
            gradient = torch.randn(parameter.shape, generator=rng)
            parameter.grad = None if name.startswith(without) else gradient
        run.optimizer.step()
        if run.average is not None:
            run.average.update(first=step == 0)


def everything(run: Checkpoints) -> list[Tensor]:
    states = [value for state in run.optimizer.state.values() for value in state.values()]
    average = run.average.parameters.values() if run.average is not None else ()
    return [*run.model.state_dict().values(), *states, *average]


def equal(run: Checkpoints, other: Checkpoints) -> bool:
    pairs = list(zip(everything(run), everything(other), strict=False))
    return len(everything(run)) == len(everything(other)) and all(a.equal(b) for a, b in pairs)


def save(run: Checkpoints) -> State:
    window = [{"": torch.tensor(0.5), "image": torch.tensor(0.25)} for _ in range(STEPS)]
    run.begin(PROGRESS, window, lambda _: None)()
    return torch.load(run.folder.checkpoint, weights_only=True)


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, State]:
    """A sound state of each optimizer."""
    found = {}
    for name in ("adamw", "lamb", "muon"):
        run = make(tmp_path_factory.mktemp(name) / "run", name)
        take_steps(run, STEPS, seed=0)
        found[name] = save(run)
    return found


def put(state: State, folder: Path) -> Path:
    path = RunFolder(folder).checkpoint
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_a_sound_state_is_restored_and_goes_on_bit_for_bit(tmp_path: Path, name: Name) -> None:
    run = make(tmp_path / "run", name)
    take_steps(run, STEPS, seed=0)
    save(run)
    other = make(tmp_path / "run", name, seed=1)
    assert not equal(run, other)
    progress, window, notes = other.restore(LAST)
    assert progress == PROGRESS
    assert [each["image"].item() for each in window] == [0.25] * STEPS
    assert notes == []
    assert equal(run, other)
    for each in (run, other):
        take_steps(each, 2, seed=7)
    assert equal(run, other)
    take_steps(other, 1, seed=7)
    assert not equal(run, other)


# What is done to a sound state, and what the message must say of it.
Damage = Callable[[State], Any]


def at(*keys: Any, value: Any) -> Damage:
    """Put a value at a place."""

    def change(state: State) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change


def lose(*keys: Any) -> Damage:
    """Delete an entry."""

    def change(state: State) -> None:
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return change


MOMENT = ("optimizer", "states", WEIGHT, "exp_avg")
SQUARE = ("optimizer", "states", WEIGHT, "exp_avg_sq")
COUNT = ("optimizer", "states", WEIGHT, "step")
GROUP = ("optimizer", "groups", 0)
DAMAGES: list[tuple[Damage, str]] = [
    (at(*MOMENT, value=torch.zeros(3)), r"exp_avg is a tensor .*\(3,\), expected .*\(32, 1\)"),
    (at(*MOMENT, value=torch.zeros(32, 1).double()), r"float64.* expected torch\.float32"),
    (at(*MOMENT, value=torch.full((32, 1), NAN)), r"exp_avg holds values that are not finite"),
    (at(*MOMENT, value=[0.0] * 32), r"exp_avg is a list of 32, expected"),
    (at(*MOMENT, value=torch.zeros(32, 1).to_sparse()), r"exp_avg is a tensor"),
    (at(*MOMENT, value=torch.zeros(32, 1, device="meta")), r"exp_avg is a tensor"),
    (lose(*MOMENT), r"missing: 'exp_avg'"),
    (at(*MOMENT[:-1], "max_exp_avg_sq", value=torch.zeros(32, 1)), r"unexpected: 'max_exp"),
    (at(*SQUARE, value=torch.full((32, 1), -1.0)), r"expected squares, found values below 0"),
    (at(*COUNT, value=torch.tensor(7.0)), r"step is 7, expected a whole number from 1 to 3"),
    (at(*COUNT, value=torch.tensor(1.5)), r"step is 1\.5, expected a whole number"),
    (at(*COUNT, value=torch.tensor(0.0)), r"step is 0, expected a whole number from 1"),
    (at(*COUNT, value=3), r"step is 3, expected torch\.float32"),
    (at("optimizer", "states", value={}), r"optimizer state is empty at step 3"),
    (at("optimizer", "states", value=[]), r"optimizer states is a list"),
    (lose("optimizer", "states", WEIGHT), rf"lacks 1 parameters .* {WEIGHT}"),
    (at("optimizer", "states", "no.such", value={}), r"unexpected: 'no\.such'"),
    (at("optimizer", "unused", value=[WEIGHT]), r"unused names .*without a state"),
    (at("optimizer", "unused", value={"a": 1}), r"unused is a dict of 1, expected a list"),
    (at("optimizer", value={}), r"missing: 'states', 'groups'|missing: 'groups', 'states'"),
    (at("optimizer", value=3), r"optimizer is 3, expected states and groups"),
    (at("optimizer", "groups", value=[]), r"parameter groups of the saved optimizer .* differ"),
    (at(*GROUP, value=5), r"parameter groups of the saved optimizer .* differ"),
    (at(*GROUP, "params", value=["x"]), r"parameter groups of the saved optimizer .* differ"),
    (at(*GROUP, "weight_decay", value=7.0), r"weight_decay is 7\.0, expected 0\.05"),
    (at(*GROUP, "betas", value=(0.1, 0.2)), r"betas is \(0\.1, 0\.2\), expected \(0\.9, 0\.95\)"),
    (at(*GROUP, "betas", value="0.9"), r"betas is '0\.9', expected"),
    (at(*GROUP, "eps", value=None), r"eps is None, expected"),
    (at(*GROUP, "lr", value=-1.0), r"lr is -1\.0"),
    (at(*GROUP, "lr", value=NAN), r"lr is nan"),
    (at(*GROUP, "new", value=1), r"group 0 has other entries .*unexpected: 'new'"),
    (lose("model", WEIGHT), r"model has other entries .*missing"),
    (at("model", "x", value=torch.ones(1)), r"model has other entries .*unexpected: 'x'"),
    (at("model", WEIGHT, value=torch.ones(2)), r"model entry .* shape \(2,\), expected"),
    (at("model", WEIGHT, value=torch.ones(32, 1).int()), r"torch\.int32 .*expected torch\.float32"),
    (at("model", WEIGHT, value=torch.full((32, 1), NAN)), r"not finite"),
    (at("model", value=None), r"model is None, expected tensors by name"),
    (lose("average"), r"missing: 'average'"),
    (lose("average", WEIGHT), r"average has other entries"),
    (at("average", WEIGHT, value=torch.ones(1)), r"average entry .* expected"),
    (at("average", WEIGHT, value=torch.full((32, 1), NAN)), r"average entry .*not finite"),
    (lose("window"), r"missing: 'window'"),
    (at("window", value={}), r"window is a dict of 0, expected a list"),
    (at("window", value=[{"": torch.tensor(1.0)}] * 4), r"window is a list of 4, .*at most 3"),
    (at("window", 1, value={"image": torch.tensor(1.0)}), r"window entry 1 .*missing: ''"),
    (at("window", 0, value=[1.0]), r"window entry 0 is a list of 1"),
    (at("window", 0, "", value=torch.ones(2)), r"window entry 0, loss '' .*expected"),
    (at("window", 0, "", value=torch.tensor(NAN)), r"not finite"),
    (at("extra", value=1), r"the state has other entries .*unexpected: 'extra'"),
    (lose("model"), r"missing: 'model'"),
    (lose("progress"), r"'progress' among them"),
    (at("progress", value=3), r"progress is 3, expected numbers by name"),
    (lose("progress", "step"), r"progress .*missing: 'step'"),
    (at("progress", "mood", value=1), r"unexpected: 'mood'"),
    (at("progress", "step", value=3.0), r"progress\.step is 3\.0, expected a whole number"),
    (at("progress", "step", value=True), r"progress\.step is True, expected a whole number"),
    (at("progress", "step", value=-1), r"progress\.step is -1"),
    (at("progress", "step", value=10**40), r"progress\.step is an integer of 133 bits"),
    (
        at("progress", "step", value=LAST + 1),
        r"step is 11, but this run has 10 steps.*config\.yaml",
    ),
    (at("progress", "step", value=5), r"expected 5|counted 5|from 1 to 5"),
    (at("progress", "step", value=0), r"best_step is 2, expected at most step=0"),
    (at("progress", "best", value="high"), r"progress\.best is 'high', expected a number or None"),
    (at("progress", "best_step", value=9), r"best_step is 9, expected at most step=3"),
    (at("progress", "seconds", value=NAN), r"progress\.seconds is nan"),
    (at("progress", "samples_bad", value=25), r"samples_bad is 25, .*samples_read=24"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "words"), DAMAGES, ids=[words[:40] for _, words in DAMAGES])
def test_a_state_that_this_run_would_not_save_is_refused_and_nothing_loaded(
    tmp_path: Path, states: dict[str, State], damage: Damage, words: str
) -> None:
    state = copy.deepcopy(states["adamw"])
    damage(state)
    path = put(state, tmp_path / "run")
    run = make(tmp_path / "run")
    before = [value.clone() for value in everything(run)]
    with pytest.raises(CheckpointError, match=words) as caught:
        run.restore(LAST)
    said = str(caught.value)
    assert said.startswith(str(path))
    assert "--overwrite" in said
    assert "weights_only" not in said
    assert said.isprintable()
    assert all(map(torch.equal, before, everything(run)))


LAMB_DAMAGES: list[tuple[Damage, str]] = [
    (lose(*GROUP, "step"), r"group 0 .*missing: 'step'"),
    (at(*GROUP, "step", value=2), r"step is 2, expected 3"),
    (at(*GROUP, "step", value=3.5), r"step is 3\.5, expected 3"),
    (at(*GROUP, "moment_rates", value=(0.9, 0.9)), r"moment_rates is \(0\.9, 0\.9\), expected"),
    (at(*GROUP, "betas", value=(0.9, 0.95)), r"betas is \(0\.9, 0\.95\), expected \("),
    (at(*MOMENT[:-1], "trust_ratio", value=torch.ones(2)), r"trust_ratio is a tensor"),
    (at(*COUNT, value=torch.tensor(3.0)), r"unexpected: 'step'"),
    (at("optimizer", "states", value={}), r"optimizer state is empty at step 3"),
]


@pytest.mark.parametrize(("damage", "words"), LAMB_DAMAGES, ids=[w[:40] for _, w in LAMB_DAMAGES])
def test_the_state_of_lamb_is_checked_too(
    tmp_path: Path, states: dict[str, State], damage: Damage, words: str
) -> None:
    state = copy.deepcopy(states["lamb"])
    damage(state)
    put(state, tmp_path / "run")
    with pytest.raises(CheckpointError, match=words):
        make(tmp_path / "run", "lamb").restore(LAST)


def test_the_state_of_another_optimizer_is_refused(
    tmp_path: Path, states: dict[str, State]
) -> None:
    put(states["lamb"], tmp_path / "run")
    with pytest.raises(CheckpointError, match="group 0 has other entries"):
        make(tmp_path / "run", "adamw").restore(LAST)


def test_an_average_that_the_run_does_not_keep_is_refused(
    tmp_path: Path, states: dict[str, State]
) -> None:
    put(states["adamw"], tmp_path / "run")
    with pytest.raises(CheckpointError, match="unexpected: 'average'"):
        make(tmp_path / "run", ema=0.0).restore(LAST)


def test_parameters_that_never_had_a_gradient_have_no_state(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    take_steps(run, STEPS, seed=0, without="encoder.inputs")
    state = save(run)
    assert WEIGHT in state["optimizer"]["unused"]
    other = make(tmp_path / "run", seed=1)
    assert other.restore(LAST)[2] == []
    assert equal(run, other)


def test_an_older_state_says_what_could_not_be_checked(
    tmp_path: Path, states: dict[str, State]
) -> None:
    state = copy.deepcopy(states["adamw"])
    del state["optimizer"]["unused"]
    put(state, tmp_path / "whole")
    assert make(tmp_path / "whole").restore(LAST)[2] == []
    del state["optimizer"]["states"][WEIGHT]
    put(state, tmp_path / "part")
    (note,) = make(tmp_path / "part").restore(LAST)[2]
    assert f"1 parameters have no optimizer state, such as {WEIGHT}" in note
    assert "could not be checked" in note


def test_settings_that_an_older_torch_did_not_save_are_those_of_this_run(
    tmp_path: Path, states: dict[str, State]
) -> None:
    state = copy.deepcopy(states["adamw"])
    for group in state["optimizer"]["groups"]:
        group.pop("decoupled_weight_decay", None)
        del group["maximize"]
    put(state, tmp_path / "run")
    run = make(tmp_path / "run")
    run.restore(LAST)
    assert all(group["maximize"] is False for group in run.optimizer.param_groups)


def test_a_state_before_the_first_step_has_no_moments(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    run.begin(Progress(), [], lambda _: None)()
    other = make(tmp_path / "run", seed=1)
    other.restore(LAST)
    assert equal(run, other)


def test_the_way_back_names_the_models_that_are_left(
    tmp_path: Path, states: dict[str, State]
) -> None:
    path = put(states["adamw"], tmp_path / "run")
    path.write_bytes(path.read_bytes()[:-1000])
    run = make(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"from a copy, or start the run again with --over"):
        run.restore(LAST)
    model: Any = run.model
    save_folder(model, run.folder.last_model, ModelInfo())
    with pytest.raises(CheckpointError, match=r"from the weights of .*run/last \(--model .*last\)"):
        run.restore(LAST)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"folder": "step_3"}', "expected folder and step"),
        ('{"folder": "../../x", "step": 3}', r"folder is '\.\./\.\./x' for step 3"),
        ('{"folder": "step_4", "step": 3}', "expected step_3"),
        ('{"folder": 3, "step": 3}', "folder is 3 for step 3"),
        ('{"folder": "step_3", "step": true}', "expected folder and step"),
        ('{"folder": "step_3", "step": 3}', "stopped before its first checkpoint"),
    ],
)
def test_a_pointer_to_no_checkpoint_is_refused(tmp_path: Path, text: str, words: str) -> None:
    run = make(tmp_path / "run")
    run.folder.pointer.parent.mkdir(parents=True)
    run.folder.pointer.write_text(text)
    with pytest.raises(CheckpointError, match=words):
        run.restore(LAST)
