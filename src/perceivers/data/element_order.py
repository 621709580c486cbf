"""Elements of a sample in another order, where a spec asks for it (``ModalitySpec.order``).

The permutation is applied last, to what a model would be given: crops, noise and padding come
before it. It depends on the spec's seed and the modality's name and, with ``per_sample``, on the
sample's place in the stream of training, or in its split in evaluation.

Legend: N elements of a sample, row-major.
"""

import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.data.masks import Mask
from perceivers.data.scenes import PointMask
from perceivers.errors import ConfigError
from perceivers.types import FIRST_BYTE, Bytes, Image, ModalitySpec, Points

# Keep the streams of the two kinds of permutations apart.
FIXED, PER_SAMPLE = range(2)


def reordered(specs: Mapping[str, ModalitySpec]) -> list[str]:
    """Return the modalities whose elements are not read in place."""
    return [name for name, spec in specs.items() if spec.order != "in_place"]


def check_in_place(specs: Mapping[str, ModalitySpec], what: str) -> None:
    """Refuse to go on where elements are read in another order.

    Args:
        specs: What is read.
        what: Begins the message: what needs elements in place.

    Raises:
        ConfigError: Names the modality.
    """
    if names := reordered(specs):
        raise ConfigError(
            f"{what} needs elements in place, but the model reads {names[0]!r} with order="
            f"{specs[names[0]].order!r}; use a model trained without it"
        )


def reorder_sample(
    values: dict[str, NDArray[Any]], specs: Mapping[str, ModalitySpec], key: int
) -> None:
    """Put the elements of a fitted sample in the order of its specs.

    Masks of a picture, and classes of points, move along with their elements.

    Args:
        values: By modality, in the raw layout without a batch axis; changed in place.
        specs: What each modality looks like.
        key: Place of the sample, on which permutations of single samples depend.
    """
    for name in reordered(specs):
        if name not in values:
            continue
        spec = specs[name]
        order = find_order(values[name], spec, name, key)
        values[name] = permute(values[name], spec, order)
        if name == _first(specs, type(spec)):
            target = {Image: Mask, Points: PointMask}.get(type(spec))
            mask = _first(specs, target) if target else None
            if mask in values:
                values[mask] = permute(values[mask], specs[mask], order)


def find_order(values: NDArray[Any], spec: ModalitySpec, name: str, key: int) -> NDArray[np.int64]:
    """Return which element comes to each place, ``[N]``.

    What is no element stays where it is: padding and special ids of texts, rows of NaN of ragged
    points. Under ``fixed``, samples of as many elements share the order; that of shorter ones is
    the same without the elements that they lack.

    Args:
        values: The sample's, in the raw layout.
        spec: What it looks like.
        name: Of the modality.
        key: Place of the sample.
    """
    seed, text = spec.order_seed, zlib.crc32(name.encode())
    if spec.order == "fixed":
        ranks = _fixed_ranks(seed, text, spec.num_tokens)
    else:
        ranks = np.random.default_rng((PER_SAMPLE, seed, text, key)).permutation(spec.num_tokens)
    order = np.arange(spec.num_tokens)
    places = np.flatnonzero(_is_element(values, spec))
    order[places] = places[np.argsort(ranks[places])]
    return order


def permute(values: NDArray[Any], spec: ModalitySpec, order: NDArray[np.int64]) -> NDArray[Any]:
    """Return a sample whose place k holds element ``order[k]``, in the raw layout."""
    axes = len(spec.grid)
    if spec.channels_first:
        flat = values.reshape(*values.shape[: values.ndim - axes], spec.num_tokens)
        return np.ascontiguousarray(flat[..., order]).reshape(values.shape)
    return values.reshape(spec.num_tokens, *values.shape[axes:])[order].reshape(values.shape)


@lru_cache(maxsize=16)
def _fixed_ranks(seed: int, text: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng((FIXED, seed, text)).permutation(count)


def _is_element(values: NDArray[Any], spec: ModalitySpec) -> NDArray[np.bool_]:
    """Tell elements from padding, ``[N]``."""
    if isinstance(spec, Bytes):
        return np.greater_equal(values, FIRST_BYTE)
    if isinstance(spec, Points):
        return np.logical_not(np.isnan(values).any(-1))
    return np.ones(spec.num_tokens, bool)


def _first(specs: Mapping[str, ModalitySpec], kind: type) -> str:
    """Return the first modality of a kind, as samples pair elements with targets; empty if none."""
    return next((name for name, spec in specs.items() if isinstance(spec, kind)), "")
