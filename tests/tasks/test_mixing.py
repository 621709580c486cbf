"""MixUp and CutMix: shares and partners shown by constant pictures, boxes, and what is refused."""

import numpy as np
import pytest
import torch
from torch import Tensor

import perceivers as pv
from perceivers.errors import ConfigError
from perceivers.tasks.mixing import (
    blend_samples,
    check_mixing,
    draw_boxes,
    mix_samples,
    paste_boxes,
)
from perceivers.types import Bytes, Image, Points


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def constant(count: int, dtype: torch.dtype = torch.float32, step: int = 10) -> Tensor:
    """Pictures of one value each, so that a mixture shows who takes part in it, and how much."""
    values = torch.arange(count) * step
    return values.reshape(-1, 1, 1, 1).expand(count, 3, 12, 20).to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_mixup_keeps_the_type_and_mixes_labels_by_the_share_of_each_sample(
    dtype: torch.dtype,
) -> None:
    raw, targets = constant(6, dtype, step=50), torch.eye(6)
    mixed, labels = blend_samples({"image": raw}, targets, 1.0, seeded(5))
    assert mixed["image"].dtype == dtype
    torch.testing.assert_close(labels.sum(1), torch.ones(6))
    generator = seeded(5)
    seed = int(torch.randint(2**31, (), generator=generator))
    shares = np.random.default_rng(seed).beta(1.0, 1.0, size=6)
    order = torch.randperm(6, generator=generator).tolist()
    assert len(set(shares.tolist())) == 6
    tolerance = 1e-3 if dtype.is_floating_point else 0.501
    for sample, (partner, share) in enumerate(zip(order, shares, strict=True)):
        value = 50 * (share * sample + (1 - share) * partner)
        assert float(mixed["image"][sample].float().mean()) == pytest.approx(value, abs=tolerance)
        wanted = targets[sample] * share + targets[partner] * (1 - share)
        assert labels[sample].tolist() == pytest.approx(wanted.tolist(), abs=1e-6)


def test_mixup_blends_all_modalities_by_the_same_share() -> None:
    pictures, sounds = constant(4), torch.arange(4.0).reshape(4, 1, 1).expand(4, 1, 30)
    inputs = {"image": pictures, "audio": sounds}
    mixed, labels = blend_samples(inputs, torch.eye(4), 1.0, seeded(0))
    expected = labels @ torch.arange(4.0)
    torch.testing.assert_close(mixed["image"].mean((1, 2, 3)), 10 * expected)
    torch.testing.assert_close(mixed["audio"].mean((1, 2)), expected)


def test_boxes_by_hand() -> None:
    """Centre (6, 5) of 12 x 8 and an area of 1/4: half a side, so 3 x 2 to each side."""
    draws = torch.tensor([[0.5], [0.63], [0.25]])
    box = draw_boxes(draws, 8, 12)[0]
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[3:7, 3:9] = True
    assert torch.equal(box, expected)
    cut_off = draw_boxes(torch.tensor([[0.0], [0.99], [0.25]]), 8, 12)[0]
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[5:8, :3] = True
    assert torch.equal(cut_off, expected)
    assert not draw_boxes(torch.tensor([[0.5], [0.5], [0.0]]), 8, 12).any()


