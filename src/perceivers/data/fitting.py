"""Reading of samples as arrays of the shapes that specs declare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from perceivers.data.augment import AugmentConfig, Look, Place
from perceivers.data.by_modality.texts import text_room
from perceivers.data.drawing import fit_encoded
from perceivers.data.fits import check_in_place, fit_sample, reorder_sample
from perceivers.data.modality import modality_of
from perceivers.data.sources import Encoded, RawSample, Source
from perceivers.errors import ConfigError, DataError
from perceivers.reading import check_limit
from perceivers.settings import kinds_of
from perceivers.types import Bytes, ModalitySpec, Points
from perceivers.types import Image as ImageSpec

# Optical flow: augmenting only the frames would make it wrong.
FLOW = "flow"


@dataclass(frozen=True)
class SampleReader:
    """Reads a sample of a source and fits it to the specs.

    Args:
        source: Source of the samples; documents are cut into windows, and scenes into tiles, of the
            specs' size, which changes the number of samples.
        specs: Spec of each modality; other modalities of the source are left out.
        augment: Augmentation, applied when a random generator is given.
        strict: Reject a text that is longer than its spec, instead of reading a part.

    Raises:
        DataError: The specs do not match the source.
        ConfigError: An augmentation of a modality that is not read, or of frames whose flow is
            learned.
    """

    source: Source
    specs: Mapping[str, ModalitySpec]
    augment: AugmentConfig
    strict: bool = False

    def __post_init__(self) -> None:
        """Check the specs against the source before any worker starts."""
        check_sizes(self.specs)
        check_specs(self.source, self.specs)
        if FLOW in self.specs:
            check_in_place(self.specs, "optical flow")
        _check_augmentation(self.augment, self.specs)
        object.__setattr__(self, "source", cut_windows(self.source, self.specs))

    def __call__(
        self, index: int, rng: np.random.Generator | None = None, position: int | None = None
    ) -> dict[str, NDArray]:
        """Return one array per modality in the raw layout, without a batch axis.

        Args:
            index: Sample in the source.
            rng: Random generator of views and augmentation; None reads the centre, or the start.
            position: Position in the stream of training samples, on which ``per_sample`` orders of
                elements depend; by default ``index``.

        Raises:
            DataError: The sample cannot be read.
        """
        (fitted,) = self._read(index, [Look(rng, self.augment)], position)
        return fitted

    def read_views(self, index: int, places: Sequence[Place]) -> list[dict[str, NDArray]]:
        """Return the views of one sample for evaluation, in the order of their places.

        Args:
            index: Sample in the source; it is loaded once.
            places: Places of the views, such as ``Views.places``.

        Raises:
            DataError: The sample cannot be read.
        """
        return self._read(index, [Look(place=place) for place in places])

    def _read(
        self, index: int, looks: Sequence[Look], position: int | None = None
    ) -> list[dict[str, NDArray]]:
        if self.source.is_pictures:
            encoded = self.source.encoded(index)
            specs = {n: spec for n, spec in self.specs.items() if isinstance(spec, ImageSpec)}
            fitted = [
                {n: fit_encoded(encoded, s, look) for n, s in specs.items()} for look in looks
            ]
        else:
            sample, path = self.source.read(index), self.source.names[index]
            specs = self._held(sample, path)
            if self.strict:
                for name, spec in specs.items():
                    modality_of(spec).check_whole(sample[name], path, spec)
            fitted = [fit_sample(sample, path, specs, look) for look in looks]
        for values, look in zip(fitted, looks, strict=True):
            for name, spec in specs.items():
                values[name] = modality_of(spec).augment(values[name], spec, look)
            reorder_sample(values, specs, index if position is None else position)
        return fitted

    def _held(self, sample: RawSample, path: str) -> Mapping[str, ModalitySpec]:
        """Return the specs of the modalities that are present in a sample."""
        if not self.source.present:
            return self.specs
        held = {name: spec for name, spec in self.specs.items() if name in sample}
        if not held:
            raise DataError(
                f"{path}: contains {sorted(sample)}, but none of the modalities that are read, "
                f"{sorted(self.specs)}"
            )
        return held


def check_sizes(specs: Mapping[str, ModalitySpec]) -> None:
    """Reject samples that are too large for memory, before any is read.

    Raises:
        ConfigError: A modality exceeds the limit.
    """
    for name, spec in specs.items():
        remedy = "choose a smaller size, or fewer samples, frames or points"
        where = f"modality {name!r} of shape {spec.raw_shape}"
        check_limit("values", prod(spec.raw_shape), where, error=ConfigError, remedy=remedy)


def _check_augmentation(augment: AugmentConfig, specs: Mapping[str, ModalitySpec]) -> None:
    """Reject augmentation that applies to nothing, or that would make a target wrong."""
    rows = {name: modality_of(spec) for name, spec in specs.items()}
    kinds = {kind for row in rows.values() for kind in (row.spec.kind, *row.augmented_as)}
    for name, wanted in kinds_of(augment).items():
        if not kinds & set(wanted):
            raise ConfigError(
                f"augment.{name} changes {' and '.join(wanted)}, but the modalities are "
                f"{sorted(specs)}, none of that kind; leave it out"
            )
    for name, row in rows.items():
        row.check_augment(augment, name, specs[name])
    if FLOW in specs and (augment.active or augment.copies > 1):
        raise ConfigError(
            f"augmentation changes images, but the modalities are {sorted(specs)}: the flow "
            f"would no longer match the frames, and copies would be identical; keep the "
            f"defaults of the augmentation"
        )
    odd = [n for n, spec in specs.items() if spec.has_pixels and spec.channels not in {1, 3}]
    if augment.rand_augment and odd:
        raise ConfigError(
            f"RandAugment changes gray and RGB images, but {odd[0]!r} has "
            f"{specs[odd[0]].channels} channels; use augment.rand_augment: 0"
        )


def cut_windows(source: Source, specs: Mapping[str, ModalitySpec]) -> Source:
    """Cut documents into windows, and scenes into tiles, of the spec's size; else no change."""
    spec = next((spec for spec in specs.values() if spec.kind == source.cut_by), None)
    if isinstance(spec, Bytes):
        return source.cut(text_room(spec))
    return source.cut(spec.points) if isinstance(spec, Points) else source


