"""Hiera's masked autoencoder: patches, what is predicted, and the released loss."""

from typing import Any

import pytest
import torch
from tests.models.hiera_making import (
    CLASSES,
    DECODER,
    EXACT,
    KINDS,
    build_hiera,
    draw_one,
    draw_plan,
)
from torch import Tensor
from torch.nn import functional as F

from perceivers.errors import ConfigError, InputError
from perceivers.masking import MaskPlan
from perceivers.models import Hiera, HieraDecoder, create_model
from perceivers.models.hiera.decoder import StageFusion
from perceivers.nn.mask_units import UnitLayout, gather_units
from perceivers.tasks import mae_losses

LAST = HieraDecoder(dim=12, depth=2, num_heads=3, order="channels_last")
WHOLE = HieraDecoder(dim=12, depth=2, num_heads=3, order="channels_last", all_frames=True)
MADE = [
    (kind, decoder)
    for kind in KINDS
    for decoder in (DECODER, LAST, WHOLE)
    if kind == "clip" or decoder is not WHOLE
]


def build(kind: str = "picture", decoder: HieraDecoder = DECODER, **settings: Any) -> Hiera:
    return build_hiera(kind, decoder=decoder, **settings)


# -- patches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["channels_first", "channels_last"])
def test_a_patch_holds_its_pixels_in_the_released_order(rng: torch.Generator, order: Any) -> None:
    """Pooled once only, a unit of 8 x 8 pixels has 2 x 2 patches of 4 x 4."""
    model = build(decoder=HieraDecoder(dim=12, depth=1, num_heads=3, order=order))
    assert model.config.patch == (4, 4)
    x = draw_one(model, rng)
    columns = F.unfold(model._normalise(x, None), 4, stride=4)  # [B, (c py px), L], row-major
    if order == "channels_last":
        columns = columns.unflatten(1, (2, 16)).transpose(1, 2).flatten(1, 2)
    grid = columns.transpose(1, 2).reshape(2, 4, 6, 32)
    patches = model.patches(x)
    assert patches.shape == (2, 6, 4, 32)
    for unit in range(6):
        row, column = 2 * (unit // 3), 2 * (unit % 3)
        wanted = grid[:, row : row + 2, column : column + 2].flatten(1, 2)
        torch.testing.assert_close(patches[:, unit], wanted, **EXACT)


@pytest.mark.parametrize(("kind", "decoder"), MADE)
def test_unpatch_undoes_patches(rng: torch.Generator, kind: str, decoder: HieraDecoder) -> None:
    model = build(kind, decoder)
    x = draw_one(model, rng)
    units = model.encode({model.config.name: x}).units
    found, wanted = model.unpatch(model.patches(x), units), model._normalise(x, None)
    if kind == "clip" and not decoder.all_frames:
        wanted = wanted[:, :, ::2]  # the first frame of every patch
    assert torch.equal(found, wanted)
    assert model.patches(x).shape[-1] == model.config.target_dim


def test_patches_of_some_units_are_some_of_the_patches(rng: torch.Generator) -> None:
    model = build("clip", WHOLE)
    x, masked = draw_one(model, rng), draw_plan(model, rng).masked["video"]
    wanted = gather_units(model.patches(x), masked)
    assert torch.equal(model.patches(x, masked), wanted)
    assert not torch.equal(wanted, model.patches(x)[:, : masked.shape[1]])


def test_released_sizes_of_predictions() -> None:
    """196 patches of 16 x 16 x 3 for pictures; 8 x 196 of one frame each for clips."""
    with torch.device("meta"):
        picture, clip = create_model("mae_hiera_tiny_224"), create_model("mae_hiera_base_16x224")
    assert (picture.config.patch, picture.config.target_dim) == ((16, 16), 768)
    assert (clip.config.patch, clip.config.target_patch) == ((2, 16, 16), (1, 16, 16))
    assert clip.config.target_dim == 768
    assert tuple(picture.decoder.positions.shape) == (196, 512)
    assert tuple(clip.decoder.positions.shape) == (1568, 512)
    assert (picture.num_units(), clip.num_units()) == (49, 392)
    assert (picture.config.decoder.order, clip.config.decoder.order) == (
        "channels_first",
        "channels_last",
    )


# -- predictions -----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "decoder"), MADE)
def test_masked_units_are_predicted_and_nothing_else_is_computed(
    rng: torch.Generator, kind: str, decoder: HieraDecoder
) -> None:
    model = build(kind, decoder)
    plan, x = draw_plan(model, rng), {model.config.name: draw_one(model, rng)}
    name, tokens = model.config.name, model.config.layout.tokens(model.config.pools)
    encoded = model.encode(x, plan)
    kept, masked = plan.kept[name].shape[1], plan.masked[name].shape[1]
    assert [stage.shape[1] for stage in encoded.stages] == [kept] * 3
    found = model.reconstruct(encoded, plan)
    assert found.shape == (2, masked, tokens, model.config.target_dim)
    everything = model.reconstruct(encoded)
    assert everything.shape == (2, model.num_units(), tokens, model.config.target_dim)
    torch.testing.assert_close(found, gather_units(everything, plan.masked[name]), **EXACT)


def test_predictions_of_hidden_units_come_from_the_shown_ones(rng: torch.Generator) -> None:
    model = build()
    plan, x = draw_plan(model, rng), draw_one(model, rng)
    found = model.reconstruct(model.encode({"image": x}, plan), plan)
    other = x.clone()
    first = int(plan.kept["image"][0, 0])
    other[0, :, 8 * (first // 3) + 3, 8 * (first % 3) + 3] += 1.0
    moved = model.reconstruct(model.encode({"image": other}, plan), plan)
    assert bool((moved[0] != found[0]).flatten(1).any(1).all())  # every hidden unit of the sample
    torch.testing.assert_close(moved[1], found[1], **EXACT)
    # Hidden units start alike but for their place.
    assert not torch.allclose(found[0, 0], found[0, 1])
    assert model.decoder is not None
    torch.nn.init.zeros_(model.decoder.positions)
    alike = model.reconstruct(model.encode({"image": x}, plan), plan)
    torch.testing.assert_close(alike[0, 0], alike[0, 1], **EXACT)


def test_the_stages_are_fused_as_convolutions_fuse_them(rng: torch.Generator) -> None:
    """A kernel that is its stride joins a unit's 4 x 4 or 2 x 2 tokens; the last stage is added."""
    config = build(depths=(1, 1, 1, 1), mask_unit=(8, 8), pad=True).config
    fusion = StageFusion(config).double()
    stages = [
        torch.randn(2, 3, config.layout.tokens(min(n, 2)), 8 * 2**n, generator=rng).double()
        for n in range(4)
    ]
    wanted: Tensor = config.layout.merge_inside(stages[3], 2)
    for stage, merge in enumerate(fusion.merges):
        side = 2 ** (2 - stage)
        kernel = torch.randn(64, 8 * 2**stage, side, side, generator=rng).double()
        order = UnitLayout(unit=(side, side), pool=(2, 2), levels=2 - stage)
        assert isinstance(merge, torch.nn.Linear)
        merge.weight.data = order.split(kernel.movedim(1, -1)).flatten(1)
        squares = config.layout.merge_inside(stages[stage], stage).flatten(0, 1).movedim(-1, 1)
        fused = F.conv2d(squares, kernel, merge.bias, stride=side).movedim(1, -1)
        wanted = wanted + fused.unflatten(0, (2, 3))
    assert len(fusion.merges) == 2  # the third stage is at the last one's resolution
    found = config.layout.merge_inside(fusion(stages), 2)
    torch.testing.assert_close(found, wanted, **EXACT)


def test_the_decoder_s_positions_are_stretched_at_other_sizes(rng: torch.Generator) -> None:
    model = build()
    x = draw_one(model, rng, (24, 8))
    assert model(x)["image"].shape == (2, 2, 24, 8)
    assert model.decoder is not None
    table = model.decoder.positions.T.reshape(1, 12, 4, 6)
    wanted = F.interpolate(table, size=(6, 2), mode="bicubic")[0].movedim(0, -1)
    found = model.config.layout.merge(model.decoder._positions((3, 1)), (3, 1), 1)
    torch.testing.assert_close(found[0], wanted, **EXACT)


# -- the loss --------------------------------------------------------------------------------


def boolean_loss(model: Hiera, x: Tensor, plan: MaskPlan) -> Tensor:
    """The released formulation: boolean indices on the grid, patches by unfolding."""
    config = model.config
    hidden = torch.zeros(len(x), model.num_units(), dtype=torch.bool)
    hidden = hidden.scatter(1, plan.masked["image"], True).reshape(-1, 2, 3)
    hidden = hidden.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)  # [B, L]
    labels = F.unfold(model._normalise(x, None), 4, stride=4).transpose(1, 2)[hidden]
    mean, variance = labels.mean(-1, keepdim=True), labels.var(-1, keepdim=True)
    labels = (labels - mean) / (variance + 1e-6).sqrt()
    encoded = model.encode({"image": x}, plan)
    grid = config.layout.merge(model.reconstruct(encoded), encoded.units, config.pools)
    return (grid.flatten(1, 2)[hidden] - labels).square().mean()


def test_the_loss_is_the_released_one(rng: torch.Generator) -> None:
    """With the unbiased variance; the biased one would make the loss another."""
    model = build()
    plan, x = draw_plan(model, rng, 0.6), draw_one(model, rng)
    losses = mae_losses(model, {"image": x}, plan)
    wanted = boolean_loss(model, x, plan).float()
    torch.testing.assert_close(losses.total, wanted, rtol=1e-6, atol=0.0)
    truth = model.patches(x, plan.masked["image"])
    found = model.reconstruct(model.encode({"image": x}, plan), plan)
    mean, variance = truth.mean(-1, keepdim=True), truth.var(-1, keepdim=True, unbiased=False)
    biased = (found - (truth - mean) / (variance + 1e-6).sqrt()).square().mean()
    assert abs(biased.item() / losses.total.item() - 1) > 1e-3
    everything = mae_losses(model, {"image": x}, draw_plan(model, rng, 0.9))
    assert not torch.allclose(everything.total, losses.total)


@pytest.mark.parametrize(("kind", "decoder"), MADE)
def test_the_loss_reaches_every_parameter(
    rng: torch.Generator, kind: str, decoder: HieraDecoder
) -> None:
    model = build(kind, decoder)
    x = {model.config.name: draw_one(model, rng)}
    mae_losses(model, x, draw_plan(model, rng)).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name


# -- whole passes ----------------------------------------------------------------------------


def test_calling_an_autoencoder_reconstructs_its_input_s_layout(rng: torch.Generator) -> None:
    model = build()
    x = draw_one(model, rng)
    found = model(x)
    encoded = model.encode({"image": x})
    wanted = model.unpatch(model.reconstruct(encoded), encoded.units)
    assert list(found) == ["image"]
    torch.testing.assert_close(found["image"], wanted, **EXACT)
    assert found["image"].shape == x.shape
    assert build("clip")(draw_one(build("clip"), rng))["video"].shape == (2, 2, 2, 16, 24)
    assert build("clip", WHOLE)(draw_one(build("clip"), rng))["video"].shape == (2, 2, 4, 16, 24)


@pytest.mark.parametrize(
    ("kind", "decoder", "size", "made"),
    [
        ("picture", DECODER, (13, 17), (13, 17)),
        ("clip", LAST, (3, 10, 8), (2, 10, 8)),  # the first frames of two patches
        ("clip", WHOLE, (3, 10, 8), (3, 10, 8)),
    ],
)
def test_padding_is_cut_off_reconstructions(
    rng: torch.Generator, kind: str, decoder: HieraDecoder, size: Any, made: Any
) -> None:
    model = build(kind, decoder)
    x, name = draw_one(model, rng, size), model.config.name
    with pytest.raises(InputError, match=r"is not made of whole mask units"):
        model(x)
    found = model(x, pad=True)[name]
    assert found.shape == (2, 2, *made)
    encoded = model.encode({name: x}, pad=True)
    whole = model.unpatch(model.reconstruct(encoded), encoded.units)
    torch.testing.assert_close(found, whole[(..., *(slice(n) for n in made))], **EXACT)
    assert model.patches(x, pad=True).shape[1] == model.num_units(size)


# -- what is refused -------------------------------------------------------------------------


def test_plans_for_other_batches_and_sizes_are_refused(rng: torch.Generator) -> None:
    model = build()
    x, plan = {"image": draw_one(model, rng)}, draw_plan(model, rng)
    encoded = model.encode(x, plan)
    small = {"image": draw_one(model, rng, (8, 24))}
    with pytest.raises(InputError, match=r"keeps \(2, 3\) and hides \(2, 3\) .* 2 with 3 units"):
        model.encode(small, plan)
    with pytest.raises(InputError, match=r"keeps \(3, 3\) .* but the input is a batch of 2 with 6"):
        model.encode(x, draw_plan(model, rng, batch=3))
    with pytest.raises(InputError, match=r"keeps \(3, 3\) and hides \(3, 3\) units"):
        model.reconstruct(encoded, draw_plan(model, rng, batch=3))


def test_plans_of_groups_and_of_other_modalities_are_refused(rng: torch.Generator) -> None:
    model = build()
    x, ids = {"image": draw_one(model, rng)}, torch.zeros(2, 1, 3, dtype=torch.int64)
    other = MaskPlan(kept={"video": ids[:, 0]}, masked={"video": ids[:, 0]}, axis="unit")
    dense = MaskPlan(keep={"image": torch.ones(2, 1, 6, dtype=torch.bool)})
    for plan in (MaskPlan(kept={"image": ids}, masked={"image": ids}), dense, other):
        with pytest.raises(ConfigError, match=r"hides whole mask units of 'image'; draw its plan"):
            model.encode(x, plan)


def test_a_model_without_decoder_does_not_reconstruct(rng: torch.Generator) -> None:
    model = build_hiera(head=CLASSES)
    encoded = model.encode({"image": draw_one(model, rng)}, draw_plan(model, rng))
    assert encoded.kept is not None
    with pytest.raises(ConfigError, match=r"this model has no decoder; build it with decoder=True"):
        model.reconstruct(encoded)
