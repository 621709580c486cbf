"""A HiP over what samples may lack: texts that are padded, clouds of different sizes.

Legend: B batch, L bytes, P points.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tests.models.conftest import build_model
from torch import Tensor

import perceivers as pv
from perceivers.errors import ConfigError
from perceivers.masking import MaskKind
from perceivers.models import HiPHead
from perceivers.models.hip.objective import ElementObjective
from perceivers.nn.chunking import use_chunks
from perceivers.types import FIRST_BYTE, MASK, PAD

SPECS = {
    "bytes": pv.Bytes(21),
    "points": pv.Points(20, 3, ragged=True),
    "audio": pv.Audio(11),
}
KINDS: tuple[MaskKind, ...] = ("groupwise", "independent", "groups", "uniform")
# Elements of the samples: some, all, none.
LENGTHS = {"bytes": (5, 21, 0), "points": (20, 7, 0)}


def draw(rng: torch.Generator, specs: Mapping[str, Any] = SPECS) -> dict[str, Tensor]:
    """Three samples; the last has neither bytes nor points."""
    inputs: dict[str, Tensor] = {}
    for name in specs:
        if name == "audio":
            inputs[name] = torch.randn(3, 1, 11, generator=rng, dtype=torch.float64)
            continue
        there = torch.arange(specs[name].num_tokens) < torch.tensor(LENGTHS[name]).unsqueeze(1)
        if name == "bytes":
            ids = torch.randint(FIRST_BYTE, 262, (3, 21), generator=rng)
            inputs[name] = torch.where(there, ids, PAD)
        else:
            cloud = torch.randn(3, 20, 3, generator=rng, dtype=torch.float64)
            inputs[name] = torch.where(there.unsqueeze(-1), cloud, torch.nan)
    return inputs


def spoil(model: Any, inputs: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
    """Put other values where nothing is: in rows that are no point, in the row of padding."""
    with torch.no_grad():
        model.encoder.inputs.embed["bytes"].weight[PAD] = 1e3
    cloud = inputs["points"].clone()
    absent = cloud.isnan().any(-1)
    cloud[absent] = 1e3 * torch.randn(int(absent.sum()), 3, generator=rng, dtype=torch.float64)
    cloud[..., 1][absent] = torch.nan
    return {**inputs, "points": cloud}


def gradients(model: Any) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask_padding": False},
        {"positions": "fourier", "num_bands": 2},
        {"head": HiPHead(kind="query", num_outputs=3), "decoder": False},
        {"grouping": "concatenate"},
    ],
    ids=str,
)
def test_what_is_not_there_changes_neither_outputs_nor_gradients(
    options: dict[str, Any], rng: torch.Generator
) -> None:
    if options.get("grouping") == "concatenate":
        options = {**options, "levels": build_model().config.levels[1:2]}
    model, inputs = build_model(inputs=SPECS, **options), draw(rng)

    def run(given: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        out = model(given)
        out = out if isinstance(out, dict) else {"logits": out}
        torch.stack([x.square().mean() for x in out.values()]).sum().backward()
        return {name: x.detach() for name, x in out.items()}, gradients(model)

    (made, slopes), (again, others) = run(inputs), run(spoil(model, inputs, rng))
    assert all(bool(x.isfinite().all()) for x in (*made.values(), *slopes.values()))
    assert same(made, again)
    assert same(slopes, others)
    assert not slopes["encoder.inputs.embed.bytes.weight"][PAD].any()
    assert slopes["encoder.inputs.embed.bytes.weight"].any()
    # What is there does change them.
    inputs["points"][0, 3] += 1.0
    assert not same(run(inputs)[0], made)


def test_a_sample_does_not_depend_on_how_much_others_hold(rng: torch.Generator) -> None:
    model, inputs = build_model(inputs=SPECS), draw(rng)
    together = model(inputs)
    for row in range(3):
        alone = model({name: x[row : row + 1] for name, x in inputs.items()})
        for name, whole in together.items():
            torch.testing.assert_close(alone[name][0], whole[row], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["per-channel", "raw", "group-normalised"])
def test_hidden_elements_are_scored_and_nothing_else(
    kind: MaskKind, target: Any, rng: torch.Generator
) -> None:
    model, inputs = build_model(inputs=SPECS), draw(rng)
    objective = ElementObjective(model)
    plan = pv.draw_mask_plan(model.layout(), 3, ratio=0.5, kind=kind, generator=rng)
    scored = objective.score(inputs, plan, target)
    keep = plan.to_dense(model.layout()).keep
    for share in model.layout().shares:
        each = scored[share.name]
        assert bool(each.errors.isfinite().all())
        hidden = ~keep[share.name].expand(-1, share.num_groups, -1)
        real = model.encoder.inputs.real(inputs[share.name], share, torch.device("cpu"))
        expected = (hidden & real).flatten(1).sum(1)
        weight = each.weight.expand_as(each.errors).flatten(1).sum(1)
        assert weight.tolist() == expected.tolist(), share.name

    def run(given: dict[str, Tensor]) -> dict[str, Tensor]:
        pv.mae_losses(model, given, plan, target=target).total.backward()
        return gradients(model)

    slopes = run(inputs)
    assert same(run(spoil(model, inputs, rng)), slopes)
    assert all(bool(x.isfinite().all()) for x in slopes.values())


def test_the_error_of_a_hidden_byte_is_its_cross_entropy(rng: torch.Generator) -> None:
    model = build_model(inputs={"bytes": SPECS["bytes"]})
    inputs = draw(rng, {"bytes": SPECS["bytes"]})
    plan = pv.draw_mask_plan(model.layout(), 3, ratio=0.5, kind="uniform", generator=rng)
    scored = ElementObjective(model).score(inputs, plan, "per-channel")["bytes"]
    scores = model.reconstruct(model.encode(inputs, plan))["bytes"]
    chances = scores.float().log_softmax(-1).gather(-1, inputs["bytes"].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(scored.errors, -chances)
    assert ElementObjective(model).targets == ("per-channel", "raw")


def test_imagined_texts_keep_their_padding_and_clouds_their_gaps(rng: torch.Generator) -> None:
    model, inputs = build_model(inputs=SPECS), draw(rng)
    plan = pv.draw_mask_plan(model.layout(), 3, ratio=0.5, generator=rng)
    made = ElementObjective(model).imagine(inputs, plan, "per-channel")
    text, cloud = made["bytes"], made["points"]
    assert torch.equal(text.reconstructed == PAD, inputs["bytes"] == PAD)
    assert bool(((text.reconstructed == PAD) | (text.reconstructed >= FIRST_BYTE)).all())
    assert text.visible.shape == text.original.shape
    assert torch.equal(cloud.reconstructed.isnan(), inputs["points"].isnan())
    assert cloud.visible.shape == (3, 20, 1)


def test_mask_ids_are_read(rng: torch.Generator) -> None:
    """Hiding bytes by their ids, as masked language modelling does, is no padding."""
    model, inputs = build_model(inputs={"bytes": SPECS["bytes"]}), draw(rng)
    text = inputs["bytes"][:1].clone()
    text[0, 2] = MASK
    gone = text.clone()
    gone[0, 2] = PAD
    assert not torch.allclose(model(text)["bytes"], model(gone)["bytes"])


@pytest.mark.parametrize("options", [{}, {"mask_padding": False}], ids=str)
def test_chunks_read_the_same(
    options: dict[str, Any], rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perceivers.models.hip.encoder.CHUNKED_FROM", 1)
    monkeypatch.setattr("perceivers.models.hip.encoder.CHUNK_SLOTS", 30)
    model, inputs = build_model(inputs=SPECS, **options), draw(rng)
    found = []
    for on in (True, False):
        with use_chunks(on=on):
            out = model(inputs)
            torch.stack([x.square().mean() for x in out.values()]).sum().backward()
            found.append((out, gradients(model)))
    for one, other in zip(*found, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["bytes", "points"])
def test_what_may_be_padded_is_no_bottleneck_label(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"labels \['{name}'\] .* may be padded"):
        build_model(inputs=SPECS, labels=(name,))


def test_rows_of_bytes_start_as_other_learned_arrays() -> None:
    deviations = {}
    for init in ("balanced", "paper"):
        options: dict[str, Any] = {"init": init, "embed_scale": 1.0}
        model = pv.create_model("hip_nano", inputs={"bytes": pv.Bytes(64)}, **options)
        deviations[init] = float(model.encoder.inputs.embed["bytes"].weight.std().detach())
    assert deviations["balanced"] == pytest.approx(0.5, rel=0.15)
    assert deviations["paper"] == pytest.approx(262**-0.5, rel=0.15)
