"""Views: where evaluation looks, which beginnings are taken, and views there cannot be."""

import numpy as np
import pytest

from perceivers.data.augment import PLAIN, Look, Place, View, Views, centre_view, place_view
from perceivers.errors import ConfigError
from perceivers.types import Array, Audio, Bytes, Image, ModalitySpec, Video


def test_one_view_is_the_middle_and_several_reach_both_ends() -> None:
    assert Views().places == (Place(0.5, 0.5),)
    assert Views(temporal=3).places == (Place(0.0, 0.5), Place(0.5, 0.5), Place(1.0, 0.5))
    both = Views(temporal=2, spatial=3)
    assert (both.count, str(both)) == (6, "2x3")
    assert both.places == tuple(Place(t, x) for t in (0.0, 1.0) for x in (0.0, 0.5, 1.0))


def test_beginnings_are_spread_evenly_from_the_first_to_the_last() -> None:
    starts = [Look(place=place).start(13) for place in Views(temporal=5).places]
    assert starts == [0, 3, 6, 9, 12]
    assert [Look(place=place).start(1) for place in Views(temporal=5).places] == [0] * 5
    for count in range(2, 60):
        shares = Views(temporal=count).places
        assert [Look(place=place).start(count) for place in shares] == list(range(count))


def test_without_places_the_middle_is_taken_and_with_a_generator_it_draws() -> None:
    assert [PLAIN.start(choices) for choices in (1, 2, 3, 4, 5)] == [0, 0, 1, 1, 2]
    rng = np.random.default_rng(0)
    assert {Look(rng, place=Place(0.0, 0.0)).start(3) for _ in range(40)} == {0, 1, 2}


def test_crops_lie_along_the_longer_side() -> None:
    wide = [place_view((30, 10), (5, 5), along) for along in (0.0, 0.5, 1.0)]
    assert [view.left for view in wide] == pytest.approx([0.0, 1 / 3, 2 / 3])
    assert {(view.top, view.height) for view in wide} == {(0.0, 1.0)}
    tall = place_view((10, 40), (20, 20), 1.0)
    assert tall == View(0.0, 0.75, 1.0, 0.25)
    assert place_view((10, 40), (20, 20), 0.5) == centre_view((10, 40), (20, 20))
    assert place_view((8, 8), (4, 4), 0.0) == place_view((8, 8), (4, 4), 1.0)


@pytest.mark.parametrize("values", [{"temporal": 0}, {"spatial": 0}, {"temporal": -1}])
def test_fewer_than_one_view_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"views\.(temporal|spatial) is -?\d; it must be"):
        Views(**values)


@pytest.mark.parametrize(
    ("views", "specs", "message"),
    [
        (Views(temporal=2), {"image": Image(4, 4)}, "2x1, but 2 temporal views need videos or"),
        (Views(spatial=3), {"audio": Audio(4)}, r"3 spatial views need imag.*reads \['audio'\]"),
        (Views(spatial=3), {"bytes": Bytes(4)}, "use 1 spatial view"),
        (Views(temporal=5, spatial=3), {"array": Array(4)}, "views are 5x3, but 5 temporal views"),
    ],
)
def test_views_that_would_be_the_same_are_refused(
    views: Views, specs: dict[str, ModalitySpec], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        views.check(specs)
    Views().check(specs)


def test_views_fit_what_has_time_or_space() -> None:
    Views(temporal=5, spatial=3).check({"video": Video(2, 4, 4)})
    Views(temporal=5, spatial=3).check({"audio": Audio(4), "image": Image(4, 4)})
    Views(temporal=5).check({"audio": Audio(4)})
    Views(spatial=3).check({"image": Image(4, 4), "bytes": Bytes(4)})
