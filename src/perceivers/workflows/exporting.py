"""Export the model of a run to ONNX or ``torch.export``, with its class names and masking."""

from pathlib import Path

from perceivers.checkpoints.loading import load_with_info, split_address
from perceivers.errors import ConfigError
from perceivers.exporting import Exported, export_model
from perceivers.exporting.files import SUFFIXES, Format
from perceivers.exporting.graphs import Part
from perceivers.report.console import Shown
from perceivers.tasks import MaskedAutoencodingConfig
from perceivers.tasks.mae import is_masked_autoencoder
from perceivers.workflows.opening import run_config
from perceivers.workflows.task_table import find_settings


def export(
    model: str | Path,
    *,
    out: str | Path | None = None,
    format: Format = "onnx",  # noqa: A002 - the word users type
    part: Part | None = None,
    output: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Export a run or model folder, and compare the outputs of the exported file with the model.

    Args:
        model: Run folder, ``RUN@last`` or model folder.
        out: File to write. Default: ``exported/PART.onnx`` or ``.pt2`` in the model's folder; for
            weights shipped with the package, in a folder ``NAME_exported``.
        format: ``onnx`` or ``torch-export``.
        part: ``model``, ``encoder``, ``decoder`` or ``autoencoder``. Default: the autoencoder of a
            masked pre-training run, otherwise the model.
        output: Output that the decoder part computes, if there are several.
        overwrite: Replace an existing file.

    Raises:
        UserError: The part does not exist, a package is missing, or the file already exists.
        CheckpointError: The outputs of the exported file differ from those of the model.
    """
    if format not in SUFFIXES:
        raise ConfigError(f"format {format!r} is unknown; use one of {sorted(SUFFIXES)}")
    loaded = load_with_info(model)
    masked = loaded.info.task == "pretrain" and is_masked_autoencoder(loaded.model)
    chosen: Part = part or ("autoencoder" if masked else "model")
    base = Path(split_address(model)[0])
    home = base / "exported" if base.exists() else base.with_name(f"{base.name}_exported")
    path = Path(out) if out else home / f"{chosen}{SUFFIXES[format]}"
    for written in (path, path.with_suffix(".json")):
        if written.exists() and not overwrite:
            raise ConfigError(f"{written} exists; pass --overwrite or another --out")
    return export_model(
        loaded.model,
        path,
        format=format,
        part=chosen,
        output=output,
        mask=find_settings(MaskedAutoencodingConfig, loaded, run_config(model)),
        info=loaded.info,
    )


def show(done: Exported) -> Shown:
    """Show the file and its largest difference from the model."""
    return Shown(
        [
            f"{done.path}: ran at batch sizes 1 and 3; largest difference {done.largest:.3g} "
            f"(largest output {done.absmax:.3g})",
            f"preprocessing: {done.description}",
        ]
    )
