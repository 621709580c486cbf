"""Everything that the data layer knows of a kind of modality: one row per kind.

A row names the spec, the files, and how samples are decoded, measured, fitted, augmented and
described. To add a modality, write a file with a row and call ``register_modality``.

How signals are drawn is a second table, ``perceivers.report.drawings``, because the data layer may
not import the report; without a row there, a signal is drawn as an array.
"""

from collections.abc import Callable, ItemsView, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from perceivers.adapters.elements import INTEGER_SCALE
from perceivers.data.augment import AugmentConfig, Look
from perceivers.errors import ConfigError
from perceivers.types import SPECS, ModalitySpec

# Divisors of integer types before values reach a model, as in adapters.
FULL_SCALE = {np.dtype(np.uint8): 255.0, np.dtype(np.int16): 32768.0}


def scale_values(values: NDArray) -> NDArray:
    """Return values as models see them before normalisation: integers divided by full scale."""
    scale = FULL_SCALE.get(values.dtype)
    return values if scale is None else (values / scale).astype(np.float32)


# Values of the features of an array.
VALUES = 1024


def read_values(raw: Tensor) -> Tensor:
    """Return raw tensors as models see them before normalisation, like ``scale_values``."""
    return raw.float() / INTEGER_SCALE.get(raw.dtype, 1.0)


