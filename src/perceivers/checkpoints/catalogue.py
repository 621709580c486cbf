"""Packaged weights, and all released weights that this library converts, with their licences.

Nothing is downloaded here. A checksum is present only if that file was converted and compared.
"""

import re
import warnings
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from perceivers.errors import CheckpointError, LicenseWarning
from perceivers.files import read_json_file
from perceivers.models.saving import ModelInfo
from perceivers.reading import read_file

# -- Small weights shipped with the package, loaded by name --------------------------------------
#
# Each is a model folder below ``perceivers/weights``: half-precision tensors, which load as
# float32, a model card, the training settings and the learning curve.

FOLDER = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class OwnWeights:
    """One model shipped with the package.

    Attributes:
        name: The name to load it by.
        variant: The model variant.
        task: The task that it was trained for.
        parameters: Number of trainable parameters.
        size: Size of the tensor file in bytes.
        license: SPDX identifier of the weights' licence.
        data: The training data and its licence.
        figures: Metrics on held-out data.
        folder: The model folder.
    """

    name: str
    variant: str
    task: str
    parameters: int
    size: int
    license: str
    data: str
    figures: dict[str, float]
    folder: Path


def list_own_weights(pattern: str = "*") -> list[OwnWeights]:
    """Return the packaged weights whose name or variant matches a shell pattern."""
    found = [_read(path.parent) for path in sorted(FOLDER.glob("*/config.json"))]
    return [w for w in found if fnmatch(w.name, pattern) or fnmatch(w.variant, pattern)]


def find_own_weights(name: str) -> Path | None:
    """Return the folder of packaged weights, or None if the name is unknown."""
    folder = FOLDER / name
    # A name with separators, '.' or '..' would point outside of FOLDER.
    known = folder.parent == FOLDER and name not in {"", ".", ".."}
    return folder if known and (folder / "config.json").is_file() else None


def own_names() -> list[str]:
    """Return the names of the packaged weights."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def _read(folder: Path) -> OwnWeights:
    description = read_json_file(folder / "config.json")
    origin: dict[str, Any] = description["provenance"]
    return OwnWeights(
        name=folder.name,
        variant=origin["variant"],
        task=description["task"],
        parameters=origin["parameters"],
        size=(folder / "model.safetensors").stat().st_size,
        license=description["license"],
        data=f"{origin['data']} ({origin['data_license']})",
        figures=description["metrics"],
        folder=folder,
    )


# -- Released weights that this library converts -------------------------------------------------

HAIKU_BUCKET = "https://storage.googleapis.com/perceiver_io"
HIERA_BUCKET = "https://dl.fbaipublicfiles.com/hiera"
HUB = "https://huggingface.co"
SAM2_BUCKET = "https://dl.fbaipublicfiles.com/segment_anything_2"


@dataclass(frozen=True)
class ReleasedWeights:
    """One released file or repository of weights.

    Attributes:
        name: File or repository name.
        variant: The model variant.
        source: Download address.
        license: SPDX identifier.
        converter: The format in which ``convert`` reads it.
        parameters: Number of trainable parameters; for SAM 2 those of the trunk, since the rest is
            not converted.
        sha256: Checksum of the file; None if unknown.
    """

    name: str
    variant: str
    source: str
    license: str
    converter: Literal["haiku", "hf", "official", "timm", "sam2"]
    parameters: int
    sha256: str | None = None


# Variant, number of parameters, DeepMind's file, Hugging Face repository.
PERCEIVER_IO = (
    (
        "perceiver_io_language",
        201_108_230,
        "language_perceiver_io_bytes.pickle",
        "deepmind/language-perceiver",
    ),
    (
        "perceiver_io_imagenet_learned",
        62_255_848,
        "imagenet_learned_position_encoding.pystate",
        "deepmind/vision-perceiver-learned",
    ),
    (
        "perceiver_io_imagenet_fourier",
        48_440_627,
        "imagenet_fourier_position_encoding.pystate",
        "deepmind/vision-perceiver-fourier",
    ),
    (
        "perceiver_io_imagenet_conv",
        48_646_522,
        "imagenet_conv_preprocessing.pystate",
        "deepmind/vision-perceiver-conv",
    ),
    (
        "perceiver_io_flow",
        41_057_134,
        "optical_flow_checkpoint.pystate",
        "deepmind/optical-flow-perceiver",
    ),
    (
        "perceiver_io_multimodal",
        19_858_855,
        "video_autoencoding_checkpoint.pystate",
        "deepmind/multimodal-perceiver",
    ),
)

# Size and number of parameters of the trunk; then the two releases and the dates in their URLs.
SAM2_TRUNKS = (
    ("tiny", 26_849_472),
    ("small", 33_947_328),
    ("base_plus", 68_675_712),
    ("large", 212_149_296),
)
SAM2_RELEASES = (("sam2", "072824"), ("sam2.1", "092824"))


def list_sam2() -> list[ReleasedWeights]:
    """Return Meta's files and the Hugging Face repositories of SAM 2 and 2.1."""
    rows = []
    for release, date in SAM2_RELEASES:
        for size, count in SAM2_TRUNKS:
            file = f"{release}_hiera_{size}.pt"
            repository = f"facebook/{release}-hiera-{size.replace('_', '-')}"
            places = {
                file: f"{SAM2_BUCKET}/{date}/{file}",
                repository: f"https://huggingface.co/{repository}",
            }
            rows += [
                ReleasedWeights(name, f"hiera_det_{size}", source, "Apache-2.0", "sam2", count)
                for name, source in places.items()
            ]
    return rows


