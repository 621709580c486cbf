"""The task ``segment``: a class for every pixel or point."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perceivers.checkpoints.loading import Loaded
from perceivers.data import AugmentConfig, Dataset
from perceivers.data.clouds import PointMask
from perceivers.data.fitting import SampleReader
from perceivers.data.loaders import read_readable
from perceivers.data.masks import Mask, count_pixels, kept_classes
from perceivers.errors import DataError
from perceivers.report.figures.canvases import choose_side, look_down, shade_heights
from perceivers.report.figures.scores import draw_masks
from perceivers.report.html import Section
from perceivers.tasks import Segmentation, SegmentationConfig
from perceivers.tasks.base import answer, held_modalities
from perceivers.tasks.segmentation import IGNORED, element_logits, segmented_modality
from perceivers.tasks.segmentation import TARGET as MASKS
from perceivers.training.config import SegmentConfig, TrainConfig
from perceivers.types import ModalitySpec, Points
from perceivers.workflows.building import masked_modality, segmenter
from perceivers.workflows.dense_prediction import predict_clouds, predict_masks
from perceivers.workflows.opening import open_dataset
from perceivers.workflows.task_table import (
    FileRequest,
    FileTask,
    Prepared,
    Record,
    Report,
    TaskRow,
    find_settings,
    model_info,
    open_any,
    open_for_model,
    rebuild_task,
)

MASKS_SHOWN = 6
# Number of classes listed in the summary of a file.
NAMED = 4


def prepare_segmentation(config: SegmentConfig) -> Prepared:
    """Prepare segmentation of images or point clouds."""
    dataset = open_dataset(config)
    classes, spec = mask_spec(dataset, config.segment)
    model, notes = segmenter(config, dataset, len(classes), config.head)
    sized = sized_mask(model, spec)
    specs = {**model.config.data_inputs, MASKS: sized}
    weights = None
    if config.segment.class_weights == "balanced":
        counts = torch.from_numpy(count_pixels(dataset.splits["train"], sized)).float()
        mean = counts.sum() / len(classes)
        # Inverse frequencies; classes that do not occur get weight 0 instead of infinity.
        weights = torch.where(counts > 0, mean / counts.clamp(min=1), 0.0)
    task = Segmentation(model, classes, config.segment, weights)
    info = model_info(config, "segment", classes)
    return Prepared(task, dataset, specs, info, [*dataset.notes, *notes])


def mask_spec(dataset: Dataset, config: SegmentationConfig) -> tuple[tuple[str, ...], Mask]:
    """Return the classes that are not ignored, and a mask spec with a size of one pixel.

    Raises:
        DataError: The data have no masks, or the ignored class does not exist.
    """
    if not dataset.mask_classes:
        raise DataError(
            f"{dataset.address} holds no masks; segmentation needs a folder with images/ and "
            f"masks/ paired by name, KEY.png beside KEY.jpg in tars, or ragged .npz point clouds "
            f"with a label per point"
        )
    classes, ignored = kept_classes(dataset.mask_classes, config.ignore)
    return classes, Mask(1, 1, len(classes), ignored, config.exif_masks)


def find_mask_spec(
    loaded: Loaded, config: TrainConfig | None, dataset: Dataset
) -> tuple[tuple[str, ...], Mask]:
    """Return ``mask_spec`` for the settings that a model was trained with."""
    return mask_spec(dataset, find_settings(SegmentationConfig, loaded, config))


def sized_mask(model: Any, spec: Mask) -> Mask | PointMask:
    """Return the mask spec at the size of the model's images or points."""
    inputs = model.config.data_inputs
    own = inputs[masked_modality(inputs)]
    if isinstance(own, Points):
        return PointMask(own.points, spec.num_classes, spec.ignore)
    height, width = own.grid
    return replace(spec, height=height, width=width)


def open_masks(
    loaded: Loaded, config: TrainConfig, address: str
) -> tuple[Dataset, dict[str, ModalitySpec]]:
    """Open images or clouds with masks at the size of a model."""
    dataset = open_any(config, address)
    _, mask = find_mask_spec(loaded, config, dataset)
    specs = dict(loaded.model.config.data_inputs)
    return dataset, {**specs, MASKS: sized_mask(loaded.model, mask)}


def with_mask_classes(loaded: Loaded, config: TrainConfig | None, dataset: Dataset) -> Dataset:
    """Return the data with the classes of masks that are not ignored."""
    classes, _ = find_mask_spec(loaded, config, dataset)
    return replace(dataset, classes=classes, columns={})


def _write_masks(request: FileRequest) -> Iterator[Record]:
    for made in predict_masks(
        request.model, request.paths, request.out, overwrite=request.overwrite
    ):
        if made.error:
            yield {"file": str(made.file), "error": made.error}
        else:
            files = {"mask": str(made.mask), "overlay": str(made.overlay)}
            yield {"file": str(made.file), **files, "fractions": dict(made.shares or {})}