def pool_values(raw: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B D"]:
    """Return the values, averaged to at most 1024."""
    flat = read_values(raw).flatten(1)
    if flat.shape[1] <= VALUES:
        return flat
    return F.adaptive_avg_pool1d(flat.unsqueeze(1), VALUES).squeeze(1)


class RawFacts(NamedTuple):
    """Facts about one modality of one sample.

    Args:
        numbers: Sizes by quantity, such as ``width``.
        values: Properties that samples share or differ in, such as ``sample rate in Hz``.
        flags: Oddities, such as ``silent``.
    """

    numbers: dict[str, float]
    values: dict[str, str]
    flags: tuple[str, ...] = ()


class Cut(NamedTuple):
    """Whether a text starts, or ends, inside a longer one, perhaps within a character."""

    begins: bool = False
    ends: bool = False


WHOLE = Cut()


def has_raw_shape(raw: NDArray, name: str, spec: Any) -> bool:
    """Return whether an array has the shape of its spec, as it is not resized."""
    return raw.shape == spec.raw_shape


def is_everywhere(values: NDArray, spec: ModalitySpec) -> NDArray[np.bool_]:
    """Return that all elements are elements, ``[N]``."""
    return np.ones(spec.num_tokens, bool)


def describe_shape(raw: Any, path: str, cut: Cut) -> RawFacts:
    """Describe an array by its shape."""
    return RawFacts({}, {"shape": "x".join(map(str, raw.shape))})


@dataclass(frozen=True, kw_only=True)
class Modality:
    """What the data layer knows of one kind of modality.

    A raw sample is what a source reads: an array in the raw layout, a decoded image, or an
    undecoded file (``Encoded``), as ``decode`` returns it.

    Attributes:
        spec: Class of the specs; its ``kind`` names the row.
        fit: ``fit(raw, path, spec, look)`` returns a raw sample as an array of the spec's raw
            shape; ``path`` names the sample in messages, ``look`` chooses the part to read: a
            random one in training, always the same in evaluation.
        native: ``native(raw, ragged)`` returns the spec of one raw sample, without mean and
            standard deviation; ``ragged`` samples may have fewer elements. None for targets.
        merge: Returns one spec for several samples, large enough for them.
        varies: Whether decoded arrays may differ in shape from sample to sample; those of the
            library's kinds do not, or are undecoded files.
        is_slow: Whether samples take long to decode, so that fewer are measured.
        glimpse: Returns a spec with which a sample is read quickly, to find out whether it can be.
        is_valid: ``is_valid(raw, name, spec)`` tells whether an array can be fitted to a spec;
            raises ``DataError`` if it has a better message.
        is_element: ``is_element(values, spec)`` tells elements of a fitted sample from padding,
            ``[N]``; only elements change places under ``ModalitySpec.order``.
        check_whole: ``check_whole(raw, path, spec)`` rejects a raw sample that would be cut, for
            prediction.
        augment: ``augment(values, spec, look)`` changes a fitted sample in training.
        augmented_as: Other kinds whose settings of ``AugmentConfig`` also apply.
        check_augment: ``check_augment(augment, name, spec)`` rejects settings that the spec does
            not support.
        inspect: ``inspect(raw, path, cut)`` describes a raw sample for ``perceivers data check``.
        summarise: Returns simple features ``[B, D]`` of raw tensors, the baseline of ``perceivers
            probe``.
        mask: Class of the specs of segmentation masks, whose first fields are the spec's grid; None
            if samples have none.
        noun: What one sample is called, for messages; the plural adds ``s``.
        endings: Endings of files that hold one sample each, in lower case; the first is preferred.
        tar_endings: Endings of members of tars; by default ``endings``.
        in_folders: Whether folders of such files are data like folders of images.
        decode: ``decode(path, data)`` returns the raw sample in a file; ``data`` is None if a
            streamed file is large.
        streamed: Whether large files stay on disk until a part of them is decoded.
        words: Words before the ending of a member of a tar that identify the kind.
    """

    spec: type[ModalitySpec]
    fit: Callable[[Any, str, Any, Look], NDArray]
    native: Callable[[Any, bool], ModalitySpec] | None = None
    merge: Callable[[Sequence[Any]], ModalitySpec] = lambda found: found[0]
    varies: bool = False
    is_slow: Callable[[Any], bool] = lambda spec: False
    glimpse: Callable[[Any], ModalitySpec] = lambda spec: spec
    is_valid: Callable[[NDArray, str, Any], bool] = has_raw_shape
    is_element: Callable[[NDArray, Any], NDArray[np.bool_]] = is_everywhere
    check_whole: Callable[[Any, str, Any], None] = lambda raw, path, spec: None
    augment: Callable[[NDArray, Any, Look], NDArray] = lambda values, spec, look: values
    augmented_as: tuple[str, ...] = ()
    check_augment: Callable[[AugmentConfig, str, Any], None] = lambda augment, name, spec: None
    inspect: Callable[[Any, str, Cut], RawFacts] = describe_shape
    summarise: Callable[[Tensor], Tensor] = pool_values
    mask: type[Any] | None = None
    noun: str = ""
    endings: tuple[str, ...] = ()
    tar_endings: tuple[str, ...] | None = None
    in_folders: bool = True
    decode: Callable[[str, Any], Any] | None = None
    streamed: bool = False
    words: tuple[str, ...] = ()


_ROWS: dict[str, Modality] = {}


def modalities() -> Mapping[str, Modality]:
    """Return the rows of all kinds, those of the library first."""
    if not _ROWS:
        # On first use, because the rows need readers that need this table.
        import_module("perceivers.data.by_modality")
    return _ROWS


def modality_of(spec: ModalitySpec) -> Modality:
    """Return the row of a spec."""
    return modalities()[spec.kind]


def register_modality(row: Modality) -> None:
    """Add a kind of modality: its files are read, and its specs load from ``config.json``.

    Raises:
        ConfigError: The kind exists already.
    """
    modalities()  # those of the library come first, which decides the order of endings in messages
    if row.spec.kind in _ROWS:
        raise ConfigError(f"modality {row.spec.kind!r} exists already; choose another name")
    add_row(row)
    SPECS[row.spec.kind] = row.spec


def add_row(row: Modality) -> None:
    """Add a row to the table, without a spec in ``config.json``; for the library's own kinds."""
    _ROWS[row.spec.kind] = row


class Column(Mapping[str, Any]):
    """Values of all rows by kind, which include modalities that are registered later.

    Args:
        take: Returns the value of a row, or None to leave it out.
    """

    def __init__(self, take: Callable[[Modality], Any]) -> None:
        self._take = take
        self._rows: tuple[Modality, ...] = ()
        self._values: dict[str, Any] = {}

    def _held(self) -> dict[str, Any]:
        # Kept, because the endings are compared with the name of every file of a folder.
        rows = tuple(modalities().values())
        if rows != self._rows:
            found = {row.spec.kind: self._take(row) for row in rows}
            self._values = {kind: value for kind, value in found.items() if value is not None}
            self._rows = rows
        return self._values

    def __getitem__(self, kind: str) -> Any:
        return self._held()[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held())

    def __len__(self) -> int:
        return len(self._held())

    def items(self) -> ItemsView[str, Any]:
        """Return kinds and values."""
        return self._held().items()


# Endings of the files in folders of media, of all files of one sample, and of members of tars.
FOLDER_ENDINGS = Column(lambda row: row.endings if row.endings and row.in_folders else None)
FILE_ENDINGS = Column(lambda row: row.endings or None)
TAR_ENDINGS = Column(
    lambda row: (row.endings if row.tar_endings is None else row.tar_endings) or None
)
NOUNS = Column(lambda row: row.noun or None)
PLURALS = Column(lambda row: f"{row.noun}s" if row.noun else None)
