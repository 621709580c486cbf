"""Built-in data: scanned digits, and ``selection``, a synthetic task on sets."""

import numpy as np
from numpy.typing import NDArray

from perceivers.data.arrays import hold_arrays
from perceivers.data.clouds import CloudCells, hold_clouds
from perceivers.data.row_source import RowSource
from perceivers.data.splits import hash_order
from perceivers.errors import DataError
from perceivers.types import Points

# ------------------------------------------------------------------------------------------------
# The built-in data set ``digits``: scikit-learn's 1,797 scanned digits of 8x8 pixels, without a
# network.

FULL_SCALE = 16.0
SHARES = {"test": 0.2, "val": 0.1}


def read_digits() -> tuple[dict[str, RowSource], tuple[str, ...], str]:
    """Return the splits, class names and a note.

    The split is fixed: 20 % of each class for test and 10 % for validation, in the order of a hash
    of the sample names, so it does not depend on any random generator or library version.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "'digits' comes with scikit-learn, which is not installed; run "
            'pip install "perceivers[demo]"'
        ) from error
    pixels, targets = load_digits(return_X_y=True)
    images = np.rint(np.asarray(pixels).reshape(-1, 1, 8, 8) * (255.0 / FULL_SCALE)).astype(
        np.uint8
    )
    names = [f"digits/{index}" for index in range(len(images))]
    labels = np.asarray(targets, np.int64)
    everything = hold_arrays({"image": images}, names, labels)
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for label in np.unique(labels):
        members = hash_order(names, np.flatnonzero(labels == label)).tolist()
        num_test, num_val = (round(SHARES[split] * len(members)) for split in ("test", "val"))
        parts["test"] += members[:num_test]
        parts["val"] += members[num_test : num_test + num_val]
        parts["train"] += members[num_test + num_val :]
    splits = {name: everything.subset(np.sort(np.array(part))) for name, part in parts.items()}
    counts = " / ".join(str(len(split)) for split in splits.values())
    note = f"digits: fixed stratified split, train / val / test {counts} scans of 8x8 pixels"
    return splits, tuple(str(label) for label in range(10)), note


# ------------------------------------------------------------------------------------------------
# The built-in synthetic task ``selection``: pick one entity of a set, depending on the others.
#
# A sample is a set of 6 to 24 entities of two teams, in random order. The values of a row are
#
#     x, y    position, about -1..1
#     mass    0.5..2
#     team    -1 or 1
#     asking  1 in one row of the set, else 0: that row's team is to move
#     ready   1 if the entity can move, else 0
#
# The label is the row of the entity to choose: of the asking team, the ready one nearest to the
# centre of mass of the other team. A single row tells neither whether its team is asking nor where
# the others are, so all rows are needed. Sets in which the second nearest is almost as near are
# left out. Everything is sampled from a fixed seed; the data are synthetic and say nothing about
# the world.
#
# Legend: n sets, E entities at most, C values per entity.

SEED = 20_240_229
SIZES = {"train": 4_000, "val": 500, "test": 1_000}
MIN_ENTITIES, MAX_ENTITIES = 6, 24
NUM_ROWS = 32
CHANNELS = ("x", "y", "mass", "team", "asking", "ready")
# Range of the teams' centres, and spread of a team around its centre.
TEAM_REACH, TEAM_SPREAD = 0.6, 0.4
READY_RATE = 0.7
# The second nearest is at least this much farther away than the nearest.
MARGIN = 0.03


def read_selection() -> tuple[dict[str, RowSource], tuple[str, ...], str]:
    """Generate the splits; return them with the class names (rows 0 to 31) and a note."""
    splits = {
        split: draw_sets(np.random.default_rng((SEED, number)), count, f"selection/{split}")
        for number, (split, count) in enumerate(SIZES.items())
    }
    counts = " / ".join(str(count) for count in SIZES.values())
    note = f"selection: synthetic, generated from a fixed seed, train / val / test {counts} sets"
    return splits, tuple(str(row) for row in range(NUM_ROWS)), note


def draw_sets(rng: np.random.Generator, count: int, name: str) -> RowSource:
    """Generate labelled sets.

    Args:
        rng: Random generator.
        count: Number of sets n.
        name: Prefix of the sets' names.
    """
    kept: list[NDArray[np.float32]] = []
    labels: list[int] = []
    while len(kept) < count:
        entities, present = _draw_entities(rng, count)
        chosen, clear = choose_entities(entities, present)
        for index in np.flatnonzero(clear)[: count - len(kept)]:
            kept.append(entities[index][present[index]])
            labels.append(int(chosen[index]))
    ends = np.cumsum([0, *map(len, kept)])
    cells = CloudCells(
        np.concatenate(kept),
        np.stack([ends[:-1], ends[1:]], axis=1),
        Points(NUM_ROWS, len(CHANNELS), ragged=True),
    )
    names = [f"{name}/{index}" for index in range(count)]
    return hold_clouds(cells, names, np.array(labels, np.int64))


def choose_entities(
    entities: NDArray[np.float32], present: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the entity to choose in each set.

    Args:
        entities: Rows ``[n, E, C]``.
        present: Which rows are entities ``[n, E]``.

    Returns:
        The row to choose ``[n]``, and whether the choice is clear ``[n]``: there are at least two
        candidates, the nearest leads by the margin, and the other team is not empty.
    """
    place, mass = entities[..., :2], entities[..., 2]
    team, asking, ready = entities[..., 3], entities[..., 4] > 0, entities[..., 5] > 0
    asking_team = (team * (asking & present)).sum(axis=1, keepdims=True)
    own = present & (team == asking_team)
    weight = mass * (present & ~own)
    total = np.maximum(weight.sum(axis=1), 1e-9)
    centre = (place * weight[..., None]).sum(axis=1) / total[:, None]
    distance = np.linalg.norm(place - centre[:, None], axis=2)
    distance = np.where(own & ready, distance, np.inf)
    nearest = np.sort(distance, axis=1)
    clear = np.isfinite(nearest[:, 1]) & (weight.sum(axis=1) > 0)
    clear[clear] &= nearest[clear, 1] - nearest[clear, 0] >= MARGIN
    return distance.argmin(axis=1), clear


