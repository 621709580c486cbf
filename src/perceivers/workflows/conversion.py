"""Convert third-party weights to model folders and back, and verify them against the originals."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from perceivers.checkpoints.bundle import (
    check_bundle,
    parse_datasets,
    read_archive,
    read_parameter_pickle,
    require,
)
from perceivers.checkpoints.catalogue import warn_of_license
from perceivers.checkpoints.formats import WRITERS, find_writer
from perceivers.checkpoints.haiku import model_from_haiku
from perceivers.checkpoints.haiku_kinds import config_from_kind
from perceivers.checkpoints.haiku_perceiver import (
    model_from_entries,
    model_from_release,
)
from perceivers.checkpoints.hugging_face import (
    model_from_hugging_face,
    read_hugging_face,
)
from perceivers.checkpoints.loading import check_finite, load, load_with_info
from perceivers.checkpoints.names import FLAVOURS, Flavour, kind_of
from perceivers.checkpoints.torch_files import TENSOR_FILES, is_tensor_file
from perceivers.checkpoints.verify import (
    Difference,
    Precision,
    verify_archive,
    verify_bundle,
    verify_hugging_face,
)
from perceivers.errors import CheckpointError, ConfigError
from perceivers.files import read_json_file
from perceivers.models.saving import ModelInfo
from perceivers.report.console import Shown
from perceivers.workflows.foreign_sources import (
    FOLDERS,
    Opened,
    compare_positions,
    describe_source,
    open_archive,
    open_hub_folder,
    open_tensor_file,
)

PICKLES = {".pickle", ".pkl", ".pystate"}
TARGETS = ("perceivers", *WRITERS)
POSITIONS = ("keep", "window")
Target = Literal["perceivers", "hf", "haiku", "official", "timm"]

TASKS_OF_KINDS = {
    "language": "mlm",
    "text_classes": "classify",
    "image_classes": "classify",
    "classic": "classify",
    "flow": "flow",
    "multimodal": "autoencode",
}


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
    to: Target = "perceivers",
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
        to: Format to write.
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
    if weights is not None and (to != "perceivers" or (source.is_dir() and _is_ours(source))):
        raise ConfigError(f"{source} holds one set of weights; leave out weights={weights}")
    if to != "perceivers":
        return _export(source, out, to, windows, verify=verify, dtype=dtype, overwrite=overwrite)
    if source.is_dir() and _is_ours(source):
        return _rewrite(source, out, windows, verify=verify, overwrite=overwrite)
    config = None if config is None else Path(config)
    opened = _open(source, config, flavour, weights)
    if opened is not None:
        return _convert_opened(
            opened, out, windows, verify=verify, dtype=dtype, overwrite=overwrite
        )
    if windows:
        raise ConfigError(f"positions=window is for Hiera models; {source} does not hold one")
    if source.is_dir():
        return _convert_folder(
            source, out, flavour or "hf", verify=verify, dtype=dtype, overwrite=overwrite
        )
    return _convert_file(source, out, config, flavour, verify=verify, overwrite=overwrite)


def _convert_file(
    source: Path,
    out: Path,
    config: Path | None,
    flavour: Flavour | None,
    *,
    verify: bool,
    overwrite: bool,
) -> Conversion:
    if source.suffix in PICKLES:
        if verify:
            raise ConfigError(
                "a parameter pickle holds no outputs to verify against; use a parity bundle (.npz)"
            )
        model = _read_pickle(source, config, flavour)
        return _save(model, out, describe_source(source, "Haiku parameters", flavour), overwrite)
    if source.suffix == ".npz":
        if flavour is not None:
            raise ConfigError(
                f"{source} defines the computation itself; leave out flavour={flavour}"
            )
        return _convert_archive(source, out, verify=verify, overwrite=overwrite)
    raise CheckpointError(
        f"{source}: cannot convert '{source.suffix}' files; give a parity bundle (.npz), a Haiku "
        f"parameter pickle ({', '.join(sorted(PICKLES))}), a file of tensors "
        f"({', '.join(sorted(TENSOR_FILES))}) or a Hugging Face folder"
    )


def _check_choices(**given: str) -> None:
    words = {"to": TARGETS, "flavour": FLAVOURS, "positions": POSITIONS}
    for name, value in given.items():
        if value not in words[name]:
            raise ConfigError(f"{name} is {value!r}; choose from {list(words[name])}")


def _is_ours(folder: Path) -> bool:
    return "format_version" in read_json_file(folder / "config.json")


def _open(
    source: Path, config: Path | None, flavour: Flavour | None, weights: str | None
) -> Opened | None:
    """Open a checkpoint identified by its tensor names or ``model_type``; None if unrecognised."""
    unused, chosen = config, weights
    if source.is_dir():
        stated = read_json_file(source / "config.json")
        kind = str(stated.get("model_type", ""))
        if kind in FOLDERS:
            opened = FOLDERS[kind](source)
        elif not kind and ("embed_dim" in stated or "pretrained_cfg" in stated):
            opened, unused = open_hub_folder(source, stated, config, weights), None
            chosen = None
        else:
            opened = None
    elif not source.is_file():
        raise CheckpointError(f"{source} does not exist or is not a file")
    elif is_tensor_file(source):
        opened, unused, chosen = open_tensor_file(source, config, weights), None, None
    elif source.suffix == ".npz" and (found := open_archive(source)) is not None:
        opened = found
    else:
        opened = None
    if chosen is not None:
        raise ConfigError(f"{source} holds one set of weights; leave out weights={weights}")
    if opened is None:
        return None
    if flavour is not None:
        raise ConfigError(
            f"all libraries compute the same with the weights of {source}; leave out "
            f"flavour={flavour}"
        )
    if unused is not None:
        raise ConfigError(f"{source} contains its own config; leave out config={unused}")
    return opened


def _convert_opened(
    opened: Opened, out: Path, windows: bool, *, verify: bool, dtype: Precision, overwrite: bool
) -> Conversion:
    model, differences = opened.model, []
    if windows:
        model = model.with_window_positions()
    done = _save(model, out, opened.info, overwrite)
    if verify:
        written = load(out)
        # Splitting position embeddings rounds them, so everything else is compared unsplit.
        differences = opened.verify(opened.model if windows else written, dtype)
        if windows:
            differences.append(compare_positions(opened.model, written))
    return Conversion(out, done.parameters, differences, opened.notes)


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
    found = [compare_positions(loaded.model, load(out))] if verify else []
    return Conversion(out, done.parameters, found)


def _save(
    model: Any, out: Path, info: ModelInfo, overwrite: bool, differences: Any = ()
) -> Conversion:
    check_finite(model.state_dict(), source=str(info.provenance.get("source", out)))
    model.save_pretrained(out, info=_with_task(model, info), overwrite=overwrite)
    warn_of_license(out, info.license)
    return Conversion(out, _count(model), list(differences))


def _with_task(model: Any, info: ModelInfo) -> ModelInfo:
    """Add the task of a published model, which ``predict`` and ``reconstruct`` need."""
    if info.task:
        return info
    try:
        task = TASKS_OF_KINDS[kind_of(model.config)]
    except CheckpointError:  # no released model
        return info
    classes = info.classes
    if task == "classify" and not classes:
        # The published files contain no class names, so classes are numbered.
        classes = tuple(str(number) for number in range(model.config.num_classes))
    return replace(info, task=task, classes=classes)


def _count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _convert_archive(source: Path, out: Path, *, verify: bool, overwrite: bool) -> Conversion:
    """Convert a parity bundle of HiP, or of Perceiver and Perceiver IO (those have a ``kind``)."""
    archive = read_archive(source)
    info = describe_source(source, "Haiku parameters", None)
    if "kind" not in archive.config:
        bundle = check_bundle(archive, str(source))
        hip = model_from_haiku(bundle.params, bundle.model, bundle.kwargs, bundle.datasets)
        done = _save(hip, out, info, overwrite)
        found = verify_bundle(load(out), bundle) if verify else []
        return Conversion(out, done.parameters, found)
    shapes = {name: array.shape for name, array in archive.inputs.items()}
    config = config_from_kind(archive.config, shapes, str(source))
    model = model_from_entries(config, {**archive.params, **archive.state}, str(source))
    done = _save(model, out, info, overwrite)
    found = verify_archive(load(out), archive, str(source)) if verify else []
    return Conversion(out, done.parameters, found)


def _read_pickle(source: Path, config: Path | None, flavour: Flavour | None) -> Any:
    """Read bare parameters of a published model, or of the model described by ``config``."""
    if config is None:
        return model_from_release(read_parameter_pickle(source), str(source), flavour or "official")
    if flavour is not None:
        raise ConfigError(f"{config} defines the computation itself; leave out flavour={flavour}")
    stated = read_json_file(config)
    arrays = read_parameter_pickle(source)
    if "kind" in stated:
        shapes = stated.get("shapes", {})
        return model_from_entries(
            config_from_kind(stated, shapes, str(config)), arrays, str(source)
        )
    return model_from_haiku(
        arrays,
        require(stated, "model", str(config)),
        require(stated, "kwargs", str(config)),
        parse_datasets(stated, str(config)),
    )


def _convert_folder(
    source: Path, out: Path, flavour: Flavour, *, verify: bool, dtype: Precision, overwrite: bool
) -> Conversion:
    if verify and flavour != "hf":
        raise ConfigError(
            f"flavour={flavour} differs from the Hugging Face implementation on purpose; verify "
            f"with flavour=hf"
        )
    read = read_hugging_face(source)
    model = model_from_hugging_face(read, flavour)
    more: dict[str, Any] = {"provenance": _unconverted(read.stated)}
    if read.classes and kind_of(model.config).endswith("classes"):
        more |= {"task": "classify", "classes": read.classes}
    done = _save(
        model, out, describe_source(source, f"Hugging Face {read.name}", flavour, **more), overwrite
    )
    del model
    found = verify_hugging_face(source, load(out), dtype=dtype) if verify else []
    return Conversion(out, done.parameters, found)


def _unconverted(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that only affect training and have no equivalent here."""
    rate = stated.get("attention_probs_dropout_prob", 0.0)
    return {"left behind": f"attention_probs_dropout_prob={rate}"} if rate else {}


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
    writer = find_writer(to, loaded.model)
    if writer.suffix and out.suffix != writer.suffix:
        raise ConfigError(
            f"format {to!r} is written to a {writer.suffix} file, not to {out}; name it "
            f"{out.name}{writer.suffix}"
        )
    if verify and writer.verify is None:
        raise ConfigError(f"format {to!r} cannot be run here; convert the file back to compare")
    if not overwrite and writer.is_folder and (out / "config.json").exists():
        raise CheckpointError(
            f"{out} already holds a model; choose another folder, or pass overwrite=True "
            f"(--overwrite)"
        )
    if not overwrite and not writer.is_folder and out.exists():
        raise CheckpointError(f"{out} exists; choose another file, or pass overwrite=True")
    notes = writer.write(loaded.model, out, loaded.info)
    found = writer.verify(out, loaded.model, dtype) if verify and writer.verify else []
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
