"""What is seen of a sample: a random part in training, one or several fixed parts in evaluation.

Evaluation in several views averages a classifier's answers over parts of a sample that are spread
evenly: k clips in time, the first at the start and the last at the end, and of each s crops along
the longer side, from end to end. One view is the middle.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from perceivers.data.augment import AugmentConfig
from perceivers.errors import ConfigError
from perceivers.settings import Count, Settings
from perceivers.types import Audio, Image, ModalitySpec, Video

# A share of a count may lie this much below the whole number that it stands for.
EDGE = 1e-9


class Place(NamedTuple):
    """Where a fixed part of a sample lies.

    Args:
        time: Share, 0..1, of the time left out that passes before the part.
        along: Share, 0..1, of what is left out of the longer side that lies before the part.
    """

    time: float = 0.5
    along: float = 0.5


MIDDLE = Place()
UNCHANGED = AugmentConfig()


@dataclass(frozen=True)
class Look:
    """How a sample is looked at.

    Args:
        rng: Where random parts and changes come from; None for evaluation, which has none.
        augment: How pictures and clips are changed when there is a generator.
        place: What is seen when there is none.
    """

    rng: np.random.Generator | None = None
    augment: AugmentConfig = UNCHANGED
    place: Place = MIDDLE

    def start(self, choices: int) -> int:
        """Return which of some beginnings to take, 0..choices - 1: drawn once, or the place's.

        Args:
            choices: How many there are, at least 1.
        """
        if self.rng is None:
            return int((choices - 1) * self.place.time + EDGE)
        return int(self.rng.random() * choices)


PLAIN = Look()


@dataclass(frozen=True, kw_only=True)
class Views(Settings, prefix="views."):
    """How many parts of each sample evaluation looks at.

    Args:
        temporal: Clips spread over the time of a film or a sound, at least 1.
        spatial: Crops spread over the longer side of a picture or of a film's frames, at least 1.
            They are all the same where picture and input have the same aspect ratio.

    Raises:
        ConfigError: A number below 1.
    """

    temporal: Count = 1
    spatial: Count = 1

    def __str__(self) -> str:
        """Show both numbers."""
        return f"{self.temporal}x{self.spatial}"

    @property
    def count(self) -> int:
        """Views per sample."""
        return self.temporal * self.spatial

    @property
    def places(self) -> tuple[Place, ...]:
        """Every view, all crops of one time after the other."""
        return tuple(
            Place(time, along) for time in _spread(self.temporal) for along in _spread(self.spatial)
        )

    def check(self, specs: Mapping[str, ModalitySpec]) -> None:
        """Refuse views that would all be the same.

        Args:
            specs: What is read.

        Raises:
            ConfigError: Several temporal views without films or sounds, or several spatial ones
                without pictures or films.
        """
        needs = (
            (self.temporal, "temporal", (Video, Audio), "films or sounds"),
            (self.spatial, "spatial", (Image, Video), "pictures or films"),
        )
        for number, name, kinds, nouns in needs:
            if number > 1 and not any(isinstance(spec, kinds) for spec in specs.values()):
                raise ConfigError(
                    f"views are {self}, but {number} {name} views need {nouns}, and the model "
                    f"reads {sorted(specs)}; use 1 {name} view"
                )


def _spread(count: int) -> tuple[float, ...]:
    """Return shares from 0 to 1, or the middle."""
    return tuple(i / (count - 1) for i in range(count)) if count > 1 else (0.5,)