def check_specs(source: Source, specs: Mapping[str, ModalitySpec]) -> None:
    """Reject specs with modalities, channels or shapes that the source does not have.

    Raises:
        DataError: The specs do not match the source.
    """
    if not specs:
        raise DataError("no modality is asked for; give at least one spec")
    if len(source) == 0:
        raise DataError("the source contains no samples; at least 1 is needed")
    if source.is_pictures:
        for name, spec in specs.items():
            if name != "image" or not isinstance(spec, ImageSpec):
                raise DataError(
                    f"the specs ask for {name!r} ({spec.kind}), but image files contain only "
                    f"'image'; name the modality 'image' and declare it as Image"
                )
        return
    known = source.present or None
    try:
        sample = source.read(0)
    except DataError:
        # Leave unreadable samples to the loader, which names and replaces them.
        return
    held = sample if known is None else known
    for name, spec in specs.items():
        if name in held and name not in sample:
            continue
        if name not in sample:
            raise DataError(
                f"{name!r} is requested, but the data contain {', '.join(sorted(held))}; give "
                f"data that contain it, or leave it out"
            )
        raw = sample[name]
        if FLOW in specs and isinstance(raw, np.ndarray) and raw.shape != spec.raw_shape:
            raise DataError(
                f"modality {name!r} has shape {raw.shape} per sample, but the spec ({spec.kind}) "
                f"expects {spec.raw_shape}; frames with flow are not resized"
            )
        _check_raw(raw, name, spec)


def _check_raw(raw: Picture | NDArray | Encoded, name: str, spec: ModalitySpec) -> None:
    if isinstance(raw, Picture):
        # Each image states its own number of bands.
        return
    if isinstance(raw, Encoded):
        if raw.kind != spec.kind:
            raise DataError(
                f"modality {name!r} consists of {raw.kind} files, but the spec is of kind "
                f"{spec.kind!r}; declare it as {raw.kind}"
            )
        return
    if modality_of(spec).is_valid(raw, name, spec):
        return
    raise DataError(
        f"modality {name!r} has shape {raw.shape} per sample, but the spec ({spec.kind}) "
        f"expects {spec.raw_shape}; only images and videos are resized, and only videos, audio, "
        f"points and texts are cut or padded, so use the shape of the data"
    )
