"""Mask plans: counts, what is shared, both forms equal in effect, error texts."""

from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from perceivers.errors import ConfigError
from perceivers.masking import (
    MaskPlan,
    count_kept,
    draw_mask_plan,
    draw_unit_plan,
    draw_units,
)
from perceivers.models import HiP, HiPConfig, HiPLevel
from perceivers.nn.grouping import GroupLayout, concatenate, deal_groups
from perceivers.types import Array, Audio, Image

TWO = {"a": 21, "b": 45}  # in 6 groups: 2 and 4 groups of 12 slots, unequal padding


def share_of(layout: GroupLayout, name: str) -> Any:
    return next(share for share in layout.shares if share.name == name)


def test_groupwise_hides_the_same_slots_in_all_groups_and_modalities(rng: torch.Generator) -> None:
    plan = draw_mask_plan(deal_groups(TWO, 6), 8, ratio=0.75, generator=rng)
    assert plan.is_packed
    assert plan.names == ["a", "b"]
    assert plan.kept["a"].shape == (8, 1, 3)
    assert plan.masked["a"].shape == (8, 1, 9)
    assert torch.equal(plan.kept["a"], plan.kept["b"])
    patterns = {tuple(row.flatten().tolist()) for row in plan.kept["a"]}
    assert len(patterns) > 4  # and differs between samples


def test_independent_draws_anew_for_every_group(rng: torch.Generator) -> None:
    plan = draw_mask_plan(deal_groups(TWO, 6), 4, kind="independent", ratio=0.75, generator=rng)
    assert plan.kept["a"].shape == (4, 2, 3)
    assert plan.kept["b"].shape == (4, 4, 3)
    patterns = {tuple(row.tolist()) for row in plan.kept["b"].flatten(0, 1)}
    assert len(patterns) > 8


@pytest.mark.parametrize("kind", ["groupwise", "independent"])
def test_kept_and_masked_are_sorted_and_share_out_the_slots(
    rng: torch.Generator, kind: Any
) -> None:
    plan = draw_mask_plan(deal_groups(TWO, 6), 4, kind=kind, generator=rng)
    for name in plan.names:
        both = torch.cat([plan.kept[name], plan.masked[name]], -1)
        assert torch.equal(both.sort(-1).values, torch.arange(12).expand_as(both))
        assert (plan.kept[name].diff(dim=-1) > 0).all()
        assert (plan.masked[name].diff(dim=-1) > 0).all()


def test_groups_hides_whole_groups_over_all_modalities(rng: torch.Generator) -> None:
    plan = draw_mask_plan(deal_groups(TWO, 6), 16, kind="groups", ratio=0.5, generator=rng)
    assert not plan.is_packed
    keep = torch.cat([plan.keep["a"], plan.keep["b"]], 1)  # [B, G, S]
    assert keep.shape == (16, 6, 12)
    assert (keep.all(-1) | ~keep.any(-1)).all()
    assert (keep[..., 0].sum(1) == 3).all()
    assert len({tuple(row.tolist()) for row in keep[..., 0]}) > 4
    per_modality = plan.keep["a"][..., 0].sum(1)
    assert len(per_modality.unique()) > 1  # drawn over all groups, not per modality


def test_uniform_hides_an_exact_count_of_real_elements(rng: torch.Generator) -> None:
    layout = deal_groups(TWO, 6)
    plan = draw_mask_plan(layout, 8, kind="uniform", ratio=0.6, generator=rng)
    for name, length in TWO.items():
        valid = share_of(layout, name).valid()
        assert ((plan.keep[name] & valid).sum((1, 2)) == round(0.4 * length)).all()
        assert not plan.keep[name][:, ~valid].any()
    per_group = plan.keep["b"].sum(-1)
    assert len(per_group.unique()) > 1  # without regard to groups


