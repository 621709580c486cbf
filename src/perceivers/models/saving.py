"""Writing of model folders: all that ``load`` and ``predict`` need, and no executable code.

A folder holds ``config.json`` (format version, family, configuration with inputs and their
preprocessing, class names, licence, provenance), ``model.safetensors`` and a model card,
``README.md``.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safetensors.torch import save
from torch import Tensor

from perceivers.errors import CheckpointError
from perceivers.files import write_atomic, write_json
from perceivers.text_names import check_writable, compose, markdown_text
from perceivers.version import __version__

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Metadata saved with the weights, besides the configuration."""

    task: str = ""
    """The training task (pretrain, mlm, classify ...), or empty for a bare model."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the logits."""
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Class names by label column, for models that predict several."""
    targets: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Mean and standard deviation by regression target: outputs are standardised with them."""
    target: str = ""
    """Space in which a masked autoencoder was trained to reconstruct."""
    objective: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the training objective, such as the mask ratio; empty if not recorded."""
    license: str = ""
    """SPDX identifier or sentence; empty if not stated."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the weights come from: data, command, source, step."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics measured when the weights were selected."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ModelInfo":
        """Rebuild from the content of ``config.json``; unknown entries are ignored."""
        # A later version of the library may have added entries.
        known = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        known["targets"] = {n: tuple(pair) for n, pair in known.get("targets", {}).items()}
        columns = known.get("columns", {}).items()
        known["columns"] = {compose(name): _read_names(names) for name, names in columns}
        return cls(**{**known, "classes": _read_names(known.get("classes", ()))})


@runtime_checkable
class Saveable(Protocol):
    """A model with a family name and a JSON-serialisable configuration."""

    family: str
    config: Any

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights by name."""
        ...


def _read_names(names: Any) -> tuple[str, ...]:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"class name {name!r} is not a string")
    return tuple(check_writable(name, "the name of a class") for name in names)


def save_folder(
    model: Saveable,
    folder: Path,
    info: ModelInfo,
    *,
    state: Mapping[str, Tensor] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model folder; each file is replaced atomically.

    Args:
        model: Provides family, configuration and weights.
        folder: Created if missing.
        info: Metadata to save with the weights.
        state: Weights to save instead of those of the model, such as an average.
        overwrite: Replace an existing model.

    Raises:
        CheckpointError: The folder already holds a model and ``overwrite`` is off.
    """
    if (folder / "config.json").exists() and not overwrite:
        raise CheckpointError(
            f"{folder} already holds a model; choose another folder, or pass overwrite=True "
            f"(--overwrite)"
        )
    weights = model.state_dict() if state is None else state
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    description = {
        "format_version": FORMAT_VERSION,
        "family": model.family,
        "library_version": __version__,
        **asdict(info),
        "config": model.config.to_json(),
    }
    write_atomic(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_json(folder / "config.json", description)
    write_atomic(folder / "README.md", model_card(model, info, tensors))
    return folder


def model_card(model: Saveable, info: ModelInfo, tensors: Mapping[str, Tensor]) -> str:
    """Return the Markdown text of the model card."""
    count = sum(tensor.numel() for tensor in tensors.values())
    inputs = json.dumps(model.config.to_json()["inputs"], indent=2)
    lines = [
        f"# {model.family} model",
        "",
        f"{count:,} parameters; made with perceivers {__version__}.",
        "",
        f"- Task: {markdown_text(info.task) or 'none (weights only)'}",
        f"- Licence of the weights: {markdown_text(info.license) or 'not stated'}",
    ]
    if info.classes:
        shown = map(markdown_text, info.classes[:50])
        lines.append(f"- Classes ({len(info.classes)}): {', '.join(shown)}")
    if info.target:
        lines.append(f"- Reconstruction target: {markdown_text(info.target)}")
    if info.objective:
        stated = {name: value for name, value in info.objective.items() if value not in (None, {})}
        lines.append(f"- Objective: {markdown_text(json.dumps(stated))}")
    lines += [
        f"- {markdown_text(key)}: {markdown_text(value)}" for key, value in info.provenance.items()
    ]
    if info.metrics:
        lines += ["", "| metric | value |", "|---|---|"]
        lines += [
            f"| {markdown_text(name)} | {value:.4g} |" for name, value in info.metrics.items()
        ]
    lines += ["", "Inputs and their preprocessing:", "", "```json", inputs, "```", ""]
    lines += [
        "```python",
        "import perceivers as pv",
        "",
        'model = pv.load("this/folder")',
        "```",
        "",
    ]
    return "\n".join(lines)
