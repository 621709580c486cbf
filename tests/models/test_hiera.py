"""Hiera as a classifier and a backbone: logits, pyramids, sizes, padding, kinds of input."""

from typing import Any

import pytest
import torch
from tests.models.hiera_making import CLASSES, CLIP, EXACT, KINDS, build_hiera, draw_one
from torch.nn import functional as F

from perceivers.errors import ConfigError, InputError
from perceivers.models import Hiera, create_model
from perceivers.models.hiera import HieraHead
from perceivers.types import Array, Audio, Image, Video

# -- logits ----------------------------------------------------------------------------------


def test_logits_are_the_same_in_training_and_evaluation_and_no_probabilities(
    rng: torch.Generator,
) -> None:
    model = build_hiera(head=CLASSES)
    x = draw_one(model, rng, batch=4)
    logits = model.eval()(x)
    assert logits.shape == (4, 5)
    torch.testing.assert_close(model.train()(x), logits, **EXACT)
    assert bool((logits < 0).any())
    assert not torch.allclose(logits.sum(1), torch.ones(4, dtype=torch.float64))


def test_logits_are_read_from_the_normalised_mean_token(rng: torch.Generator) -> None:
    model = build_hiera(head=CLASSES)
    x = draw_one(model, rng)
    last: Any = model.forward_features(x).maps[-1]
    mean = F.layer_norm(last.mean((2, 3)), (32,), model.norm.weight, model.norm.bias, 1e-6)  # pyright: ignore
    head: Any = model.head
    torch.testing.assert_close(model(x), head(mean), **EXACT)
    bare = build_hiera()
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if "head" not in k})
    torch.testing.assert_close(bare(x), mean, **EXACT)


def test_dropout_acts_in_training_alone(rng: torch.Generator) -> None:
    model = build_hiera(head=HieraHead(kind="mean", num_outputs=5), dropout_rate=0.5)
    x = draw_one(model, rng)
    torch.testing.assert_close(model(x), model(x), **EXACT)
    assert not torch.allclose(model.train()(x), model.train()(x))


def test_samples_of_a_batch_are_answered_alone(rng: torch.Generator) -> None:
    model = build_hiera(head=CLASSES)
    x = draw_one(model, rng, batch=3)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), **EXACT)
    assert not torch.allclose(model(x)[:1], model(x)[1:2])


