"""Fitting of a raw sample to its specs: its parts together, and the order of their elements.

How one modality is fitted is in its row, see ``perceivers.data.modality``.
"""

import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from perceivers.data.augment import PLAIN, Look
from perceivers.data.by_modality.images import fit_segmented
from perceivers.data.by_modality.points import fit_classed
from perceivers.data.by_modality.videos import fit_together
from perceivers.data.modality import modality_of
from perceivers.data.sources import Encoded, RawSample
from perceivers.errors import ConfigError
from perceivers.types import ModalitySpec

# -- Permuted elements of a sample, if a spec asks for it (``ModalitySpec.order``) -----------------
#
# The permutation comes last, after crops, noise and padding. It depends on the spec's seed and the
# modality's name and, with ``per_sample``, on the position of the sample in the stream of training
# samples, or in its split in evaluation.
#
# Legend: N elements of a sample, row-major.

# Keep the random streams of the two kinds of permutations apart.
FIXED, PER_SAMPLE = range(2)


def reordered(specs: Mapping[str, ModalitySpec]) -> list[str]:
    """Return the modalities whose elements are permuted."""
    return [name for name, spec in specs.items() if spec.order != "in_place"]


def check_in_place(specs: Mapping[str, ModalitySpec], what: str) -> None:
    """Reject specs with permuted elements.

    Args:
        specs: Specs of the modalities that are read.
        what: Start of the message: what needs elements in place.

    Raises:
        ConfigError: The elements of a modality are permuted.
    """
    if names := reordered(specs):
        raise ConfigError(
            f"{what} needs elements in place, but the model reads {names[0]!r} with order="
            f"{specs[names[0]].order!r}; use a model trained without it"
        )


def reorder_sample(
    values: dict[str, NDArray[Any]], specs: Mapping[str, ModalitySpec], key: int
) -> None:
    """Permute the elements of a fitted sample as its specs say.

    Masks of an image, and classes of points, are permuted with their elements.

    Args:
        values: Arrays by modality, in the raw layout without a batch axis; changed in place.
        specs: Spec of each modality.
        key: Position of the sample, on which ``per_sample`` permutations depend.
    """
    for name in reordered(specs):
        if name not in values:
            continue
        spec = specs[name]
        order = find_order(values[name], spec, name, key)
        values[name] = permute(values[name], spec, order)
        if name == _first(specs, type(spec)):
            masked = modality_of(spec).mask
            mask = _first(specs, masked) if masked else None
            if mask in values:
                values[mask] = permute(values[mask], specs[mask], order)


def find_order(values: NDArray[Any], spec: ModalitySpec, name: str, key: int) -> NDArray[np.int64]:
    """Return which element comes to each position, ``[N]``.

    Padding, special ids of texts and NaN rows of ragged points stay in place. With ``fixed``,
    samples with equally many elements share the order; shorter samples have the same order without
    the elements that they lack.

    Args:
        values: Array of the sample, in the raw layout.
        spec: Spec of the modality.
        name: Name of the modality.
        key: Position of the sample.
    """
    seed, text = spec.order_seed, zlib.crc32(name.encode())
    if spec.order == "fixed":
        ranks = _fixed_ranks(seed, text, spec.num_tokens)
    else:
        ranks = np.random.default_rng((PER_SAMPLE, seed, text, key)).permutation(spec.num_tokens)
    order = np.arange(spec.num_tokens)
    places = np.flatnonzero(modality_of(spec).is_element(values, spec))
    order[places] = places[np.argsort(ranks[places])]
    return order


def permute(values: NDArray[Any], spec: ModalitySpec, order: NDArray[np.int64]) -> NDArray[Any]:
    """Return a sample whose position k holds element ``order[k]``, in the raw layout."""
    axes = len(spec.grid)
    if spec.channels_first:
        flat = values.reshape(*values.shape[: values.ndim - axes], spec.num_tokens)
        return np.ascontiguousarray(flat[..., order]).reshape(values.shape)
    return values.reshape(spec.num_tokens, *values.shape[axes:])[order].reshape(values.shape)


@lru_cache(maxsize=16)
def _fixed_ranks(seed: int, text: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng((FIXED, seed, text)).permutation(count)


def _first(specs: Mapping[str, ModalitySpec], kind: type) -> str:
    """Return the first modality of a type, which is the one that has a target; empty if none."""
    return next((name for name, spec in specs.items() if isinstance(spec, kind)), "")


# -- Fitting of raw samples ------------------------------------------------------------------------

# Parts that are fitted together, in the order in which they use random numbers: a video and its
# audio, an image and its mask, points and their classes.
PAIRS = (fit_together, fit_segmented, fit_classed)


def fit_sample(
    sample: RawSample, path: str, specs: Mapping[str, ModalitySpec], look: Look = PLAIN
) -> dict[str, NDArray]:
    """Fit every modality of a sample; a video and its audio start at the same time.

    An image and its mask get the same view; points and their classes the same rows.

    Args:
        sample: What a source read.
        path: Name of the sample, for messages.
        specs: Spec of each modality.
        look: View and augmentation.

    Raises:
        DataError: The sample cannot be decoded, or does not fit a spec.
    """
    fitted: dict[str, NDArray] = {}
    for fit_pair in PAIRS:
        fitted |= fit_pair(sample, path, specs, look)
    for name, spec in specs.items():
        if name not in fitted:
            fitted[name] = fit_raw(sample[name], path, spec, look)
    return fitted


def fit_raw(
    raw: Picture | NDArray | Encoded, path: str, spec: ModalitySpec, look: Look = PLAIN
) -> NDArray:
    """Fit one modality of a raw sample to its spec.

    Args:
        raw: What a source read.
        path: Name of the sample, for messages.
        spec: Spec of the modality.
        look: View and augmentation.

    Raises:
        DataError: The sample cannot be decoded, or does not fit the spec.
    """
    return modality_of(spec).fit(raw, path, spec, look)
