"""Functions that fit a raw sample to its spec, one per kind of modality, and a table of them.

Each is called as ``fit(raw, path, spec, look)`` and returns an array in the raw layout, without a
batch axis. ``path`` names the sample in messages. ``look`` chooses the part to read: a random one
in training, always the same in evaluation.

Legend: C channels, S samples, P points, L bytes or ids.
"""

import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from perceivers.data.audio_clips import fit_audio
from perceivers.data.augment import PLAIN, Look
from perceivers.data.augment_signals import change_text, keep_rows, move_points, turn_points
from perceivers.data.byte_codec import pad_ids, wrap_ids
from perceivers.data.clouds import INSIDE, PointMask, choose_block
from perceivers.data.drawing import choose_view, fit_array, fit_encoded, fit_picture
from perceivers.data.masks import IGNORED, Mask, fit_mask, fit_masked, number_ids, read_ids
from perceivers.data.point_files import read_points
from perceivers.data.rand_augment import as_picture
from perceivers.data.sources import Encoded, EncodedClip, RawSample
from perceivers.data.video_clips import fit_clip, fit_frames, fit_video
from perceivers.errors import ConfigError, DataError
from perceivers.types import FIRST_BYTE, Audio, Bytes, Image, ModalitySpec, Points, Video

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
            target = {Image: Mask, Points: PointMask}.get(type(spec))
            mask = _first(specs, target) if target else None
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
    places = np.flatnonzero(_is_element(values, spec))
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


def _is_element(values: NDArray[Any], spec: ModalitySpec) -> NDArray[np.bool_]:
    """Tell elements from padding and special ids, ``[N]``."""
    if isinstance(spec, Bytes):
        return np.greater_equal(values, FIRST_BYTE)
    if isinstance(spec, Points):
        return np.logical_not(np.isnan(values).any(-1))
    return np.ones(spec.num_tokens, bool)


def _first(specs: Mapping[str, ModalitySpec], kind: type) -> str:
    """Return the first modality of a type, which is the one that has a target; empty if none."""
    return next((name for name, spec in specs.items() if isinstance(spec, kind)), "")


# -- Functions that fit a raw sample to its spec, one per kind of modality -------------------------

# Divisors of integer types before values reach a model, as in adapters.
FULL_SCALE = {np.dtype(np.uint8): 255.0, np.dtype(np.int16): 32768.0}
# A quantile, because a few points may wrongly lie below the floor.
FLOOR_QUANTILE = 0.02
Fit = Callable[[Any, str, Any, Look], NDArray]


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
    fitted = _fit_together(sample, specs, look)
    fitted |= _fit_segmented(sample, path, specs, look)
    fitted |= _fit_classed(sample, path, specs, look)
    for name, spec in specs.items():
        if name not in fitted:
            fitted[name] = fit_raw(sample[name], path, spec, look)
    return fitted


def _fit_together(
    sample: RawSample, specs: Mapping[str, ModalitySpec], look: Look
) -> dict[str, NDArray]:
    """Fit a video and its audio from the same time on; empty if there are not both."""
    film, sound = None, None
    for name, spec in specs.items():
        raw = sample[name]
        if isinstance(raw, EncodedClip) and isinstance(spec, Video):
            film = (name, raw, spec)
        elif isinstance(raw, EncodedClip) and isinstance(spec, Audio):
            sound = (name, raw, spec)
    if film is None or sound is None:
        return {}
    (film_name, clip, video), (sound_name, track, audio) = film, sound
    other_file = None if track.path == clip.path else track
    frames, waves = fit_clip(clip, video, audio, look, sound=other_file)
    return {film_name: frames, sound_name: waves}


