"""Hiera's segmentation head: logits per element at any size, from every stage, learnable."""

import pytest
import torch
from tests.models.hiera_making import EXACT, KINDS, MAP, PICTURE, build_hiera, draw_one
from torch.nn import functional as F

from perceivers.models import Hiera, HieraConfig, HieraHead
from perceivers.models.hiera.decoder import SegmentationHead
from perceivers.types import Image


def head_of(model: Hiera) -> SegmentationHead:
    assert isinstance(model.head, SegmentationHead)
    return model.head


@pytest.mark.parametrize("kind", KINDS)
def test_every_element_gets_logits_at_any_size(rng: torch.Generator, kind: str) -> None:
    model = build_hiera(kind, head=MAP)
    native = model.config.spec.grid
    assert model(draw_one(model, rng)).shape == (2, 3, *native)
    odd = tuple(n + 3 for n in native)
    x = draw_one(model, rng, odd)
    assert model(x, pad=True).shape == (2, 3, *odd)
    assert model.norm is None
    assert model.config.num_classes == 0  # of a classifier it has none


def test_padding_is_cut_off_the_logits(rng: torch.Generator) -> None:
    model = build_hiera(head=MAP)
    x = draw_one(model, rng, (13, 24))
    full = model.input.mean.reshape(1, -1, 1, 1).expand(2, 2, 16, 24).clone()
    full[:, :, :13] = x
    torch.testing.assert_close(model(x, pad=True), model(full)[:, :, :13], **EXACT)


def test_the_stages_are_summed_at_the_finest_and_read_out(rng: torch.Generator) -> None:
    model = build_hiera(head=MAP)
    head, x = head_of(model), draw_one(model, rng)
    total = torch.zeros(2, 10, 8, 12, dtype=torch.float64)
    for each, norm, lateral in zip(
        model.forward_features(x).maps, head.norms, head.laterals, strict=True
    ):
        narrow = lateral(norm(each.movedim(1, -1))).movedim(-1, 1)
        total = total + F.interpolate(narrow, size=(8, 12), mode="bilinear")
    logits = head.out(F.gelu(head.norm(total.movedim(1, -1)))).movedim(-1, 1)
    wanted = F.interpolate(logits, size=(16, 24), mode="bilinear")
    torch.testing.assert_close(model(x), wanted, **EXACT)
    for lateral in head.laterals:
        assert isinstance(lateral, torch.nn.Linear)
        torch.nn.init.zeros_(lateral.weight)
        assert not torch.allclose(model(x), wanted)
        wanted = model(x)


def test_logits_lie_where_the_input_does(rng: torch.Generator) -> None:
    """Units are apart, and stages are stretched linearly: a corner does not reach the far end."""
    model = build_hiera(head=MAP, local_stages=3, inputs={"image": Image(64, 64, 2)})
    x = draw_one(model, rng, batch=1)
    other = x.clone()
    other[:, :, 1, 62] += 1.0
    moved = (model(x) != model(other)).any(1)[0]
    assert bool(moved[:8, -8:].any())
    assert not bool(moved[32:].any())
    assert not bool(moved[:, :32].any())


def test_dropout_of_the_head_acts_in_training_alone(rng: torch.Generator) -> None:
    head = HieraHead(kind="segmentation", num_outputs=3, dim=10)
    model = build_hiera(head=head, dropout_rate=0.5)
    x = draw_one(model, rng)
    torch.testing.assert_close(model(x), model(x), **EXACT)
    assert not torch.allclose(model.train()(x), model(x))


def test_a_small_mask_is_learned_in_a_few_steps(rng: torch.Generator) -> None:
    """A disc is cut out of noise; calling all of it background would be right for 81 %."""
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    centres = torch.tensor([[5, 5], [10, 9]])[:, :, None, None]
    inside = ((rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2 < 16).long()
    assert 0.8 < 1 - inside.double().mean().item() < 0.85
    x = inside[:, None] + 0.3 * torch.randn(2, 1, 16, 16, generator=rng)
    head = HieraHead(kind="segmentation", num_outputs=2, dim=16)
    small = {**PICTURE, "inputs": {"image": Image(16, 16, 1)}, "depths": (1, 1, 1)}
    model = Hiera(HieraConfig(**{**small, "head": head}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(model(x), inside).backward()
        optimizer.step()
    assert (model.eval()(x).argmax(1) == inside).double().mean().item() > 0.93
