"""Errors of hidden elements: right for one pass, complete over all, and the same in any batch."""

from math import log
from pathlib import Path
from typing import Any

import pytest
import torch

import perceivers as pv
from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.errors import CheckpointError, ConfigError
from perceivers.masking import MaskPlan
from perceivers.models.hiera.objective import PatchErrors
from perceivers.models.hip.objective import ElementErrors
from perceivers.models.saving import ModelInfo
from perceivers.tasks.mae import objective_of
from perceivers.types import Audio, Image, Video
from perceivers.workflows.anomaly import error_maps

BOTH = {"image": Image(8, 8, 1), "audio": Audio(32)}


def built(family: str, inputs: dict[str, Any], **options: Any) -> Loaded:
    """A masked autoencoder with random weights, whose reconstruction is not zero."""
    torch.manual_seed(0)
    model = pv.create_model(family, inputs=inputs, **options)
    for parameter in model.decoder.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return Loaded(model.eval(), ModelInfo(task="pretrain"), Path("here"))


def raw(inputs: dict[str, Any], size: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
    return {name: torch.rand(size, *spec.raw_shape, generator=rng) for name, spec in inputs.items()}


def make(loaded: Loaded, **changes: Any) -> Any:
    return error_maps(loaded, None, **{"repeats": 2, "ratio": 0.75, "seed": 0, **changes})


@pytest.mark.parametrize("kind", ["groupwise", "independent", "groups", "uniform"])
def test_every_element_of_every_modality_has_an_error(kind: Any, rng: torch.Generator) -> None:
    loaded = built("hip_nano", BOTH)
    settings = pv.MaskedAutoencodingConfig(ratio=0.75, kind=kind).settings(loaded.model)
    maker = ElementErrors(loaded.model, settings, 2, torch.Generator().manual_seed(0))
    maps = maker(raw(BOTH, 3, rng), {})
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        "image": (3, 8, 8),
        "audio": (3, 32),
    }
    assert all(torch.isfinite(x).all() and (x > 0).all() for x in maps.values())


def test_one_pass_has_the_error_that_training_scores(rng: torch.Generator) -> None:
    loaded = built("hip_nano", {"image": BOTH["image"]})
    maker: Any = make(loaded, repeats=1)
    assert isinstance(maker, ElementErrors)
    inputs = raw({"image": BOTH["image"]}, 2, rng)
    maker.plans = maker.plans[:1]
    plan = maker.plans[0]
    errors = maker(inputs, {})["image"]
    kept, masked = (
        {name: ids.expand(2, -1, -1) for name, ids in part.items()}
        for part in (plan.kept, plan.masked)
    )
    batch = MaskPlan(kept=kept, masked=masked)
    with torch.no_grad():
        scored = objective_of(loaded.model).score(inputs, batch, "per-channel")["image"]
    known = errors[torch.isfinite(errors)]
    assert torch.allclose(known.mean(), scored.errors.mean(), rtol=1e-5)
    # What this pass did not hide has no error.
    assert len(known) == scored.errors.numel() < errors.numel()


@pytest.mark.parametrize(
    ("family", "inputs", "options"),
    [
        ("hip_nano", BOTH, {}),
        ("mae_hiera_nano", {"image": Image(64, 64, 3)}, {}),
    ],
)
def test_an_error_does_not_depend_on_the_batch(
    family: str, inputs: dict[str, Any], options: dict[str, Any], rng: torch.Generator
) -> None:
    loaded = built(family, inputs, **options)
    maker, batch = make(loaded), raw(inputs, 3, rng)
    together = maker(batch, {})
    for name, whole in together.items():
        alone = maker({n: x[2:] for n, x in batch.items()}, {})[name]
        assert torch.allclose(alone[0], whole[2], rtol=1e-4, atol=1e-6)
        assert not torch.allclose(whole[1], whole[2], rtol=1e-2)


def test_a_missing_modality_has_no_error_and_changes_nothing_by_its_zeros(
    rng: torch.Generator,
) -> None:
    loaded = built("hip_nano", BOTH)
    maker, batch = make(loaded), raw(BOTH, 2, rng)
    held = {"image": torch.tensor([True, True]), "audio": torch.tensor([True, False])}
    first = maker(batch, held)
    assert torch.isfinite(first["audio"][0]).all()
    assert torch.isnan(first["audio"][1]).all()
    batch["audio"][1] = 0.7
    assert torch.allclose(maker(batch, held)["image"], first["image"])
    assert not torch.allclose(maker(batch, {})["image"][1], first["image"][1], rtol=1e-3)


