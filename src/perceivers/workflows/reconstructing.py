"""Reconstruct files with a pre-trained model of any family: the verb ``reconstruct``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.errors import CheckpointError, ConfigError
from perceivers.report.by_modality import TARGET_NOTES
from perceivers.report.console import Grid, Shown
from perceivers.settings import Seed, checked
from perceivers.tasks import AutoencodingConfig
from perceivers.tasks.autoencoding import is_autoencoder
from perceivers.tasks.mae import is_masked_autoencoder
from perceivers.training.config import TrainConfig
from perceivers.workflows.filling import (
    Filled,
    check_fill,
    describe_dropout,
    fill_files,
    open_filler,
)
from perceivers.workflows.numerics import Note
from perceivers.workflows.opening import run_config
from perceivers.workflows.reconstruction import reconstruct_masked, reconstruct_signals
from perceivers.workflows.task_table import find_masking, find_settings

# Tasks whose models reconstruct their input; weights without a recorded task may be of such a task.
RECONSTRUCTING = ("", "pretrain", "autoencode")


@dataclass(frozen=True)
class Reconstruction:
    """Written files and filled-in modalities.

    Attributes:
        written: The files; a figure is the last.
        filled: One record for each sample and filled-in modality.
    """

    written: list[Path]
    filled: list[Filled]


@checked
def reconstruct(
    model: str | Path,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    fill: Sequence[str] = (),
    seed: Seed = 0,
    overwrite: bool = False,
    note: Note | None = None,
) -> list[Path]:
    """Write originals, their reconstructions and an overview figure.

    HiP and Hiera hide most of the input and reconstruct it; a Perceiver IO autoencoder passes
    images, clips (written as playable mp4 with sound) or audio through its latents. With ``fill``,
    a model of several modalities also predicts whole modalities from the others that a sample has,
    and writes them as ``NAME_filled``.

    Args:
        model: Run folder, ``RUN@last`` or model folder of a pre-trained model.
        paths: Files, or folders searched for them. Files of several modalities are paired by name.
        out: Folder for the files and ``overview.png``; with ``fill`` also ``filled.png`` and
            ``filled.json``.
        fill: Modalities to fill in. If a file has one of them, it is hidden from the model and
            compared with the prediction.
        seed: Seed of the masks.
        overwrite: Replace files of an earlier call in ``out``.
        note: With ``fill``, called with warnings and with the samples that were left out.

    Returns:
        The written files; the overview, or the figure of ``fill``, is the last.

    Raises:
        UserError: The model cannot reconstruct or fill in, a path does not exist, no file is
            readable, or ``out`` holds earlier files and ``overwrite`` is off.
    """
    options = {"fill": fill, "seed": seed, "overwrite": overwrite, "note": note}
    return reconstruct_files(model, paths, out, **options).written


@checked
def reconstruct_files(
    model: str | Path,
    paths: Sequence[str | Path],
    out: str | Path = "reconstructed",
    *,
    fill: Sequence[str] = (),
    seed: Seed = 0,
    overwrite: bool = False,
    note: Note | None = None,
) -> Reconstruction:
    """Run ``reconstruct``, and also return the records of filled-in modalities."""
    if isinstance(fill, str):
        raise ConfigError(f"fill is {fill!r}; give a list of modalities, such as [{fill!r}]")
    loaded, config = load_with_info(model), run_config(model)
    if not fill:
        written = _write_usual(model, loaded, config, paths, Path(out), seed, overwrite)
        return Reconstruction(written, [])
    filler = open_filler(loaded, config)
    check_fill(filler, fill, Path(out), overwrite=overwrite)
    warning = describe_dropout(filler, config, fill)
    if warning and note is not None:
        note(f"warning: {warning}")
    written = _write_usual(model, loaded, config, paths, Path(out), seed, overwrite)
    more, filled = fill_files(filler, loaded, fill, paths, Path(out), note=note)
    return Reconstruction(written + more, filled)


def _write_usual(
    model: str | Path,
    loaded: Loaded,
    config: TrainConfig | None,
    paths: Sequence[str | Path],
    out: Path,
    seed: int,
    overwrite: bool,
) -> list[Path]:
    task = loaded.info.task
    if task not in RECONSTRUCTING:
        raise CheckpointError(
            f"{model} ({loaded.model.family}, task {task}) does not reconstruct its input; show "
            f"its predictions with perceivers predict {model} FILE..., or give the pre-training "
            f"run (perceivers pretrain, --task pretrain or autoencode)"
        )
    options = {"seed": seed, "overwrite": overwrite}
    if is_masked_autoencoder(loaded.model):
        return reconstruct_masked(loaded, find_masking(loaded, config), paths, out, **options)
    if not is_autoencoder(loaded.model):
        raise CheckpointError(
            f"{model} ({loaded.model.family}, task {task or 'not recorded'}) does not reconstruct "
            f"its input; pre-train a model with --task autoencode, or a HiP or Hiera"
        )
    known = find_settings(AutoencodingConfig, loaded, config)
    return reconstruct_signals(loaded, known, paths, out, **options)


def describe_target(model: str | Path) -> str:
    """Describe the target space of a masked autoencoder; empty for other models.

    Args:
        model: Run folder, ``RUN@last`` or model folder.
    """
    loaded = load_with_info(model)
    if not is_masked_autoencoder(loaded.model):
        return ""
    target = find_masking(loaded, run_config(model)).target
    return f"target space: {target}. {TARGET_NOTES[target]}"


def show(done: Reconstruction, *, model: str | Path, out: str | Path) -> Shown:
    """Show the written files, the filled-in modalities, and the target space of the model.

    Args:
        done: From ``reconstruct_files``.
        model: As for ``reconstruct``.
        out: As for ``reconstruct``.
    """
    lines: list[str | Grid] = [f"{len(done.written)} files in {out}; see {done.written[-1]}"]
    if done.filled:
        header = ("file", "filled in", "from", "error", "as")
        lines.append(Grid(header, [each.row() for each in done.filled]))
    note = describe_target(model)
    return Shown([*lines, note] if note else lines)