# Of Meta's weights; Meta's code is Apache-2.0.
HIERA_LICENSE = "CC-BY-NC-4.0"
# Variant and number of parameters: as a classifier, as an autoencoder, without the head.
HIERA = (
    ("hiera_tiny_224", 27_910_216, 55_020_896, 27_141_216),
    ("hiera_small_224", 35_008_072, 62_118_752, 34_239_072),
    ("hiera_base_224", 51_524_968, 78_635_648, 50_755_968),
    ("hiera_base_plus_224", 69_896_616, 97_584_064, 68_999_616),
    ("hiera_large_224", 213_739_912, 242_875_808, 212_586_912),
    ("hiera_huge_224", 672_779_752, 710_081_792, 670_730_752),
)
HIERA_VIDEO = (
    ("hiera_base_16x224", 51_092_560, 79_367_104),
    ("hiera_base_plus_16x224", 69_392_240, 98_320_352),
    ("hiera_large_16x224", 213_091_600, 243_621_760),
    ("hiera_huge_16x224", 671_627_664, 710_861_568),
)
# Weights by timm, by tag; those not fine-tuned have the 11,821 classes of ImageNet-12k.
HIERA_WINDOW = (
    ("sbb2_e200_in12k_ft_in1k", 34_361_800),
    ("sbb2_pd_e200_in12k_ft_in1k", 34_361_800),
    ("sbb2_e200_in12k", 42_683_149),
    ("sbb2_pd_e200_in12k", 42_683_149),
)
# Known repositories for the Hugging Face classes (there may be more): variant, suffix of the
# repository, column of its number of parameters in HIERA after the name.
HIERA_HF = (
    *((name, "", 2) for name, *_ in HIERA),
    *((f"hiera_{size}_224", "-in1k", 0) for size in ("tiny", "base", "base_plus", "large")),
    *((f"hiera_{size}_224", "-mae", 1) for size in ("tiny", "base", "large", "huge")),
)


def list_hiera_files() -> list[ReleasedWeights]:
    """Return the official Hiera files: classifiers and autoencoders of images and of videos."""
    rows = []
    for name, whole, masked, *_ in (*HIERA, *HIERA_VIDEO):
        for variant, count in ((name, whole), (f"mae_{name}", masked)):
            file = f"{variant}.pth"
            source = f"{HIERA_BUCKET}/{file}"
            rows.append(ReleasedWeights(file, variant, source, HIERA_LICENSE, "official", count))
    return rows


def _on_the_hub(
    repository: str, variant: str, licence: str, converter: Literal["hf", "timm"], count: int
) -> ReleasedWeights:
    return ReleasedWeights(repository, variant, f"{HUB}/{repository}", licence, converter, count)