def test_on_one_concatenated_group_modalities_are_masked_apart(rng: torch.Generator) -> None:
    plan = draw_mask_plan(concatenate({"a": 20, "b": 20}), 8, ratio=0.75, generator=rng)
    assert plan.kept["a"].shape == plan.kept["b"].shape == (8, 1, 5)
    assert not torch.equal(plan.kept["a"], plan.kept["b"])


@pytest.mark.parametrize("kind", ["groupwise", "independent", "groups", "uniform"])
def test_the_generator_decides_the_plan(kind: Any) -> None:
    layout = deal_groups(TWO, 6)

    def draw(seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        plan = draw_mask_plan(layout, 4, kind=kind, ratio=0.5, generator=rng)
        return (plan.kept or plan.keep)["b"]

    before = torch.random.get_rng_state()
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(5)
    first = draw_mask_plan(layout, 4, kind=kind, ratio=0.5)
    torch.manual_seed(5)
    again = draw_mask_plan(layout, 4, kind=kind, ratio=0.5)
    assert torch.equal((first.kept or first.keep)["b"], (again.kept or again.keep)["b"])


@given(total=st.integers(2, 500), ratio=st.floats(0.001, 0.999))
def test_some_is_kept_and_some_is_masked(total: int, ratio: float) -> None:
    kept = count_kept(total, ratio)
    assert 1 <= kept <= total - 1
    assert abs(kept - (1 - ratio) * total) <= 1.0


def test_the_paper_s_rate_keeps_fifteen_percent() -> None:
    assert count_kept(3136, 0.85) == 470


def test_every_slot_is_kept_equally_often(rng: torch.Generator) -> None:
    plan = draw_mask_plan(deal_groups({"a": 20}, 2), 4000, ratio=0.7, generator=rng)
    counts = torch.zeros(10).index_add(0, plan.kept["a"].flatten(), torch.ones(4000 * 3))
    assert (counts / 4000 - 0.3).abs().max() < 0.03


def test_plans_move_between_devices_and_forms(rng: torch.Generator) -> None:
    layout = deal_groups(TWO, 6)
    plan = draw_mask_plan(layout, 4, ratio=0.75, generator=rng)
    assert plan.to("meta").kept["a"].device.type == "meta"
    dense = plan.to_dense(layout)
    assert not dense.is_packed
    assert dense.keep["a"].shape == (4, 1, 12)
    assert dense.keep["a"].sum(-1).unique().tolist() == [3]
    assert dense.keep["a"].gather(2, plan.kept["a"]).all()
    assert not dense.keep["a"].gather(2, plan.masked["a"]).any()
    assert dense.to_dense(layout) is dense


# -- mask units ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "ratio", "kept"),
    [(49, 0.6, 19), (392, 0.9, 39), (30, 0.9, 3), (2, 0.01, 1), (2, 0.99, 1), (100, 0.005, 99)],
)
def test_units_of_every_sample_are_kept_as_the_released_code_counts(
    rng: torch.Generator, total: int, ratio: float, kept: int
) -> None:
    """Rounded down, where 30 x (1 - 0.9) is 3; some are kept, and some are masked."""
    plan = draw_unit_plan("image", total, 3, ratio=ratio, generator=rng)
    assert (plan.axis, plan.is_packed, plan.names) == ("unit", True, ["image"])
    assert plan.kept["image"].shape == (3, kept)
    both = torch.cat([plan.kept["image"], plan.masked["image"]], 1)
    assert torch.equal(both.sort(1).values, torch.arange(total).expand(3, -1))
    for ids in (plan.kept["image"], plan.masked["image"]):
        assert (ids.diff(dim=1) > 0).all()


def test_samples_hide_units_of_their_own_equally_often(rng: torch.Generator) -> None:
    plan = draw_unit_plan("image", 12, 4000, ratio=0.75, generator=rng)
    assert len({tuple(row.tolist()) for row in plan.kept["image"][:50]}) > 30
    counts = plan.kept["image"].flatten().bincount(minlength=12)
    assert (counts / 4000 - 0.25).abs().max() < 0.03


