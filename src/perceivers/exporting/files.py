"""Write a graph to a file, run the file, and compare its outputs with those of the model."""

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
from perceivers.exporting.graphs import Part, make_graph
from perceivers.files import write_json
from perceivers.models.graphs import Graph
from perceivers.models.saving import ModelInfo
from perceivers.tasks import MaskedAutoencodingConfig
from perceivers.types import spec_to_json

Format = Literal["onnx", "torch-export"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "torch-export": ".pt2"}
# Maximum difference between the exported file and the model, relative to the largest output.
TOLERANCE = 1e-4
TRACED_BATCH = 2
COMPARED_BATCHES = (1, 3)


@dataclass(frozen=True)
class Exported:
    """An exported file that has been compared with its model.

    Attributes:
        path: The exported file.
        description: JSON file next to it: inputs, preprocessing, outputs, classes.
        largest: Largest absolute difference from the model's outputs.
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
    """Export a model with a dynamic batch size, and compare the file at other batch sizes.

    Args:
        model: Model of any family; it is switched to evaluation mode.
        path: ``.onnx`` or ``.pt2`` file to write.
        format: ``onnx`` (run with onnxruntime) or ``torch-export``.
        part: ``model``; ``encoder`` (latents, or all feature maps of a pyramid); ``decoder`` of a
            Perceiver IO (takes latents and any number of query indices); ``autoencoder`` of a HiP
            or a Hiera (takes the mask plan as input).
        output: Output that the decoder part computes; may be omitted if the model has only one.
        mask: Masking of the autoencoder part.
        info: Class names and other metadata for the description.

    Raises:
        ConfigError: The suffix does not match the format, or a package is missing.
        CheckpointError: The outputs of the file differ from the model's, or are not finite.
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
    """Check that the packages for ONNX export are installed.

    Raises:
        ConfigError: A package is missing; the message gives the command that installs it.
    """
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"ONNX export needs {', '.join(missing)}; install with: "
            f'pip install "perceivers[export]"'
        )


def trace(graph: Graph) -> torch.export.ExportedProgram:
    """Capture the graph with torch.export; the batch size and other free sizes are dynamic."""
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
    """Suppress progress and deprecation messages of the exporter."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def write_onnx(program: torch.export.ExportedProgram, graph: Graph, path: Path) -> None:
    """Convert to ONNX, with the weights inside the file."""
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
    """Return the information that a program needs to run the file."""
    return {
        "format": kind,
        "part": part,
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "preprocessing": {
            name: {
                **spec_to_json(spec),
                "raw_shape": ["batch", *spec.raw_shape],
                "dtype": spec.raw_dtype,
                "fit": "resize the shorter side to cover, then crop the centre"
                if spec.takes_size
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
    """Run the file on random inputs at batch sizes that were not traced.

    Infinite scores (of absent entities) must be infinite in both; NaN counts as a difference.

    Returns:
        Largest absolute difference, and largest finite absolute output.

    Raises:
        CheckpointError: There are no outputs, or an output has no finite value to compare.
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
    """Run a torch.export file and return its outputs."""
    return list(torch.export.load(path).module()(*example))


def run_onnx(path: Path, names: Sequence[str], example: Sequence[Tensor]) -> list[Tensor]:
    """Run an ONNX file with onnxruntime on the CPU and return its outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {name: tensor.numpy() for name, tensor in zip(names, example, strict=True)}
    return [torch.from_numpy(array) for array in session.run(None, feeds)]
