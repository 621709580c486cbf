"""Every released set of weights that this library converts: where it is, and under which licence.

Nothing here downloads. Checksums are those of files that were converted and compared; None where
that has not been done.
"""

import re
from dataclasses import dataclass
from typing import Literal

HAIKU_BUCKET = "https://storage.googleapis.com/perceiver_io"


@dataclass(frozen=True)
class ReleasedWeights:
    """One file or repository of weights.

    Attributes:
        name: File name, or repository.
        variant: The named model that it fills.
        source: Where to get it.
        license: SPDX name.
        converter: What ``convert`` reads it as.
        parameters: Trainable values.
        sha256: Checksum of the file; None when unknown.
    """

    name: str
    variant: str
    source: str
    license: str
    converter: Literal["haiku", "hf"]
    parameters: int
    sha256: str | None = None


# Variant, its parameters, DeepMind's file, Hugging Face's repository.
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
)


def find_weights(name: str) -> ReleasedWeights | None:
    """Return the released weights of a file, or of a repository's folder, by its last name."""
    last = name.rstrip("/").rpartition("/")[2]
    return next((w for w in CATALOGUE if w.name.rpartition("/")[2] == last), None)


NON_COMMERCIAL = re.compile(
    r"(?<![A-Za-z])NC(?![A-Za-z])|non-?\s?commercial|research[- ]only", re.I
)


def is_non_commercial(license: str) -> bool:  # noqa: A002 - the field of that name
    """Return whether a licence, as an SPDX name or a sentence, forbids commercial use.

    ``CC-BY-NC-4.0`` and "for non-commercial research" do; an empty or unknown one is not judged.
    """
    return NON_COMMERCIAL.search(license) is not None
