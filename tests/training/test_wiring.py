"""What a step does with its gradients, and where the average goes; not through Adam."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import Settings
from torch import Tensor

import perceivers as pv
from perceivers.data import Batch
from perceivers.tasks import Classification, MaskedAutoencoding, MaskedAutoencodingConfig
from perceivers.training.loop import Trainer
from perceivers.training.state import load_state
from perceivers.training.window import FiniteGuard
from perceivers.workflows.training import train

Tensors = dict[str, Tensor]


class Seen:
    """What the steps of a run passed on."""

    def __init__(self) -> None:
        self.gradients: list[Tensors] = []
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.weights: list[Tensors] = []
        self.evaluated: list[Tensors] = []
        self.model: Any = None

    def norm(self, step: int = 0) -> float:
        """Of all gradients of a step together."""
        return (
            float(torch.stack([g.square().sum() for g in self.gradients[step].values()]).sum())
            ** 0.5
        )


def copy_of(model: Any) -> Tensors:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Look at gradients just before the optimizer's step, and at weights just after."""
    found = Seen()
    add, log, begin = FiniteGuard.add, Trainer._log, Trainer.__init__
    evaluate = Classification.evaluate

    def make(self: Trainer, task: Any, *rest: Any) -> None:
        found.__init__()
        found.model = task.model
        begin(self, task, *rest)

    def look(self: FiniteGuard, number: int, loss: Tensor, norm: Tensor, *rest: Any) -> bool:
        named = found.model.named_parameters()
        found.gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})
        found.losses.append(float(loss))
        found.norms.append(float(norm))
        return add(self, number, loss, norm, *rest)

    def after(self: Trainer, *rest: Any) -> None:
        found.weights.append(copy_of(self.task.model))
        log(self, *rest)

    def judge(self: Classification, batches: Any) -> dict[str, float]:
        found.evaluated.append(copy_of(self.model))
        return {**evaluate(self, batches), "top1": float(len(found.evaluated))}

    monkeypatch.setattr(Trainer, "__init__", make)
    monkeypatch.setattr(FiniteGuard, "add", look)
    monkeypatch.setattr(Trainer, "_log", after)
    monkeypatch.setattr(Classification, "evaluate", judge)
    monkeypatch.setattr("perceivers.workflows.run.write_run_report", lambda folder: folder.report)
    return found


def same(a: Tensors, b: Tensors, tolerance: float = 1e-4) -> bool:
    scale = max(float(x.abs().max()) for x in b.values())
    return a.keys() == b.keys() and all(
        torch.allclose(a[name], b[name], rtol=0.0, atol=tolerance * scale) for name in b
    )


@pytest.mark.parametrize("parts", [2, 4])
def test_gradients_of_parts_add_up_to_those_of_the_batch(
    settings: Settings, seen: Seen, parts: int
) -> None:
    options: dict[str, Any] = {"limit": 1, "optimizer": {"clip": 0.0}, "quiet": True}
    found = {}
    for accumulate, seed in ((1, 0), (parts, 0), (1, 1)):
        train(**settings(accumulate=accumulate, seed=seed, overwrite=True, **options))
        found[accumulate, seed] = (seen.gradients[0], seen.losses[0], seen.norm())
    whole, cut, other = found[1, 0], found[parts, 0], found[1, 1]
    assert same(cut[0], whole[0])
    assert cut[1:] == pytest.approx(whole[1:], rel=1e-5)
    # Neither a sum that is not scaled, nor one part alone, nor other samples would pass.
    assert not same({n: g * parts for n, g in cut[0].items()}, whole[0])
    assert not same(other[0], whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_clipped_to_the_norm_that_is_set(
    settings: Settings, seen: Seen, accumulate: int
) -> None:
    options: dict[str, Any] = {"limit": 1, "quiet": True, "accumulate": accumulate}
    train(**settings(optimizer={"clip": 0.0}, **options))
    free, norm = seen.gradients[0], seen.norm()
    assert seen.norms[0] == pytest.approx(norm, rel=1e-5)
    limit = norm / 8
    train(**settings(optimizer={"clip": limit}, overwrite=True, **options))
    assert seen.norm() == pytest.approx(limit, rel=1e-4)
    assert seen.norms[0] == pytest.approx(norm, rel=1e-5)  # what is told is the norm before
    assert same({n: g * 8 for n, g in seen.gradients[0].items()}, free)
    train(**settings(optimizer={"clip": norm * 8}, overwrite=True, **options))
    assert same(seen.gradients[0], free, 1e-6)


def test_the_default_is_to_clip_at_one(settings: Settings, seen: Seen) -> None:
    train(**settings(limit=1, loss={"label_smoothing": 0.0}, quiet=True))
    assert seen.norms[0] > 1.0
    assert seen.norm() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.slow
def test_the_average_is_what_is_evaluated_saved_and_resumed_from(
    settings: Settings, seen: Seen, tmp_path: Path
) -> None:
    optimizer = {"lr": 0.01}
    run = train(**settings(steps=4, eval_every=2, ema=0.75, optimizer=optimizer, quiet=True))
    assert len(seen.weights) == 4
    averages = [seen.weights[0]]
    for weights in seen.weights[1:]:
        averages.append({n: 0.75 * averages[-1][n] + 0.25 * w for n, w in weights.items()})
    raw, average = seen.weights[-1], averages[-1]
    assert not same(raw, average, 1e-3)
    assert [same(a, averages[step]) for a, step in zip(seen.evaluated, (1, 3), strict=True)] == [
        True,
        True,
    ]
    _, state = load_state(run.folder.checkpoint)
    assert same(state["average"], average)
    assert all(torch.equal(state["model"][name], raw[name]) for name in raw)
    for folder in ("last", "model"):
        saved = load_file(run.path / folder / "model.safetensors")
        assert same({name: saved[name] for name in raw}, average), folder


@pytest.mark.parametrize(
    ("name", "inputs", "ratio"),
    [
        ("hip_nano", {"image": pv.Image(32, 32, 3)}, 0.85),
        ("hiera_nano", {"image": pv.Image(64, 64, 3)}, 0.6),
        ("hiera_nano_video", {"video": pv.Video(16, 64, 64, 3)}, 0.9),
    ],
)
def test_the_papers_hide_as_much_where_nothing_is_set(
    name: str, inputs: dict[str, Any], ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pv.create_model(name, inputs=inputs, decoder=True)
    task = MaskedAutoencoding(model, MaskedAutoencodingConfig())
    assert task.settings.ratio == ratio
    (key,) = inputs
    shape = (2, *inputs[key].raw_shape)
    batch = Batch({key: torch.zeros(shape)}, None, torch.arange(2), [])
    plans = []
    score = task.objective.score
    monkeypatch.setattr(
        task.objective,
        "score",
        lambda inputs, plan, *rest, **more: (
            plans.append(plan),
            score(inputs, plan, *rest, **more),
        )[1],
    )
    task(batch, torch.Generator().manual_seed(0))
    hidden, shown = (each[key].shape[-1] for each in (plans[0].masked, plans[0].kept))
    # The number of slots is a whole one.
    assert hidden / (hidden + shown) == pytest.approx(ratio, abs=1 / (hidden + shown))