def test_boxes_cover_the_drawn_area_but_for_whole_pixels() -> None:
    drawn = torch.linspace(0, 1, 101)
    centres = torch.full((2, 101), 0.5)  # in the middle nothing is cut off
    areas = draw_boxes(torch.cat([centres, drawn[None]]), 100, 100).float().mean((1, 2))
    assert bool((areas <= drawn + 1e-6).all())
    torch.testing.assert_close(areas, drawn, atol=0.04, rtol=0)  # up to 2 pixels per side


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_cutmix_pastes_one_box_and_mixes_labels_by_what_it_covers(dtype: torch.dtype) -> None:
    raw = constant(8, dtype)
    mixed, labels = paste_boxes({"image": raw}, torch.eye(8), seeded(1))
    found = mixed["image"]
    assert found.dtype == dtype
    assert labels.count_nonzero(1).max() == 2
    torch.testing.assert_close(labels.sum(1), torch.ones(8))
    mixtures = 0
    for sample in range(8):
        assert torch.equal(found[sample, 0], found[sample, 2])  # all channels alike
        pasted = found[sample, 0] != raw[sample, 0]
        assert float(labels[sample, sample]) == pytest.approx(1 - float(pasted.float().mean()))
        if pasted.any():
            mixtures += 1
            rows, columns = pasted.nonzero().unbind(1)
            box = pasted[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert bool(box.all())
            partner = found[sample, 0][pasted].unique()
            assert len(partner) == 1
            assert float(labels[sample, int(partner) // 10]) == pytest.approx(
                float(pasted.float().mean())
            )
    assert mixtures >= 4


def test_pictures_of_two_sizes_get_the_same_box_in_shares() -> None:
    small = constant(4)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    mixed, _ = paste_boxes({"small": small, "large": large}, torch.eye(4), seeded(3))
    changed = [
        (mixed[n] != raw).float().mean((1, 2, 3)) for n, raw in (("small", small), ("large", large))
    ]
    assert float(changed[0].max()) > 0.1
    torch.testing.assert_close(changed[0], changed[1], atol=0.12, rtol=0)


@pytest.mark.parametrize("count", [7, 8])
def test_half_of_a_batch_is_blended_and_the_rest_pasted(count: int) -> None:
    raw, half = constant(count), count // 2
    mixed, labels = mix_samples({"image": raw}, torch.eye(count), seeded(2), mixup=1.0, cutmix=True)
    found = mixed["image"]
    assert found.shape == raw.shape
    # Blended samples stay of one value; pasted ones have original values only.
    assert all(len(sample.unique()) == 1 for sample in found[:half])
    assert any(float(sample.max()) % 10 != 0 for sample in found[:half])
    assert all(bool((sample % 10 == 0).all()) for sample in found[half:])
    assert any(len(sample.unique()) == 2 for sample in found[half:])
    # Partners come from the same half.
    assert not labels[:half, half:].any()
    assert not labels[half:, :half].any()
    torch.testing.assert_close(labels.sum(1), torch.ones(count))
    torch.testing.assert_close(found.mean((1, 2, 3)), labels @ (10.0 * torch.arange(count)))


def test_one_kind_alone_takes_the_whole_batch() -> None:
    raw = constant(8)
    pasted, _ = mix_samples({"image": raw}, torch.eye(8), seeded(1), mixup=0.0, cutmix=True)
    alone, _ = paste_boxes({"image": raw}, torch.eye(8), seeded(1))
    assert torch.equal(pasted["image"], alone["image"])
    blended, _ = mix_samples({"image": raw}, torch.eye(8), seeded(1), mixup=0.3, cutmix=False)
    alone, _ = blend_samples({"image": raw}, torch.eye(8), 0.3, seeded(1))
    assert torch.equal(blended["image"], alone["image"])


def test_all_frames_of_a_clip_get_the_same_box() -> None:
    clips = torch.arange(4.0).reshape(4, 1, 1, 1, 1).expand(4, 2, 3, 8, 6).contiguous()
    mixed, labels = mix_samples({"v": clips}, torch.eye(4), seeded(3), mixup=0.0, cutmix=True)
    frames = mixed["v"]
    assert torch.equal(frames, frames[:, :1, :1].expand_as(frames))
    own = (frames[:, 0, 0] == torch.arange(4.0)[:, None, None]).float().mean((1, 2))
    assert own.min() < 1.0
    torch.testing.assert_close(labels.diagonal()[own < 1.0], own[own < 1.0])
    check_mixing({"v": pv.Video(3, 8, 6)}, mixup=True, cutmix=True)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.3, False), (0.0, True), (0.3, True)])
def test_mixing_is_a_function_of_the_generator_alone(mixup: float, cutmix: bool) -> None:
    def run(seed: int, state: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(state)
        inputs = {"image": constant(8)}
        mixed, labels = mix_samples(inputs, torch.eye(8), seeded(seed), mixup=mixup, cutmix=cutmix)
        return mixed["image"], labels

    first, again, other = run(3, 1), run(3, 2), run(4, 1)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_a_single_sample_is_its_own_partner() -> None:
    raw = constant(1) + 7
    for mixup, cutmix in ((0.5, False), (0.0, True), (0.5, True)):
        mixed, labels = mix_samples(
            {"image": raw}, torch.ones(1, 1), seeded(0), mixup=mixup, cutmix=cutmix
        )
        torch.testing.assert_close(mixed["image"], raw)
        torch.testing.assert_close(labels, torch.ones(1, 1))


def test_what_cannot_be_mixed_is_refused() -> None:
    picture, sound = Image(4, 4), pv.Audio(100)
    check_mixing({"a": picture, "b": Image(8, 8, 1)}, mixup=True, cutmix=True)
    check_mixing({"a": picture, "s": sound, "p": Points(5)}, mixup=True, cutmix=False)
    check_mixing({"t": Bytes(8)}, mixup=False, cutmix=False)
    with pytest.raises(ConfigError, match=r"cutmix .* reads \{'s': 'audio'\} .* set cutmix to fal"):
        check_mixing({"a": picture, "s": sound}, mixup=True, cutmix=True)
    with pytest.raises(ConfigError, match=r"mixup .* ids: \{'t': 'bytes'\} .* set mixup to 0"):
        check_mixing({"a": picture, "t": Bytes(8)}, mixup=True, cutmix=False)
    with pytest.raises(ConfigError, match=r"\{'l': 'labels'\}"):
        check_mixing({"l": pv.Labels(3)}, mixup=True, cutmix=False)
    with pytest.raises(ConfigError, match=r"clouds of \['p'\] may differ in size"):
        check_mixing({"p": Points(5, ragged=True)}, mixup=True, cutmix=False)