def test_units_of_least_noise_are_kept() -> None:
    kept, masked = draw_units(torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4]]), 0.5)
    assert kept.tolist() == [[1, 3], [0, 1]]
    assert masked.tolist() == [[0, 2], [2, 3]]
    alone, none = draw_units(torch.zeros(2, 1), 0.5)  # a classifier keeps its only unit
    assert (alone.tolist(), none.shape) == ([[0], [0]], (2, 0))


def test_the_generator_decides_which_units_are_hidden() -> None:
    first, again, other = (
        draw_unit_plan("x", 49, 4, ratio=0.6, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.kept["x"], again.kept["x"])
    assert not torch.equal(first.kept["x"], other.kept["x"])
    torch.manual_seed(5)
    free = draw_unit_plan("x", 49, 4, ratio=0.6)
    torch.manual_seed(5)
    assert torch.equal(free.kept["x"], draw_unit_plan("x", 49, 4, ratio=0.6).kept["x"])


def test_a_plan_of_units_moves_but_has_no_dense_form() -> None:
    plan = draw_unit_plan("a", 6, 2, ratio=0.5)
    moved = plan.to("meta")
    assert (moved.kept["a"].device.type, moved.axis) == ("meta", "unit")
    with pytest.raises(ConfigError, match=r"a plan of mask units has no dense form"):
        plan.to_dense(deal_groups({"a": 6}, 1))


def test_units_that_cannot_be_hidden_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"one mask unit cannot be partly hidden; use larger"):
        draw_unit_plan("image", 1, 2, ratio=0.5)
    for ratio in (0.0, 1.0, 1.5):
        with pytest.raises(ConfigError, match=rf"mask ratio is {ratio}; it must lie strictly"):
            draw_unit_plan("image", 49, 2, ratio=ratio)
    with pytest.raises(ConfigError, match=r"mask kind 'units' is not for groups; use groupwise"):
        draw_mask_plan(deal_groups(TWO, 6), 2, kind="units")


# -- both forms through a model --------------------------------------------------------------


def build(*, mask_padding: bool = True, flat: bool = False) -> HiP:
    level = HiPLevel(num_groups=6, num_latents=4, latent_dim=8, depth=1, num_heads=2)
    middle = HiPLevel(num_groups=1, num_latents=6, latent_dim=16, depth=1, num_heads=2)
    config = HiPConfig(
        inputs={"a": Audio(21), "b": Array((9, 5), 2)},
        levels=(middle,) if flat else (level, middle, level),
        token_dim=8,
        position_dim=8,
        grouping="concatenate" if flat else "deal",
        mask_padding=mask_padding,
    )
    model = HiP(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def draw_inputs(rng: torch.Generator) -> dict[str, Tensor]:
    return {
        "a": torch.randn(2, 1, 21, generator=rng, dtype=torch.float64),
        "b": torch.randn(2, 9, 5, 2, generator=rng, dtype=torch.float64),
    }


@pytest.mark.parametrize("kind", ["groupwise", "independent"])
@pytest.mark.parametrize(("flat", "mask_padding"), [(False, True), (False, False), (True, True)])
def test_packed_and_dense_plans_have_the_same_effect(
    rng: torch.Generator, kind: Any, mask_padding: bool, flat: bool
) -> None:
    model, inputs = build(mask_padding=mask_padding, flat=flat), draw_inputs(rng)
    layout = model.layout()
    packed = draw_mask_plan(layout, 2, ratio=0.6, kind=kind, generator=rng)
    dense = packed.to_dense(layout)
    first, second = model.encode(inputs, packed), model.encode(inputs, dense)
    for ours, theirs in zip(first.levels, second.levels, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-9)
    some, whole = model.reconstruct(first, packed), model.reconstruct(second, dense)
    for share in layout.shares:
        ids = packed.masked[share.name].expand(-1, share.num_groups, -1)
        slots = share.split(whole[share.name])  # [B, g, S, C]
        picked = slots.gather(2, ids.unsqueeze(-1).expand(-1, -1, -1, slots.shape[-1]))
        real = share.valid().expand(2, -1, -1).gather(2, ids)
        torch.testing.assert_close(some[share.name][real], picked[real], rtol=0.0, atol=1e-9)
    everything = model.encode(inputs)
    assert not torch.allclose(everything.processor, first.processor)


def test_keeping_everything_is_no_mask(rng: torch.Generator) -> None:
    model, inputs = build(), draw_inputs(rng)
    keep = {s.name: torch.ones(1, 1, s.slots, dtype=torch.bool) for s in model.layout().shares}
    everything = model.encode(inputs)
    plan = MaskPlan(keep=keep)
    torch.testing.assert_close(
        model.encode(inputs, plan).processor, everything.processor, rtol=0.0, atol=1e-12
    )
    keep["a"][..., :2] = False
    assert not torch.allclose(model.encode(inputs, plan).processor, everything.processor)


def test_every_kind_gives_another_encoding(rng: torch.Generator) -> None:
    model, inputs = build(), draw_inputs(rng)
    kinds: list[Any] = ["groupwise", "independent", "groups", "uniform"]
    made = [
        model.encode(inputs, draw_mask_plan(model.layout(), 2, kind=k, generator=rng)).processor
        for k in kinds
    ]
    for first, second in combinations(made, 2):
        assert not torch.allclose(first, second)


# -- error texts -----------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5])
def test_a_ratio_outside_the_open_interval_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match=rf"mask ratio is {ratio}; it must lie strictly between"):
        draw_mask_plan(deal_groups(TWO, 6), 2, ratio=ratio)


