"""What a table of learned positions holds: principal components, similarities, spread of channels.

Legend: N positions, P channels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Two percent at both ends may saturate, so that one odd position does not wash out the colours.
_TAILS = (2.0, 98.0)


@dataclass(frozen=True)
class Components:
    """Principal components of a position table.

    Args:
        scores: ``[N, P]``, every position along every component, strongest first.
        variances: ``[P]``, the share of all variance along each; all 0 for a constant table.
    """

    scores: NDArray[np.float64]
    variances: NDArray[np.float64]


def principal_components(table: NDArray[Any]) -> Components:
    """Rotate a table ``[N, P]`` onto its principal components, with a fixed choice of signs."""
    centred = table - table.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    values, vectors = values[::-1].clip(0.0), vectors[:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.where(vectors[largest, np.arange(len(values))] < 0, -1.0, 1.0)
    total = float(values.sum())
    # Below this the "variance" is rounding of a constant table.
    floor = 1e-20 * max(float(np.square(table).sum()), 1e-300)
    shares = values / total if total > floor else np.zeros_like(values)
    return Components(scores=centred @ vectors, variances=shares)


def colours(components: Components) -> NDArray[np.float64]:
    """Show the first three components as red, green and blue in 0..1: ``[N, 3]``."""
    result = np.full((len(components.scores), 3), 0.5)
    for index in range(min(3, components.scores.shape[1])):
        if components.variances[index] > 0:
            scores = components.scores[:, index]
            low, high = np.percentile(scores, _TAILS)
            if high > low:
                result[:, index] = ((scores - low) / (high - low)).clip(0.0, 1.0)
    return result


def similarity(table: NDArray[np.float64], index: int) -> NDArray[np.float64]:
    """Return the cosine similarity of one position with all: ``[N]``; 0 for a row of zeros."""
    lengths = np.linalg.norm(table, axis=1)
    scaled = table / np.where(lengths > 0, lengths, 1.0)[:, None]
    return scaled @ scaled[index]


def busiest_channels(table: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Return the channels with most variance over positions, in falling order."""
    return np.argsort(-table.var(axis=0), kind="stable")[:count]


def spread_indices(size: int, count: int) -> list[int]:
    """Return up to ``count`` indices, evenly inside ``0..size - 1``."""
    return sorted({int(size * (index + 0.5) / count) for index in range(count)})
