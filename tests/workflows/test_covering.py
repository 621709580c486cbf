"""Masks that hide everything equally often."""

import pytest
import torch

from perceivers.errors import ConfigError
from perceivers.models.masked import cover


def draw(**changes: int) -> torch.Tensor:
    settings = {"rows": 2, "units": 10, "kept": 3, "repeats": 4, **changes}
    return cover(
        settings["rows"],
        settings["units"],
        kept=settings["kept"],
        repeats=settings["repeats"],
        generator=torch.Generator().manual_seed(settings.get("seed", 0)),
    )


@pytest.mark.parametrize(
    ("units", "kept", "repeats", "passes"),
    [(10, 3, 4, 6), (10, 9, 1, 10), (64, 16, 8, 11), (7, 1, 5, 6), (2, 1, 3, 6), (9, 5, 1, 3)],
)
def test_every_unit_is_hidden_often_enough_and_none_twice_more_than_another(
    units: int, kept: int, repeats: int, passes: int
) -> None:
    keep = draw(units=units, kept=kept, repeats=repeats)
    assert keep.shape == (passes, 2, units)
    assert (keep.sum(-1) == kept).all()
    times = (~keep).sum(0)
    assert times.min() >= repeats
    assert times.max() - times.min() <= 1


def test_masks_depend_on_the_seed_alone_and_rows_differ() -> None:
    assert torch.equal(draw(seed=1), draw(seed=1))
    assert not torch.equal(draw(seed=1), draw(seed=2))
    keep = draw()
    assert not torch.equal(keep[:, 0], keep[:, 1])


@pytest.mark.parametrize(
    ("kept", "repeats", "pattern"),
    [(0, 1, "0 of 10 units"), (10, 1, "10 of 10 units"), (3, 0, "repeats is 0")],
)
def test_impossible_numbers_are_refused(kept: int, repeats: int, pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern):
        draw(kept=kept, repeats=repeats)
