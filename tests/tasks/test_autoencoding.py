"""Autoencoding: weights, drawn elements, hidden tokens and labels, figures by hand, raw units."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import perceivers as pv
from perceivers.data import Batch
from perceivers.errors import ConfigError, DataError
from perceivers.masking import count_kept
from perceivers.tasks.autoencoding import (
    Autoencoding,
    AutoencodingConfig,
    as_floats,
    decode_raw,
    element_targets,
)

PICTURE = {"image": pv.Image(8, 8, 1, mean=(0.25,), std=(0.5,))}
CLIP = {
    "video": pv.Video(2, 8, 8, 3, mean=(0.5,), std=(0.25,)),
    "audio": pv.Audio(64, sample_rate=8000, std=(0.5,)),
    "label": pv.Labels(3),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(inputs: Any = PICTURE, config: Any = None, **settings: Any) -> Autoencoding:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = pv.create_model("perceiver_io_nano", inputs=inputs, **settings)
    return Autoencoding(model, config or AutoencodingConfig())


def pictures(count: int = 2, seed: int = 0) -> Batch:
    values = torch.randint(0, 256, (count, 1, 8, 8), generator=generator(seed), dtype=torch.uint8)
    return Batch({"image": values}, None, torch.arange(count), [])


def clips(labels: Any = (0, 2)) -> Batch:
    rng = generator()
    count = 2 if labels is None else len(labels)
    inputs = {
        "video": torch.randint(0, 256, (count, 3, 2, 8, 8), generator=rng, dtype=torch.uint8),
        "audio": torch.rand(count, 1, 64, generator=rng) * 2 - 1,
    }
    known = None if labels is None else torch.tensor(labels)
    return Batch(inputs, known, torch.arange(count), [])


def answer_with(task: Autoencoding, monkeypatch: pytest.MonkeyPatch, **values: float) -> list[Any]:
    """Let the decoder answer constants, by output; return what it is asked."""
    asked: list[Any] = []
    decode = type(task.model).decode

    def constant(encoded: Any, output: str, *, ids: Tensor | None = None) -> Tensor:
        asked.append((output, ids))
        real = decode(task.model, encoded, output, ids=ids)
        return real * 0 + values[output] if output in values else real

    monkeypatch.setattr(task.model, "decode", constant)
    return asked


# -- weights ---------------------------------------------------------------------------------------


def test_the_papers_weights_hold_unless_others_are_given() -> None:
    assert make(CLIP).weights == {"video": 0.03, "audio": 1.0, "label": 0.0001}
    config = AutoencodingConfig(weights={"video": 2.0, "label": 0.5})
    assert make(CLIP, config).weights == {"video": 2.0, "audio": 1.0, "label": 0.5}
    assert make().weights == {"image": 1.0}


def test_the_total_is_the_weighted_sum_of_the_parts() -> None:
    task = make(CLIP)
    losses = task(clips(), generator())
    parts = {name: float(part.detach()) for name, part in losses.parts.items()}
    expected = 0.03 * parts["video"] + parts["audio"] + 0.0001 * parts["label"]
    assert float(losses.total.detach()) == pytest.approx(expected, rel=1e-6)
    assert min(parts.values()) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points": -1}, r"autoencode\.points is -1; it must not be negative"),
        ({"mask_ratio": 1.0}, r"mask_ratio is 1\.0; it must be in \[0, 1\)"),
        ({"label_mask": 1.5}, r"label_mask is 1\.5; it must be in \[0, 1\]"),
        ({"weights": {"audio": -1.0}}, r"weights\['audio'\] is -1\.0; it must not be negative"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AutoencodingConfig(**settings)


def test_a_weight_of_an_unknown_modality_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown modality 'vidoe'; .*did you mean 'video'\?"):
        make(CLIP, AutoencodingConfig(weights={"vidoe": 1.0}))


def test_models_that_give_nothing_back_are_refused() -> None:
    cases: list[tuple[str, Any, dict[str, Any]]] = [
        ("perceiver_io_nano", PICTURE, {"num_classes": 2}),
        ("perceiver_io_nano", {"bytes": pv.Bytes(8)}, {}),
        ("perceiver_nano", PICTURE, {"num_classes": 2}),
        ("hip_nano", PICTURE, {}),
    ]
    for name, inputs, settings in cases:
        model = pv.create_model(name, inputs=inputs, **settings)
        with pytest.raises(ConfigError, match=r"autoencoding needs a perceiver_io model whose out"):
            Autoencoding(model, AutoencodingConfig())


# -- what is asked for -----------------------------------------------------------------------------


def test_every_sample_is_asked_for_points_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make(config=AutoencodingConfig(points=16))
    asked = answer_with(task, monkeypatch)
    task(pictures(3), generator())
    ((name, ids),) = asked
    assert name == "image"
    assert ids.shape == (3, 16)
    assert 0 <= int(ids.min()) <= int(ids.max()) < 64
    assert not torch.equal(ids[0], ids[1])
    asked.clear()
    task(pictures(3), generator())
    assert torch.equal(asked[0][1], ids)
    task(pictures(3), generator(1))
    assert not torch.equal(asked[1][1], ids)


def test_all_elements_are_asked_for_where_there_are_few_or_on_demand() -> None:
    whole, many, few = (
        float(make(config=AutoencodingConfig(points=n))(pictures(), generator()).total.detach())
        for n in (0, 10_000, 8)
    )
    assert whole == many
    assert few != whole


def test_the_error_is_that_of_the_elements_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for loss, power in (("l1", 1), ("l2", 2)):
        task = make(config=AutoencodingConfig(points=16, loss=loss))  # pyright: ignore[reportArgumentType]
        asked = answer_with(task, monkeypatch, image=0.5)
        batch = pictures()
        found = float(task(batch, generator()).total.detach())
        units = (batch.inputs["image"].flatten(1) / 255 - 0.25) / 0.5
        expected = (0.5 - units.gather(1, asked[0][1])).abs().pow(power).mean()
        assert found == pytest.approx(float(expected), rel=1e-5)


def test_targets_stand_where_the_queries_ask() -> None:
    task, batch = make(CLIP), clips()
    audio = element_targets(task.model, "audio", batch.inputs["audio"])
    patch = task.model.config.outputs["audio"].patch
    assert patch
    assert audio.shape == (2, 64 // patch[0], patch[0])
    wave = batch.inputs["audio"][:, 0] / 0.5
    assert torch.allclose(audio.flatten(1), wave)
    video = element_targets(task.model, "video", batch.inputs["video"])
    assert video.shape == (2, 2 * 8 * 8, 3)
    expected = (batch.inputs["video"][1, :, 1, 3, 5] / 255 - 0.5) / 0.25
    assert torch.allclose(video[1, 64 + 3 * 8 + 5], expected, atol=1e-6)


# -- hidden tokens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [PICTURE, {"video": CLIP["video"]}])
def test_only_hidden_elements_are_asked_for(inputs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoencodingConfig(mask_ratio=0.75, points=20)
    task = make(inputs, config)
    (name,) = inputs
    batch = pictures() if name == "image" else clips(None)
    batch.inputs = {name: batch.inputs[name]}
    kept: list[Tensor] = []
    encode = task.model.encode

    def spy(*args: Any, **settings: Any) -> Any:
        kept.append(settings["kept"][name])
        return encode(*args, **settings)

    monkeypatch.setattr(task.model, "encode", spy)
    asked = answer_with(task, monkeypatch)
    task(batch, generator())
    tokens = task.model.inputs.reader(name).num_tokens
    assert kept[0].shape == (2, count_kept(tokens, 0.75))
    seen = task._seen(name, kept[0], 2).flatten(1)
    ids = asked[0][1]
    assert ids.shape == (2, 20)
    assert not bool(seen.gather(1, ids).any())
    assert all(len(set(row.tolist())) == 20 for row in ids)
    assert float(seen.float().mean()) == pytest.approx(0.25, abs=0.01)


def test_the_remaining_tokens_alone_are_read() -> None:
    task = make(config=AutoencodingConfig(mask_ratio=0.5)).eval()
    batch, other = pictures(), pictures(seed=1)
    encoded, visible = task.encode_for_display(batch, generator())
    shown = visible["image"]
    assert shown.shape == (2, 1, 8, 8)
    assert shown.flatten(1).sum(1).tolist() == [32, 32]
    mixed = torch.where(shown, batch.inputs["image"], other.inputs["image"])
    changed = Batch({"image": mixed}, None, batch.index, [])
    again, same = task.encode_for_display(changed, generator())
    assert torch.equal(same["image"], shown)
    assert torch.equal(again.latents, encoded.latents)
    mixed = torch.where(shown, other.inputs["image"], batch.inputs["image"])
    changed = Batch({"image": mixed}, None, batch.index, [])
    assert not torch.equal(
        task.encode_for_display(changed, generator())[0].latents, encoded.latents
    )


def test_a_single_token_cannot_be_hidden_in_part() -> None:
    inputs = {"audio": pv.Audio(16), "image": pv.Image(8, 8)}
    task = make(inputs)
    assert task.model.inputs.reader("audio").num_tokens == 1
    with pytest.raises(ConfigError, match=r"'audio' is read as a single token, .*mask_ratio 0"):
        make(inputs, AutoencodingConfig(mask_ratio=0.5))


def test_without_a_mask_ratio_everything_is_seen() -> None:
    _, visible = make(CLIP).eval().encode_for_display(clips(), generator())
    assert {name: list(seen.shape) for name, seen in visible.items()} == {
        "video": [2, 1, 2, 8, 8],
        "audio": [2, 1, 64],
    }
    assert all(bool(seen.all()) for seen in visible.values())


# -- labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_tokens", [False, True])
def test_in_evaluation_the_true_label_changes_no_answer(mask_tokens: bool) -> None:
    task = make(CLIP, AutoencodingConfig(), mask_tokens=mask_tokens).eval()
    latents = [
        task.encode_for_display(clips(labels), generator())[0].latents
        for labels in ((0, 2), (1, 1), (-1, -1))
    ]
    assert torch.equal(latents[0], latents[1])
    assert torch.equal(latents[0], latents[2])
    first, second = (task.evaluate([clips(labels)]) for labels in ((0, 2), (1, 1)))
    assert first["psnr/video"] == second["psnr/video"]
    assert first["loss"] != second["loss"]  # of the label alone


@pytest.mark.parametrize("mask_tokens", [False, True])
def test_in_training_a_share_of_the_labels_is_hidden(mask_tokens: bool) -> None:
    batch = clips((0, 2))
    for rate, same in ((0.0, False), (1.0, True)):
        task = make(CLIP, AutoencodingConfig(label_mask=rate), mask_tokens=mask_tokens)
        one, other = (
            task(Batch(batch.inputs, torch.tensor(labels), batch.index, []), generator())
            for labels in ((0, 2), (1, 1))
        )
        assert torch.equal(one.parts["video"], other.parts["video"]) == same


def test_unknown_labels_are_not_counted() -> None:
    task = make(CLIP).eval()
    figures = task.evaluate([clips((1, -1))])
    assert figures["top1"] in {0.0, 1.0}
    assert "top1" not in task.evaluate([clips((-1, -1))])


def test_a_training_batch_without_any_known_label_has_a_finite_loss() -> None:
    task = make(CLIP)
    unknown, known = (task(clips(labels), generator()) for labels in ((-1, -1), (1, -1)))
    assert unknown.parts["label"].item() == 0.0
    assert known.parts["label"].item() > 0.0
    unknown.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.parameters())


def test_data_without_the_label_are_refused() -> None:
    with pytest.raises(DataError, match=r"autoencodes the label 'label', but the data has no la"):
        make(CLIP)(clips(None), generator())


def test_labels_that_the_model_does_not_read_are_left_out() -> None:
    inputs = {name: spec for name, spec in CLIP.items() if name != "label"}
    losses = make(inputs)(clips((0, 1)), generator())
    assert set(losses.parts) == {"video", "audio"}


# -- figures ---------------------------------------------------------------------------------------


def test_psnr_of_a_constant_error_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # An answer of 0 means the mean of the pixels: 0.25 + 0.5 * 0.
    task = make()
    answer_with(task, monkeypatch, image=0.0)
    values = torch.full((2, 1, 8, 8), 0.35)
    batch = Batch({"image": values}, None, torch.arange(2), [])
    figures = task.evaluate([batch])
    assert figures["psnr/image"] == pytest.approx(10 * math.log10(1 / 0.1**2), abs=1e-3)
    assert figures["loss"] == pytest.approx(0.1 / 0.5, rel=1e-5)  # in the model's units
    squared = Autoencoding(task.model, AutoencodingConfig(loss="l2")).evaluate([batch])
    assert squared["loss"] == pytest.approx(0.2**2, rel=1e-4)


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_training_and_evaluation_measure_the_same(loss: Any) -> None:
    spec = pv.Video(2, 8, 8, 3, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.4))
    inputs = {"video": spec, "audio": CLIP["audio"]}
    task = make(inputs, AutoencodingConfig(points=0, loss=loss)).eval()
    batch = clips(None)
    trained = float(task(batch, generator()).total.detach())
    assert task.evaluate([batch])["loss"] == pytest.approx(trained, rel=1e-5)


def test_the_peak_of_sound_is_two(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make({"audio": CLIP["audio"]})
    answer_with(task, monkeypatch, audio=0.0)
    batch = Batch({"audio": torch.full((1, 1, 64), 0.2)}, None, torch.arange(1), [])
    expected = 10 * math.log10(2**2 / 0.2**2)
    assert task.evaluate([batch])["psnr/audio"] == pytest.approx(expected, abs=1e-3)


def test_answers_come_back_in_raw_units() -> None:
    task = make(CLIP).eval()
    batch = clips()
    floats = as_floats(task.model, "video", batch.inputs["video"])
    assert torch.allclose(floats, batch.inputs["video"] / 255, atol=1e-6)
    encoded, _ = task.encode_for_display(batch, generator())
    made = decode_raw(task.model, encoded, "video")
    assert made.shape == batch.inputs["video"].shape
    answered = task.model.decode(encoded, "video")
    assert torch.allclose(made, answered * 0.25 + 0.5, atol=1e-6)
    wave = decode_raw(task.model, encoded, "audio")
    assert torch.allclose(wave, task.model.decode(encoded, "audio") * 0.5, atol=1e-6)


def test_absent_points_weigh_nothing() -> None:
    task = make({"points": pv.Points(8, 3, ragged=True)}, AutoencodingConfig(points=0))
    points = torch.rand(2, 8, 3, generator=generator())
    points[0, 5:] = float("nan")
    points[1, 2:] = float("nan")
    batch = Batch({"points": points}, None, torch.arange(2), [])
    losses = task(batch, generator())
    losses.total.backward()
    assert bool(torch.isfinite(losses.total.detach()))
    slopes = [p.grad for p in task.parameters() if p.grad is not None]
    assert slopes
    assert all(bool(slope.isfinite().all()) for slope in slopes)
    with torch.no_grad():
        answer = task.model.decode(task.model.encode({"points": points}), "points")
        real = torch.isfinite(points)
        expected = (answer - points)[real].abs().mean()
    assert float(losses.total.detach()) == pytest.approx(float(expected), rel=1e-5)
    figures = task.evaluate([batch])
    assert figures["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert math.isfinite(figures["psnr/points"])
