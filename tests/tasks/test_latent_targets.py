"""Latent targets: a decoder learns what a teacher's encoder makes of the whole input."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.conftest import move_weights
from tests.workflows.making import quietly
from torch import Tensor

import perceivers as pv
from perceivers.data import Batch
from perceivers.errors import ConfigError
from perceivers.masking import draw_mask_plan, draw_unit_plan
from perceivers.models.masked import LATENTS
from perceivers.models.registry import FAMILIES
from perceivers.tasks import MaskedAutoencoding, MaskedAutoencodingConfig, mae_losses
from perceivers.tasks.mae import objective_of, sum_losses
from perceivers.training.loop import Interrupted, Trainer

IMAGE = pv.Image(16, 16, 1)


def make(name: str, *, latent: bool = True) -> Any:
    options: dict[str, Any] = {}
    if name.startswith("mae_hiera"):
        options = {"dim": 16, "depths": (1, 1), "mask_unit": (2, 2), "decoder": {"dim": 16}}
    model = pv.create_model(name, inputs={"image": IMAGE}, **options)
    if latent:
        family = FAMILIES[model.family]
        assert family.with_latent_head is not None
        model = family.module(family.with_latent_head(model.config))
    return move_weights(model)


def draw_plan(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    if model.family == "hip":
        return draw_mask_plan(model.layout(), 2, ratio=0.5, kind="groupwise", generator=generator)
    return draw_unit_plan("image", model.num_units(), 2, ratio=0.5, generator=generator)


NAMES = ["hip_nano", "mae_hiera_pico"]


@pytest.fixture
def inputs(rng: torch.Generator) -> dict[str, Tensor]:
    return {"image": torch.rand(2, 1, 16, 16, generator=rng, dtype=torch.float64)}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_learns_its_teachers_latents(inputs: dict[str, Tensor], name: str) -> None:
    model, plan = make(name).requires_grad_(True), draw_plan(make(name))
    objective, target = objective_of(model), MaskedAutoencodingConfig().settings(model).target
    taught = objective_of(make(name, latent=False)).teach(inputs)
    assert not any(each.requires_grad for each in taught)
    assert [each.shape[-1] for each in taught] == [each[-1] for each in objective.latent_shapes]
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    history = []
    for _ in range(25):
        scored = objective.score(inputs, plan, target, taught=taught)
        losses = sum_losses(scored, {LATENTS: 1.0})
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append(float(losses.parts[LATENTS].detach()))
    assert history[-1] < 0.7 * history[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_latent_head_changes_no_reconstruction(inputs: dict[str, Tensor], name: str) -> None:
    model, plan = make(name), draw_plan(make(name))
    plain = make(name, latent=False)
    state = {k: v for k, v in model.state_dict().items() if k in plain.state_dict()}
    assert len(state) < len(model.state_dict())
    plain.load_state_dict(state)
    expected = mae_losses(plain, inputs, plan).total
    torch.testing.assert_close(mae_losses(model, inputs, plan).total, expected)
    # Data-parallel training waits for the gradient of every parameter.
    mae_losses(model.requires_grad_(True), inputs, plan).total.backward()
    heads = [p for n, p in model.named_parameters() if "latent_head" in n]
    assert heads
    assert all(p.grad is not None and not p.grad.any() for p in heads)


def test_the_latents_of_hidden_elements_do_not_reach_the_model(inputs: dict[str, Tensor]) -> None:
    model, plan = make("hip_nano"), draw_plan(make("hip_nano"))
    objective = objective_of(model)
    taught = objective.teach(inputs)
    keep = plan.to_dense(model.layout()).keep["image"].expand(-1, 4, -1).reshape(2, 1, 16, 16)
    other = {"image": torch.where(keep, inputs["image"], 0.5)}
    scores = [
        objective.score(each, plan, "raw", taught=taught)[LATENTS].errors
        for each in (inputs, other)
    ]
    torch.testing.assert_close(*scores)
    assert not torch.allclose(taught[0], objective.teach(other)[0])


def short(model: str, out: Path, **settings: Any) -> pv.Run:
    return quietly(pv.pretrain, model=model, data="digits", out=out, **settings)


@pytest.mark.slow
def test_a_trained_model_teaches_and_the_average_goes_on(tmp_path: Path) -> None:
    teacher = short("hip_nano", tmp_path / "teacher")
    before = (teacher.folder.best_model / "model.safetensors").read_bytes()
    mask = {"target": "latent", "teacher": str(teacher.path)}
    student = short("hip_nano", tmp_path / "student", mask=mask, steps=4)
    assert (teacher.folder.best_model / "model.safetensors").read_bytes() == before
    records = [json.loads(line) for line in student.folder.metrics.read_text().splitlines()]
    last = [each for each in records if each.get("split") == "val"][-1]
    assert last[f"loss/{LATENTS}"] > 0
    assert last["loss"] == pytest.approx(last["loss/image"])
    # What is saved reconstructs, needs no teacher, and is evaluated by its reconstruction.
    assert set(student.evaluate()) >= {"loss"}
    again = short(str(student.path), tmp_path / "again", mask={"target": "latent"}, ema=0.9)
    assert again.evaluate()["loss"] > 0


@pytest.mark.slow
def test_a_run_taught_by_its_average_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"mask": {"target": "latent"}, "ema": 0.9, "steps": 6}
    settings |= {"model_options": {"dropout_rate": 0.2}}
    whole = short("hip_nano", tmp_path / "whole", **settings)
    original = Trainer._log

    def stop(self: Trainer, *args: Any) -> None:
        original(self, *args)
        if self.progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_log", stop)
        with pytest.raises(Interrupted):
            short("hip_nano", tmp_path / "cut", **settings)
    cut = pv.resume(str(tmp_path / "cut"), quiet=True)
    other = short("hip_nano", tmp_path / "other", **{**settings, "seed": 1})
    for name in ("model", "last"):
        first, same, control = (
            (run.path / name / "model.safetensors").read_bytes() for run in (whole, cut, other)
        )
        assert first == same
        assert first != control


def test_averaged_weights_teach_before_the_model_runs_with_its_own() -> None:
    task = MaskedAutoencoding(make("hip_nano"), MaskedAutoencodingConfig(target="latent"))
    inputs = {"image": torch.rand(2, 1, 16, 16, dtype=torch.float64)}
    batch = Batch(inputs, None, torch.arange(2), [])
    task.train()
    plain, same = (task(batch, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(plain.parts[LATENTS], same.parts[LATENTS])

    class Swapped:
        """Other weights while it is entered."""

        def __enter__(self) -> None:
            self.state = {k: v.clone() for k, v in task.model.state_dict().items()}
            for parameter in task.model.parameters():
                parameter.data.mul_(0.5)

        def __exit__(self, *_: object) -> None:
            task.model.load_state_dict(self.state)

    task.averaged = Swapped  # pyright: ignore[reportAttributeAccessIssue]
    losses = task(batch, torch.Generator().manual_seed(0))
    losses.total.backward()
    assert not torch.equal(plain.parts[LATENTS], losses.parts[LATENTS])
    assert task.model.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": {"target": "latent"}}, r"needs a teacher: give mask\.teacher, .* or ema"),
        (
            {"mask": {"target": "latent"}, "ema": 0.9, "strategy": "fsdp"},
            r"averaged weights cannot teach with strategy fsdp",
        ),
        ({"mask": {"teacher": "runs/a"}}, r"mask\.teacher='runs/a' has no effect"),
    ],
)
def test_settings_that_nobody_can_follow_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        short("hip_nano", tmp_path / "run", **settings)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (make("hip_nano"), make("mae_hiera_pico"), r"mask\.teacher is a hiera model of"),
        (
            make("hip_nano"),
            pv.create_model("hip_tiny", inputs={"image": IMAGE}),
            r"latents of mask\.teacher have shapes .* use a teacher of the same variant",
        ),
        (make("hip_nano", latent=False), None, r"has no latent_head; start from a variant name"),
    ],
    ids=["family", "variant", "head"],
)
def test_models_that_do_not_fit_are_refused(student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MaskedAutoencoding(student, MaskedAutoencodingConfig(target="latent"), teacher)
