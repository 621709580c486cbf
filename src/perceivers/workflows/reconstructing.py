"""Show what a pre-trained model gives back: the verb ``reconstruct``, whatever the system."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.errors import CheckpointError, ConfigError
from perceivers.settings import Seed, checked
from perceivers.tasks import AutoencodingConfig
from perceivers.tasks.mae import OBJECTIVES
from perceivers.training.config import TrainConfig
from perceivers.workflows.compiling import Note
from perceivers.workflows.filling import (
    Filled,
    check_fill,
    describe_dropout,
    fill_files,
    open_filler,
)
from perceivers.workflows.origin import run_config
from perceivers.workflows.preparing import find_masking, find_settings
from perceivers.workflows.reconstruction import (
    TARGET_NOTES,
    reconstruct_masked,
    reconstruct_signals,
)

# Tasks whose models return their input; weights without a task may be of one.
RECONSTRUCTING = ("", "pretrain", "autoencode")


@dataclass(frozen=True)
class Reconstruction:
    """What was written.

    Attributes:
        written: The files; a figure is the last.
        filled: A record for each modality of each sample that was filled in.
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
    """Write originals and what the model makes of them, and an overview picture.

    HiP and Hiera hide most of a picture or clip and imagine it; a Perceiver IO auto-encoder passes
    pictures, clips (written back as playable mp4 with sound) or sounds through its latents. With
    ``fill`` a model of several modalities also writes what it imagines of whole modalities,
    ``NAME_filled``, from the others that a sample holds.

    Args:
        model: Run folder, ``RUN@last`` or model folder of a pre-trained model.
        paths: Files, or folders searched for them. Those of several modalities are paired by name.
        out: Folder for the files and ``overview.png``; with ``fill`` also ``filled.png`` and
            ``filled.json``.
        fill: Modalities to fill in. One that a file holds is hidden from the model and compared
            with what it fills in.
        seed: Seed of the masks.
        overwrite: Replace files of an earlier call in ``out``.
        note: Told what to beware of, and which samples were left out, with ``fill``.

    Returns:
        The files written; the overview, or the figure of ``fill``, is the last.

    Raises:
        UserError: The model cannot reconstruct or fill in, a path does not exist, nothing is
            readable, or ``out`` holds earlier files and ``overwrite`` is off.
    """
    options = {"fill": fill, "seed": seed, "overwrite": overwrite, "note": note}
    return reconstruct_files(model, paths, out, **options).written


@checked
def reconstruct_files(
    model: str | Path,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    fill: Sequence[str] = (),
    seed: Seed = 0,
    overwrite: bool = False,
    note: Note | None = None,
) -> Reconstruction:
    """Do what ``reconstruct`` does, and return the records of what was filled in too."""
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
    """Write originals and reconstructions of what the files hold."""
    task = loaded.info.task
    if task not in RECONSTRUCTING:
        raise CheckpointError(
            f"{model} ({loaded.model.family}, task {task}) gives no signal back and has no decoder "
            f"of its input; see what it predicts with perceivers predict {model} FILE..., or give "
            f"the pre-training run (perceivers pretrain, --task pretrain or autoencode)"
        )
    options = {"seed": seed, "overwrite": overwrite}
    if loaded.model.family in OBJECTIVES:
        return reconstruct_masked(loaded, find_masking(loaded, config), paths, out, **options)
    if loaded.model.family != "perceiver_io":
        raise CheckpointError(
            f"{model} ({loaded.model.family}, task {task or 'not recorded'}) gives no "
            f"signal back; pre-train one with --task autoencode, or a HiP or Hiera"
        )
    known = find_settings(AutoencodingConfig, loaded, config)
    return reconstruct_signals(loaded, known, paths, out, **options)


def describe_target(model: str | Path) -> str:
    """Return a sentence on the space that a masked autoencoder reconstructs in; empty for others.

    Args:
        model: Run folder, ``RUN@last`` or model folder.
    """
    loaded = load_with_info(model)
    if loaded.model.family not in OBJECTIVES or loaded.model.decoder is None:
        return ""
    target = find_masking(loaded, run_config(model)).target
    return f"target space: {target}. {TARGET_NOTES[target]}"
