"""Convert foreign weights to model folders and back, and verify them against the originals."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from perceivers.checkpoints.bundle import (
    check_bundle,
    parse_datasets,
    read_archive,
    read_json,
    require,
)
from perceivers.checkpoints.catalogue import find_weights
from perceivers.checkpoints.haiku import model_from_haiku
from perceivers.checkpoints.haiku_kinds import config_from_kind
from perceivers.checkpoints.haiku_perceiver import (
    model_from_entries,
    model_from_release,
    save_haiku,
)
from perceivers.checkpoints.hugging_face import (
    model_from_hugging_face,
    read_hugging_face,
    save_hugging_face,
)
from perceivers.checkpoints.kinds import FLAVOURS, Flavour, kind_of
from perceivers.checkpoints.loading import load, load_with_info
from perceivers.checkpoints.unpickle import read_parameter_pickle
from perceivers.checkpoints.verify import Difference, verify_bundle
from perceivers.checkpoints.verify_hugging_face import Precision, verify_hugging_face
from perceivers.checkpoints.verify_perceiver import verify_archive
from perceivers.errors import CheckpointError, ConfigError
from perceivers.files import read_json_file
from perceivers.models.saving import ModelInfo

PICKLES = {".pickle", ".pkl", ".pystate"}
TARGETS = ("perceivers", "hf", "haiku")
UNSTATED = "as stated by the source of the parameters"


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
    """What was written, and how its outputs compare (empty when not verified).

    Attributes:
        folder: The written folder, or file.
        parameters: Trainable values.
        differences: One per compared output.
        notes: What the target library computes otherwise with the same weights.
    """

    folder: Path
    parameters: int
    differences: list[Difference]
    notes: tuple[str, ...] = ()

    @property
    def is_verified(self) -> bool:
        """Whether outputs were compared and all agree."""
        return bool(self.differences) and all(d.is_within for d in self.differences)


def convert(
    source: str | Path,
    out: str | Path,
    *,
    verify: bool = False,
    config: str | Path | None = None,
    flavour: Flavour | None = None,
    to: Literal["perceivers", "hf", "haiku"] = "perceivers",
    dtype: Precision = "float64",
    overwrite: bool = False,
) -> Conversion:
    """Convert foreign weights to a model folder, or a model folder to foreign weights.

    Args:
        source: A parity bundle (``.npz``), a Haiku parameter pickle (read without executing
            anything in it), or a Hugging Face folder; with ``to`` a model folder of ours.
        out: Model folder to write; for ``to="haiku"`` a ``.npz`` file.
        verify: Run what was written and compare: with the bundle's outputs, or with Hugging Face's
            class on fresh inputs (needs transformers).
        config: For a pickle of no released model: JSON that describes it as a bundle does.
        flavour: Whose arithmetic to run released weights with: ``official`` or ``hf``; that of the
            source when not given.
        to: Format to write.
        dtype: Precision in which Hugging Face's class is compared, ``float64`` or ``float32``.
        overwrite: Replace what is already in ``out``.

    Raises:
        UserError: The source is damaged or incomplete, or the parameters do not fit.
    """
    source, out = Path(source), Path(out)
    for name, value, known in (("to", to, TARGETS), ("flavour", flavour or FLAVOURS[0], FLAVOURS)):
        if value not in known:
            raise ConfigError(f"{name} is {value!r}; choose from {list(known)}")
    if to != "perceivers":
        return _export(source, out, to, verify=verify, dtype=dtype, overwrite=overwrite)
    if source.is_dir():
        return _convert_folder(
            source, out, flavour or "hf", verify=verify, dtype=dtype, overwrite=overwrite
        )
    if not source.is_file():
        raise CheckpointError(f"{source} does not exist or is not a file")
    if source.suffix in PICKLES:
        if verify:
            raise ConfigError(
                "a parameter pickle holds no outputs to verify against; use a parity bundle (.npz)"
            )
        model = _read_pickle(source, None if config is None else Path(config), flavour)
        return _save(model, out, _info(source, "Haiku parameters", flavour), overwrite)
    if source.suffix == ".npz":
        if flavour is not None:
            raise ConfigError(f"{source} says itself what is computed; leave out flavour={flavour}")
        return _convert_archive(source, out, verify=verify, overwrite=overwrite)
    raise CheckpointError(
        f"{source}: cannot convert '{source.suffix}' files; give a parity bundle (.npz), a Haiku "
        f"parameter pickle ({', '.join(sorted(PICKLES))}) or a Hugging Face folder"
    )


def _save(
    model: Any, out: Path, info: ModelInfo, overwrite: bool, differences: Any = ()
) -> Conversion:
    model.save_pretrained(out, info=_with_task(model, info), overwrite=overwrite)
    return Conversion(out, _count(model), list(differences))


def _with_task(model: Any, info: ModelInfo) -> ModelInfo:
    """Say what a released kind is for, so that ``predict`` and ``reconstruct`` know."""
    if info.task or model.family not in {"perceiver", "perceiver_io"}:
        return info
    try:
        task = TASKS_OF_KINDS[kind_of(model.config)]
    except CheckpointError:  # a bundle may hold any model
        return info
    classes = info.classes
    if task == "classify" and not classes:
        # The released files name no classes; the logits are told apart by their numbers.
        classes = tuple(str(number) for number in range(model.config.num_classes))
    return replace(info, task=task, classes=classes)


def _count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _info(source: Path, kind: str, flavour: Flavour | None, **more: Any) -> ModelInfo:
    """What travels along; a released file is known by its name."""
    released = find_weights(source.name)
    provenance = {"source": source.name, "converted_from": kind}
    if flavour is not None:
        provenance["flavour"] = flavour
    settings = {"license": released.license if released else UNSTATED, **more}
    return ModelInfo(**{**settings, "provenance": {**provenance, **more.get("provenance", {})}})


def _convert_archive(source: Path, out: Path, *, verify: bool, overwrite: bool) -> Conversion:
    """A bundle of either release."""
    archive = read_archive(source)
    info = _info(source, "Haiku parameters", None)
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
    """Parameters alone: of a release that their names tell, or of what ``config`` describes."""
    if config is None:
        return model_from_release(read_parameter_pickle(source), str(source), flavour or "official")
    if flavour is not None:
        raise ConfigError(f"{config} says itself what is computed; leave out flavour={flavour}")
    try:
        stated = read_json(config.read_text(), str(config))
    except OSError as error:
        raise CheckpointError(f"{config} cannot be read: {error}") from error
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
    """A Hugging Face folder."""
    stated = read_json_file(source / "config.json")
    if "format_version" in stated:
        raise ConfigError(
            f"{source} is a model folder of this library already; pass to='hf' or to='haiku' "
            f"(--to) to write it in another format"
        )
    if verify and flavour != "hf":
        raise ConfigError(
            f"flavour={flavour} computes other numbers than Hugging Face's class on purpose; "
            f"verify with flavour=hf"
        )
    read = read_hugging_face(source)
    model = model_from_hugging_face(read, flavour)
    more: dict[str, Any] = {"provenance": _unconverted(read.stated)}
    if read.classes and kind_of(model.config).endswith("classes"):
        more |= {"task": "classify", "classes": read.classes}
    if license_ := _card_license(source):
        more["license"] = license_
    done = _save(model, out, _info(source, f"Hugging Face {read.name}", flavour, **more), overwrite)
    del model
    found = verify_hugging_face(source, load(out), dtype=dtype) if verify else []
    return Conversion(out, done.parameters, found)


def _unconverted(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that act in training only, and have no place here."""
    rate = stated.get("attention_probs_dropout_prob", 0.0)
    return {"left behind": f"attention_probs_dropout_prob={rate}"} if rate else {}


