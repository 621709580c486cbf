"""Specs measured from data: shapes of the samples, and mean and standard deviation per channel."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from perceivers.data.augment import AugmentConfig
from perceivers.data.by_modality.arrays import ARRAY
from perceivers.data.by_modality.images import PICTURE_SIZE
from perceivers.data.deep_pictures import count_channels
from perceivers.data.fitting import SampleReader
from perceivers.data.masks import MASK_NAME
from perceivers.data.modality import FULL_SCALE, modalities, modality_of
from perceivers.data.sources import Encoded, RawSample, Source
from perceivers.errors import ConfigError, DataError, UserError, suggest
from perceivers.types import Image, ModalitySpec

MAX_LOOKED_AT = 512
# Videos and long audio are slow to decode, so fewer samples are measured.
MAX_CLIPS = 32


def measure_specs(
    source: Source,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    modalities: Sequence[str] = (),
) -> dict[str, ModalitySpec]:
    """Measure the spec of each modality of a source; see ``Dataset.specs`` for the arguments.

    Raises:
        DataError: No sample can be read, or the images cannot have ``channels`` channels.
        ConfigError: A size is below 1, or a modality or field does not exist.
    """
    overrides = overrides or {}
    # A mask is a target, never a model input.
    natives = {
        name: spec for name, spec in _native_specs(source, modalities).items() if name != MASK_NAME
    }
    for name in (*modalities, *overrides):
        if name not in natives:
            raise ConfigError(
                f"modality {name!r} is asked for, but the data hold {sorted(natives)}"
                + suggest(name, natives)
            )
    specs = {
        name: override_spec(name, _asked_spec(source, spec, size, channels), overrides.get(name))
        for name, spec in natives.items()
        if not modalities or name in modalities
    }
    reader = SampleReader(source, specs, AugmentConfig())
    indices = _choose(reader.source, _num_looked_at(specs), list(specs))
    may_be_gray = channels is None and "channels" not in overrides.get("image", {})
    if source.is_pictures and may_be_gray:
        specs["image"] = replace(specs["image"], channels=_common_channels(source, indices))
        reader = SampleReader(source, specs, AugmentConfig())
    measured = _measure(reader, indices)
    return {
        name: replace(spec, **(measured.get(name, {}) | _given_statistics(overrides.get(name))))
        for name, spec in specs.items()
    }


def override_spec(name: str, spec: ModalitySpec, values: Mapping[str, Any] | None) -> ModalitySpec:
    """Return a spec with some fields replaced.

    Args:
        name: Name of the modality, for messages.
        spec: The original spec.
        values: New values by field name; lists are converted to tuples.

    Raises:
        ConfigError: The spec does not have a field, or a value is invalid.
    """
    if not values:
        return spec
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"the settings of modality {name!r} are {values!r}; give fields with values, such as "
            f"{{'mean': [0.5]}}"
        )
    known = [field.name for field in fields(spec) if field.init]
    for key in values:
        if key not in known:
            raise ConfigError(
                f"modality {name!r} ({spec.kind}) has no setting {key!r}; it has "
                f"{', '.join(known)}" + suggest(str(key), known)
            )
    try:
        # YAML files contain lists where specs have tuples.
        return replace(
            spec, **{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        )
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the settings of modality {name!r} are {values}: {error}") from error


def _native_specs(source: Source, modalities: Sequence[str]) -> dict[str, ModalitySpec]:
    """Return specs by modality, as declared by the source or else inferred from samples."""
    if source.is_pictures:
        return {"image": Image(PICTURE_SIZE, PICTURE_SIZE, 3)}
    declared = source.declare()
    known = list(source.present)
    if declared and all(name in declared for name in known):
        return dict(declared)
    wanted = [name for name in known if name in modalities or not modalities]
    found = {**_combine(source, wanted), **declared}
    return {name: found[name] for name in known or found if name in found}


def _read_some(source: Source, wanted: Sequence[str], reasons: list[str]) -> Iterator[RawSample]:
    """Yield the readable ones of a few samples; append the errors of the others to ``reasons``.

    Raises:
        DataError: No sample can be read.
    """
    differ = not source.is_alike
    missing = set(wanted)
    indices = _choose(source, MAX_CLIPS, wanted)
    for index in indices:
        try:
            sample = source.read(index)
        except DataError as error:
            reasons.append(str(error))
            continue
        yield sample
        missing -= set(sample)
        differ |= any(isinstance(raw, Encoded | Picture) for raw in sample.values())
        differ |= any(modalities().get(name, ARRAY).varies for name in sample)
        if not differ and not missing:
            # All arrays of a source have the same shape, so one sample is enough.
            return
    if len(reasons) == len(indices):
        raise _none_readable(reasons)


def _combine(source: Source, wanted: Sequence[str]) -> dict[str, ModalitySpec]:
    """Infer specs large enough for all inspected samples, at least for the wanted modalities."""
    kinds = source.kind_by_modality
    specs: dict[str, list[ModalitySpec]] = {}
    reasons: list[str] = []
    for sample in _read_some(source, wanted, reasons):
        for name, raw in sample.items():
            try:
                spec = _native_spec(kinds.get(name, name), raw, ragged=source.is_ragged(name))
            except DataError as error:
                reasons.append(str(error))
                continue
            specs.setdefault(name, []).append(spec)
    if not specs:
        raise _none_readable(reasons)
    for name in wanted:
        if name not in specs:
            raise _never_seen(name, reasons)
    return {name: modality_of(found[0]).merge(found) for name, found in specs.items()}


def _native_spec(
    kind: str, raw: Picture | NDArray | Encoded, *, ragged: bool = False
) -> ModalitySpec:
    """Return the spec of one raw sample; ``ragged`` point sets may have fewer points."""
    if isinstance(raw, Picture):
        kind = "image"
    elif isinstance(raw, Encoded):
        kind = raw.kind
    native = modalities().get(kind, ARRAY).native or ARRAY.native
    assert native is not None, kind
    return native(raw, ragged)


def _asked_spec(
    source: Source, spec: ModalitySpec, size: int | tuple[int, int] | None, channels: int | None
) -> ModalitySpec:
    if not spec.takes_size:
        return spec
    if channels is not None and channels != spec.channels:
        if spec.channels != 1 and _holds_arrays(source, spec):
            raise DataError(
                f"the images are arrays of {spec.channels} channels, but channels={channels} was "
                f"set; leave it out (only single-channel images can be repeated)"
            )
        spec = replace(spec, channels=channels)
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        spec = replace(spec, **{"height": height, "width": width})
    return spec


def _num_looked_at(specs: Mapping[str, ModalitySpec]) -> int:
    slow = any(modality_of(spec).is_slow(spec) for spec in specs.values())
    return MAX_CLIPS if slow else MAX_LOOKED_AT


def _choose(source: Source, count: int, names: Sequence[str]) -> list[int]:
    """Return evenly spread sample indices: up to ``count`` samples that have each named modality.

    Raises:
        DataError: No sample has one of the modalities.
    """
    if not source.present:
        return _spread(len(source), count)
    places: set[int] = set()
    for name in names:
        rows = np.flatnonzero(source.present[name])
        if not len(rows):
            raise _never_seen(name, ())
        places |= {int(rows[place]) for place in _spread(len(rows), count)}
    return sorted(places)


def _spread(length: int, count: int) -> list[int]:
    """Return up to ``count`` evenly spread indices below ``length``."""
    return np.unique(np.linspace(0, length - 1, count).round().astype(int)).tolist()


def _common_channels(source: Source, indices: list[int]) -> int:
    """Return the most common channel count of readable images; a mix of gray and RGB gives 3."""
    found: Counter[int] = Counter()
    for index in indices:
        try:
            encoded = source.encoded(index)
            found[count_channels(encoded.load(), encoded.path)] += 1
        except DataError:
            continue
    if set(found) == {1}:
        return 1
    found[3] += found.pop(1, 0)
    return found.most_common(1)[0][0]


def _holds_arrays(source: Source, spec: ModalitySpec) -> bool:
    """Return whether images are arrays, whose channels are fixed, rather than files."""
    if source.is_pictures:
        return False
    for index in _spread(len(source), MAX_CLIPS):
        try:
            sample = source.read(index)
        except DataError:
            continue
        held = [raw for raw in sample.values() if isinstance(raw, np.ndarray)]
        return any(raw.ndim == 3 and raw.shape[0] == spec.channels for raw in held)
    return False


def _measure(reader: SampleReader, indices: list[int]) -> dict[str, dict[str, Any]]:
    """Return mean and standard deviation per modality over the readable samples."""
    moments = {name: _Moments() for name, spec in reader.specs.items() if not spec.indexed}
    reasons = []
    for index in indices if moments else ():
        try:
            sample = reader(index)
        except DataError as error:
            reasons.append(str(error))
            continue
        for name, sums in moments.items():
            if name in sample:
                sums.add(sample[name], channels_first=reader.specs[name].channels_first)
    if moments and len(reasons) == len(indices):
        raise _none_readable(reasons)
    for name, sums in moments.items():
        if not np.any(sums.count):
            raise _never_seen(name, reasons)
    return {name: sums.result() for name, sums in moments.items()}


def _given_statistics(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the mean and standard deviation that the user gave instead of measured ones."""
    given = {key: value for key, value in (values or {}).items() if key in {"mean", "std"}}
    return {key: tuple(value) for key, value in given.items()}


