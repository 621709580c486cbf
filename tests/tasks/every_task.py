"""A small task of each kind with a batch for it."""

from collections.abc import Callable
from typing import Any

import torch
from tests.tasks import test_flow, test_multitask, test_segmentation

import perceivers as pv
from perceivers.data import Batch
from perceivers.tasks import (
    Autoencoding,
    AutoencodingConfig,
    Classification,
    ClassificationConfig,
    MaskedAutoencoding,
    MaskedAutoencodingConfig,
    MaskedLanguage,
    MaskedLanguageConfig,
    Multilabel,
    MultilabelConfig,
    Multitask,
    OpticalFlow,
    Regression,
    RegressionConfig,
    Segmentation,
    SegmentationConfig,
)
from perceivers.tasks.base import Task
from perceivers.tasks.flow import FlowConfig

Made = tuple[Task, Batch]
COLUMNS = {"odd": ("no", "yes"), "third": ("0", "1", "2")}


def build(name: str, size: int = 8, classes: int | None = 3, **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        given = {} if classes is None else {"num_classes": classes}
        return pv.create_model(name, inputs={"image": pv.Image(size, size, 1)}, **given, **options)


def pictures(size: int = 8, **more: Any) -> Batch:
    rng = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, (3, 1, size, size), generator=rng, dtype=torch.uint8)
    place = torch.arange(3)
    return Batch({"image": values}, more.pop("labels", place), place, [], position=place, **more)


def classify(name: str = "hip_nano", size: int = 8) -> Made:
    settings = ClassificationConfig(label_smoothing=0.1, mixup=0.2, cutmix=True)
    return Classification(build(name, size), 3, settings), pictures(size)


def multilabel() -> Made:
    labels = torch.tensor([[0, 0], [1, 2], [-1, 1]])
    task = Multilabel(build("hip_nano", classes=4), COLUMNS, MultilabelConfig())
    return task, pictures(labels=labels)


def multitask() -> Made:
    columns = {"topic": ("a", "b", "c"), "mood": ("sad", "glad")}
    model = test_multitask.Table(topic=test_multitask.TOPIC, mood=test_multitask.MOOD)
    return Multitask(model, columns), test_multitask.batch_of([[0, -1], [2, 1], [1, 0]])


def regress() -> Made:
    targets = {"age": (40.0, 10.0), "weight": (70.0, 5.0)}
    values = torch.tensor([[40.0, 70.0], [45.0, torch.nan], [50.0, 60.0]])
    task = Regression(build("perceiver_nano", classes=2), targets, RegressionConfig())
    return task, pictures(targets=values)


def segment(family: str) -> Made:
    model = test_segmentation.build(family)
    mask = torch.randint(0, 3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    mask[:, :2] = 255
    task = Segmentation(model, test_segmentation.CLASSES, SegmentationConfig())
    return task, test_segmentation.make_batch(mask)


def flow() -> Made:
    task = OpticalFlow(test_flow.Constant(0.5, 1.0), FlowConfig())
    return task, test_flow.batch_of(test_flow.flow_of(7.0, 16.0, 2))


def pretrain(name: str, size: int) -> Made:
    model = build(name, size, None, decoder=True)
    return MaskedAutoencoding(model, MaskedAutoencodingConfig()), pictures(size)


def autoencode(mask_ratio: float) -> Made:
    inputs = {"video": pv.Video(2, 8, 8, 3), "label": pv.Labels(3)}
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = pv.create_model("perceiver_io_nano", inputs=inputs)
    clips = torch.randint(0, 256, (2, 3, 2, 8, 8), generator=rng, dtype=torch.uint8)
    batch = Batch({"video": clips}, torch.tensor([0, 2]), torch.arange(2), [])
    return Autoencoding(model, AutoencodingConfig(points=16, mask_ratio=mask_ratio)), batch


def mlm() -> Made:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = pv.create_model("perceiver_io_nano", inputs={"bytes": pv.Bytes(32)})
    ids = torch.randint(70, 90, (2, 32), generator=torch.Generator().manual_seed(0))
    ids[:, ::5] = 38  # spaces
    task = MaskedLanguage(model, MaskedLanguageConfig(ratio=0.5))
    return task, Batch({"bytes": ids}, None, torch.arange(2), [])


TASKS: dict[str, Callable[[], Made]] = {
    "classify hip": classify,
    "classify perceiver": lambda: classify("perceiver_nano"),
    "classify perceiver_io": lambda: classify("perceiver_io_nano"),
    "classify hiera": lambda: classify("hiera_nano", 32),
    "multilabel": multilabel,
    "multitask": multitask,
    "regress": regress,
    "segment hip": lambda: segment("hip"),
    "segment hiera": lambda: segment("hiera"),
    "segment perceiver_io": lambda: segment("perceiver_io"),
    "flow": flow,
    "pretrain hip": lambda: pretrain("hip_nano", 8),
    "pretrain hiera": lambda: pretrain("hiera_nano", 32),
    "autoencode": lambda: autoencode(0.0),
    "autoencode masked": lambda: autoencode(0.5),
    "mlm": mlm,
}
