"""Write a graph to a file, run the file, and compare it with the model."""

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from perceivers.errors import CheckpointError, ConfigError
from perceivers.exporting.graphs import Graph, Part, make_graph
from perceivers.files import write_json
from perceivers.models.saving import ModelInfo
from perceivers.tasks import MaskedAutoencodingConfig
from perceivers.types import spec_to_json

Format = Literal["onnx", "torch-export"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "torch-export": ".pt2"}
# Differences allowed between the exported file and the model, relative to the largest output.
TOLERANCE = 1e-4
TRACED_BATCH = 2
COMPARED_BATCHES = (1, 3)
# What a graph is traced with, and so what it takes; modalities that are not listed are float32.
DTYPES = {"image": "uint8", "video": "uint8", "labels": "int64", "bytes": "int64"}


@dataclass(frozen=True)
class Exported:
    """A written and compared file.

    Attributes:
        path: The graph.
        description: The JSON beside it: inputs, preprocessing, outputs, classes.
        largest: Largest absolute difference from the model.
        absmax: Largest absolute output.
    """

    path: Path
    description: Path
    largest: float
    absmax: float


def export_model(
    model: Any,
    path: Path,
    *,
    format: Format = "onnx",  # noqa: A002 - the word users type
    part: Part = "model",
    output: str | None = None,
    mask: MaskedAutoencodingConfig | None = None,
    info: ModelInfo | None = None,
) -> Exported:
    """Export a model with a free batch size, run the file at other batch sizes, and compare.

    Args:
        model: Of any family, in any mode; it is exported in evaluation mode.
        path: ``.onnx`` or ``.pt2`` file to write.
        format: ``onnx`` (run with onnxruntime) or ``torch-export``.
        part: ``model``; ``encoder`` (latents, or the maps of a pyramid); ``decoder`` of a Perceiver
            IO (latents and indices of queries in, their number free); ``autoencoder`` of a HiP or a
            Hiera (with the mask plan as input).
        output: Which output the decoder part answers; may be left out when there is one.
        mask: Masking of the autoencoder part.
        info: Class names and the like for the description.

    Raises:
        ConfigError: The suffix does not fit the format, or a package is missing.
        CheckpointError: The exported file disagrees with the model, or answers with nothing.
    """
    if format not in SUFFIXES:
        raise ConfigError(f"format {format!r} is unknown; use one of {sorted(SUFFIXES)}")
    if path.suffix != SUFFIXES[format]:
        raise ConfigError(f"{path} must end in {SUFFIXES[format]} for format {format}")
    if format == "onnx":
        require_onnx()
    model = model.eval()
    graph = make_graph(model, part, mask=mask, output=output)
    program = trace(graph)
    path.parent.mkdir(parents=True, exist_ok=True)
    if format == "onnx":
        write_onnx(program, graph, path)
    else:
        torch.export.save(program, path)
    description = write_json(
        path.with_suffix(".json"), describe(graph, format, part, info or ModelInfo())
    )
    try:
        largest, absmax = compare(graph, path, format)
    except CheckpointError:
        path.unlink()
        description.unlink()
        raise
    if not largest <= TOLERANCE * absmax:
        path.unlink()
        description.unlink()
        raise CheckpointError(
            f"{path} differed from the model by {largest:.3g} (largest output {absmax:.3g}, "
            f"allowed {TOLERANCE:.0e} of it) and was removed; please report this as a bug"
        )
    return Exported(path=path, description=description, largest=largest, absmax=absmax)


def require_onnx() -> None:
    """Say how to install what ONNX needs.

    Raises:
        ConfigError: A package is missing.
    """
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"ONNX export needs {', '.join(missing)}; install with: "
            f'pip install "perceivers[export]"'
        )


def trace(graph: Graph) -> torch.export.ExportedProgram:
    """Capture the graph with its free sizes, the batch among them."""
    names = {name for axes in graph.free for name in axes.values()}
    sizes = {name: torch.export.Dim(name, max=graph.largest.get(name)) for name in names}
    shapes = tuple({axis: sizes[name] for axis, name in axes.items()} for axes in graph.free)
    with torch.no_grad():
        return torch.export.export(
            graph.module,
            graph.example(TRACED_BATCH, seed=0),
            dynamic_shapes={"tensors": shapes},
            strict=False,
        )


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep the exporter's progress and deprecation chatter off the user's terminal."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def write_onnx(program: torch.export.ExportedProgram, graph: Graph, path: Path) -> None:
    """Translate to ONNX, weights inside the file."""
    with quiet_exporter():
        onnx_program = torch.onnx.export(
            program,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamo=True,
            verbose=False,
        )
    assert onnx_program is not None
    onnx_program.save(str(path), external_data=False)


def describe(graph: Graph, kind: str, part: str, info: ModelInfo) -> dict[str, Any]:
    """What a program that runs the file must know."""
    return {
        "format": kind,
        "part": part,
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "preprocessing": {
            name: {
                **spec_to_json(spec),
                "raw_shape": ["batch", *spec.raw_shape],
                "dtype": DTYPES.get(spec.kind, "float32"),
                "fit": "resize the shorter side to cover, then crop the centre"
                if spec.kind == "image"
                else "as declared",
                "normalisation": "inside the graph",
            }
            for name, spec in graph.raw.items()
        },
        "largest": dict(graph.largest),
        "classes": list(info.classes),
        "target": info.target,
        "license": info.license,
    }


@torch.no_grad()
def compare(graph: Graph, path: Path, kind: str) -> tuple[float, float]:
    """Run the file on fresh inputs at batch sizes that were not traced.

    Infinite scores (of absent entities) must be infinite in both; NaN never agrees.

    Returns:
        The largest difference, and the largest finite value.

    Raises:
        CheckpointError: An output has no finite value, so that nothing is compared.
    """
    run = run_onnx if kind == "onnx" else run_exported
    largest = absmax = 0.0
    if not graph.outputs:
        raise CheckpointError(f"{path} has no outputs, so nothing can be compared")
    for number, batch in enumerate(COMPARED_BATCHES, start=1):
        example = graph.example(batch, seed=number)
        wanted = graph.module(*example)
        found = run(path, graph.inputs, example)
        for name, ours, theirs in zip(graph.outputs, wanted, found, strict=True):
            if not ours.isfinite().any():
                raise CheckpointError(
                    f"{path}: output {name} {tuple(ours.shape)} has no finite value, so "
                    f"nothing can be compared"
                )
            difference = torch.where(ours == theirs, 0.0, (ours - theirs).abs())
            largest = max(largest, float(difference.nan_to_num(nan=inf).max()))
            absmax = max(absmax, float(ours[ours.isfinite()].abs().max()))
    return largest, absmax


def run_exported(path: Path, names: Sequence[str], example: Sequence[Tensor]) -> list[Tensor]:
    """Run a torch.export file."""
    return list(torch.export.load(path).module()(*example))


def run_onnx(path: Path, names: Sequence[str], example: Sequence[Tensor]) -> list[Tensor]:
    """Run an ONNX file in onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {name: tensor.numpy() for name, tensor in zip(names, example, strict=True)}
    return [torch.from_numpy(array) for array in session.run(None, feeds)]
