"""Raw samples to arrays of exactly the shape a spec declares."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from perceivers.data.augment import AugmentConfig
from perceivers.data.drawing import fit_encoded
from perceivers.data.fits import check_whole, fit_sample, text_room
from perceivers.data.pictures import check_picture_spec
from perceivers.data.sources import EncodedClip, PictureSource, Source, WindowedSource
from perceivers.errors import ConfigError, DataError
from perceivers.types import Audio, Bytes, ModalitySpec, Points
from perceivers.types import Image as ImageSpec


@dataclass(frozen=True)
class SampleReader:
    """Reads one sample of a source and fits it to the specs.

    Args:
        source: Where the samples come from; one of documents is cut to windows of the specs'
            length, so that its samples are counted anew.
        specs: What each modality must look like; other modalities of the source are left out.
        augment: How pictures are changed when a generator is given.
        strict: Refuse a text that is longer than its spec, instead of reading a part.

    Raises:
        DataError: The specs do not fit the source.
        ConfigError: An augmentation without a picture to apply it to.
    """

    source: Source
    specs: Mapping[str, ModalitySpec]
    augment: AugmentConfig
    strict: bool = False

    def __post_init__(self) -> None:
        """Compare the specs with the source before any worker starts."""
        check_specs(self.source, self.specs)
        if self.augment.active and not any(isinstance(s, ImageSpec) for s in self.specs.values()):
            raise ConfigError(
                f"augmentation changes pictures, but the modalities are {sorted(self.specs)}; "
                f"leave the augmentation at its defaults"
            )
        odd = [n for n, s in self.specs.items() if s.channels not in {1, 3} and s.kind == "image"]
        if self.augment.rand_augment and odd:
            raise ConfigError(
                f"RandAugment changes gray and RGB pictures, but {odd[0]!r} has "
                f"{self.specs[odd[0]].channels} channels; use augment.rand_augment: 0"
            )
        object.__setattr__(self, "source", cut_windows(self.source, self.specs))

    def __call__(self, index: int, rng: np.random.Generator | None = None) -> dict[str, NDArray]:
        """Return one array per modality in the raw layout, without a batch axis.

        Args:
            index: Sample in the source.
            rng: Where random views and parts come from; None looks at the centre, or the start.

        Raises:
            DataError: The sample cannot be read.
        """
        augment = self.augment
        if isinstance(self.source, PictureSource):
            encoded = self.source.encoded(index)
            return {
                name: fit_encoded(encoded, spec, augment, rng)
                for name, spec in self.specs.items()
                if isinstance(spec, ImageSpec)
            }
        sample, path = self.source.read(index), self.source.names[index]
        if self.strict:
            for name, spec in self.specs.items():
                check_whole(sample[name], path, spec)
        return fit_sample(sample, path, self.specs, rng, augment)


def cut_windows(source: Source, specs: Mapping[str, ModalitySpec]) -> Source:
    """Return a source of documents in windows of the length that is read; others as they are."""
    texts = [spec for spec in specs.values() if isinstance(spec, Bytes)]
    if texts and isinstance(source, WindowedSource):
        return source.with_window(text_room(texts[0]))
    return source


def check_specs(source: Source, specs: Mapping[str, ModalitySpec]) -> None:
    """Reject specs that name modalities, channels or shapes the source does not have.

    Raises:
        DataError: With what the source has.
    """
    if not specs:
        raise DataError("no modality is asked for; give at least one spec")
    if len(source) == 0:
        raise DataError("the source holds no samples; at least 1 is needed")
    if isinstance(source, PictureSource):
        for name, spec in specs.items():
            if name != "image" or not isinstance(spec, ImageSpec):
                raise DataError(
                    f"the specs ask for {name!r} ({spec.kind}), but picture files hold only "
                    f"'image'; name the modality 'image' and declare it as Image"
                )
            check_picture_spec(spec)
        return
    try:
        sample = source.read(0)
    except DataError:
        # An unreadable sample is the loader's business: it is named and replaced there.
        return
    for name, spec in specs.items():
        if name not in sample:
            raise DataError(
                f"the specs ask for {name!r}, but the data hold {sorted(sample)}; "
                f"leave it out, or add it to the data"
            )
        _check_raw(sample[name], name, spec)


def _check_raw(raw: Picture | NDArray | EncodedClip, name: str, spec: ModalitySpec) -> None:
    """Compare a raw sample of any type with its spec."""
    if isinstance(raw, Picture):
        if isinstance(spec, ImageSpec):
            check_picture_spec(spec)
    elif isinstance(raw, EncodedClip):
        if raw.kind != spec.kind:
            raise DataError(
                f"modality {name!r} holds {raw.kind} files, but the spec is of kind "
                f"{spec.kind!r}; declare it as {raw.kind}"
            )
    else:
        _check_array(raw, name, spec)


def _check_array(raw: NDArray, name: str, spec: ModalitySpec) -> None:
    """Compare a raw array with its spec, as far as it is not fitted sample by sample."""
    if isinstance(spec, Bytes):
        text_room(spec)
        if raw.ndim == 1 and np.issubdtype(raw.dtype, np.integer):
            return
    elif isinstance(spec, ImageSpec):
        if raw.ndim == 3 and raw.shape[0] in {1, spec.channels}:
            return
        raise DataError(
            f"modality {name!r} has shape {raw.shape} [C, H, W], but the spec has "
            f"{spec.channels} channels; use the channels of the data"
        )
    elif isinstance(spec, Audio | Points):
        channels = raw.shape[0 if spec.channels_first else -1]
        if raw.ndim == 2 and channels == spec.channels:
            return
    elif raw.shape == spec.raw_shape:
        return
    raise DataError(
        f"modality {name!r} has shape {raw.shape} per sample, but the spec ({spec.kind}) "
        f"expects {spec.raw_shape}; only images are resized, and only sound, points and texts cut "
        f"or filled up, so use the shape of the data"
    )