def test_a_group_of_one_element_cannot_be_masked() -> None:
    with pytest.raises(ConfigError, match=r"a group of 1 element cannot be partly masked"):
        draw_mask_plan(deal_groups({"a": 4}, 4), 2)


def test_a_single_group_cannot_be_hidden_whole() -> None:
    with pytest.raises(ConfigError, match=r"mask kind 'groups' needs at least two groups"):
        draw_mask_plan(concatenate({"a": 4, "b": 5}), 2, kind="groups")


def test_a_plan_has_one_form() -> None:
    ids, keep = torch.zeros(1, 1, 1, dtype=torch.int64), torch.ones(1, 1, 1, dtype=torch.bool)
    with pytest.raises(ConfigError, match=r"got kept=\[\], masked=\[\], keep=\[\]"):
        MaskPlan()
    with pytest.raises(ConfigError, match=r"got kept=\['a'\], masked=\['a'\], keep=\['a'\]"):
        MaskPlan(kept={"a": ids}, masked={"a": ids}, keep={"a": keep})
    with pytest.raises(ConfigError, match=r"got kept=\['a'\], masked=\['b'\], keep=\[\]"):
        MaskPlan(kept={"a": ids}, masked={"b": ids})


@pytest.mark.unhooked
def test_an_unknown_kind_is_refused() -> None:
    kind: Any = "block"
    with pytest.raises(ConfigError, match=r"mask kind 'block' is not for groups; use groupwise"):
        draw_mask_plan(deal_groups({"a": 8}, 2), 2, kind=kind)


def test_images_of_the_paper_share_one_pattern_per_strip(rng: torch.Generator) -> None:
    """HiP-16 at 224 pixels: the visible pixels repeat every 14 rows (HiP Fig. 3)."""
    layout = deal_groups({"image": Image(224, 224).num_tokens}, 16)
    plan = draw_mask_plan(layout, 1, generator=rng).to_dense(layout)
    rows = layout.shares[0].merge(plan.keep["image"].expand(-1, 16, -1).unsqueeze(-1))
    picture = rows.reshape(224, 224)
    assert torch.equal(picture[:14], picture[14:28])
    assert not torch.equal(picture[:14], picture[7:21])
