"""The task ``flow``: how far every pixel moves to the next frame."""

from collections.abc import Iterator
from typing import Any

import torch

from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.data import Dataset
from perceivers.data.measuring import override_spec
from perceivers.errors import ConfigError
from perceivers.models.registry import FAMILIES, find_family, list_models
from perceivers.report.figures.flow import draw_flow
from perceivers.report.html import Section
from perceivers.tasks import FlowConfig, OpticalFlow
from perceivers.tasks.flow import TARGET, flow_modality
from perceivers.training.config import FlowTrainConfig, TrainConfig
from perceivers.types import Array, ModalitySpec
from perceivers.workflows.building import fresh_model, resize, with_options
from perceivers.workflows.dense_prediction import predict_flow
from perceivers.workflows.opening import open_dataset
from perceivers.workflows.task_table import (
    FileRequest,
    FileTask,
    Prepared,
    Record,
    Report,
    TaskRow,
    first_batch,
    model_info,
)

PAIRS_SHOWN = 4


def prepare_flow(config: FlowTrainConfig) -> Prepared:
    """Prepare optical flow on generated or measured frame pairs."""
    unused = {"size": None, "channels": None, "labels": [], "modalities": []}
    given = [name for name, value in unused.items() if getattr(config, name) != value]
    if given or config.inputs.keys() - {"video"}:
        what = given[0] if given else f"inputs {sorted(config.inputs.keys() - {'video'})}"
        raise ConfigError(
            f"flow reads only frame pairs and does not use {what}; set their size with inputs: "
            f"{{video: {{height: 48, width: 64}}}}"
        )
    model, notes = _flow_model(config)
    task = OpticalFlow(model, config.flow)
    spec = model.config.inputs[flow_modality(model)]
    _, height, width = spec.grid
    dataset = open_dataset(config, frame_size=(height, width))
    specs = {**model.config.inputs, TARGET: Array((2, height), width)}
    return Prepared(task, dataset, specs, model_info(config, "flow"), [*dataset.notes, *notes])


def _flow_model(config: FlowTrainConfig) -> tuple[Any, list[str]]:
    """Return a flow model, from a variant or trained weights, and notes for the console."""
    asked = config.inputs.get("video", {})
    if config.model not in list_models():
        loaded = load_with_info(config.model)
        name = flow_modality(loaded.model)
        # Only for its error message, which names a wrong field.
        override_spec(name, loaded.model.config.inputs[name], asked)
        loaded = with_options(resize(loaded, {name: asked}), config)
        return loaded.model, [f"continuing from the weights of {loaded.folder}"]
    own = FAMILIES[find_family(config.model)].variants[config.model]
    if "flow" not in own.get("outputs", {}):
        raise ConfigError(f"{config.model} is not a flow model; use one of {list_models('*flow*')}")
    inputs = {"video": override_spec("video", own["inputs"]["video"], asked)}
    return fresh_model(config, inputs), []


def open_pairs(
    loaded: Loaded, config: TrainConfig, address: str
) -> tuple[Dataset, dict[str, ModalitySpec]]:
    """Open frame pairs at the size of a model, with their flow."""
    specs = dict(loaded.model.config.data_inputs)
    _, height, width = specs[flow_modality(loaded.model)].grid
    dataset = open_dataset(config, address=address, frame_size=(height, width))
    return dataset, {**specs, TARGET: Array((2, height), width)}


def _write_flow(request: FileRequest) -> Iterator[Record]:
    if len(request.paths) != 2:
        raise ConfigError(
            f"{request.model} computes flow between two images; give exactly two files, got "
            f"{len(request.paths)}"
        )
    first, second = request.paths
    done = predict_flow(
        request.model, first, second, request.out, pad=request.pad, overwrite=request.overwrite
    )
    length = done.flow.norm(dim=0)
    yield {
        "files": [str(first), str(second)],
        "flow": str(done.paths[0]),
        "picture": str(done.paths[1]),
        "tiles": done.tiles,
        "mean_motion": round(float(length.mean()), 6),
        "largest_motion": round(float(length.max()), 6),
    }


@torch.no_grad()
def _flows(report: Report) -> Section:
    """Show frame pairs with true and predicted flow."""
    loaded, config, folder = report.loaded, report.config, report.folder.figures
    assert isinstance(config, FlowTrainConfig)
    batch = first_batch(loaded, config, PAIRS_SHOWN)
    name = flow_modality(loaded.model)
    predicted = loaded.model({name: batch.inputs[name]}).float() * config.flow.scale
    path = draw_flow(
        folder / "flow.png",
        video=batch.inputs[name].numpy(),
        true=batch.inputs[TARGET].numpy(),
        predicted=predicted.numpy(),
        title="Optical flow",
        note="Hue is the direction, intensity the length of motion; the key gives the scale.",
    )
    return Section(
        title="Flow",
        text="Validation pairs, not used in training.",
        figures=[(path, "Frames, true flow, predicted flow, error.")],
    )


def sections(report: Report) -> list[Section]:
    """Return predicted flow of frame pairs."""
    return [_flows(report)]


def _describe(record: Record) -> str:
    return (
        f"{record['flow']}, {record['picture']}: {record['tiles']} tiles; motion "
        f"{record['mean_motion']:.2f} pixels on average, {record['largest_motion']:.2f} at most"
    )


FILES = FileTask("computes flow between two images", "flow", _write_flow, _describe, pads=True)
ROW = TaskRow(
    name="flow",
    verb="train",
    title="Optical flow",
    config=FlowTrainConfig,
    settings=("flow", FlowConfig),
    prepare=prepare_flow,
    rebuild=lambda loaded, settings: OpticalFlow(loaded.model, settings),
    open_data=open_pairs,
    files=lambda loaded: FILES,
    report=sections,
    next=(
        "perceivers evaluate {run}",
        "perceivers predict {run} FRAME1 FRAME2 --out flow/",
    ),
)