def _fit_segmented(
    sample: RawSample, path: str, specs: Mapping[str, ModalitySpec], look: Look
) -> dict[str, NDArray]:
    """Fit an image and its mask to the same view; empty if there are not both."""
    pictures = [(name, spec) for name, spec in specs.items() if isinstance(spec, Image)]
    masks = [(name, spec) for name, spec in specs.items() if isinstance(spec, Mask)]
    if not masks or not pictures:
        return {}
    (name, spec), (mask_name, mask_spec) = pictures[0], masks[0]
    picture, ids = fit_masked(sample[name], sample[mask_name], path, spec, mask_spec, look)
    return {name: picture, mask_name: ids}


def _fit_classed(
    sample: RawSample, path: str, specs: Mapping[str, ModalitySpec], look: Look
) -> dict[str, NDArray]:
    """Fit points and their classes, or the points of a tile, with the same rows."""
    clouds = [(name, spec) for name, spec in specs.items() if isinstance(spec, Points)]
    masks = [(name, spec) for name, spec in specs.items() if isinstance(spec, PointMask)]
    if not clouds or not (masks or INSIDE in sample):
        return {}
    name, spec = clouds[0]
    raw = sample[name]
    if isinstance(raw, EncodedClip):
        raw = read_points(raw, spec, look.rng)
    cloud = np.asarray(raw)
    tiled = INSIDE in sample
    block = choose_block(sample, spec.points, look) if tiled else np.arange(len(cloud))
    values, rows = pick_points(cloud[block], path, spec, look)
    if not masks:
        return {name: values}
    mask_name, mask_spec = masks[0]
    stored = read_ids(np.asarray(sample[mask_name]), path, axes=1)
    if len(stored) != len(cloud) or mask_spec.points != spec.points:
        raise DataError(
            f"{path}: {len(cloud)} points and {len(stored)} classes, read as {spec.points} and "
            f"{mask_spec.points}; every point needs one class"
        )
    classes = number_ids(stored[block], mask_spec, path)
    if tiled and look.rng is None:
        # Points around a tile are scored in their own tiles.
        classes = np.where(np.asarray(sample[INSIDE])[block], classes, IGNORED).astype(np.uint8)
    return {name: values, mask_name: np.append(classes, np.uint8(IGNORED))[rows]}


