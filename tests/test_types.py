"""Modality specs: layouts, derived sizes, JSON, error texts."""

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from perceivers.errors import ConfigError, suggest
from perceivers.types import (
    SPECS,
    Array,
    Audio,
    Image,
    Labels,
    ModalitySpec,
    Points,
    Video,
    spec_from_json,
    spec_to_json,
)

LAYOUTS: list[tuple[ModalitySpec, tuple[int, ...], tuple[int, ...], int]] = [
    (Image(4, 6, 3), (4, 6), (3, 4, 6), 3),
    (Video(2, 4, 6, 1), (2, 4, 6), (1, 2, 4, 6), 1),
    (Audio(100, 2), (100,), (2, 100), 2),
    (Points(7), (7,), (7, 3), 3),
    (Array((2, 3, 4), 5), (2, 3, 4), (2, 3, 4, 5), 5),
    (Array(9), (9,), (9, 1), 1),
    (Labels(10, 2), (2,), (2,), 10),
]


@pytest.mark.parametrize(("spec", "grid", "raw_shape", "channels"), LAYOUTS, ids=str)
def test_specs_know_their_layout(
    spec: ModalitySpec, grid: tuple[int, ...], raw_shape: tuple[int, ...], channels: int
) -> None:
    assert (spec.grid, spec.raw_shape, spec.channels) == (grid, raw_shape, channels)
    count = 1
    for size in grid:
        count *= size
    assert spec.num_tokens == count


@pytest.mark.parametrize("spec", [layout[0] for layout in LAYOUTS], ids=str)
def test_specs_survive_json(spec: ModalitySpec) -> None:
    text = json.dumps(spec_to_json(spec))
    assert spec_from_json(json.loads(text)) == spec
    assert json.loads(text)["type"] in SPECS


def test_every_field_is_part_of_equality_and_json() -> None:
    spec = Image(4, 6, 3, mean=(0.1, 0.2, 0.3), std=(0.5,))
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec
    for changes in ({"height": 5}, {"width": 7}, {"channels": 1, "mean": ()}, {"std": (0.4,)}):
        assert replace(spec, **changes) != spec


def test_specs_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Image(4, 6).height = 5  # pyright: ignore[reportAttributeAccessIssue]


def test_a_list_is_accepted_as_a_shape() -> None:
    assert Array([2, 3]) == Array((2, 3))
    assert Array([2, 3]) != Array((3, 2))


def test_labels_have_a_channel_per_class_and_keep_it_when_replaced() -> None:
    assert replace(Labels(10), num_classes=4).channels == 4
    with pytest.raises(TypeError, match="channels"):
        Labels(10, channels=3)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Image(0, 4), r"Image\.height is 0; it must be at least 1"),
        (lambda: Image(4, -2), r"Image\.width is -2"),
        (lambda: Image(4, 4, 0), r"Image\.channels is 0"),
        (lambda: Image(True, 4), r"Image\.height is True"),
        (lambda: Video(0, 4, 4), r"Video\.frames is 0"),
        (lambda: Audio(0), r"Audio\.samples is 0"),
        (lambda: Points(0), r"Points\.points is 0"),
        (lambda: Array((3, 0)), r"Array\.shape\[1\] is 0"),
        (lambda: Labels(0), r"Labels\.num_classes is 0"),
        (lambda: Labels(3, 0), r"Labels\.length is 0"),
        (
            lambda: Image(4, 4, 3, mean=(0.1, 0.2)),
            r"Image\.mean has 2 values for 3 channels; give none, one for all, or one per channel",
        ),
        (lambda: Image(4, 4, 3, std=(1.0,) * 4), r"Image\.std has 4 values for 3 channels"),
        (
            lambda: Image(4, 4, 3, std=(0.5, 0.0, 0.5)),
            r"Image\.std\[1\] is 0\.0; it must be positive",
        ),
        (
            lambda: spec_from_json({"type": "imge", "height": 3}),
            r"modality type 'imge' is unknown; the types are \['array'.*did you mean 'image'\?",
        ),
        (lambda: spec_from_json({"height": 3}), r"modality type None is unknown"),
        (lambda: spec_from_json({"type": "image", "height": 3}), r"modality 'image': .*width"),
        (
            lambda: spec_from_json({"type": "audio", "samples": 3, "rate": 2}),
            r"modality 'audio': .*rate",
        ),
    ],
)
def test_wrong_specs_are_refused_with_their_values(build: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build()


@pytest.mark.unhooked
def test_a_size_that_is_no_integer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Image\.height is '4'"):
        Image("4", 4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"Image\.width is 4\.5"):
        Image(4, 4.5)  # pyright: ignore[reportArgumentType]


def test_suggestions_are_close_or_absent() -> None:
    assert suggest("hip_nan", ["hip_nano", "io_mini"]) == "; did you mean 'hip_nano'?"
    assert suggest("zzz", ["hip_nano", "io_mini"]) == ""
