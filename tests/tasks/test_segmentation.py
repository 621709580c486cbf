"""Segmentation by hand: losses without ignored pixels, IoU over the split, every read-out."""

from math import log
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex

import perceivers as pv
from perceivers.data import Batch
from perceivers.errors import ConfigError, DataError
from perceivers.models.registry import FAMILIES
from perceivers.tasks import Segmentation, SegmentationConfig
from perceivers.tasks.segmentation import (
    IGNORED,
    class_iou,
    element_loss,
    segmentation_figures,
    segmented_modality,
)

CLASSES = ("sky", "road", "car")


def build(family: str, size: int = 16, head: str = "family", modality: str = "image") -> Any:
    """A tiny model that answers with three classes per element."""
    name = {"hip": "hip_nano", "hiera": "hiera_nano", "perceiver_io": "perceiver_io_nano"}[family]
    entry = FAMILIES[family]
    specs = {"image": pv.Image(size, size, 3)}
    base = entry.configure(
        entry.variants[name], inputs=specs, num_classes=None, head="query", overrides={}
    )
    assert entry.as_segmenter is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return entry.module(entry.as_segmenter(base, 3, modality, head)).eval()


class Fixed(nn.Module):
    """A model that answers as told."""

    family = "hiera"
    segmented_modality = "image"

    def __init__(self, answers: list[Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config = build("hiera").config
        self.answers = answers

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the next answer."""
        return self.answers.pop(0)


def make_batch(mask: Tensor, present: dict[str, Tensor] | None = None) -> Batch:
    pictures = torch.zeros(len(mask), 3, *mask.shape[1:], dtype=torch.uint8)
    return Batch(
        {"image": pictures, "mask": mask}, None, torch.arange(len(mask)), [], present=present or {}
    )


@torch.no_grad()
def loss_of(task: Segmentation, batch: Batch) -> float:
    return float(task(batch, torch.Generator()).total)


def test_ignored_pixels_weigh_nothing() -> None:
    logits = torch.tensor([[[[2.0, 0.0]], [[0.0, 0.0]]]])  # [1, 2, 1, 2]
    both = torch.tensor([[[0, 1]]])
    one = torch.tensor([[[0, IGNORED]]])
    first, second = log(1 + torch.tensor(-2.0).exp()), log(2)
    assert float(element_loss(logits, both)) == pytest.approx((first + second) / 2)
    assert float(element_loss(logits, one)) == pytest.approx(first)
    assert float(element_loss(logits, torch.full((1, 1, 2), IGNORED))) == 0.0
    weights = torch.tensor([1.0, 3.0])
    expected = (first + 3 * second) / 4
    assert float(element_loss(logits, both, weights)) == pytest.approx(expected)


def test_iou_by_hand_is_that_of_torchmetrics() -> None:
    truth = torch.tensor([0, 0, 0, 1, 1, 2])
    found = torch.tensor([0, 0, 1, 1, 1, 0])
    matrix = torch.tensor([[2, 1, 0], [0, 2, 0], [1, 0, 0]])
    assert class_iou(matrix).tolist() == pytest.approx([2 / 4, 2 / 3, 0.0])
    other = MulticlassJaccardIndex(num_classes=3, average="none")(found, truth)
    assert class_iou(matrix).tolist() == pytest.approx(other.tolist())
    figures = segmentation_figures(matrix, CLASSES)
    assert figures["miou"] == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert figures["pixel_accuracy"] == pytest.approx(4 / 6)
    assert figures["class_accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert figures["iou/road"] == pytest.approx(2 / 3)


def test_a_class_that_never_occurs_has_no_iou() -> None:
    figures = segmentation_figures(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), CLASSES)
    assert "iou/car" not in figures
    assert figures["miou"] == pytest.approx((3 / 4 + 4 / 5) / 2)


def test_pixels_are_counted_over_the_split_before_ratios_are_taken() -> None:
    def scores(classes: list[list[list[int]]]) -> Tensor:
        return nn.functional.one_hot(torch.tensor(classes), 3).movedim(-1, 1).float() * 9

    # First batch: 3 of 4 right; second: one pixel, wrong; a mean of IoUs would be another figure.
    first, second = [[[0, 0], [1, 1]]], [[[0, 1], [0, 0]]]
    model = Fixed([scores(first), scores(second)])
    task = Segmentation(model, CLASSES, SegmentationConfig())
    batches = [
        make_batch(torch.tensor([[[0, 0], [0, 1]]], dtype=torch.uint8)),
        make_batch(torch.tensor([[[1, 255], [255, 255]]], dtype=torch.uint8)),
    ]
    figures = task.evaluate(batches)
    # sky: 2 right, 1 missed, 1 wrongly found; road: 1 right, 1 missed, 1 wrongly found.
    assert figures["iou/sky"] == pytest.approx(2 / 4)
    assert figures["iou/road"] == pytest.approx(1 / 3)
    assert figures["miou"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert figures["pixel_accuracy"] == pytest.approx(3 / 5)
    assert figures["loss"] > 0


@pytest.mark.parametrize(
    ("family", "head"),
    [("hip", "bottleneck"), ("hip", "full"), ("hiera", "pyramid"), ("perceiver_io", "queries")],
)
def test_every_read_out_learns(family: str, head: str, rng: torch.Generator) -> None:
    model = build(family, head=head)
    assert segmented_modality(model) == "image"
    task = Segmentation(model, CLASSES, SegmentationConfig()).train()
    mask = torch.randint(0, 3, (2, 16, 16), generator=rng).to(torch.uint8)
    losses = task(make_batch(mask), rng)
    losses.total.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert any(float(g.abs().sum()) > 0 for g in grads)
    figures = task.evaluate([make_batch(mask)])
    assert 0.0 <= figures["miou"] <= 1.0
    assert figures["loss"] == pytest.approx(float(losses.total.detach()), rel=1e-4)


def test_points_are_segmented_one_by_one(rng: torch.Generator) -> None:
    entry = FAMILIES["hip"]
    base = entry.configure(
        entry.variants["hip_nano"],
        inputs={"points": pv.Points(32, 3)},
        num_classes=None,
        head="query",
        overrides={},
    )
    assert entry.as_segmenter is not None
    model = entry.module(entry.as_segmenter(base, 3, "points", "family"))
    task = Segmentation(model, CLASSES, SegmentationConfig())
    mask = torch.randint(0, 3, (2, 32), generator=rng).to(torch.uint8)
    points = torch.randn(2, 32, 3, generator=rng)
    batch = Batch({"points": points, "mask": mask}, None, torch.arange(2), [])
    assert torch.isfinite(task(batch, rng).total)


@pytest.mark.parametrize("missing", ["mask", "image"])
def test_a_sample_without_mask_or_picture_teaches_nothing(
    missing: str, rng: torch.Generator
) -> None:
    model = build("hiera")
    task = Segmentation(model, CLASSES, SegmentationConfig()).eval()
    mask = torch.randint(0, 3, (2, 16, 16), generator=rng).to(torch.uint8)
    held = {missing: torch.tensor([True, False])}
    whole = make_batch(mask, held)
    alone = make_batch(mask[:1])
    assert loss_of(task, whole) == pytest.approx(loss_of(task, alone), rel=1e-4)
    assert loss_of(task, make_batch(mask)) != pytest.approx(loss_of(task, alone))


def test_other_heads_and_data_are_refused(rng: torch.Generator) -> None:
    classifier = pv.create_model("hiera_nano", inputs={"image": pv.Image(16, 16, 3)}, num_classes=3)
    with pytest.raises(ConfigError, match="no output per element"):
        Segmentation(classifier, CLASSES, SegmentationConfig())
    with pytest.raises(ConfigError, match="'pyramid'"):
        build("hiera", head="full")
    with pytest.raises(ConfigError, match="'bottleneck'"):
        build("hip", head="queries")
    with pytest.raises(ConfigError, match=r"segments one of \['image'\], with head='queries'"):
        build("perceiver_io", modality="sound")
    task = Segmentation(build("hiera"), CLASSES, SegmentationConfig())
    bare = Batch({"image": torch.zeros(1, 3, 16, 16)}, None, torch.arange(1), [])
    with pytest.raises(DataError, match="masks/"):
        task(bare, rng)
    with pytest.raises(ConfigError, match=r"ignore is 256"):
        SegmentationConfig(ignore=256)
