"""The synthetic selection task: its rule, and how far one gets without the context."""

import numpy as np
import pytest
from tests.data.samples import read_arrays

from perceivers.data import make_train_loader, open_data
from perceivers.data.augment import AugmentConfig
from perceivers.data.builtin import choose_entities, draw_sets, measure_guesses, read_selection
from perceivers.types import Points

# Two of the asking team (-1), three of the other, whose centre of mass is (0.8, 0).
ROWS = np.array(
    [
        [0.0, 0.1, 1, -1, 0, 1],
        [0.6, 0.0, 1, 1, 0, 1],
        [0.5, 0.2, 1, -1, 1, 1],
        [1.0, 0.3, 1, 1, 0, 0],
        [0.8, -0.3, 1, 1, 0, 1],
    ],
    np.float32,
)


def choose(rows: np.ndarray) -> tuple[int, bool]:
    chosen, clear = choose_entities(rows[None], np.ones((1, len(rows)), bool))
    return int(chosen[0]), bool(clear[0])


def test_the_rule_by_hand() -> None:
    assert choose(ROWS) == (2, True)


@pytest.mark.parametrize(
    ("row", "column", "value", "chosen"),
    [
        (2, 5, 0.0, 0),  # the nearest is not ready
        (1, 2, 99.0, 2),  # the centre moves to (0.6, 0), and row 2 is still the nearest
        (4, 1, -9.0, 0),  # the centre moves far below
        (1, 0, -9.0, 0),  # and far to the left
    ],
)
def test_the_others_decide(row: int, column: int, value: float, chosen: int) -> None:
    rows = ROWS.copy()
    rows[row, column] = value
    assert choose(rows)[0] == chosen


def test_the_asking_row_decides_which_team_moves() -> None:
    rows = ROWS.copy()
    rows[:, 4] = [0, 1, 0, 0, 0]
    # The other team's centre is now (0.25, 0.15).
    assert choose(rows) == (1, True)


def test_rows_that_are_not_present_do_not_count() -> None:
    present = np.array([[True, True, True, False, False]])
    chosen, clear = choose_entities(ROWS[None], present)
    assert (chosen.tolist(), clear.tolist()) == ([2], [True])
    alone = np.array([[True, False, True, False, False]])
    assert not choose_entities(ROWS[None], alone)[1].any()


def test_sets_are_as_described() -> None:
    splits, classes, note = read_selection()
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 4000,
        "val": 500,
        "test": 1000,
    }
    assert classes == tuple(map(str, range(32)))
    assert "synthetic" in note
    source = splits["val"]
    assert source.labels is not None
    sizes = [len(read_arrays(source, index)["points"]) for index in range(len(source))]
    assert (min(sizes), max(sizes)) == (6, 24)
    for index in range(100):
        rows = read_arrays(source, index)["points"]
        assert rows[:, 4].sum() == 1
        assert choose(rows) == (source.labels[index], True)


def test_the_draws_depend_on_the_seed_alone() -> None:
    first, again = (draw_sets(np.random.default_rng(3), 20, "x") for _ in range(2))
    other = draw_sets(np.random.default_rng(4), 20, "x")
    sets = [[read_arrays(source, k)["points"] for k in range(20)] for source in (first, again)]
    assert all(map(np.array_equal, *sets))
    assert not np.array_equal(sets[0][0], read_arrays(other, 0)["points"])
    train, val = (read_arrays(read_selection()[0][split], 0) for split in ("train", "val"))
    assert not np.array_equal(train["points"], val["points"])


def test_guesses_without_context_are_seldom_right() -> None:
    guesses = measure_guesses(read_selection()[0]["test"])
    assert guesses["random"] == pytest.approx(0.077, abs=0.01)
    assert guesses["random ready"] == pytest.approx(0.113, abs=0.01)
    assert guesses["nearest to the middle"] == pytest.approx(0.23, abs=0.02)


def test_the_address_gives_ragged_points_of_32_rows() -> None:
    dataset = open_data("selection")
    spec = dataset.specs()["points"]
    assert isinstance(spec, Points)
    assert (spec.points, spec.channels, spec.ragged, spec.scale) == (32, 6, True, "none")
    (batch,) = make_train_loader(
        dataset.splits["train"],
        {"points": spec},
        batch_size=8,
        seed=0,
        augment=AugmentConfig(),
        start_step=0,
        num_steps=1,
    )
    assert batch.labels is not None
    for rows, label in zip(batch.inputs["points"].numpy(), batch.labels, strict=True):
        present = ~np.isnan(rows).any(axis=1)
        assert present[: present.sum()].all()
        assert choose(rows[present])[0] == label
