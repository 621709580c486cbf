"""The table of third-party formats: how each is recognised, read, verified and written.

``FORMATS`` has one row per library and model family, and everything that reads or writes foreign
weights walks it. To support another format, add a row (``register``); its tensor names, and the
code that compares outputs, belong in a file of its own.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from perceivers.checkpoints.catalogue import describe_source
from perceivers.checkpoints.haiku import hip_from_entries, model_from_haiku, save_hip, verify_bundle
from perceivers.checkpoints.haiku_perceiver import (
    config_from_kind,
    model_from_entries,
    model_from_release,
    save_haiku,
)
from perceivers.checkpoints.hiera_files import (
    hiera_from_hugging_face,
    hiera_from_tensors,
    read_hiera_folder,
    save_hiera_folder,
    save_official,
    save_timm,
    tell_library,
    with_hiera_task,
)
from perceivers.checkpoints.hiera_names import Library, stated_by_hub
from perceivers.checkpoints.hugging_face import (
    model_from_hugging_face,
    read_hugging_face,
    save_hugging_face,
)
from perceivers.checkpoints.names import Flavour, kind_of, with_task
from perceivers.checkpoints.parity import (
    OWN_KIND,
    Archive,
    Difference,
    Precision,
    check_bundle,
    check_comparable,
    own_config,
    parse_datasets,
    read_archive,
    require,
)
from perceivers.checkpoints.pickles import read_parameter_pickle
from perceivers.checkpoints.sam2 import (
    SAM2_FOLDERS,
    find_trunk,
    model_from_sam2,
    read_sam2_folder,
    sam2_from_tensors,
    split_trunk,
    verify_sam2,
)
from perceivers.checkpoints.torch_files import (
    TENSOR_FILES,
    find_folder_file,
    is_tensor_file,
    read_known_weights,
)
from perceivers.checkpoints.verify import (
    verify_archive,
    verify_hiera_archive,
    verify_hiera_folder,
    verify_hiera_tensors,
    verify_hugging_face,
)
from perceivers.errors import CheckpointError, ConfigError
from perceivers.files import read_json_file
from perceivers.models.saving import ModelInfo

PICKLES = {".pickle", ".pkl", ".pystate"}


# -- What a row reads, and what it returns -------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A file or folder of weights and how to read it; its contents are read once, when needed.

    Attributes:
        path: The file or folder.
        config: JSON file with what the source does not state itself.
        flavour: Implementation to reproduce with published weights; None: that of the source.
        weights: Which of several sets of weights to read; None: the raw ones.
    """

    path: Path
    config: Path | None = None
    flavour: Flavour | None = None
    weights: str | None = None

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def stated(self) -> Mapping[str, Any] | None:
        """Content of a folder's ``config.json``; None for a file."""
        return read_json_file(self.path / "config.json") if self.path.is_dir() else None

    @cached_property
    def model_type(self) -> Any:
        """The ``model_type`` of a Hugging Face folder; "" for files and for other folders."""
        if self.stated is None or self.is_hub_folder:
            return ""
        return self.stated.get("model_type", "perceiver")

    @property
    def is_hub_folder(self) -> bool:
        """Whether this is a folder as the official Hiera package and timm write for the hub."""
        stated = self.stated or {}
        told = "embed_dim" in stated or "pretrained_cfg" in stated
        return told and not stated.get("model_type", "")

    @cached_property
    def given(self) -> Mapping[str, Any]:
        """Content of ``config``; empty without it."""
        return {} if self.config is None else read_json_file(self.config)

    @property
    def is_pickle(self) -> bool:
        """Whether this is a pickle of Haiku parameters."""
        return self.path.suffix in PICKLES and not self.path.is_dir()

    @property
    def is_bare(self) -> bool:
        """Whether this is such a pickle without a description, hence of a released Perceiver IO."""
        return self.is_pickle and self.config is None

    @cached_property
    def archive(self) -> Archive | None:
        """Content of a parity bundle, or of a pickle described by ``config``; None otherwise."""
        if self.is_pickle:
            given = self.given  # read first: without it, there is no need to read the pickle
            return Archive(given, read_parameter_pickle(self.path), {}, {}, {})
        is_bundle = self.path.suffix == ".npz" and not self.path.is_dir()
        return read_archive(self.path) if is_bundle else None

    @cached_property
    def found(self) -> tuple[Mapping[str, Tensor], tuple[str, ...]] | None:
        """Tensors of a known format in a PyTorch or safetensors file, and notes on the others.

        None for anything but a file of tensors or a hub folder, which contains one.
        """
        if self.is_hub_folder:
            return read_known_weights(find_folder_file(self.path), self.weights, is_known)
        if self.path.is_dir() or not is_tensor_file(self.path):
            return None
        return read_known_weights(self.path, self.weights, is_known)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Tensors by name, as in ``found``; empty if there are none."""
        return self.found[0] if self.found else {}


class Built(NamedTuple):
    """Our model of third-party weights, in evaluation mode.

    Attributes:
        model: The model.
        info: Metadata to save with it.
        notes: Remarks, such as parts of the source that are not used.
    """

    model: Any
    info: ModelInfo
    notes: tuple[str, ...] = ()


# Why an option of ``convert`` is refused, by its name.
REFUSALS = {
    "weights": "{source} holds one set of weights; leave out weights={value}",
    "positions": "positions={value} is for Hiera models; {source} does not hold one",
    "flavour": (
        "all libraries compute the same with the weights of {source}; leave out flavour={value}"
    ),
    "config": "{source} contains its own config; leave out config={value}",
}


@dataclass(frozen=True, kw_only=True)
class Format:
    """A row of the table: one library's format of the models of one or more families.

    Attributes:
        name: Name of the library, and value of ``--to`` if the format can be written.
        families: Model families that it stores.
        tells: Returns whether a source has this format; at most one row may.
        build: Builds our model.
        verify: Compares a model of ours with a source in this format: with the library itself on
            random inputs, or with outputs that the source contains.
        title: What tensor files of this format contain, for messages.
        knows: Returns whether tensor names have this format, by which the weights are found in the
            file of a training script; None if it is not a format of such files.
        options: Options of ``convert`` that are accepted: ``config``, ``flavour``, ``positions``,
            ``weights``.
        objection: Returns why a source cannot be verified; "" if it can.
        write: Writes a model and returns notes on what the library computes differently; None if
            the format can only be read.
        suffix: Required ending of a written file; empty if any is allowed.
        is_folder: Whether a folder is written, not a file.
        is_live: Whether ``verify`` runs the library itself, so that what was written can be
            verified.
    """

    name: str
    families: tuple[str, ...]
    tells: Callable[[Source], bool]
    build: Callable[[Source], Built]
    verify: Callable[[Source, Any, Precision], list[Difference]]
    title: str = ""
    knows: Callable[[Mapping[str, Any]], bool] | None = None
    options: Collection[str] = ()
    objection: Callable[[Source], str] = lambda source: ""
    write: Callable[[Any, Path, ModelInfo], list[str]] | None = None
    suffix: str = ""
    is_folder: bool = False
    is_live: bool = True

    def check_options(self, source: Source, *, windows: bool) -> None:
        """Refuse options that have no meaning for this format.

        Raises:
            ConfigError: There are such options.
        """
        given = {
            "weights": source.weights,
            "positions": "window" if windows else None,
            "flavour": source.flavour,
            "config": source.config,
        }
        for name, value in given.items():
            if value is not None and name not in self.options:
                raise ConfigError(REFUSALS[name].format(source=source, value=value))


# -- Hugging Face folders ------------------------------------------------------------------------


def _build_perceiver_folder(source: Source) -> Built:
    flavour = source.flavour or "hf"
    read = read_hugging_face(source.path)
    model = model_from_hugging_face(read, flavour)
    # Affects training only and has no equivalent here.
    rate = read.stated.get("attention_probs_dropout_prob", 0.0)
    lost = {"left behind": f"attention_probs_dropout_prob={rate}"} if rate else {}
    more: dict[str, Any] = {"provenance": lost}
    if read.classes and kind_of(model.config).endswith("classes"):
        more |= {"task": "classify", "classes": read.classes}
    info = describe_source(source.path, f"Hugging Face {read.name}", flavour, **more)
    return Built(model, with_task(model, info))


def _refuse_other_flavour(source: Source) -> str:
    if source.flavour in {None, "hf"}:
        return ""
    return (
        f"flavour={source.flavour} differs from the Hugging Face implementation on purpose; verify "
        f"with flavour=hf"
    )


BACKBONE_NOTE = (
    "HieraBackbone has no norm of the mean token, so ours has no effect. Its forward pass in "
    "transformers 5.23 skips the reordering of tokens into mask units, so its feature maps do not "
    "match the weights; the comparison runs its parts in the right order"
)


def _build_hiera_folder(source: Source) -> Built:
    read = read_hiera_folder(source.path)
    model = hiera_from_hugging_face(read)
    more: dict[str, Any] = {}
    if read.classes and model.config.head.kind == "mean":
        more["classes"] = read.classes
    if not read.stated.get("normalize_pixel_loss", True):
        more["target"] = "per-channel"
    info = describe_source(source.path, f"Hugging Face {read.name}", None, **more)
    notes = (BACKBONE_NOTE,) if read.name == "HieraBackbone" else ()
    return Built(model, with_hiera_task(model, info), notes)


def _build_sam2_folder(source: Source) -> Built:
    read = read_sam2_folder(source.path)
    info = describe_source(source.path, "Hugging Face trunk of SAM 2", None)
    return Built(model_from_sam2(read), info, tuple(read.notes))


# -- Parity bundles (.npz) and pickles of Haiku parameters ---------------------------------------


def _described_family(source: Source) -> str:
    """Return the family of models that an archive describes; "" if there is no archive."""
    if source.archive is None:
        return ""
    stated = source.archive.config
    kind = stated.get("kind")
    if kind is None:
        return "perceiver" if source.is_bare else "hip"
    if kind == OWN_KIND and stated.get("family") == "hip":
        return "hip"
    return "hiera" if kind == "hiera" and not source.is_pickle else "perceiver"


def _described(source: Source) -> tuple[Archive, str]:
    """Return an archive and the file that describes it."""
    assert source.archive is not None
    if source.config is not None and not source.is_pickle:
        raise ConfigError(REFUSALS["config"].format(source=source, value=source.config))
    where = str(source.config or source.path)
    if source.flavour is not None and not source.is_bare:
        raise ConfigError(
            f"{where} defines the computation itself; leave out flavour={source.flavour}"
        )
    return source.archive, where


def _build_hip(source: Source) -> Built:
    archive, where = _described(source)
    info = describe_source(source.path, "Haiku parameters", None)
    if "kind" in archive.config:
        config = own_config(archive.config, where)
        return Built(hip_from_entries(config, archive.params, where), info)
    if not source.is_pickle:
        check_bundle(archive, where)
    model, kwargs = (require(archive.config, key, where) for key in ("model", "kwargs"))
    datasets = parse_datasets(archive.config, where)
    return Built(model_from_haiku(archive.params, str(model), kwargs, datasets), info)


def _verify_hip(source: Source, model: Any, _dtype: Precision) -> list[Difference]:
    archive, where = _described(source)
    check_comparable(archive, where)
    return verify_bundle(model, check_bundle(archive, where))


def _build_perceiver(source: Source) -> Built:
    archive, where = _described(source)
    info = describe_source(source.path, "Haiku parameters", source.flavour)
    if source.is_bare:
        flavour = source.flavour or "official"
        model = model_from_release(archive.params, str(source), flavour)
        return Built(model, with_task(model, info))
    shapes = {name: array.shape for name, array in archive.inputs.items()}
    if source.is_pickle:
        shapes = archive.config.get("shapes", {})
    config = config_from_kind(archive.config, shapes, where)
    model = model_from_entries(config, {**archive.params, **archive.state}, str(source))
    return Built(model, with_task(model, info))


def _refuse_pickle(source: Source) -> str:
    if not source.is_pickle:
        return ""
    return "a parameter pickle holds no outputs to verify against; use a parity bundle (.npz)"


# Libraries whose Hieras are stored as files, and what these are called in messages.
HIERA_FILES: Mapping[Library, str] = {"official": "official Hiera", "timm": "timm Hiera"}


def _build_hiera_bundle(source: Source) -> Built:
    """Build the model of a bundle, which names the library and the settings."""
    archive, where = _described(source)
    where = f"{where}: config_json"
    name, stated = (require(archive.config, key, where) for key in ("library", "config"))
    if name not in HIERA_FILES:
        raise CheckpointError(f"{source}: library is {name!r}; expected one of {list(HIERA_FILES)}")
    tensors = {key: torch.from_numpy(x).float() for key, x in archive.params.items()}
    model = hiera_from_tensors(tensors, name, stated, str(source))
    info = describe_source(source.path, HIERA_FILES[name], None)
    return Built(model, with_hiera_task(model, info))


# -- Files of tensors, recognised by their names -------------------------------------------------


def _settings(source: Source) -> Mapping[str, Any]:
    """Return fields of our config that are given beside the tensors."""
    if source.stated is None:
        return source.given
    return {**stated_by_hub(source.stated, str(source)), **source.given}


def _build_hiera_file(library: Library, source: Source) -> Built:
    assert source.found is not None
    tensors, notes = source.found
    model = hiera_from_tensors(tensors, library, _settings(source), str(source))
    info = describe_source(source.path, HIERA_FILES[library], None)
    return Built(model, with_hiera_task(model, info), notes)


def _hiera_file(library: Library, save: Callable[[Any, Path], list[str]]) -> Format:
    def knows(tensors: Mapping[str, Any]) -> bool:
        return tell_library(tensors) == library

    return Format(
        name=library,
        families=("hiera",),
        title=HIERA_FILES[library],
        knows=knows,
        tells=lambda source: knows(source.tensors),
        build=partial(_build_hiera_file, library),
        verify=lambda source, model, dtype: verify_hiera_tensors(
            source.tensors, model, library, dtype=dtype
        ),
        options=("config", "weights", "positions"),
        write=lambda model, path, info: save(model, path),
    )


def _knows_sam2(tensors: Mapping[str, Any]) -> bool:
    return find_trunk(tensors) is not None


def _build_sam2_file(source: Source) -> Built:
    assert source.found is not None
    tensors, notes = source.found
    model, more = sam2_from_tensors(tensors, _settings(source), str(source))
    info = describe_source(source.path, "trunk of SAM 2", None)
    return Built(model, info, (*notes, *more))


# -- The table -----------------------------------------------------------------------------------

FORMATS: list[Format] = [
    Format(
        name="hf",
        families=("perceiver_io",),
        tells=lambda source: source.model_type == "perceiver",
        build=_build_perceiver_folder,
        verify=lambda source, model, dtype: verify_hugging_face(source.path, model, dtype=dtype),
        options=("flavour",),
        objection=_refuse_other_flavour,
        write=save_hugging_face,
        is_folder=True,
    ),
    Format(
        name="hf",
        families=("hiera",),
        tells=lambda source: source.model_type == "hiera",
        build=_build_hiera_folder,
        verify=lambda source, model, dtype: verify_hiera_folder(
            read_hiera_folder(source.path), model, dtype=dtype
        ),
        options=("positions",),
        write=save_hiera_folder,
        is_folder=True,
    ),
    Format(
        name="hf",
        families=("hiera_det",),
        tells=lambda source: source.model_type in list(SAM2_FOLDERS),  # it may be any JSON
        build=_build_sam2_folder,
        verify=lambda source, model, dtype: verify_sam2(
            read_sam2_folder(source.path), model, dtype=dtype
        ),
        options=("positions",),
    ),
    Format(
        name="haiku",
        families=("perceiver", "perceiver_io"),
        tells=lambda source: _described_family(source) == "perceiver",
        build=_build_perceiver,
        verify=lambda source, model, dtype: verify_archive(model, *_described(source)),
        options=("flavour", "config"),
        objection=_refuse_pickle,
        write=lambda model, path, info: save_haiku(model, path),
        suffix=".npz",
        is_live=False,
    ),
    Format(
        name="haiku",
        families=("hip",),
        tells=lambda source: _described_family(source) == "hip",
        build=_build_hip,
        verify=_verify_hip,
        options=("flavour", "config"),
        objection=_refuse_pickle,
        write=lambda model, path, info: save_hip(model, path),
        suffix=".npz",
        is_live=False,
    ),
    _hiera_file("official", save_official),
    _hiera_file("timm", save_timm),
    Format(
        name="sam2",
        families=("hiera_det",),
        title="trunk of SAM 2",
        knows=_knows_sam2,
        tells=lambda source: _knows_sam2(source.tensors),
        build=_build_sam2_file,
        verify=lambda source, model, dtype: verify_sam2(
            split_trunk(source.tensors, str(source)), model, dtype=dtype
        ),
        options=("config", "weights", "positions"),
    ),
    Format(
        name="bundle",
        families=("hiera",),
        tells=lambda source: _described_family(source) == "hiera",
        build=_build_hiera_bundle,
        verify=lambda source, model, dtype: verify_hiera_archive(model, *_described(source)),
        options=("positions",),
        is_live=False,
    ),
]


def register(row: Format) -> None:
    """Add a format to ``convert``.

    Raises:
        ConfigError: The library has a format for one of these families already.
    """
    for other in FORMATS:
        if other.name == row.name and set(other.families) & set(row.families):
            raise ConfigError(
                f"format {row.name!r} exists already for {other.families}; choose another name"
            )
    FORMATS.append(row)


def is_known(tensors: Mapping[str, Any]) -> bool:
    """Return whether the tensor names have a known format."""
    return any(row.knows(tensors) for row in FORMATS if row.knows is not None)


def find_format(source: Source) -> Format:
    """Return the format of a source.

    Raises:
        CheckpointError: It does not exist, is damaged, or its format is unknown.
    """
    path = source.path
    if not path.is_dir() and not path.is_file():
        raise CheckpointError(f"{path} does not exist or is not a file")
    for row in FORMATS:
        if row.tells(source):
            return row
    if source.found is not None:
        first = ", ".join(sorted(source.tensors)[:4]) or "nothing"
        titles = ", ".join(row.title for row in FORMATS if row.knows is not None)
        raise CheckpointError(
            f"{path} holds {len(source.tensors)} tensors ({first}, ...) of no known layout; "
            f"expected one of {titles}. To convert a Hugging Face file, give its folder; a model "
            f"of this library is a folder with config.json"
        )
    if path.is_dir():
        raise CheckpointError(
            f"{path}: model_type is {source.model_type!r}; only 'perceiver' is converted"
        )
    raise CheckpointError(
        f"{path}: cannot convert '{path.suffix}' files; give a parity bundle (.npz), a Haiku "
        f"parameter pickle ({', '.join(sorted(PICKLES))}), a file of tensors "
        f"({', '.join(sorted(TENSOR_FILES))}) or a Hugging Face folder"
    )


def list_targets() -> tuple[str, ...]:
    """Return the formats that can be written; ``perceivers`` is a model folder of this library."""
    return ("perceivers", *dict.fromkeys(row.name for row in FORMATS if row.write is not None))


def find_writer(to: str, model: Any) -> Format:
    """Return the format in which a model is written.

    Raises:
        CheckpointError: The format has no place for models of this family.
    """
    able = {
        family: row
        for row in FORMATS
        if row.name == to and row.write is not None
        for family in row.families
    }
    row = able.get(model.family)
    if row is None:
        raise CheckpointError(
            f"format {to!r} does not support models of family {model.family!r}, only of "
            f"{' and '.join(able)}"
        )
    return row
