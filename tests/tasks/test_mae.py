"""The masked autoencoding loss against plain Python over single elements."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tests.models.conftest import build_model, draw_inputs
from torch import Tensor

import perceivers as pv
from perceivers.data import Batch
from perceivers.errors import ConfigError
from perceivers.masking import MaskKind, MaskPlan, draw_mask_plan, thin_masked
from perceivers.models import HiP
from perceivers.models.hip.objective import (
    GROUP_EPSILON,
    reconstruct_inputs,
    visible_elements,
)
from perceivers.models.masked import Target
from perceivers.tasks import MaskedAutoencoding, MaskedAutoencodingConfig, mae_losses
from perceivers.types import ModalitySpec

# 2 groups of 12 slots for "a" (one empty at the end of each piece) and 4 for "b".
SPECS: Mapping[str, ModalitySpec] = {
    "a": pv.Audio(21, mean=(0.3,), std=(2.0,)),
    "b": pv.Array((9, 5), 2, mean=(0.5, -1.0), std=(0.5, 3.0)),
}
TARGETS: tuple[Target, ...] = ("per-channel", "raw", "group-normalised")


def build(**settings: Any) -> HiP:
    """A small model of random weights whose losses are plain numbers."""
    return build_model(**settings).requires_grad_(False)


@pytest.fixture
def model() -> HiP:
    return build(inputs=SPECS)


@pytest.fixture
def inputs(rng: torch.Generator) -> dict[str, Tensor]:
    return draw_inputs(rng, SPECS)


def elements(share: Any) -> list[tuple[int, int, int]]:
    """(element, group, slot) of every real element of a share."""
    return [(i, i // share.size, i % share.size) for i in range(share.length)]


def is_scored(plan: MaskPlan, name: str, sample: int, group: int, slot: int) -> bool:
    """Look one slot up in either form of a plan."""
    source = plan.masked if plan.is_packed else plan.keep
    units = source[name][sample]
    row = units[group if len(units) > 1 else 0]
    return slot in row.tolist() if plan.is_packed else not row[slot]


@torch.no_grad()
def by_hand(
    model: HiP, inputs: Mapping[str, Tensor], plan: MaskPlan, target: Target
) -> dict[str, float]:
    """The loss of every modality, element by element."""
    encoded = model.encode(inputs, plan)
    predictions = model.reconstruct(encoded)  # every element, [B, N, C]
    losses = {}
    for share in model.layout().shares:
        spec = SPECS[share.name]
        raw = inputs[share.name]
        batch = len(raw)
        flat = raw.reshape(batch, spec.channels, -1).transpose(1, 2) if share.name == "a" else raw
        flat = flat.reshape(batch, -1, spec.channels)
        errors = []
        for b in range(batch):
            for i, group, slot in elements(share):
                if not is_scored(plan, share.name, b, group, slot):
                    continue
                total = 0.0
                for c in range(spec.channels):
                    mean, std = spec.mean[c], spec.std[c]
                    truth = (float(flat[b, i, c]) - mean) / std
                    if target == "group-normalised":
                        members = [
                            (float(flat[b, j, c]) - mean) / std
                            for j, g, _ in elements(share)
                            if g == group
                        ]
                        centre = sum(members) / len(members)
                        spread = sum((m - centre) ** 2 for m in members) / len(members)
                        truth = (truth - centre) / math.sqrt(spread + GROUP_EPSILON)
                    error = float(predictions[share.name][b, i, c]) - truth
                    if target == "raw":
                        error *= std
                    total += error**2
                errors.append(total / spec.channels)
        losses[share.name] = sum(errors) / len(errors)
    return losses


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["groupwise", "independent", "uniform", "groups"])
def test_the_loss_is_the_mean_over_hidden_real_elements(
    model: HiP, inputs: dict[str, Tensor], rng: torch.Generator, kind: Any, target: Target
) -> None:
    plan = draw_mask_plan(model.layout(), 2, ratio=0.6, kind=kind, generator=rng)
    losses = mae_losses(model, inputs, plan, target=target)
    wanted = by_hand(model, inputs, plan, target)
    for name, value in wanted.items():
        assert float(losses.parts[name]) == pytest.approx(value, rel=2e-6)
    assert float(losses.total) == pytest.approx(sum(wanted.values()), rel=2e-6)
    other = draw_mask_plan(model.layout(), 2, ratio=0.6, kind=kind, generator=rng)
    wrong = by_hand(model, inputs, other, target)
    assert any(float(losses.parts[n]) != pytest.approx(v, rel=1e-4) for n, v in wrong.items())


@pytest.mark.parametrize("target", TARGETS)
def test_packed_and_dense_plans_of_one_mask_give_one_loss(
    model: HiP, inputs: dict[str, Tensor], rng: torch.Generator, target: Target
) -> None:
    plan = draw_mask_plan(model.layout(), 2, ratio=0.7, generator=rng)
    packed = mae_losses(model, inputs, plan, target=target)
    dense = mae_losses(model, inputs, plan.to_dense(model.layout()), target=target)
    for name in SPECS:
        torch.testing.assert_close(packed.parts[name], dense.parts[name], rtol=1e-6, atol=0.0)
    other = draw_mask_plan(model.layout(), 2, ratio=0.7, generator=rng)
    assert not torch.allclose(mae_losses(model, inputs, other, target=target).total, packed.total)


def test_the_three_targets_are_three_losses(
    model: HiP, inputs: dict[str, Tensor], rng: torch.Generator
) -> None:
    plan = draw_mask_plan(model.layout(), 2, generator=rng)
    found = {float(mae_losses(model, inputs, plan, target=target).total) for target in TARGETS}
    assert len(found) == 3


def test_weights_weigh_modalities(
    model: HiP, inputs: dict[str, Tensor], rng: torch.Generator
) -> None:
    plan = draw_mask_plan(model.layout(), 2, generator=rng)
    losses = mae_losses(model, inputs, plan, weights={"b": 3.0})
    torch.testing.assert_close(losses.total, losses.parts["a"] + 3.0 * losses.parts["b"])
    none = mae_losses(model, inputs, plan, weights={"a": 0.0})
    torch.testing.assert_close(none.total, losses.parts["b"])
    with pytest.raises(ConfigError, match=r"unknown modality 'bb'; .*did you mean 'b'"):
        mae_losses(model, inputs, plan, weights={"bb": 1.0})
    with pytest.raises(ConfigError, match=r"unknown modality 'bb'"):
        MaskedAutoencoding(model, MaskedAutoencodingConfig(weights={"bb": 1.0}))


@pytest.mark.parametrize("kind", ["groupwise", "independent"])
def test_a_thinned_plan_scores_some_of_the_hidden_elements_and_shows_no_more(
    model: HiP, inputs: dict[str, Tensor], rng: torch.Generator, kind: Any
) -> None:
    plan = draw_mask_plan(model.layout(), 2, ratio=0.7, kind=kind, generator=rng)
    thin = thin_masked(plan, 0.4, generator=rng)
    for name in SPECS:
        assert thin.kept[name] is plan.kept[name]
        count = plan.masked[name].shape[-1]
        assert thin.masked[name].shape == (*plan.masked[name].shape[:-1], round(0.4 * count))
        pairs = zip(thin.masked[name].flatten(0, 1), plan.masked[name].flatten(0, 1), strict=True)
        for some, all_of_them in pairs:
            assert set(some.tolist()) < set(all_of_them.tolist())
    losses = mae_losses(model, inputs, thin)
    for name, value in by_hand(model, inputs, thin, "per-channel").items():
        assert float(losses.parts[name]) == pytest.approx(value, rel=2e-6)
    with pytest.raises(ConfigError, match="hide the same number of elements in every group"):
        thin_masked(plan.to_dense(model.layout()), 0.4)


def test_only_training_leaves_out_hidden_elements(
    model: HiP, inputs: dict[str, Tensor], rng: torch.Generator
) -> None:
    tasks = [
        MaskedAutoencoding(model, MaskedAutoencodingConfig(queried=queried))
        for queried in (1.0, 0.3)
    ]
    batch = Batch(inputs=inputs, labels=None, index=torch.arange(2), bad=[])
    assert tasks[0].evaluate([batch]) == tasks[1].evaluate([batch])
    drawn = [float(task.train()(batch, torch.Generator().manual_seed(1)).total) for task in tasks]
    assert drawn[0] != drawn[1]
    kinds: tuple[MaskKind, ...] = ("uniform", "groups")
    for kind in kinds:
        with pytest.raises(ConfigError, match=r"queried=0\.3 needs masks of kind groupwise"):
            MaskedAutoencoding(model, MaskedAutoencodingConfig(queried=0.3, kind=kind))


def test_hidden_elements_reach_the_loss_only_as_targets(
    model: HiP, inputs: dict[str, Tensor], rng: torch.Generator
) -> None:
    """The gradient with respect to a hidden input is that of its squared error alone."""
    plan = draw_mask_plan(model.layout(), 2, ratio=0.5, generator=rng)
    raw = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    predictions = model.reconstruct(model.encode(raw, plan), plan)
    sum(p.sum() for p in predictions.values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
    for name, value in raw.items():
        seen = visible_elements(model, plan, name).expand_as(value)
        assert value.grad is not None
        assert bool((value.grad[seen] != 0).any())
        assert bool((value.grad[~seen] == 0).all())


# -- labels at the bottleneck ----------------------------------------------------------------------

LABELLED: Mapping[str, ModalitySpec] = {**SPECS, "kind": pv.Labels(5)}


def test_bottleneck_labels_are_scored_by_cross_entropy(rng: torch.Generator) -> None:
    model = build(inputs=LABELLED, labels=("kind",))
    inputs = draw_inputs(rng, LABELLED, batch=4)
    inputs["kind"] = torch.tensor([[0], [4], [-1], [2]])  # the third is not known
    plan = draw_mask_plan(model.layout(), 4, generator=rng)
    losses = mae_losses(model, inputs, plan, weights={"a": 0.0, "b": 0.0})
    shown = {name: inputs[name] for name in SPECS}
    logits = model.reconstruct(model.encode(shown, plan), plan)["kind"]
    expected = 0.0
    for sample, label in ((0, 0), (1, 4), (3, 2)):
        scores = logits[sample, 0].tolist()
        expected -= math.log(math.exp(scores[label]) / sum(map(math.exp, scores))) / 3
    assert float(losses.parts["kind"]) == pytest.approx(expected, rel=1e-5)
    assert float(losses.total) == pytest.approx(expected, rel=1e-5)
    inputs["kind"] = torch.tensor([[1], [3], [-1], [0]])
    changed = mae_losses(model, inputs, plan)
    assert float(changed.parts["kind"]) != pytest.approx(expected, rel=1e-3)
    for name in SPECS:  # labels are never shown, so what they are changes nothing else
        assert torch.equal(changed.parts[name], losses.parts[name])


def test_the_task_takes_labels_from_the_batch(rng: torch.Generator) -> None:
    model = build(inputs=LABELLED, labels=("kind",))
    inputs = {name: draw_inputs(rng, SPECS, batch=3)[name] for name in SPECS}
    labels = torch.tensor([1, 2, 0])
    task = MaskedAutoencoding(model, MaskedAutoencodingConfig(ratio=0.5))
    batch = Batch(inputs, labels, torch.arange(3), [])
    found = task(batch, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    plan = draw_mask_plan(model.layout(), 3, ratio=0.5, generator=generator)
    wanted = mae_losses(model, {**inputs, "kind": labels}, plan)
    assert torch.equal(found.total, wanted.total)
    assert set(found.parts) == {"a", "b", "kind"}
    unlabelled = task(Batch(inputs, None, torch.arange(3), []), torch.Generator().manual_seed(3))
    assert set(unlabelled.parts) == {"a", "b"}
    other = task(batch, torch.Generator().manual_seed(4))
    assert not torch.equal(other.total, found.total)


def test_labels_as_a_grouped_input_are_scored_where_hidden(rng: torch.Generator) -> None:
    specs: Mapping[str, ModalitySpec] = {"text": pv.Labels(7, length=20)}
    model = build(inputs=specs)
    inputs = draw_inputs(rng, specs)
    plan = draw_mask_plan(model.layout(), 2, ratio=0.5, generator=rng)
    found = mae_losses(model, inputs, plan).parts["text"]
    logits = model.reconstruct(model.encode(inputs, plan))["text"]
    share = model.layout().shares[0]
    errors = []
    for b in range(2):
        for i, group, slot in elements(share):
            if is_scored(plan, "text", b, group, slot):
                scores = logits[b, i].tolist()
                label = int(inputs["text"][b, i])
                errors.append(-math.log(math.exp(scores[label]) / sum(map(math.exp, scores))))
    assert float(found) == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert float(found) != pytest.approx(sum(errors[1:]) / len(errors), rel=1e-5)


# -- evaluation and pictures -----------------------------------------------------------------------


def test_evaluation_draws_the_same_masks_every_time(model: HiP, rng: torch.Generator) -> None:
    task = MaskedAutoencoding(model, MaskedAutoencodingConfig())
    batches = [Batch(draw_inputs(rng, SPECS, batch=n), None, torch.arange(n), []) for n in (2, 1)]
    first, second = task.evaluate(batches), task.evaluate(batches)
    assert first == second
    assert set(first) == {"loss", "loss/a", "loss/b"}
    assert first["loss"] == pytest.approx(first["loss/a"] + first["loss/b"])
    assert task.evaluate(batches[:1]) != first


def test_an_evaluation_does_not_depend_on_how_samples_are_batched(
    model: HiP, rng: torch.Generator
) -> None:
    task = MaskedAutoencoding(model, MaskedAutoencodingConfig(weights={"a": 3.0}))
    inputs, index = draw_inputs(rng, SPECS, batch=4), torch.arange(4)
    whole = Batch(inputs, None, index, [], position=index)
    figures = task.evaluate([whole])
    assert figures["loss"] == pytest.approx(3.0 * figures["loss/a"] + figures["loss/b"])
    parts = whole.split(4)
    for batches in (parts, [whole.split(2)[0], *parts[2:]]):
        assert task.evaluate(batches) == pytest.approx(figures, rel=1e-6)
    assert task.evaluate(parts[:3]) != pytest.approx(figures, rel=1e-6)


def test_masked_autoencoding_needs_a_decoder() -> None:
    model = build(inputs=SPECS, decoder=False, head=pv.HiPHead(kind="mean", num_outputs=2))
    with pytest.raises(ConfigError, match=r"needs a model with decoder=True"):
        MaskedAutoencoding(model, MaskedAutoencodingConfig())


def test_group_normalised_pictures_get_their_scale_back(
    model: HiP, inputs: dict[str, Tensor], rng: torch.Generator
) -> None:
    """A model that predicts zero deviation imagines every element as the mean of its group."""
    with torch.no_grad():
        assert model.decoder is not None
        for linear in model.decoder.readout.unembed.values():
            for parameter in linear.parameters():
                parameter.zero_()
    plan = draw_mask_plan(model.layout(), 2, generator=rng)
    found = reconstruct_inputs(model, inputs, plan, "group-normalised")
    for share in model.layout().shares:
        name = share.name
        raw, made = (x.reshape(2, -1, SPECS[name].channels) for x in (inputs[name], found[name]))
        assert found[name].shape == inputs[name].shape
        for group in range(share.num_groups):
            members = [i for i, g, _ in elements(share) if g == group]
            wanted = raw[:, members].mean(1, keepdim=True).expand(-1, len(members), -1).float()
            torch.testing.assert_close(made[:, members].float(), wanted, rtol=1e-4, atol=1e-5)
    plain = reconstruct_inputs(model, inputs, plan, "per-channel")
    for name, spec in SPECS.items():
        means = plain[name].reshape(2, -1, spec.channels).float()
        torch.testing.assert_close(means, torch.tensor(spec.mean).expand_as(means))


def test_perfect_deviations_give_the_original_back(
    model: HiP, inputs: dict[str, Tensor], rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = draw_mask_plan(model.layout(), 2, generator=rng)

    def oracle(encoded: Any, plan: Any = None, **options: Any) -> dict[str, Tensor]:
        truths = {}
        for share in model.layout().shares:
            adapter = model.adapter(share.name)
            tokens = adapter.normalise(adapter.flatten(inputs[share.name]), torch.float64)
            truths[share.name] = torch.empty_like(tokens)
            for group in range(share.num_groups):
                members = [i for i, g, _ in elements(share) if g == group]
                part = tokens[:, members]
                spread = part.var(1, unbiased=False, keepdim=True) + GROUP_EPSILON
                truths[share.name][:, members] = (part - part.mean(1, keepdim=True)) / spread.sqrt()
        return truths

    monkeypatch.setattr(model, "reconstruct", oracle)
    found = reconstruct_inputs(model, inputs, plan, "group-normalised")
    for name in SPECS:
        torch.testing.assert_close(found[name], inputs[name], rtol=1e-4, atol=1e-5)
    wrong = reconstruct_inputs(model, inputs, plan, "per-channel")
    assert not torch.allclose(wrong["b"], inputs["b"], atol=0.1)
