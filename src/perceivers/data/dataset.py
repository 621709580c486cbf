"""A data set: its splits, its classes, and the specs of its samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.data.augment import AugmentConfig
from perceivers.data.fitting import SampleReader
from perceivers.data.masks import MASK_NAME, kept_classes
from perceivers.data.measuring import measure_specs
from perceivers.data.modality import modality_of
from perceivers.data.sources import Source
from perceivers.errors import ConfigError, DataError, suggest
from perceivers.text_names import check_class_names, check_writable, show_name
from perceivers.types import ModalitySpec

# The mask class that training ignores by default.
VOID = "void"


@dataclass(frozen=True)
class Dataset:
    """An opened data set.

    Args:
        address: The address it was opened from.
        splits: Sources by name: ``train`` and ``val`` always, ``test`` only if the data have it.
        classes: Class names in the order of the labels; empty if unlabelled, or with several label
            columns.
        notes: Sentences on what was decided while opening.
        columns: Class names by label column, in the columns' order; empty with a single label.
        targets: Names of the numbers to predict, in the order of ``Source.targets``.
        mask_classes: Names of the ids in masks, from 0; empty without masks.
        carved: Whether ``val`` was set aside from ``train``, because the data had none.
    """

    address: str
    splits: Mapping[str, Source]
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    mask_classes: tuple[str, ...] = ()
    carved: bool = False
    # Cache of readers by split and settings: measuring specs takes longer than reading a sample.
    _readers: dict[str, SampleReader] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __repr__(self) -> str:
        """Leave out the sources, which may contain millions of names."""
        sizes = ", ".join(f"{name}={len(source)}" for name, source in self.splits.items())
        classes = {"": self.classes, **self.columns}
        counts = [f"{n or 'label'}={len(names)}" for n, names in classes.items() if names]
        what = f"samples: {sizes}" + (f"; classes: {', '.join(counts)}" if counts else "")
        return f"<Dataset {self.address} ({what})>"

    def read(
        self,
        split: str,
        index: int,
        *,
        size: int | tuple[int, int] | None = None,
        channels: int | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        modalities: Sequence[str] = (),
        seed: int | None = None,
    ) -> dict[str, NDArray]:
        """Return one sample by modality, as a model gets it in training, without a batch axis.

        Arrays are in the raw layout: images uint8 ``[C, H, W]``, videos ``[C, T, H, W]``, audio
        ``[C, S]``, points ``[P, C]``, texts as ids ``[L]``; masks are classes uint8 ``[H, W]`` or
        ``[P]``, 255 where ignored. Normalisation by mean and standard deviation is part of the
        model.

        Args:
            split: ``train``, ``val`` or ``test``.
            index: Sample in the split; documents and scenes are counted in windows and tiles.
            size: As for ``specs``, like ``channels``, ``overrides`` and ``modalities``.
            channels: Channels of images.
            overrides: Fields of specs by modality.
            modalities: Modalities to read; by default all.
            seed: Seed of a random view, as in training; by default the view of evaluation is
                returned.

        Raises:
            DataError: The split or sample does not exist, or cannot be read.
            ConfigError: As for ``specs``.
        """
        settings = {"size": size, "channels": channels, "overrides": overrides}
        key = f"{split} {settings} {list(modalities)}"
        if key not in self._readers:
            if split not in self.splits:
                raise DataError(
                    f"{self.address} has no {split!r} split; it has {sorted(self.splits)}"
                )
            specs = self.training_specs(**settings, modalities=modalities)
            self._readers[key] = SampleReader(self.splits[split], specs, AugmentConfig())
        reader = self._readers[key]
        count = len(reader.source)
        if not 0 <= index < count:
            raise DataError(
                f"{self.address}: {split!r} has the samples 0..{count - 1}, not {index}"
            )
        return reader(index, None if seed is None else np.random.default_rng(seed))

    def training_specs(self, **settings: Any) -> dict[str, ModalitySpec]:
        """Return ``specs``, and the specs of masks if samples have masks.

        Args:
            settings: As for ``specs``.

        Raises:
            DataError: As for ``specs``.
            ConfigError: As for ``specs``.
        """
        specs = self.specs(**settings)
        if not self.mask_classes:
            return specs
        classes, ignored = kept_classes(self.mask_classes, VOID)
        for spec in list(specs.values()):
            if (mask := modality_of(spec).mask) is not None:
                specs[MASK_NAME] = mask(*spec.grid, len(classes), ignored)
        return specs

    def __post_init__(self) -> None:
        """Normalise the spelling of all names, and reject those that cannot be written to a run."""
        where = show_name(self.address)
        columns = {
            check_writable(column, f"{where}: a label column"): check_class_names(
                names, f"{where}: a class"
            )
            for column, names in self.columns.items()
        }
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "classes", check_class_names(self.classes, f"{where}: a class"))
        object.__setattr__(
            self, "mask_classes", check_class_names(self.mask_classes, f"{where}: a class")
        )

    def holding(self, modalities: Sequence[str]) -> "Dataset":
        """Return the data without samples that contain none of some modalities.

        Args:
            modalities: Modalities to read; empty means all, and changes nothing.

        Raises:
            DataError: No sample of ``train`` or ``val`` contains any of them; such a ``test`` split
                is left out.
            ConfigError: A modality that data with missing modalities do not have.
        """
        if not modalities:
            return self
        splits: dict[str, Source] = {}
        notes: list[str] = []
        for name, source in self.splits.items():
            try:
                splits[name] = keep_holding(source, modalities)
            except DataError as error:
                if name in {"train", "val"}:
                    raise DataError(f"{self.address}, split {name!r}: {error}") from error
            if count := len(source) - len(splits.get(name, ())):
                notes.append(
                    f"{name}: {count} of {len(source)} samples are left out, which contain none of "
                    f"{', '.join(modalities)}"
                )
        return replace(self, splits=splits, notes=(*self.notes, *notes))

    def specs(
        self,
        *,
        size: int | tuple[int, int] | None = None,
        channels: int | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        modalities: Sequence[str] = (),
    ) -> dict[str, ModalitySpec]:
        """Return the specs, with mean and standard deviation of up to 512 training samples.

        Videos, and audio of more than 65,536 samples, are measured on up to 32. Audio and videos
        are as long as the longest of 32; texts are read 512 bytes at a time.

        Args:
            size: Side, or height and width, in pixels that images are resized to; None keeps the
                size of arrays and resizes image files to 64.
            channels: Channels of images; None keeps those of arrays, and for image files means 3,
                or 1 if all inspected images are gray.
            overrides: Fields of specs by modality that replace what the data suggest, such as
                ``{"bytes": {"length": 1024}, "video": {"frames": 8}}``.
            modalities: Modalities to read; by default all.

        Raises:
            DataError: No sample can be read, or the images cannot have these channels.
            ConfigError: A size below 1, or a modality or field that does not exist.
        """
        return measure_specs(
            self.splits["train"],
            size=size,
            channels=channels,
            overrides=overrides,
            modalities=modalities,
        )


def keep_holding(source: Source, names: Sequence[str]) -> Source:
    """Select the samples that have at least one of the given modalities.

    Args:
        source: A split; it is returned unchanged if all of its samples qualify.
        names: The modalities to read, at least one.

    Raises:
        DataError: No sample has any of the modalities.
        ConfigError: ``names`` is empty, or the source does not have one of the modalities.
    """
    present = source.present
    if not present:
        return source
    for name in names:
        if name not in present:
            raise ConfigError(
                f"modality {name!r} is asked for, but the data hold {sorted(present)}"
                + suggest(name, present)
            )
    if not names:
        raise ConfigError(f"no modality is asked for; name some of {sorted(present)}")
    held = np.any([present[name] for name in names], axis=0)
    if not held.any():
        raise DataError(
            f"none of the {len(source)} samples has any of {', '.join(names)}; read other "
            f"modalities, or add samples with these"
        )
    if held.all():
        return source
    return source.subset(np.flatnonzero(held))
