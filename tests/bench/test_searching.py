"""The largest size within a limit: found in few runs, and bracketed by sizes that were run."""

import pytest

from perceivers.bench.children import GRID, LARGEST, TOLERANCE, Measurement, Search, Status

GB = 1e9


class Probe:
    """A model whose memory is known."""

    def __init__(
        self, base: float, per_input: float, ends: tuple[int, Status] | None = None
    ) -> None:
        self.base, self.per_input, self.ends = base, per_input, ends
        self.calls: list[tuple[int, float]] = []

    def __call__(self, size: int, limit: float) -> Measurement:
        """Run a size."""
        self.calls.append((size, limit))
        peak = round(self.base + self.per_input * size**2)
        status: Status = "measured" if peak <= limit else "out of memory"
        if self.ends is not None and size >= self.ends[0]:
            status = self.ends[1]
        return Measurement(
            model="x", size=size, round=1, name="step", status=status, peak_bytes=peak
        )


@pytest.mark.parametrize(
    ("base", "per_input"), [(1e9, 100.0), (1e9, 3.0), (0.5e9, 5000.0), (3.9e9, 40.0)]
)
def test_the_largest_size_is_bracketed_for_every_limit(base: float, per_input: float) -> None:
    probe = Probe(base, per_input)
    search = Search("x", probe, 224)
    for limit in (4 * GB, 16 * GB):
        found = search.find(limit)
        exact = ((limit - base) / per_input) ** 0.5
        assert found.size <= exact or found.size == LARGEST
        assert found.size % GRID == 0
        if found.size < LARGEST:
            assert found.next_size is not None
            assert exact < found.next_size <= found.size + max(GRID, TOLERANCE * found.size)
            assert found.next_status == "out of memory"
        assert found.peak_bytes == round(base + per_input * found.size**2)
    # What ran within a smaller limit is not run again within a larger one.
    ran = [size for size, limit in probe.calls if base + per_input * size**2 <= limit]
    assert len(ran) == len(set(ran))
    assert len(probe.calls) <= 16


def test_a_model_that_fits_nowhere_has_no_size() -> None:
    found = Search("x", Probe(5e9, 1.0), 224).find(4 * GB)
    assert (found.size, found.peak_bytes, found.next_size) == (0, None, GRID)


@pytest.mark.parametrize("status", ["too slow", "failed"])
def test_what_ends_otherwise_ends_the_search(status: Status) -> None:
    probe = Probe(1e9, 10.0, ends=(1000, status))
    search = Search("x", probe, 224)
    for limit in (4 * GB, 16 * GB):
        found = search.find(limit)
        assert (found.size, found.next_status) == (448, status)
    assert len(probe.calls) == 3


def test_memory_that_bends_upwards_is_found_too() -> None:
    class Bent(Probe):
        def __call__(self, size: int, limit: float) -> Measurement:
            self.per_input = size**2 / 1e3
            return super().__call__(size, limit)

    probe = Bent(1e9, 0.0)
    found = Search("x", probe, 224).find(4 * GB)
    exact = (3e9 * 1e3) ** 0.25
    assert found.next_size is not None
    assert found.size <= exact < found.next_size
    assert len(probe.calls) < 12


def test_memory_that_does_not_grow_ends_at_the_largest_size() -> None:
    found = Search("x", Probe(1e9, 0.0), 100).find(4 * GB)
    assert (found.size, found.next_size) == (LARGEST, None)
