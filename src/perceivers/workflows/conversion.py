"""Convert third-party weights to model folders and back, and verify them against the originals."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from perceivers.checkpoints.catalogue import warn_of_license
from perceivers.checkpoints.formats import REFUSALS, Source, find_format, find_writer, list_targets
from perceivers.checkpoints.loading import check_finite, load, load_with_info
from perceivers.checkpoints.names import FLAVOURS, Flavour
from perceivers.checkpoints.parity import Difference, Precision
from perceivers.errors import CheckpointError, ConfigError
from perceivers.files import read_json_file
from perceivers.models.saving import ModelInfo
from perceivers.report.console import Shown

POSITIONS = ("keep", "window")


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion.

    Attributes:
        folder: The written folder or file.
        parameters: Number of parameters.
        differences: One entry per compared output; empty if not verified.
        notes: Differences in what the target library computes with the same weights.
    """

    folder: Path
    parameters: int
    differences: list[Difference]
    notes: tuple[str, ...] = ()

    @property
    def is_verified(self) -> bool:
        """Whether outputs were compared and all of them agree."""
        compared = [each for each in self.differences if not each.is_empty]
        return bool(compared) and all(each.is_within for each in compared)


def convert(
    source: str | Path,
    out: str | Path,
    *,
    verify: bool = False,
    config: str | Path | None = None,
    flavour: Flavour | None = None,
    to: str = "perceivers",
    positions: Literal["keep", "window"] = "keep",
    dtype: Precision = "float64",
    weights: str | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Convert third-party weights to a model folder, or a model folder to a third-party format.

    Args:
        source: A parity bundle (``.npz``), a Haiku parameter pickle, a file of tensors (``.pth``,
            ``.ckpt``, ``.safetensors``: official or timm Hiera weights, alone or inside a training
            checkpoint; no code in it is executed), or a Hugging Face folder. With ``to`` or
            ``positions``, a model folder of this library.
        out: Model folder to write; a file if ``to`` is ``haiku`` (``.npz``), ``official``
            (``.pth``) or ``timm`` (``.safetensors``).
        verify: Compare the outputs of the written model with those in the bundle, or with the other
            library on fresh inputs (requires transformers, hiera-transformer or timm).
        config: For a file that is not a published model: JSON with the description of a parity
            bundle, or with the settings of a Hiera that cannot be inferred from its shapes.
        flavour: Implementation to reproduce with published weights, ``official`` or ``hf``;
            default: that of the source.
        to: Format to write: ``perceivers``, ``hf``, ``haiku``, ``official``, ``timm``, or one that
            was registered.
        positions: ``window`` splits a Hiera's absolute position embeddings into a part that can be
            interpolated and a part that is tiled; at the native size the model stays the same.
        dtype: Precision of the comparison with another library, ``float64`` or ``float32``.
        weights: For a training checkpoint with several sets of weights: ``raw``, ``ema`` (averaged)
            or the name of a set. Default: the raw weights; the notes list the others.
        overwrite: Replace existing files in ``out``.

    Raises:
        UserError: The source is damaged or incomplete, or the parameters do not fit.
    """
    source, out = Path(source), Path(out)
    _check_choices(to=to, flavour=flavour or FLAVOURS[0], positions=positions)
    windows = positions == "window"
    if to != "perceivers" or _is_ours(source):
        for name, value in (("weights", weights), ("config", config), ("flavour", flavour)):
            if value is not None:
                raise ConfigError(REFUSALS[name].format(source=source, value=value))
    if to != "perceivers":
        return _export(source, out, to, windows, verify=verify, dtype=dtype, overwrite=overwrite)
    if _is_ours(source):
        return _rewrite(source, out, windows, verify=verify, overwrite=overwrite)
    foreign = Source(source, None if config is None else Path(config), flavour, weights)
    return _import(foreign, out, windows, verify=verify, dtype=dtype, overwrite=overwrite)


def _is_ours(source: Path) -> bool:
    return source.is_dir() and "format_version" in read_json_file(source / "config.json")


def _import(
    source: Source, out: Path, windows: bool, *, verify: bool, dtype: Precision, overwrite: bool
) -> Conversion:
    row = find_format(source)
    row.check_options(source, windows=windows)
    if verify and (objection := row.objection(source)):
        raise ConfigError(objection)
    model, info, notes = row.build(source)
    original = model if windows else None
    if windows:
        model = model.with_window_positions()
    done = _save(model, out, info, overwrite, notes)
    del model  # it may be large, and verifying needs two others
    if not verify:
        return done
    written = load(out)
    # Splitting position embeddings rounds them, so everything else is compared unsplit.
    differences = row.verify(source, written if original is None else original, dtype)
    if original is not None:
        differences.append(compare_positions(original, written))
    return replace(done, differences=differences)


def _check_choices(**given: str) -> None:
    words = {"to": list_targets(), "flavour": FLAVOURS, "positions": POSITIONS}
    for name, value in given.items():
        if value not in words[name]:
            raise ConfigError(f"{name} is {value!r}; choose from {list(words[name])}")


def _rewrite(
    source: Path, out: Path, windows: bool, *, verify: bool, overwrite: bool
) -> Conversion:
    """Rewrite a model folder with split position embeddings."""
    if not windows:
        raise ConfigError(
            f"{source} is a model folder of this library already; pass to='hf' or to='haiku' "
            f"(--to) to write it in another format"
        )
    loaded = load_with_info(source)
    model = loaded.model.with_window_positions()
    done = _save(model, out, loaded.info, overwrite)
    if not verify:
        return done
    return replace(done, differences=[compare_positions(loaded.model, load(out))])


def compare_positions(before: Any, after: Any) -> Difference:
    """Compare the position embeddings of two models at the native input size."""
    grid = before.config.native_grid
    first, second = (model.encoder.positions(grid).detach() for model in (before, after))
    largest = float((first.double() - second.double()).abs().max())
    return Difference("positions", largest, 1e-6 * float(first.abs().max()))


def _save(
    model: Any, out: Path, info: ModelInfo, overwrite: bool, notes: tuple[str, ...] = ()
) -> Conversion:
    check_finite(model.state_dict(), source=str(info.provenance.get("source", out)))
    model.save_pretrained(out, info=info, overwrite=overwrite)
    warn_of_license(out, info.license)
    return Conversion(out, _count(model), [], notes)


def _count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _export(
    source: Path,
    out: Path,
    to: str,
    windows: bool,
    *,
    verify: bool,
    dtype: Precision,
    overwrite: bool,
) -> Conversion:
    loaded = load_with_info(source)
    if windows:
        loaded = replace(loaded, model=loaded.model.with_window_positions().eval())
    row = find_writer(to, loaded.model)
    if row.suffix and out.suffix != row.suffix:
        raise ConfigError(
            f"format {to!r} is written to a {row.suffix} file, not to {out}; name it "
            f"{out.name}{row.suffix}"
        )
    if verify and not row.is_live:
        raise ConfigError(f"format {to!r} cannot be run here; convert the file back to compare")
    if not overwrite and row.is_folder and (out / "config.json").exists():
        raise CheckpointError(
            f"{out} already holds a model; choose another folder, or pass overwrite=True "
            f"(--overwrite)"
        )
    if not overwrite and not row.is_folder and out.exists():
        raise CheckpointError(f"{out} exists; choose another file, or pass overwrite=True")
    assert row.write is not None
    notes = row.write(loaded.model, out, loaded.info)
    found = row.verify(Source(out), loaded.model, dtype) if verify else []
    return Conversion(out, _count(loaded.model), found, tuple(notes))


def show(done: Conversion, *, verify: bool) -> Shown:
    """Show what was written and how its outputs compare; the status is 1 if they disagree.

    Args:
        done: From ``convert``.
        verify: Whether a comparison was asked for.
    """
    lines = [f"{done.folder}: {done.parameters:,} parameters"]
    lines += [f"note: {note}" for note in done.notes]
    for each in done.differences:
        if each.is_empty:
            lines.append(f"{each.output}: empty on both sides, not compared")
            continue
        verdict = "ok" if each.is_within else "TOO LARGE"
        lines.append(
            f"{each.output}: largest difference {each.largest:.3g}, allowed {each.allowed:.3g}: "
            f"{verdict}"
        )
    return Shown(lines, status=0 if not verify or done.is_verified else 1)