def test_a_hiera_is_scored_pixel_by_pixel_where_its_patches_lie(rng: torch.Generator) -> None:
    """A model of zeros is wrong by the square of what was there."""
    spec = Image(64, 64, 3)
    loaded = built("mae_hiera_nano", {"image": spec})
    settings = pv.MaskedAutoencodingConfig(target="per-channel").settings(loaded.model)
    for parameter in loaded.model.decoder.predict.parameters():
        torch.nn.init.zeros_(parameter)
    maker = PatchErrors(loaded.model, settings, 2, torch.Generator().manual_seed(0))
    inputs = raw({"image": spec}, 2, rng)
    found = maker(inputs, {})["image"]
    assert torch.allclose(found, inputs["image"].square().mean(1), atol=1e-6)


def test_clips_have_errors_of_the_frames_that_are_reconstructed(rng: torch.Generator) -> None:
    spec = Video(8, 32, 32, 3)
    loaded = built("mae_hiera_nano_video", {"video": spec})
    found = make(loaded, ratio=0.5)(raw({"video": spec}, 1, rng), {})["video"]
    assert found.shape == (1, 8, 32, 32)
    assert torch.isfinite(found).all()


def test_a_masked_perceiver_io_is_scored_token_by_token(
    picture_run: pv.Run, rng: torch.Generator
) -> None:
    loaded = load_with_info(picture_run.path)
    maker = error_maps(loaded, picture_run.config, repeats=2, ratio=None, seed=0)
    # Three quarters are hidden, each twice: three passes.
    assert maker.passes == 3
    batch = raw(loaded.model.config.data_inputs, 2, rng)
    found = maker(batch, {})["image"]
    assert found.shape == (2, 8, 8)
    assert (found > 0).all()


@pytest.mark.parametrize("name", ["hip_nano", "mae_hiera_nano_text"])
def test_texts_have_errors_in_nats_where_they_are_not_padded(
    name: str, rng: torch.Generator
) -> None:
    loaded = built(name, {"bytes": pv.Bytes(128)})
    ids = torch.randint(6, 262, (2, 128), generator=rng)
    ids[1, 70:] = 0
    maker = make(loaded)
    found = maker({"bytes": ids}, {})["bytes"]
    assert maker.unit == "nats per byte"
    assert torch.equal(found.isnan(), ids == 0)
    # An untrained model is about as wrong as one that finds all entries alike.
    assert float(found.nanmean()) == pytest.approx(log(262), rel=0.3)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [({"ratio": 1.0}, "mask ratio is 1.0"), ({"repeats": 0}, "repeats is 0")],
)
def test_numbers_out_of_range_are_refused(changes: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern):
        make(built("hip_nano", BOTH), **changes)


def test_models_that_fill_nothing_in_are_refused(text_run: pv.Run, clip_run: pv.Run) -> None:
    loaded = load_with_info(text_run.path)
    with pytest.raises(CheckpointError, match=r"task classify.*does not fill in"):
        make(loaded)
    loaded = load_with_info(clip_run.path)
    with pytest.raises(CheckpointError, match=r"mask_ratio is\s+0"):
        error_maps(loaded, clip_run.config, repeats=1, ratio=0.5, seed=0)


@pytest.mark.parametrize(
    ("inputs", "advice"),
    [
        ({"bytes": pv.Bytes(32)}, r"perceivers pretrain --model hip_tiny --data"),
        (
            {"points": pv.Points(16, 3, ragged=True)},
            r"--task autoencode --model perceiver_io_nano --autoencode\.mask_ratio 0\.75",
        ),
        ({"image": pv.Image(8, 8, 1)}, r"perceivers pretrain --model hip_tiny --data"),
    ],
)
def test_the_advice_fits_what_the_model_reads(inputs: dict[str, Any], advice: str) -> None:
    model = pv.create_model("perceiver_nano", inputs=inputs, num_classes=2)
    loaded = Loaded(model.eval(), ModelInfo(task="classify"), Path("here"))
    with pytest.raises(CheckpointError, match=advice):
        error_maps(loaded, None, repeats=1, ratio=None, seed=0)


def test_advised_models_read_what_they_are_advised_for() -> None:
    pv.create_model("hip_tiny", inputs={"audio": pv.Audio(4096, 1)}, decoder=True)
    pv.create_model("hip_tiny", inputs={"bytes": pv.Bytes(256)}, decoder=True)
    pv.create_model("perceiver_io_nano", inputs={"points": pv.Points(16, 3, ragged=True)})
