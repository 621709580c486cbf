"""Show what a pre-trained model gives back: the verb ``reconstruct``, whatever the system."""

from collections.abc import Sequence
from pathlib import Path

from perceivers.checkpoints.loading import load_with_info
from perceivers.errors import CheckpointError
from perceivers.settings import Seed, checked
from perceivers.tasks import AutoencodingConfig
from perceivers.tasks.mae import OBJECTIVES
from perceivers.workflows.objectives import find_masking, find_settings
from perceivers.workflows.origin import run_config
from perceivers.workflows.reconstruction import TARGET_NOTES, reconstruct_masked
from perceivers.workflows.signal_reconstruction import reconstruct_signals

# Tasks whose models return their input; weights without a task may be of one.
RECONSTRUCTING = ("", "pretrain", "autoencode")


@checked
def reconstruct(
    model: str | Path,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    seed: Seed = 0,
    overwrite: bool = False,
) -> list[Path]:
    """Write originals and what the model makes of them, and an overview picture.

    HiP and Hiera hide most of a picture or clip and imagine it; a Perceiver IO auto-encoder passes
    pictures, clips (written back as playable mp4 with sound) or sounds through its latents.

    Args:
        model: Run folder, ``RUN@last`` or model folder of a pre-trained model.
        paths: Files, or folders searched for them.
        out: Folder for the files and ``overview.png``.
        seed: Seed of the masks.
        overwrite: Replace files of an earlier call in ``out``.

    Returns:
        The files written; the overview is the last.

    Raises:
        UserError: The model cannot reconstruct, a path does not exist, nothing is readable, or
            ``out`` holds earlier files and ``overwrite`` is off.
    """
    loaded = load_with_info(model)
    task = loaded.info.task
    if task not in RECONSTRUCTING:
        raise CheckpointError(
            f"{model} ({loaded.model.family}, task {task}) gives no signal back and has no decoder "
            f"of its input; see what it predicts with perceivers predict {model} FILE..., or give "
            f"the pre-training run (perceivers pretrain, --task pretrain or autoencode)"
        )
    config = run_config(model)
    options = {"seed": seed, "overwrite": overwrite}
    if loaded.model.family in OBJECTIVES:
        return reconstruct_masked(loaded, find_masking(loaded, config), paths, Path(out), **options)
    if loaded.model.family != "perceiver_io":
        raise CheckpointError(
            f"{model} ({loaded.model.family}, task {task or 'not recorded'}) gives no "
            f"signal back; pre-train one with --task autoencode, or a HiP or Hiera"
        )
    known = find_settings(AutoencodingConfig, loaded, config)
    return reconstruct_signals(loaded, known, paths, Path(out), **options)


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
