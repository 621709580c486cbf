"""The table of names: what it builds, its state keys, its suggestions."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from perceivers.errors import ConfigError
from perceivers.models import HiPHead, create_model, list_models
from perceivers.models.base import Model, ModelConfig
from perceivers.models.registry import FAMILIES, find_family
from perceivers.types import Array, Audio, Image, Labels, Points, Video

SNAPSHOTS = Path(__file__).parent / "snapshots"
IMAGE = {"image": Image(8, 8, 3)}


def test_patterns_select_names() -> None:
    assert list_models("io_*") == ["io_mini", "io_c_50m", "io_c_150m"]
    assert {"hip_16", "hip_256", "hip_mini", "hip_16x3", "hip_nano"} < set(list_models())
    assert list_models("nothing_*") == []


def complete(name: str) -> dict[str, Any]:
    """What a name needs besides itself."""
    family = find_family(name)
    own = FAMILIES[family].variants[name]
    if "inputs" in own:
        return {}
    if family == "entity_set":
        return {"inputs": {"points": Points(9, 4)}}
    needed: dict[str, Any] = {"inputs": {"image": Image(32, 32, 3)}}
    axes = len(own.get("mask_unit", (1, 1)))
    if axes == 1:
        return {"inputs": {"audio": Audio(1024)}}
    if axes == 3:
        return {"inputs": {"video": Video(4, 32, 32)}}
    if family == "perceiver":
        needed["num_classes"] = 3
    return needed


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_every_name_builds_its_family(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, **complete(name))
    assert find_family(name) == model.family
    assert type(model) is FAMILIES[find_family(name)].module
    assert model.config == replace(model.config)
    assert isinstance(model, Model)
    assert isinstance(model.config, ModelConfig)


@pytest.mark.parametrize("name", list_models())
def test_every_configuration_survives_json(name: str) -> None:
    with torch.device("meta"):
        config = create_model(name, **complete(name)).config
    data = json.loads(json.dumps(config.to_json()))
    assert type(config).from_json(data) == config
    data["numm"] = 1
    with pytest.raises(ConfigError, match=r"numm"):
        type(config).from_json(data)


@pytest.mark.parametrize("name", ["hip_nano", "hip_tiny"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_small_models_run_with_any_number_of_channels(
    name: str, channels: int, rng: torch.Generator
) -> None:
    model = create_model(name, inputs={"image": Image(8, 8, channels)}).eval()
    out = model(torch.rand(2, channels, 8, 8, generator=rng))
    assert out["image"].shape == (2, channels, 8, 8)


def test_all_kinds_of_inputs_fit_in_one_model(rng: torch.Generator) -> None:
    inputs = {
        "image": Image(6, 5, 1),
        "video": Video(2, 4, 3, 2),
        "sound": Audio(50, 2, sample_rate=8000),
        "cloud": Points(9, 4),
        "table": Array((3, 4), 2),
        "label": Labels(7, 2),
    }
    model = create_model("hip_tiny", inputs=inputs).eval()
    raw = {
        "image": torch.randint(0, 256, (2, 1, 6, 5), generator=rng, dtype=torch.uint8),
        "video": torch.rand(2, 2, 2, 4, 3, generator=rng),
        "sound": torch.randint(-999, 999, (2, 2, 50), generator=rng, dtype=torch.int16),
        "cloud": torch.randn(2, 9, 4, generator=rng),
        "table": torch.randn(2, 3, 4, 2, generator=rng),
        "label": torch.tensor([[1, 6], [-1, 0]]),
    }
    out = model(raw)
    shapes = {name: tuple(x.shape) for name, x in out.items()}
    expected = {name: tuple(x.shape) for name, x in raw.items()}
    assert shapes == {**expected, "label": (2, 2, 7)}
    before = model.forward_features(raw).processor
    for name, x in raw.items():
        fresh = x.flip(0) if name == "label" else x.roll(1, 0)
        assert not torch.allclose(model.forward_features({**raw, name: fresh}).processor, before)


def test_num_classes_makes_an_encoder_with_a_head() -> None:
    query = create_model("hip_nano", inputs=IMAGE, num_classes=4)
    mean = create_model("hip_nano", inputs=IMAGE, num_classes=4, head="mean")
    assert query.decoder is None
    assert query.config.head == HiPHead(kind="query", num_outputs=4)
    assert mean.config.head.kind == "mean"
    both = create_model("hip_nano", inputs=IMAGE, num_classes=4, decoder=True)
    assert both.decoder is not None


def test_a_complete_head_is_used_as_it_is() -> None:
    head = HiPHead(kind="dense_full", num_outputs=2, modality="image")
    model = create_model("hip_nano", inputs=IMAGE, head=head)
    assert model.config.head == head
    assert model(torch.rand(1, 3, 8, 8)).shape == (1, 2, 8, 8)


def test_overrides_reach_the_config() -> None:
    model = create_model("hip_nano", inputs=IMAGE, drop_path_rate=0.1, activation="gelu")
    assert (model.config.drop_path_rate, model.config.activation) == (0.1, "gelu")


def test_the_global_generator_decides_the_weights() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(create_model("hip_nano", inputs=IMAGE).state_dict())
    name = "encoder.blocks.0.latents"
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(
        ConfigError, match=r"model 'hip_nan' is unknown; .*did you mean 'hip_nano'\?"
    ):
        create_model("hip_nan", inputs=IMAGE)
    with pytest.raises(
        ConfigError,
        match=r"hip_nano has no setting 'drop_path'; its settings are .*"
        r"did you mean 'drop_path_rate'\?",
    ):
        create_model("hip_nano", inputs=IMAGE, drop_path=0.1)


def test_contradictory_heads_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_classes=3 and HiPHead\(kind='mean'.* give one"):
        create_model(
            "hip_nano", inputs=IMAGE, num_classes=3, head=HiPHead(kind="mean", num_outputs=3)
        )
    with pytest.raises(ConfigError, match=r"head='mean' needs num_classes"):
        create_model("hip_nano", inputs=IMAGE, head="mean")


@pytest.mark.unhooked
def test_an_unknown_head_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"head\.kind is 'men'; .*did you mean 'mean'\?"):
        create_model("hip_nano", inputs=IMAGE, num_classes=3, head="men")


@pytest.mark.parametrize("name", ["hip_nano", "hip_nano_class_bottleneck"])
def test_state_keys_and_shapes_are_the_recorded_ones(name: str) -> None:
    """Checkpoints depend on them; set UPDATE_SNAPSHOTS=1 to record a deliberate change."""
    inputs = {"image": Image(8, 8, 3), "sound": Audio(20), "label": Labels(10)}
    labels = ("label",) if name.endswith("class_bottleneck") else ()
    inputs = inputs if labels else IMAGE
    state = create_model("hip_nano", inputs=inputs, labels=labels).state_dict()
    lines = [f"{key} {list(value.shape)}" for key, value in state.items()]
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text("\n".join(lines) + "\n")
    assert lines == path.read_text().splitlines()