# -- pyramid ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "batch", "grids"),
    [
        ("hiera_tiny_224", (2, 3, 224, 224), [(56, 56), (28, 28), (14, 14), (7, 7)]),
        ("hiera_tiny_224", (2, 3, 64, 320), [(16, 80), (8, 40), (4, 20), (2, 10)]),
        (
            "hiera_base_16x224",
            (2, 3, 16, 224, 224),
            [(8, 56, 56), (8, 28, 28), (8, 14, 14), (8, 7, 7)],
        ),
        ("mae_hiera_tiny_224", (2, 3, 224, 224), [(56, 56), (28, 28), (14, 14), (14, 14)]),
    ],
)
def test_the_pyramid_has_the_released_shapes(
    name: str, batch: tuple[int, ...], grids: list[tuple[int, ...]]
) -> None:
    with torch.device("meta"):
        pyramid = create_model(name).forward_features(torch.empty(batch))
    channels = (96, 192, 384, 768)
    assert pyramid.channels == channels
    maps = zip(pyramid.maps, channels, grids, pyramid.strides, strict=True)
    for x, width, grid, stride in maps:
        assert x.shape == (2, width, *grid)
        assert [g * s for g, s in zip(grid, stride, strict=True)] == list(batch[2:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_lies_as_the_input_does(rng: torch.Generator, kind: str) -> None:
    """Another corner changes its own cell most, at every stage."""
    model = build_hiera(kind, local_stages=3)  # nothing is global
    x = draw_one(model, rng, batch=1)
    other = x.clone()
    other[(..., *(slice(-unit, None) for unit in model.config.unit_size))] += 1.0
    before, after = model.forward_features(x), model.forward_features(other)
    for ours, theirs in zip(before.maps, after.maps, strict=True):
        moved = (ours != theirs).any(1)[0]
        assert bool(moved[(-1,) * moved.ndim])
        assert not bool(moved[(0,) * moved.ndim])


def test_stages_may_have_norms_of_their_own(rng: torch.Generator) -> None:
    plain, normed = build_hiera(), build_hiera(feature_norms=(0, 2))
    normed.load_state_dict(plain.state_dict(), strict=False)
    for norm in normed.feature_norms.values():
        assert isinstance(norm, torch.nn.LayerNorm)
        torch.nn.init.ones_(norm.weight)
        torch.nn.init.zeros_(norm.bias)
    x = draw_one(plain, rng)
    raw, scaled = plain.forward_features(x).maps, normed.forward_features(x).maps
    torch.testing.assert_close(raw[1], scaled[1], **EXACT)
    for stage in (0, 2):
        wanted = F.layer_norm(raw[stage].movedim(1, -1), (raw[stage].shape[1],))
        torch.testing.assert_close(scaled[stage].movedim(1, -1), wanted, **EXACT)
        assert not torch.allclose(raw[stage], scaled[stage])


# -- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "size"), [("sound", (64,)), ("picture", (8, 40)), ("clip", (2, 8, 8))]
)
def test_other_whole_sizes_are_read_with_the_same_weights(
    rng: torch.Generator, kind: str, size: tuple[int, ...]
) -> None:
    model = build_hiera(kind, head=CLASSES)
    x = draw_one(model, rng, size)
    assert model(x).shape == (2, 5)
    finest = model.forward_features(x).maps[0].shape[2:]
    assert finest == tuple(n // s for n, s in zip(size, model.config.patch_stride, strict=True))
    assert model.num_units(size) == model.encode({model.config.name: x}).stages[0].shape[1]


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        ((20, 24), r"\(20, 24\) .* of \(8, 8\) elements; .* sizes are \(16, 24\) and \(24, 24\)"),
        ((3, 9), r"\(3, 9\) .* sizes are \(8, 8\) and \(8, 16\); or pass pad=True"),
        ((3, 8), r"\(3, 8\) .* the nearest legal size is \(8, 8\)"),
        ((0, 8), r"\(0, 8\) .* the nearest legal size is \(8, 8\)"),
    ],
)
def test_other_sizes_are_refused_and_the_nearest_named(
    rng: torch.Generator, size: tuple[int, ...], nearest: str
) -> None:
    model = build_hiera(head=CLASSES)
    x = draw_one(model, rng, size) if 0 not in size else torch.zeros(2, 2, *size)
    with pytest.raises(InputError, match=f"an input of {nearest}"):
        model(x)
    with pytest.raises(InputError, match=f"an input of {nearest}"):
        model.forward_features(x)


