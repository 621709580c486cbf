"""Answers in words."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from perceivers.models import create_model
from perceivers.models.attention_maps import Answer
from perceivers.models.saving import ModelInfo
from perceivers.types import Bytes, Image, Points, Video
from perceivers.workflows.explaining import Speaker, show_byte, show_chance


def say(model: Any, answer: Answer, truth: dict[int, int] | None = None, **info: Any) -> str:
    return Speaker(model, ModelInfo(**info)).say(answer, truth or {})


def logits(*chances: float) -> torch.Tensor:
    return torch.tensor(chances).log()


CLASSIFIER = SimpleNamespace(config=SimpleNamespace(inputs={}))


def test_a_class_is_named_with_its_probability() -> None:
    answer = Answer("", logits(0.25, 0.75), None)
    assert say(CLASSIFIER, answer, task="classify", classes=("cat", "dog")) == "dog, 75.0 %"
    assert say(CLASSIFIER, answer) == "class 1, 75.0 %"


def test_each_of_several_tasks_says_which_it_is() -> None:
    model = create_model(
        "perceiver_io_nano", inputs={"bytes": Bytes(8)}, num_classes={"kind": 2, "tone": 3}
    )
    columns = {"kind": ("a", "b"), "tone": ("x", "y", "z")}
    answer = Answer("tone", logits(0.2, 0.2, 0.6), None)
    assert say(model, answer, task="multitask", columns=columns) == "tone: z, 60.0 %"


def test_any_number_of_labels_may_hold() -> None:
    answer = Answer("", torch.tensor([-9.0, 0.0, 2.0, 1.0]), None)
    words = say(CLASSIFIER, answer, task="multilabel", classes=("a", "b", "c", "d"))
    assert words == "likeliest labels: c 88.1 %, d 73.1 %, b 50.0 %"


def test_a_hidden_byte_is_named_beside_the_truth() -> None:
    model = create_model("perceiver_io_nano", inputs={"bytes": Bytes(8)})
    values = torch.zeros(262)
    values[6 + ord("k")] = 12.0
    answer = Answer("bytes", values, None, "bytes", 3, (0.4,))
    assert say(model, answer, {3: 6 + ord("e")}) == "position 3 (hidden: 'e'): 'k', 99.8 %"
    assert say(model, answer, {4: 6}) == "position 3: 'k', 99.8 %"


def test_flow_is_in_pixels() -> None:
    tiny = create_model("perceiver_io_flow_tiny", inputs={"video": Video(2, 4, 4, 3)})
    pixels = torch.randn(4, 4, 2)
    pixels[2, 2] = torch.tensor([0.1, -0.001])  # the pixel under the cross
    answer = Answer("flow", pixels.flatten(), None, "video", 0, (0.5, 0.5))
    words = "flow at the cross: 2.0 px to the right, 0.0 px down"
    assert say(tiny, answer, task="flow") == words
    with torch.device("meta"):  # one query per pixel
        large = create_model("perceiver_io_flow_small", inputs={"video": Video(2, 4, 4, 3)})
    answer = Answer("flow", pixels[2, 2], None, "video", 8, (0.5, 0.5))
    assert say(large, answer, task="flow") == words


def test_a_value_is_in_the_units_of_the_input() -> None:
    inputs = {"image": Image(4, 4, 2, mean=(0.5, 0.25), std=(0.5, 2.0))}
    model = create_model("perceiver_io_nano", inputs=inputs)
    answer = Answer("image", torch.tensor([1.0, -0.1]), None, "image", 0, (0.1, 0.1))
    assert say(model, answer) == "image at the mark: 1, 0.05"


def test_a_choice_is_a_row() -> None:
    model = create_model("entity_set_nano", inputs={"points": Points(3, 2)})
    answer = Answer("", logits(0.1, 0.9, 0.0), None, "points", 1, (0.5,), is_choice=True)
    assert say(model, answer) == "chosen: row 1, 90.0 %"


@pytest.mark.parametrize(
    ("number", "words"), [(3, "special id 3"), (6 + 97, "'a'"), (6 + 10, "byte 0xa")]
)
def test_bytes_are_shown_as_a_reader_knows_them(number: int, words: str) -> None:
    assert show_byte(number) == words


def test_certainty_is_not_spelt_out() -> None:
    assert show_chance(0.9999999) == "over 99.9 %"
    assert show_chance(0.999) == "99.9 %"