def fit_raw(
    raw: Picture | NDArray | EncodedClip, path: str, spec: ModalitySpec, look: Look = PLAIN
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
    return FITS[spec.kind](raw, path, spec, look)


def fit_image(raw: Any, path: str, spec: Image, look: Look = PLAIN) -> NDArray:
    """Fit an image, decoded or not, or an array ``[C, H, W]`` of any size."""
    target = (spec.width, spec.height)
    if isinstance(raw, EncodedClip):
        assert raw.data is not None, path
        return fit_encoded(Encoded(raw.path, raw.data), spec, look)
    if isinstance(raw, Picture):
        return fit_picture(raw, path, spec, choose_view(raw.size, target, look), look)
    view = choose_view((raw.shape[2], raw.shape[1]), target, look)
    if look.rng is not None and look.augment.rand_augment:
        return fit_picture(as_picture(raw), path, spec, view, look)
    return fit_array(raw, spec, view)


def fit_sound(raw: Any, path: str, spec: Audio, look: Look = PLAIN) -> NDArray:
    """Fit a clip, or samples ``[C, S]``: a random or a fixed part, padded with silence at the end.

    Raises:
        DataError: The clip cannot be decoded.
    """
    if isinstance(raw, EncodedClip):
        return fit_audio(raw, spec, look)
    spare = raw.shape[1] - spec.samples
    if spare <= 0:
        return np.pad(raw, ((0, 0), (0, -spare)))
    rng = look.rng
    first = look.start(spare + 1) if rng is None else int(rng.integers(spare + 1))
    return raw[:, first : first + spec.samples]


def fit_film(raw: Any, path: str, spec: Video, look: Look = PLAIN) -> NDArray:
    """Fit a clip, or frames ``[C, T, H, W]``.

    Raises:
        DataError: The clip cannot be decoded, or the frames have other channels.
    """
    if isinstance(raw, EncodedClip):
        return fit_video(raw, spec, look)
    if raw.ndim != 4 or raw.shape[0] != spec.channels:
        raise DataError(
            f"{path}: video has shape {raw.shape} [C, T, H, W], but the spec has {spec.channels} "
            f"channels; frames are cut and resized, but channels are not changed"
        )
    return fit_frames(raw, spec, look)


def fit_points(raw: Any, path: str, spec: Points, look: Look = PLAIN) -> NDArray:
    """Fit points ``[P, C]``: scaled as the spec says, subsampled in order, padded with NaN rows.

    A file is decoded; if it is a mesh, points are sampled from its surface.

    In training, points are rotated before they are scaled, as if they had been measured that way;
    the rest of the augmentation follows.

    Raises:
        DataError: Fewer points than the spec has, and the spec is not ``ragged``; or a file that
            cannot be decoded.
    """
    if isinstance(raw, EncodedClip):
        raw = read_points(raw, spec, look.rng)
    return pick_points(raw, path, spec, look)[0]


def pick_points(
    raw: NDArray, path: str, spec: Points, look: Look = PLAIN
) -> tuple[NDArray, NDArray[np.int64]]:
    """Fit points as ``fit_points`` does, and return which ones were chosen.

    Args:
        raw: Points ``[n, C]``.
        path: Name of the sample, for messages.
        spec: Number and scaling of the points.
        look: View and augmentation.

    Returns:
        The points ``[P, C]``, and the row of each in ``raw``, -1 for NaN rows.

    Raises:
        DataError: Fewer points than the spec has, and the spec is not ``ragged``.
    """
    augment, rng = look.augment, look.rng
    changed = rng is not None and augment.changes_points
    cloud = scale_values(raw) if spec.ragged or spec.scale != "none" or changed else raw
    if rng is not None:
        cloud = turn_points(cloud, augment, rng)
    if spec.scale == "unit":
        cloud = scale_cloud(cloud)
    elif spec.scale in {"centre", "floor"}:
        cloud = cloud - find_origin(cloud, floor=spec.scale == "floor")
    if np.issubdtype(cloud.dtype, np.floating):
        cloud = cloud.astype(np.float32, copy=False)
    rows = np.arange(len(cloud))
    if rng is not None:
        rows = keep_rows(cloud, augment, rng, ragged=spec.ragged)
        cloud = move_points(cloud[rows], augment, rng)
    spare = len(cloud) - spec.points
    if spare > 0:
        if rng is None:
            # Evenly spread rows, so that evaluation is deterministic.
            chosen = np.linspace(0, len(cloud) - 1, spec.points).round().astype(np.int64)
        else:
            chosen = np.sort(rng.choice(len(cloud), spec.points, replace=False))
        return cloud[chosen], rows[chosen]
    if spare < 0:
        if not spec.ragged:
            raise DataError(
                f"{path}: {len(cloud)} points, but the spec has {spec.points} and ragged=False; "
                f"set ragged=True, or ask for fewer points"
            )
        rows = np.pad(rows, (0, -spare), constant_values=-1)
        return np.pad(cloud, ((0, -spare), (0, 0)), constant_values=np.nan), rows
    return cloud, rows


def find_origin(cloud: NDArray, *, floor: bool) -> NDArray[np.float64]:
    """Return where to centre points ``[P, C]``, as ``[C]``: their mean, or the floor below it.

    Args:
        cloud: The points; rows of NaN are padding.
        floor: Use a low quantile of the last axis, which a few outliers hardly move.
    """
    origin = np.asarray(np.nanmean(cloud, axis=0, dtype=np.float64))
    if floor:
        origin[-1] = np.nanquantile(cloud[:, -1].astype(np.float64), FLOOR_QUANTILE)
    return origin


def scale_cloud(cloud: NDArray) -> NDArray[np.float32]:
    """Centre points ``[P, C]`` at their mean and divide each axis by its largest distance from it.

    Every axis is scaled on its own, into -1..1, because axes may differ in their unit, such as
    pixels and milliseconds; an axis on which all points coincide becomes 0.
    """
    centred = cloud.astype(np.float64) - cloud.mean(axis=0, dtype=np.float64)
    reach = np.abs(centred).max(axis=0)
    # Below this, differences are rounding errors of the mean.
    flat = reach <= 1e-6 * np.abs(cloud).max(axis=0)
    return (np.where(flat, 0.0, centred) / np.where(flat, 1.0, reach)).astype(np.float32)


def fit_point_mask(raw: Any, path: str, spec: PointMask, look: Look = PLAIN) -> NDArray[np.uint8]:
    """Map the ids of points that are read without their points to classes.

    Raises:
        DataError: Their number is not that of the spec, or an id is not a class.
    """
    stored = read_ids(raw, path, axes=1)
    if len(stored) != spec.points:
        raise DataError(
            f"{path}: classes of {len(stored)} points, but the spec has {spec.points}; they are "
            f"chosen with their points, so read both"
        )
    return number_ids(stored, spec, path)


def fit_text(raw: Any, path: str, spec: Bytes, look: Look = PLAIN) -> NDArray[np.int64]:
    """Fit a text ``[L]``: a random part or the first, wrapped as the spec says, then PAD.

    Values of dtype uint8 are bytes; wider integers are ids already, which are not augmented.
    """
    room, rng = text_room(spec), look.rng
    if raw.dtype == np.uint8:
        raw = change_text(raw, room, look)
    first = 0 if rng is None else int(rng.integers(max(0, len(raw) - room) + 1))
    ids = raw[first : first + room].astype(np.int64)
    if raw.dtype == np.uint8:
        ids += FIRST_BYTE
    return pad_ids(wrap_ids(ids) if spec.wrap == "cls_sep" else ids, spec.length)


def text_room(spec: Bytes) -> int:
    """Return how many bytes of text fit, after wrapping.

    Raises:
        DataError: No text fits.
    """
    room = spec.length - (2 if spec.wrap == "cls_sep" else 0)
    if room < 1:
        raise DataError(
            f"a length of {spec.length} leaves no room for text between CLS and SEP; give at "
            f"least 3"
        )
    return room


def check_whole(raw: Any, path: str, spec: ModalitySpec) -> None:
    """Reject a text that would be cut.

    Raises:
        DataError: The text is longer than the model reads.
    """
    if isinstance(spec, Bytes) and len(raw) > (room := text_room(spec)):
        raise DataError(
            f"{path}: the text has {len(raw)} bytes, and the model reads at most {room} "
            f"(length {spec.length}, wrap {spec.wrap!r}); shorten or split the text, or use a "
            f"model of greater length"
        )


def keep_array(raw: Any, path: str, spec: ModalitySpec, look: Look = PLAIN) -> NDArray:
    """Return an array, which must already have the shape of its spec.

    Raises:
        DataError: It does not.
    """
    if raw.shape != spec.raw_shape:
        raise DataError(
            f"{path}: {spec.kind} has shape {raw.shape}, but the spec expects {spec.raw_shape}; "
            f"arrays of this kind are not resized"
        )
    return raw


def scale_values(values: NDArray) -> NDArray:
    """Return values as models see them before normalisation: integers divided by full scale."""
    scale = FULL_SCALE.get(values.dtype)
    return values if scale is None else (values / scale).astype(np.float32)


FITS: Mapping[str, Fit] = {
    Image.kind: fit_image,
    Video.kind: fit_film,
    Audio.kind: fit_sound,
    Points.kind: fit_points,
    Bytes.kind: fit_text,
    Mask.kind: fit_mask,
    PointMask.kind: fit_point_mask,
    "array": keep_array,
    "labels": keep_array,
}
