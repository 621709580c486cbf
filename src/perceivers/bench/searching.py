"""Search for the largest image that a model can be trained on within a memory limit.

Memory grows nearly linearly with the number of inputs, so the line through two sizes predicts the
next size to try. The reported size was run, and so was a larger one that did not fit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor, sqrt

from perceivers.bench.children import Measurement, Status

# All sizes are multiples of this number, as Hiera requires.
GRID = 32
# The search ends when the smallest size that does not fit is at most this fraction larger.
TOLERANCE = 0.05
LARGEST = 16384
# Maximum number of sizes tried per limit.
MOST = 14


@dataclass(frozen=True, kw_only=True)
class Largest:
    """Largest size of a model within a limit.

    Args:
        model: Name as given by the user.
        limit: Memory limit in bytes.
        size: Largest size that fits, in pixels per side; 0 if none does.
        peak_bytes: Its peak memory.
        next_size: Smallest size tried that does not fit; None if all fit.
        next_status: Why it does not fit.
    """

    model: str
    limit: float
    size: int
    peak_bytes: int | None
    next_size: int | None
    next_status: Status | None


class Search:
    """Finds the largest size of one model for several limits, smallest first.

    Args:
        model: Name of the model.
        probe: Runs training steps at a size, within a limit in bytes.
        start: First size to try.
    """

    def __init__(self, model: str, probe: Callable[[int, float], Measurement], start: int) -> None:
        self._model, self._probe = model, probe
        self._start = max(GRID, start // GRID * GRID)
        # Peak memory of sizes that ran; for those that did not fit, the limit they exceeded.
        self._peaks: dict[int, int] = {}
        self._failed: dict[int, tuple[float, Status]] = {}

    def find(self, limit: float) -> Largest:
        """Return the largest size within a limit.

        Args:
            limit: Memory limit in bytes, not less than in the previous call.
        """
        size = max((s for s, peak in self._peaks.items() if peak <= limit), default=self._start)
        for _ in range(MOST):
            self._try(size, limit)
            low, high = self._bounds(limit)
            if low >= LARGEST or (high and self._is_near(low, high)):
                break
            size = self._next(low, high, limit)
        low, high = self._bounds(limit)
        ended = self._failed.get(high or 0)
        return Largest(
            model=self._model,
            limit=limit,
            size=low,
            peak_bytes=self._peaks.get(low),
            next_size=high,
            next_status=None if high is None else ended[1] if ended else "out of memory",
        )

    def _try(self, size: int, limit: float) -> None:
        """Run a size, unless it is already known whether it fits."""
        if size in self._peaks or (size in self._failed and self._failed[size][0] >= limit):
            return
        done = self._probe(size, limit)
        if done.status == "measured" and done.peak_bytes is not None:
            self._peaks[size] = done.peak_bytes
        else:
            # More memory would not help a size that is too slow or fails for another reason.
            forever = float("inf") if done.status in {"too slow", "failed"} else limit
            self._failed[size] = forever, done.status

    def _bounds(self, limit: float) -> tuple[int, int | None]:
        """Return the largest size that fits (0 if none does) and the smallest that does not."""
        low = max((size for size, peak in self._peaks.items() if peak <= limit), default=0)
        over = [size for size, peak in self._peaks.items() if peak > limit]
        over += [size for size, (most, _) in self._failed.items() if most >= limit]
        return low, min((size for size in over if size > low), default=None)

    def _is_near(self, low: int, high: int) -> bool:
        """Return whether nothing is left to try between two sizes."""
        # Sizes just below one that was too slow would take as long to give up.
        if high in self._failed and self._failed[high][1] != "out of memory":
            return True
        return high - low <= max(GRID, TOLERANCE * low)

    def _next(self, low: int, high: int | None, limit: float) -> int:
        """Return the size to try next: a multiple of the grid strictly between the bounds."""
        if not low:
            assert high is not None
            return max(GRID, high // 2 // GRID * GRID)
        guess = self._solve(low, limit)
        if guess <= low:
            # By the line, nothing larger fits; try the size just above to verify it.
            guess = ceil((1 + TOLERANCE) * low / GRID) * GRID
            guess = max(guess - GRID, low + GRID)
        if high is None:
            return min(guess, 4 * low, LARGEST)
        return guess if guess < high else max(low + GRID, (low + high) // 2 // GRID * GRID)

    def _solve(self, low: int, limit: float) -> int:
        """Return the size at which the line through the two largest that fit reaches the limit."""
        sizes = sorted(size for size, peak in self._peaks.items() if size <= low)
        if len(sizes) == 1:
            return 2 * low
        (n1, p1), (n2, p2) = ((size**2, self._peaks[size]) for size in sizes[-2:])
        if p2 <= p1:
            return 2 * low
        inputs = n2 + (limit - p2) * (n2 - n1) / (p2 - p1)
        return floor(sqrt(inputs) / GRID) * GRID
