"""Three orders of elements: how arms train, continue, and what follows from the numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import perceivers as pv
from perceivers.errors import ConfigError, RunError
from perceivers.report import style
from perceivers.training.loop import Interrupted
from perceivers.workflows import arms
from perceivers.workflows.arms import Arm, Outcome
from perceivers.workflows.shuffling import ArmSummary, ShuffleSettings, conclude, shuffle

PLACE = {"in_place": 0.9, "fixed": 0.7, "per_sample": 0.3}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Arm]:
    """Replace training by a table of results; return the list of what was trained."""
    done: list[Arm] = []

    def describe(arm: Arm, metrics: Any, wall: float) -> Outcome:
        order, seed = arm.name.split("_seed")
        value = PLACE[order] + 0.01 * int(seed)
        found = {"val": {"top1": value}, **{split: {"top1": value - 0.1} for split in metrics}}
        return Outcome(arm.name, value=value, steps=arm.settings["steps"], metrics=found)

    monkeypatch.setattr(style, "DPI", 30)
    monkeypatch.setattr(arms, "_train", done.append)
    monkeypatch.setattr(arms, "_describe", describe)
    monkeypatch.setattr(arms, "_evaluate", lambda arm, splits: {split: {} for split in splits})
    return done


def test_arms_train_alike_but_for_the_order(trained: list[Arm], tmp_path: Path) -> None:
    done = pv.shuffle("digits", model="hip_nano", steps=10, seeds=2, lr=0.5, out=tmp_path / "a")
    assert [arm.name for arm in trained] == [
        f"{order}_seed{seed}" for seed in (0, 1) for order in PLACE
    ]
    for seed in (0, 1):
        place, fixed, each = (dict(arm.settings) for arm in trained[3 * seed : 3 * seed + 3])
        found = [settings.pop("inputs", {}) for settings in (place, fixed, each)]
        assert place == fixed == each
        assert place["optimizer"]["lr"] == 0.5
        assert place["seed"] == seed
        assert found == [
            {},
            {"image": {"order": "fixed", "order_seed": seed}},
            {"image": {"order": "per_sample", "order_seed": seed}},
        ]
    assert [arm.order for arm in done.arms] == list(PLACE)
    assert done.arms[1].values == {"val": [0.7, 0.71], "test": pytest.approx([0.6, 0.61])}
    assert "| in place | 0.905 +- 0.0071 | 0.805 +- 0.0071 | 2 |" in done.table
    assert "one fixed order is worse by 0.2, and another order per sample is worse by 0.6" in (
        done.conclusion
    )
    record = json.loads((tmp_path / "a" / "shuffle.json").read_text())
    assert record["conclusion"] == done.conclusion
    assert record["modalities"] == ["image"]
    assert done.table == (tmp_path / "a" / "table.md").read_text()
    with Image.open(tmp_path / "a" / "shuffle.png") as image:
        assert image.width > 200


@pytest.mark.slow
def test_the_same_call_continues_with_the_next_arm(
    trained: list[Arm], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(arm: Arm) -> None:
        if len(trained) == 2:
            raise Interrupted("stopped")
        trained.append(arm)

    options: dict[str, Any] = {"model": "hip_nano", "steps": 10, "seeds": 1, "out": tmp_path / "a"}
    with monkeypatch.context() as patch:
        patch.setattr(arms, "_train", stop)
        with pytest.raises(Interrupted):
            shuffle("digits", **options)
    done = shuffle("digits", **options)
    assert [arm.name for arm in trained] == [f"{order}_seed0" for order in PLACE]
    assert "One seed has no spread" in done.conclusion
    with pytest.raises(RunError, match=r"begun with steps=10"):
        shuffle("digits", **{**options, "steps": 20})
    # More seeds add runs to those that there are.
    more = shuffle("digits", **{**options, "seeds": 2})
    assert [arm.name for arm in trained[3:]] == [f"{order}_seed1" for order in PLACE]
    assert "is worse" in more.conclusion


@pytest.mark.parametrize(
    ("place", "other", "higher", "words"),
    [
        ([0.9, 0.92], [0.6, 0.62], True, "is worse by 0.3"),
        ([0.9, 0.92], [0.6, 0.62], False, "is better by 0.3"),
        ([0.9, 0.7], [0.7, 0.8], True, "no difference was seen"),
        ([0.9, 0.9], [0.9, 0.9], True, "no difference was seen"),
        ([0.9], [0.6], True, "One seed has no spread"),
        ([0.9, 0.9], [], True, "Not all arms have a result"),
    ],
)
def test_a_difference_within_the_spread_is_none(
    place: list[float], other: list[float], higher: bool, words: str
) -> None:
    found = [ArmSummary("in_place", {"val": place}), ArmSummary("fixed", {"val": other})]
    assert words in conclude(found, "top1", "val", higher_is_better=higher)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": {"seed": 3}}, "settings hold 'seed'"),
        ({"settings": {"batch_size": 3}, "batch_size": 4}, "'batch_size', which is also given"),
        ({"seeds": 0}, "seeds is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ShuffleSettings(data="digits", **options)


@pytest.mark.parametrize(
    ("task", "message"), [("flow", "nothing to compare"), ("regress", "is data for 'classify'")]
)
def test_tasks_that_the_data_are_not_for_are_refused(
    task: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        shuffle("digits", task=task, out=tmp_path / "a")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["topics.csv", "clips", "clouds.npz", "sounds"])
def test_every_modality_can_be_shuffled(name: str, made: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"settings": {"model_options": {}}}
    done = shuffle(
        str(made / name),
        model="perceiver_io_nano",
        steps=2,
        seeds=1,
        batch_size=4,
        out=tmp_path / "a",
        **settings,
    )
    assert all(not arm.failures and arm.values for arm in done.arms), done.table


@pytest.mark.slow
def test_an_arm_is_a_run_that_every_verb_knows(tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "hip_nano", "steps": 10, "batch_size": 16}
    done = shuffle("digits", seeds=2, out=tmp_path / "a", **options)
    assert {len(values) for arm in done.arms for values in arm.values.values()} == {2}
    run = tmp_path / "a" / "runs" / "fixed_seed1"
    spec = pv.load(run).config.inputs["image"]
    assert (spec.order, spec.order_seed) == ("fixed", 1)
    # Read as it was trained: evaluating again gives what the table holds.
    found = pv.evaluate(run, split="test").figures["top1"]
    assert found == done.arms[1].values["test"][1]
    again = shuffle("digits", seeds=1, out=tmp_path / "b", **options)
    for arm, repeated in zip(done.arms, again.arms, strict=True):
        assert {split: values[:1] for split, values in arm.values.items()} == repeated.values
