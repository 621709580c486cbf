"""What samples hold and what of it training shows."""

from typing import Any

import pytest
import torch
from tests.models.conftest import build_model, draw_inputs
from torch import Tensor

import perceivers as pv
from perceivers.data import Batch
from perceivers.draws import rand_rows, sample_generators
from perceivers.errors import ConfigError
from perceivers.tasks import (
    Classification,
    ClassificationConfig,
    MaskedAutoencoding,
    MaskedAutoencodingConfig,
)
from perceivers.tasks.base import (
    DROPOUT_STREAM,
    drop_modalities,
    dropout_rates,
    shown_modalities,
)

SPECS = {"audio": pv.Audio(24), "image": pv.Image(4, 4, 1)}


def make_batch(rng: torch.Generator, present: dict[str, Tensor] | None = None) -> Batch:
    """Four labelled samples of sound and picture."""
    inputs = draw_inputs(rng, SPECS, batch=4)
    position = torch.arange(4)
    labels = torch.tensor([0, 1, 2, 0])
    return Batch(inputs, labels, position, [], present=present or {}, position=position)


def half_held() -> dict[str, Tensor]:
    """Both, sound alone, picture alone, both."""
    return {
        "audio": torch.tensor([True, True, False, True]),
        "image": torch.tensor([True, False, True, True]),
    }


def make_task(kind: str = "hip_nano", **options: Any) -> Classification:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = pv.create_model(kind, inputs=SPECS, num_classes=3, **options)
        # Heads that start at zero would answer everything alike.
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return Classification(model, 3, ClassificationConfig())


def test_dropout_hides_about_its_rate_and_never_everything(rng: torch.Generator) -> None:
    held = {"a": torch.rand(4000, generator=rng) < 0.5}
    shown = drop_modalities(held, {"a": 0.3, "b": 0.6}, 4000, rng)
    assert not bool((shown["a"] & ~held["a"]).any())
    assert bool((shown["a"] | shown["b"]).all())
    # Of those that hold both, a is seen unless it is hidden while b is not, or b was spared.
    share = float(shown["a"][held["a"]].float().mean())
    assert 0.7 < share < 0.9
    assert bool(shown["b"][~held["a"]].all())


def test_dropout_depends_on_the_sample_and_not_on_the_batch(rng: torch.Generator) -> None:
    task = make_task().train()
    task.modality_dropout = dropout_rates(task.model, 0.5)
    batch = make_batch(rng, half_held())
    whole = shown_modalities(task, batch, rng)
    parts = [shown_modalities(task, part, rng) for part in batch.split(4)]
    for name, there in whole.items():
        assert torch.equal(there, torch.cat([part[name] for part in parts]))
    assert shown_modalities(task.eval(), batch, rng) == batch.present


def test_dropout_does_not_use_the_random_numbers_of_the_masks(rng: torch.Generator) -> None:
    places = torch.arange(64)
    masks, dropout = (
        rand_rows(64, 2, generator=sample_generators(rng, places, stream))
        for stream in (0, DROPOUT_STREAM)
    )
    assert torch.equal(masks, rand_rows(64, 2, generator=sample_generators(rng, places)))
    assert abs(float(torch.corrcoef(torch.stack([masks[:, 0], dropout[:, 0]]))[0, 1])) < 0.4
    assert not torch.isin(masks, dropout).any()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sound": 0.5}, r"names 'sound', but the model reads \['audio', 'image'\]"),
        (1.5, r"for 'audio' is 1\.5; it must be in \[0, 1\]"),
    ],
)
def test_impossible_rates_are_refused(setting: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dropout_rates(make_task().model, setting)


def test_a_single_modality_cannot_be_hidden() -> None:
    model = pv.create_model("hip_nano", inputs={"image": pv.Image(4, 4, 1)}, num_classes=3)
    assert dropout_rates(model, 0.0) == {}
    with pytest.raises(ConfigError, match=r"reads only \['image'\]"):
        dropout_rates(model, 0.5)


@pytest.mark.parametrize("kind", ["hip_nano", "perceiver_io_nano", "perceiver_nano"])
def test_evaluation_does_not_look_at_what_samples_lack(kind: str, rng: torch.Generator) -> None:
    task = make_task(kind)
    batch = make_batch(rng, half_held())
    figures = task.evaluate([batch])
    noise = {name: raw.clone() for name, raw in batch.inputs.items()}
    for name, there in batch.present.items():
        noise[name][~there] = torch.randn(noise[name][~there].shape, generator=rng).to(noise[name])
    changed = Batch(noise, batch.labels, batch.index, [], present=batch.present)
    assert task.evaluate([changed]) == figures
    whole = Batch(noise, batch.labels, batch.index, [])
    assert task.evaluate([whole])["loss"] != pytest.approx(figures["loss"], rel=1e-5)


def test_masked_auto_encoding_scores_what_is_held_and_hides_what_is_dropped(
    rng: torch.Generator,
) -> None:
    model = build_model(inputs=SPECS)
    task = MaskedAutoencoding(model.requires_grad_(False), MaskedAutoencodingConfig()).train()
    batch = make_batch(rng, half_held())
    losses = task(batch, rng)
    noise = {name: raw.clone() for name, raw in batch.inputs.items()}
    for name, there in batch.present.items():
        noise[name][~there] = 9.0
    changed = Batch(noise, None, batch.index, [], present=batch.present, position=batch.position)
    assert torch.equal(task(changed, rng).total, losses.total)
    # A dropped modality is still scored: it is to be imagined from the others.
    task.modality_dropout = {"audio": 1.0, "image": 0.0}
    dropped = task(batch, rng)
    assert dropped.parts.keys() == losses.parts.keys()
    assert float(dropped.parts["audio"]) != pytest.approx(float(losses.parts["audio"]), rel=1e-6)
    alone = Batch(batch.inputs, None, batch.index, [], position=batch.position)
    assert float(task(alone, rng).parts["audio"]) != pytest.approx(
        float(dropped.parts["audio"]), rel=1e-6
    )


def test_masks_do_not_depend_on_accumulation(rng: torch.Generator) -> None:
    task = MaskedAutoencoding(build_model(inputs=SPECS), MaskedAutoencodingConfig())
    batch = make_batch(rng)
    with torch.no_grad():
        whole = task(batch, rng).total
        parts = torch.stack([task(part, rng).total for part in batch.split(2)]).mean()
    assert float(parts) == pytest.approx(float(whole), rel=1e-5)
    figures = task.evaluate([batch])
    assert task.evaluate(batch.split(4))["loss"] == pytest.approx(figures["loss"], rel=1e-5)
