"""Samples that consist of arrays alone."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.data.sources import Source


def read_arrays(source: Source, index: int) -> dict[str, NDArray[Any]]:
    """Read a sample of arrays."""
    return {name: np.asarray(values) for name, values in source.read(index).items()}