def test_nothing_cannot_be_padded() -> None:
    with pytest.raises(InputError, match=r"an input of \(8, 0\)"):
        build_hiera(head=CLASSES)(torch.zeros(2, 2, 8, 0), pad=True)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_fills_with_the_mean_at_the_ends_and_is_cut_off(
    rng: torch.Generator, kind: str
) -> None:
    model = build_hiera(kind, head=CLASSES)
    size = tuple(n - 1 for n in model.config.spec.grid)
    x = draw_one(model, rng, size)
    mean = model.input.mean.reshape(1, -1, *[1] * len(size))
    full = mean.expand(2, x.shape[1], *model.config.spec.grid).clone()
    full[(..., *(slice(n) for n in size))] = x
    torch.testing.assert_close(model(x, pad=True), model(full), **EXACT)
    padded, whole = model.forward_features(x, pad=True), model.forward_features(full)
    assert padded.strides == whole.strides
    for ours, theirs, stride in zip(padded.maps, whole.maps, whole.strides, strict=True):
        cells = [-(-n // s) for n, s in zip(size, stride, strict=True)]
        assert list(ours.shape[2:]) == cells
        torch.testing.assert_close(ours, theirs[(..., *(slice(n) for n in cells))], **EXACT)


def test_padding_drops_cells_that_hold_no_input(rng: torch.Generator) -> None:
    model = build_hiera(pad=True)
    maps = model.forward_features(draw_one(model, rng, (9, 17))).maps
    assert [tuple(x.shape[2:]) for x in maps] == [(5, 9), (3, 5), (2, 3)]


def test_a_model_may_pad_by_itself(rng: torch.Generator) -> None:
    strict, model = build_hiera(head=CLASSES), build_hiera(head=CLASSES, pad=True)
    x = draw_one(model, rng, (13, 24))
    torch.testing.assert_close(model(x), strict(x, pad=True), **EXACT)
    with pytest.raises(InputError, match=r"an input of \(13, 24\)"):
        model(x, pad=False)
    odd = build_hiera(inputs={"image": Image(13, 17, 2)}, pad=True)
    assert odd.config.native_grid == (8, 12)
    assert odd.num_units() == 6


def test_units_are_counted_for_any_size() -> None:
    model = build_hiera()
    assert (model.num_units(), model.num_units((8, 8)), model.num_units((9, 17))) == (6, 1, 6)
    for size in ((8,), (), (8, 0), (8, -8)):
        with pytest.raises(
            InputError, match=r"size \(.*\): this model reads 2 axes of at least on"
        ):
            model.num_units(size)


# -- kinds of input --------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize(
    ("name", "spec", "size"),
    [
        ("hiera_nano", Image, (32, 16)),
        ("hiera_nano_video", Video, (4, 16, 32)),
        ("hiera_nano_audio", Audio, (512,)),
    ],
)
def test_any_number_of_channels_on_one_two_and_three_axes(
    rng: torch.Generator, name: str, spec: Any, size: tuple[int, ...], channels: int
) -> None:
    inputs = {"x": spec(*size, channels)}
    model = create_model(name, inputs=inputs, num_classes=3)
    x = torch.randn(2, channels, *size, generator=rng)
    assert model(x).shape == (2, 3)
    assert model({"x": x}).equal(model(x))
    assert len(model.forward_features(x).maps) == 3


def test_bytes_of_pictures_are_scaled_and_16_bit_sound_too(rng: torch.Generator) -> None:
    picture = build_hiera(head=CLASSES)
    x = torch.randint(0, 256, (2, 2, 16, 24), generator=rng).to(torch.uint8)
    torch.testing.assert_close(picture(x), picture(x.double() / 255), **EXACT)
    sound = build_hiera("sound", head=CLASSES)
    x = torch.randint(-(2**15), 2**15, (2, 1, 320), generator=rng).to(torch.int16)
    torch.testing.assert_close(sound(x), sound(x.double() / 2**15), **EXACT)


def test_arrays_have_their_channels_last(rng: torch.Generator) -> None:
    spec = Array((16, 24), 2, mean=(0.4, 0.2), std=(0.3, 0.5))
    picture, table = build_hiera(head=CLASSES), build_hiera(inputs={"image": spec}, head=CLASSES)
    table.load_state_dict(picture.state_dict())
    x = draw_one(table, rng)
    assert x.shape == (2, 16, 24, 2)
    torch.testing.assert_close(table(x), picture(x.movedim(-1, 1)), **EXACT)
    odd = draw_one(table, rng, (11, 24))
    torch.testing.assert_close(table(odd, pad=True), picture(odd.movedim(-1, 1), pad=True), **EXACT)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_integers_of_no_known_scale_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=rf"'image' has dtype {dtype}; use float32, or uint8"):
        build_hiera()(torch.zeros(2, 2, 16, 24, dtype=dtype))


def test_misshapen_inputs_are_refused() -> None:
    model = build_hiera()
    with pytest.raises(InputError, match=r"'image' has 3 channels; this model reads 2"):
        model(torch.zeros(2, 3, 16, 24))
    with pytest.raises(InputError, match=r"'image' is \(2, 16, 24\); expected a batch of \(2, 16"):
        model(torch.zeros(2, 16, 24))
    with pytest.raises(InputError, match=r"reads \['image'\], but was given \['picture'\]"):
        model({"picture": torch.zeros(2, 2, 16, 24)})
    with pytest.raises(InputError, match=r"this model reads 'image', not 'video'"):
        model.adapter("video")
    assert model.adapter("image").spec == model.config.spec


