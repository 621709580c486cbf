"""Samples that lack a modality: answered as if they had been given alone and without it."""

from typing import Any

import pytest
import torch
from tests.models.conftest import draw_inputs
from torch import Tensor, nn

import perceivers as pv
from perceivers.errors import InputError

SPECS = {"audio": pv.Audio(24), "image": pv.Image(4, 4, 1), "points": pv.Points(6, 3)}
PRESENT = {
    "audio": torch.tensor([True, True, False]),
    "image": torch.tensor([False, True, False]),
}
KINDS = ["hip_nano", "perceiver_nano", "perceiver_io_nano"]


def build(kind: str, **settings: Any) -> Any:
    """A classifier of random weights in double precision, whose head does not start at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = pv.create_model(kind, inputs=SPECS, num_classes=3, **settings).double().eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)


@pytest.fixture
def inputs(rng: torch.Generator) -> dict[str, Tensor]:
    return draw_inputs(rng, SPECS, batch=3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_answered_as_if_given_without_what_it_lacks(
    kind: str, inputs: dict[str, Tensor]
) -> None:
    model = build(kind)
    answers = model(inputs, present=PRESENT)
    for i in range(3):
        given = {
            name: raw[i : i + 1]
            for name, raw in inputs.items()
            if name not in PRESENT or bool(PRESENT[name][i])
        }
        torch.testing.assert_close(model(given)[0], answers[i], rtol=0, atol=1e-9)
    assert not torch.allclose(model(inputs), answers, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_where_a_sample_has_none_is_not_looked_at(
    kind: str, inputs: dict[str, Tensor]
) -> None:
    model = build(kind)
    answers = model(inputs, present=PRESENT)
    changed = {**inputs, "audio": inputs["audio"].clone()}
    changed["audio"][2] = 7.0
    torch.testing.assert_close(model(changed, present=PRESENT), answers, rtol=0, atol=0)
    changed["audio"][1] = 7.0
    assert not torch.allclose(model(changed, present=PRESENT), answers, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_features_follow_the_presence(kind: str, inputs: dict[str, Tensor]) -> None:
    model = build(kind)

    def last(**options: Any) -> Tensor:
        encoded = model.forward_features(inputs, **options)
        return encoded.levels[-1] if kind == "hip_nano" else encoded.latents

    everywhere = {name: torch.ones(3, dtype=torch.bool) for name in SPECS}
    torch.testing.assert_close(last(present=everywhere), last(), rtol=0, atol=1e-12)
    assert not torch.allclose(last(present=PRESENT), last(), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("present", "message"),
    [
        ({"audi": torch.ones(3, dtype=torch.bool)}, r"contains 'audi'.*did you mean 'audio'"),
        ({"audio": torch.ones(2, dtype=torch.bool)}, r"of shape \(2,\); expected bool \[3\]"),
        ({"audio": torch.ones(3)}, r"is torch\.float32 of shape \(3,\); expected bool \[3\]"),
    ],
)
def test_presences_that_do_not_fit_are_refused(
    kind: str, present: dict[str, Tensor], message: str, inputs: dict[str, Tensor]
) -> None:
    with pytest.raises(InputError, match=message):
        build(kind)(inputs, present=present)