def _write_clouds(request: FileRequest) -> Iterator[Record]:
    for made in predict_clouds(
        request.loaded, request.paths, request.out, overwrite=request.overwrite
    ):
        if made.error:
            yield {"file": str(made.file), "error": made.error}
        else:
            files = {"labelled": str(made.labelled), "views": [str(path) for path in made.views]}
            yield {"file": str(made.file), **files, "fractions": dict(made.shares or {})}


@torch.no_grad()
def _masks(report: Report) -> Section:
    """Show images or point clouds with true and predicted masks."""
    loaded, config, folder = report.loaded, report.config, report.folder.figures
    dataset, specs = open_for_model(loaded, config, config.data)
    source = dataset.splits["val"]
    # Neighbouring samples may be similar, so they are spread over the split.
    places = torch.linspace(0, len(source) - 1, min(MASKS_SHOWN, len(source))).round().long()
    reader = SampleReader(source, specs, AugmentConfig())
    batch = read_readable(reader, places.tolist())
    name = segmented_modality(loaded.model)
    inputs = {key: raw for key, raw in batch.inputs.items() if key != MASKS}
    task = rebuild_task(loaded, config)
    assert isinstance(task, Segmentation)
    logits = answer(loaded.model, inputs, held_modalities(loaded.model, batch))
    found = element_logits(loaded.model, logits).argmax(1)
    true = task.true_classes(batch).to(torch.uint8).numpy()
    if isinstance(specs[name], Points):
        clouds = inputs[name].numpy()
        return _clouds(clouds, true, found.to(torch.uint8).numpy(), loaded.info.classes, folder)
    adapter = loaded.model.adapter(name)
    pictures = adapter.restore(adapter.normalise(adapter.flatten(inputs[name]), torch.float32))
    path = draw_masks(
        folder / "masks.png",
        pictures=pictures.numpy(),
        true=true,
        found=found.to(torch.uint8).numpy(),
        classes=loaded.info.classes,
        title="Segmentation",
        note="As the model reads them; black is void, which is ignored in training and metrics.",
    )
    return Section(
        title="Masks",
        text="Validation images, not used in training, spread over the split.",
        figures=[
            (path, "Image, true mask, predicted mask, and the latter where the truth is known.")
        ],
    )


def _clouds(
    clouds: NDArray[np.float32],
    true: NDArray[np.uint8],
    found: NDArray[np.uint8],
    classes: Sequence[str],
    folder: Path,
) -> Section:
    """Show tiles of points ``[B, P, C]`` from above, with true and predicted classes ``[B, P]``."""
    side = choose_side(clouds.shape[1])
    seen = [look_down(cloud, side) for cloud in clouds]
    shaded = [shade_heights(cloud, view) for cloud, view in zip(clouds, seen, strict=True)]
    drawn = [
        [np.where(view < 0, IGNORED, ids[view]) for ids, view in zip(table, seen, strict=True)]
        for table in (true, found)
    ]
    path = draw_masks(
        folder / "masks.png",
        pictures=np.stack(shaded),
        true=np.stack(drawn[0]).astype(np.uint8),
        found=np.stack(drawn[1]).astype(np.uint8),
        classes=classes,
        title="Segmentation",
        note="From above, high points are light. Black: no point, or a point of another tile.",
    )
    return Section(
        title="Points",
        text="Tiles of validation scenes, not used in training, spread over the split.",
        figures=[(path, "Height, true classes, predicted classes, and those that are counted.")],
    )


def sections(report: Report) -> list[Section]:
    """Return predicted masks."""
    return [_masks(report)]


def _describe_classes(record: Record) -> str:
    largest = list(record["fractions"].items())[:NAMED]
    return ", ".join(f"{name} {100 * fraction:.1f} %" for name, fraction in largest)


def _describe_mask(record: Record) -> str:
    return f"{record['mask']}, {record['overlay']}: {_describe_classes(record)}"


def _describe_cloud(record: Record) -> str:
    count = len(record["views"])
    views = "1 view" if count == 1 else f"{count} views"
    return f"{record['labelled']} and {views} from above: {_describe_classes(record)}"


MASK_FILES = FileTask("segments images", "masks", _write_masks, _describe_mask, "images segmented")
CLOUD_FILES = FileTask(
    "segments points", "masks", _write_clouds, _describe_cloud, "files of points segmented"
)


def files_of(loaded: Loaded) -> FileTask:
    """Return how masks of images, or classes of points, are written."""
    spec = loaded.model.config.inputs[segmented_modality(loaded.model)]
    return CLOUD_FILES if isinstance(spec, Points) else MASK_FILES


ROW = TaskRow(
    name="segment",
    verb="train",
    title="Segmentation",
    config=SegmentConfig,
    settings=("segment", SegmentationConfig),
    prepare=prepare_segmentation,
    rebuild=lambda loaded, settings: Segmentation(loaded.model, loaded.info.classes, settings),
    open_data=open_masks,
    class_dataset=with_mask_classes,
    files=files_of,
    report=sections,
    next=("perceivers evaluate {run}", "perceivers predict {run} FILE... --out masks/"),
)