def _none_readable(reasons: Sequence[str]) -> DataError:
    return DataError(
        f"none of the {len(reasons)} inspected training samples could be read; the first: "
        f"{reasons[0]}"
    )


def _never_seen(name: str, reasons: Sequence[str]) -> DataError:
    if not reasons:
        return DataError(
            f"no training sample has {name!r}; add some, or leave the modality out (modalities)"
        )
    return DataError(
        f"none of the inspected training samples with {name!r} could be read; the first "
        f"unreadable one: {reasons[0]}"
    )


class _Moments:
    """Running float64 sums for the mean and standard deviation per channel."""

    def __init__(self) -> None:
        self.count: NDArray[np.int64] | int = 0
        self.total: NDArray[np.float64] | float = 0.0
        self.squares: NDArray[np.float64] | float = 0.0

    def add(self, values: NDArray, *, channels_first: bool) -> None:
        """Add one sample, scaled as models read it; NaN is skipped."""
        scaled = values.astype(np.float64) / FULL_SCALE.get(values.dtype, 1.0)
        rows = (
            scaled.reshape(len(scaled), -1)
            if channels_first
            else scaled.reshape(-1, scaled.shape[-1]).T
        )
        self.count = self.count + (~np.isnan(rows)).sum(axis=1)
        self.total = self.total + np.nansum(rows, axis=1)
        self.squares = self.squares + np.nansum(rows**2, axis=1)

    def result(self) -> dict[str, tuple[float, ...]]:
        """Return mean and population standard deviation per channel, to six digits.

        A constant channel gets a standard deviation of 1, so that it is standardised to zero.
        """
        mean = np.asarray(self.total) / self.count
        variance = np.maximum(np.asarray(self.squares) / self.count - mean**2, 0.0)
        # Below this threshold the difference of sums is only rounding error.
        constant = variance <= 1e-12 * np.maximum(mean**2, 1e-12)
        std = np.where(constant, 1.0, np.sqrt(variance))
        return {
            "mean": tuple(float(f"{m:.6g}") for m in mean),
            "std": tuple(float(f"{s:.6g}") for s in std),
        }
