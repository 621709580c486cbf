"""Plans of training runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perceivers.errors import ConfigError
from perceivers.models.registry import create_model
from perceivers.plan.counting import count_tokens
from perceivers.plan.estimates import PlanSettings
from perceivers.types import Audio, Bytes, Image, Video
from perceivers.workflows.planning import (
    choose_planned_task,
    plan_training,
    settings_from_recipe,
)

INPUTS = {"image": {"height": 16, "width": 16, "channels": 1}}


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    """Write twelve small labelled pictures."""
    images = np.random.default_rng(0).integers(0, 256, (12, 1, 16, 16)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", image=images, label=np.arange(12) % 3)
    return str(tmp_path / "a.npz")


@pytest.mark.slow
def test_data_and_inputs_of_the_same_size_give_the_same_counts(pictures: str) -> None:
    shared: dict[str, Any] = {"model": "hip_nano", "batch_size": 4, "task": "classify"}
    data = plan_training(PlanSettings(data=pictures, epochs=2, **shared))
    sizes = plan_training(PlanSettings(inputs=INPUTS, classes=3, steps=5, **shared))
    assert data.step == sizes.step
    assert data.weights == sizes.weights
    model = create_model("hip_nano", inputs={"image": Image(16, 16, 1)}, num_classes=3)
    assert data.weights.count == sum(p.numel() for p in model.parameters())
    assert data.duration is not None
    assert data.samples == 2 * data.stored
    assert sizes.samples == 20
    assert data.tokens == [("image", 256, 256, 4)]


@pytest.mark.slow
def test_more_devices_take_less_time_and_sharding_less_memory() -> None:
    shared: dict[str, Any] = {"model": "hip_nano", "inputs": INPUTS, "batch_size": 4}
    one = plan_training(PlanSettings(samples=1000, hourly_cost=2, **shared))
    four = plan_training(PlanSettings(samples=1000, hourly_cost=2, devices=4, **shared))
    sharded = plan_training(PlanSettings(devices=4, sharded=True, **shared))
    assert one.duration is not None
    assert four.duration is not None
    assert four.duration.hours == pytest.approx(one.duration.hours / 4)
    assert four.duration.cost == pytest.approx(one.duration.cost)
    assert sharded.memory.optimizer == one.memory.optimizer / 4
    assert sharded.duration is None


@pytest.mark.slow
def test_less_of_the_input_kept_is_less_work() -> None:
    pictures = {"image": {"height": 64, "width": 64}}
    shared: dict[str, Any] = {"model": "mae_hiera_nano", "inputs": pictures, "batch_size": 4}
    most = plan_training(PlanSettings(**shared))
    few = plan_training(PlanSettings(settings={"mask": {"ratio": 0.9}}, **shared))
    assert most.task == few.task == "pretrain"
    assert few.step.forward < 0.8 * most.step.forward


@pytest.mark.slow
def test_parts_of_a_batch_take_less_memory() -> None:
    shared: dict[str, Any] = {"model": "hip_nano", "inputs": INPUTS, "batch_size": 16}
    whole = plan_training(PlanSettings(**shared))
    parts = plan_training(PlanSettings(accumulate=4, **shared))
    assert parts.step.batch_size == 4
    assert parts.memory.peak < whole.memory.peak
    assert parts.largest_batch == pytest.approx(whole.largest_batch, rel=0.02)


@pytest.mark.slow
def test_a_measured_step_takes_the_place_of_the_peak() -> None:
    plan = plan_training(
        PlanSettings(
            model="hip_nano",
            inputs=INPUTS,
            batch_size=2,
            precision="float32",
            measure=1,
            samples=10,
        )
    )
    assert plan.seconds > 0
    assert plan.rate == pytest.approx(plan.step.step / plan.seconds)
    assert plan.duration is not None
    assert plan.duration.hours == pytest.approx(plan.seconds * 5 / 3600)


@pytest.mark.parametrize(
    ("name", "specs", "tokens"),
    [
        ("hip_256", {"video": Video(8, 224, 224), "audio": Audio(122_880)}, [401_408, 122_880]),
        ("hiera_base_224", {"image": Image(224, 224, 3)}, [56 * 56]),
        ("hiera_base_16x224", {"video": Video(16, 224, 224)}, [8 * 56 * 56]),
        ("perceiver_io_text_tiny", {"bytes": Bytes(512)}, [512]),
    ],
)
def test_tokens_are_those_of_the_papers(
    name: str, specs: dict[str, Any], tokens: list[int]
) -> None:
    with torch.device("meta"):
        found = count_tokens(create_model(name, inputs=specs))
    assert [modality.tokens for modality in found] == tokens
    groups = [modality.groups for modality in found]
    assert groups == ([196, 60] if name == "hip_256" else [1])  # arXiv 2202.10890


def test_the_task_follows_from_the_model() -> None:
    assert choose_planned_task(PlanSettings(model="hip_nano")) == "pretrain"
    assert choose_planned_task(PlanSettings(model="perceiver_nano")) == "classify"
    assert choose_planned_task(PlanSettings(model="hip_nano", task="mlm")) == "mlm"
    with pytest.raises(ConfigError, match=r"'classfy' is unknown; .*did you mean 'classify'"):
        choose_planned_task(PlanSettings(model="hip_nano", task="classfy"))


def test_a_recipe_is_sorted_into_settings() -> None:
    recipe = {"model": "hip_nano", "steps": 9, "out": "runs/a", "mask": {"ratio": 0.5}, "ema": 0.9}
    assert settings_from_recipe(recipe) == {
        "model": "hip_nano",
        "steps": 9,
        "settings": {"mask": {"ratio": 0.5}, "ema": 0.9},
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "hip_nano"}, "hip_nano has no inputs of its own; give --data, or --inputs"),
        ({"model": "hip_nano", "inputs": {"left": {}}}, "modality 'left' has no 'type'"),
        ({"model": "hip_nano", "task": "segment"}, r"without --data only variants .*'segment'"),
        ({"model": "runs/a", "inputs": INPUTS}, r"without --data only variants .*'runs/a'"),
        ({"model": "hip_nano", "inputs": INPUTS, "settings": {"data": "x"}}, r"hold \['data'\]"),
        ({"model": "hip_nano", "inputs": INPUTS, "device": "abacus"}, "'abacus' is not in the"),
    ],
)
def test_what_cannot_be_planned_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_training(PlanSettings(**values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"devices": 0}, "devices is 0; it must be at least 1"),
        ({"samples": -1.0}, "samples is -1.0; it must not be negative"),
        ({"utilisation": 1.5}, r"utilisation is 1.5; it must be in \(0, 1\]"),
        ({"batch_size": 5, "accumulate": 2}, "batch_size=5 does not divide into accumulate=2"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PlanSettings(model="hip_nano", **values)