def measure_guesses(source: RowSource) -> dict[str, float]:
    """Return the accuracy (0..1) of baselines that consider each entity alone.

    ``random`` picks any entity, ``random ready`` any that can move, and ``nearest to the middle``
    the ready one nearest to (0, 0), where teams lie on average.
    """
    hits: dict[str, list[float]] = {"random": [], "random ready": [], "nearest to the middle": []}
    assert source.labels is not None
    for index, label in enumerate(source.labels):
        rows = np.asarray(source.read(index)["points"])
        ready = rows[:, 5] > 0
        distance = np.where(ready, np.linalg.norm(rows[:, :2], axis=1), np.inf)
        hits["random"].append(1 / len(rows))
        hits["random ready"].append(1 / ready.sum())
        hits["nearest to the middle"].append(float(distance.argmin() == label))
    return {name: float(np.mean(values)) for name, values in hits.items()}


def _draw_entities(
    rng: np.random.Generator, count: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Sample rows ``[n, E, C]`` and which of them are entities ``[n, E]``."""
    shape = (count, MAX_ENTITIES)
    sizes = rng.integers(MIN_ENTITIES, MAX_ENTITIES + 1, count)
    present = np.arange(MAX_ENTITIES) < sizes[:, None]
    team = rng.integers(0, 2, shape)
    centres = rng.uniform(-TEAM_REACH, TEAM_REACH, (count, 2, 2))
    place = centres[np.arange(count)[:, None], team]
    place = place + rng.uniform(-TEAM_SPREAD, TEAM_SPREAD, (*shape, 2))
    mass = rng.uniform(0.5, 2.0, shape)
    asking = np.arange(MAX_ENTITIES) == (rng.random(count) * sizes).astype(np.int64)[:, None]
    ready = rng.random(shape) < READY_RATE
    columns = (place[..., 0], place[..., 1], mass, 2 * team - 1, asking, ready)
    return np.stack(columns, axis=-1).astype(np.float32), present