def list_hiera_repositories() -> list[ReleasedWeights]:
    """Return the Hiera repositories of timm and those for the Hugging Face classes."""
    rows = []
    for name, whole, _, bare in HIERA:
        tagged = f"timm/{name}.mae"
        rows.append(_on_the_hub(f"{tagged}_in1k_ft_in1k", name, HIERA_LICENSE, "timm", whole))
        rows.append(_on_the_hub(tagged, name, HIERA_LICENSE, "timm", bare))
    window = "hiera_small_abswin_256"
    for tag, count in HIERA_WINDOW:
        rows.append(_on_the_hub(f"timm/{window}.{tag}", window, "Apache-2.0", "timm", count))
    counts = {name: numbers for name, *numbers in HIERA}
    for name, ending, at in HIERA_HF:
        repository = f"facebook/{name.replace('_', '-')}{ending}-hf"
        variant = f"mae_{name}" if ending == "-mae" else name
        rows.append(_on_the_hub(repository, variant, HIERA_LICENSE, "hf", counts[name][at]))
    return rows


CATALOGUE: tuple[ReleasedWeights, ...] = (
    *(
        ReleasedWeights(file, variant, f"{HAIKU_BUCKET}/{file}", "CC-BY-4.0", "haiku", count)
        for variant, count, file, _ in PERCEIVER_IO
    ),
    *(
        ReleasedWeights(
            repository, variant, f"https://huggingface.co/{repository}", "Apache-2.0", "hf", count
        )
        for variant, count, _, repository in PERCEIVER_IO
    ),
    *list_hiera_files(),
    *list_hiera_repositories(),
    *list_sam2(),
)


def find_weights(name: str) -> ReleasedWeights | None:
    """Return the released weights with this file or folder name, or None; parents are ignored."""
    last = name.rstrip("/").rpartition("/")[2]
    return next((w for w in CATALOGUE if w.name.rpartition("/")[2] == last), None)


# -- Licences of converted weights ---------------------------------------------------------------

UNSTATED = "as stated by the source of the parameters"
# File names that say nothing about their content; the name of the folder may.
GENERIC = {"model", "pytorch_model"}


def describe_source(source: Path, kind: str, flavour: str | None, **more: Any) -> ModelInfo:
    """Return metadata for converted weights; released weights are recognised by name.

    Args:
        source: File or folder.
        kind: Description of the source format.
        flavour: Implementation whose arithmetic the model follows; None if there is only one.
        more: Further fields of ``ModelInfo``.
    """
    # A file with a generic name belongs to a folder, whose name and model card describe it.
    folder = source.parent if source.stem in GENERIC else source
    name = folder.name
    released = find_weights(name)
    provenance = {"source": name, "converted_from": kind}
    if flavour is not None:
        provenance["flavour"] = flavour
    known = released.license if released else UNSTATED
    settings = {"license": card_license(folder) or known, **more}
    return ModelInfo(**{**settings, "provenance": {**provenance, **more.get("provenance", {})}})


def card_license(folder: Path) -> str:
    """Return the licence from the header of the folder's model card; empty if there is none."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    head = read_file(card, error=CheckpointError).decode(errors="replace").split("---")
    lines = head[1].splitlines() if len(head) > 2 and not head[0].strip() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("license:")]
    return found[0] if found else ""


NON_COMMERCIAL = re.compile(
    r"(?<![A-Za-z])NC(?![A-Za-z])|non-?\s?commercial|research[- ]only", re.I
)


def is_non_commercial(license: str) -> bool:  # noqa: A002 - named like the metadata field
    """Return whether a licence, given as an SPDX identifier or in words, forbids commercial use.

    True for ``CC-BY-NC-4.0`` and "for non-commercial research"; False if empty or unknown.
    """
    return NON_COMMERCIAL.search(license) is not None


def warn_of_license(where: Any, licence: str) -> None:
    """Issue a ``LicenseWarning`` if the licence forbids commercial use."""
    if is_non_commercial(licence):
        warnings.warn(
            f"{where}: the weights' licence forbids commercial use ({licence})",
            LicenseWarning,
            stacklevel=3,
        )
