"""Autoencoding a picture through transposed convolutions: patches asked for, hidden, learned."""

from typing import Any

import pytest
import torch

import perceivers as pv
from perceivers.data import Batch
from perceivers.tasks.autoencoding import Autoencoding, AutoencodingConfig


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def upsampled(**config: Any) -> Autoencoding:
    """An autoencoder of 8 x 8 pixels, read one by one and given back as four patches."""
    asked = {"queries": "positions", "modality": "image", "channels": 1, "head": "conv"}
    waves = {"kind": "fourier", "num_bands": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = pv.create_model(
            "perceiver_io_nano",
            inputs={"image": pv.Image(8, 8, 1, mean=(0.25,), std=(0.5,))},
            outputs={"image": {**asked, "patch": (4, 4), "positions": waves}},
        )
    return Autoencoding(model, AutoencodingConfig(**config))


def pictures(count: int = 2) -> Batch:
    values = torch.randint(0, 256, (count, 1, 8, 8), generator=generator(), dtype=torch.uint8)
    return Batch({"image": values}, None, torch.arange(count), [])


def test_patches_that_are_asked_for_are_those_of_the_whole() -> None:
    """The four queries of 8 x 8 pixels, all asked for, cost what the whole picture does."""
    task, batch = upsampled(points=0), pictures()
    encoded = task.model.encode(batch.inputs)
    error = task.model.decode(encoded, "image") - (batch.inputs["image"] / 255 - 0.25) / 0.5
    found = float(task(batch, generator()).total.detach())
    assert found == pytest.approx(float(error.abs().mean().detach()), rel=1e-5)
    some = float(upsampled(points=2)(batch, generator()).total.detach())
    assert some != pytest.approx(found, rel=1e-4)


def test_of_patches_that_are_read_in_part_only_hidden_elements_count() -> None:
    task, batch = upsampled(points=0, mask_ratio=0.5), pictures()
    encoded, visible = task.encode_for_display(batch, generator())
    error = task.model.decode(encoded, "image") - (batch.inputs["image"] / 255 - 0.25) / 0.5
    found = float(task(batch, generator()).total.detach())
    assert found == pytest.approx(float(error[~visible["image"]].abs().mean().detach()), rel=1e-5)
    assert found != pytest.approx(float(error.abs().mean().detach()), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("config", [{"points": 2}, {"mask_ratio": 0.5, "points": 0}])
def test_a_picture_is_learned_by_heart_through_convolutions(config: dict[str, Any]) -> None:
    task, batch = upsampled(**config), pictures(1)
    batch.inputs["image"][..., :3], batch.inputs["image"][..., 3:] = 20, 230
    optimizer = torch.optim.Adam(task.model.parameters(), 1e-2)
    before = task.evaluate([batch])
    for step in range(40):
        optimizer.zero_grad()
        task.train()(batch, generator(step)).total.backward()
        optimizer.step()
    after = task.evaluate([batch])
    assert after["loss"] < 0.7 * before["loss"]
    assert after["psnr/image"] > before["psnr/image"] + 2