@pytest.mark.unhooked
def test_what_is_no_tensor_is_refused() -> None:
    wrong: Any = {"image": [1.0]}
    with pytest.raises(InputError, match=r"'image' is list; expected a batch of \(2, 16, 24\)"):
        build_hiera()(wrong)


# -- dropping units --------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "kept"), [(0.5, 3), (0.9, 1), (0.2, 4)])
def test_training_may_drop_units_of_classifiers(
    rng: torch.Generator, rate: float, kept: int
) -> None:
    model, seen = build_hiera(head=CLASSES, unit_drop_rate=rate), []
    first: Any = model.encoder.blocks[0]
    first.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    x = draw_one(model, rng)
    whole = model(x)
    torch.testing.assert_close(model(x), whole, **EXACT)
    torch.manual_seed(0)
    dropped = [model.train()(x) for _ in range(3)]
    assert seen == [6, 6, kept, kept, kept]
    assert not torch.allclose(dropped[0], whole)
    assert not torch.allclose(dropped[0], dropped[1])
    alike = model(x[:1].expand(8, -1, -1, -1))  # samples drop units of their own
    assert alike.shape == (8, 5)
    assert len({round(value, 9) for value in alike[:, 0].tolist()}) > 2
    assert seen.pop() == kept
    model.forward_features(x)  # a pyramid is always whole
    assert seen.pop() == 6


# -- weights ---------------------------------------------------------------------------------


def test_layer_depths_count_from_the_stem_to_the_head() -> None:
    model = build_hiera(head=CLASSES, depths=(1, 2, 9), feature_norms=(1,))
    depths = model.layer_depths()
    assert set(depths) == {name for name, _ in model.named_parameters()}
    assert depths["encoder.stem.weight"] == depths["encoder.positions.table"] == 0
    assert depths["encoder.blocks.0.norm_mlp.weight"] == 1
    assert depths["encoder.blocks.1.attention.qkv.weight"] == 2
    assert depths["encoder.blocks.10.attention.qkv.weight"] == 11
    assert depths["encoder.blocks.11.mlp.out.bias"] == 12
    assert depths["norm.weight"] == depths["head.weight"] == depths["feature_norms.1.bias"] == 13


def test_half_precision_in_half_precision_out(rng: torch.Generator) -> None:
    model = build_hiera("clip", head=CLASSES).float()
    x = torch.randn(2, 2, 4, 16, 24, generator=rng)
    wide, half = model(x), model.bfloat16()(x)
    assert half.dtype == torch.bfloat16
    assert F.cosine_similarity(wide.flatten(), half.float().flatten(), dim=0) > 0.99
    assert all(m.dtype == torch.bfloat16 for m in model.forward_features(x).maps)


def test_a_copy_for_another_size_is_that_size_s_model(rng: torch.Generator) -> None:
    model = build_hiera("clip", head=CLASSES)
    spec = Video(6, 24, 16, 2, mean=(0.4,), std=(0.3,))
    other = model.train().resized({"video": spec})
    assert isinstance(other, Hiera)
    assert other.training
    assert other.config.spec == spec
    assert next(other.parameters()).dtype == torch.float64
    x = draw_one(other, rng)
    torch.testing.assert_close(other.eval()(x), model.eval()(x), **EXACT)
    with pytest.raises(ConfigError, match=r"cannot be resized to .*: channels must stay"):
        model.resized({"video": Video(4, 16, 24, 1)})
    for wrong in ({"image": Image(16, 24, 2)}, {"video": Image(16, 24, 2)}, {}):
        with pytest.raises(ConfigError, match=r"cannot be resized to"):
            model.resized(wrong)
    assert model.config.inputs == CLIP["inputs"]