def _card_license(folder: Path) -> str:
    """The licence in the head of a model card, where there is one."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    head = card.read_text(errors="replace").split("---")
    lines = head[1].splitlines() if len(head) > 2 and not head[0].strip() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("license:")]
    return found[0] if found else ""


def _export(
    source: Path, out: Path, to: str, *, verify: bool, dtype: Precision, overwrite: bool
) -> Conversion:
    """A model folder of ours to foreign weights."""
    loaded = load_with_info(source)
    if to == "haiku":
        if out.suffix != ".npz":
            raise ConfigError(
                f"Haiku parameters are written to a .npz file, not to {out}; name it {out.name}.npz"
            )
        if verify:
            raise ConfigError("Haiku parameters cannot be run here; convert them back to compare")
        if out.exists() and not overwrite:
            raise CheckpointError(f"{out} exists; choose another file, or pass overwrite=True")
        notes = save_haiku(loaded.model, out)
        return Conversion(out, _count(loaded.model), [], tuple(notes))
    if (out / "config.json").exists() and not overwrite:
        raise CheckpointError(
            f"{out} already holds a model; choose another folder, or pass overwrite=True "
            f"(--overwrite)"
        )
    notes = save_hugging_face(loaded.model, out, loaded.info)
    found = verify_hugging_face(out, loaded.model, dtype=dtype) if verify else []
    return Conversion(out, _count(loaded.model), found, tuple(notes))
