"""Perceiver IO's settings: each changes something, JSON restores them, every refusal."""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from perceivers.adapters.config import PositionConfig, TokenConfig, build_nested
from perceivers.errors import ConfigError
from perceivers.models import DecoderConfig, Output, PerceiverIO, PerceiverIOConfig
from perceivers.models.flat.trunk import TrunkConfig
from perceivers.types import PAD, Array, Bytes, Image, ModalitySpec

Stir = Callable[..., PerceiverIO]
Draw = Callable[..., dict[str, Tensor]]
WAVES = PositionConfig(kind="fourier", num_bands=2)
INPUTS: Mapping[str, ModalitySpec] = {"image": Image(4, 6, 1), "text": Bytes(6)}
TRUNK = TrunkConfig(num_latents=4, latent_dim=8, depth=1, num_heads=2)
OUTPUTS = {
    "classes": Output(dim=8, channels=3),
    "image": Output(queries="positions", modality="image", positions=WAVES, channels=1),
    "text": Output(length=6, dim=4, modality="text", head="tied"),
    "tokens": Output(queries="tokens", modality="image", channels=2),
}
TOKENS = {"image": TokenConfig(positions=WAVES)}
BASE: dict[str, Any] = {
    "inputs": INPUTS,
    "trunk": TRUNK,
    "outputs": OUTPUTS,
    "tokens": TOKENS,
    "decoder": DecoderConfig(),
    "mask_tokens": True,
}


def perform(stir: Stir, draw: Draw, settings: Mapping[str, Any]) -> dict[str, Any]:
    """First weights, moved weights, answers and work of one configuration."""
    config = PerceiverIOConfig(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PerceiverIO(config)
    first = {n: x.detach().clone() for n, x in model.state_dict().items()}
    stir(model)
    raw = draw(INPUTS) if config.inputs == INPUTS else draw(config.inputs)
    raw["text"][0, 3:] = PAD
    queries: list[int] = []
    model.decoder.read.register_forward_pre_hook(lambda _, args: queries.append(args[0].shape[2]))
    return {"first": first, "answers": model(raw), "queries": queries}


def differ(one: Any, other: Any) -> bool:
    try:
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-9)
    except (AssertionError, TypeError):
        return True
    return False


@pytest.fixture
def repeat(stir: Stir, rng: torch.Generator, draw: Draw) -> Callable[..., dict[str, Any]]:
    """Return ``perform`` with the same inputs at every call."""

    def run(settings: Mapping[str, Any]) -> dict[str, Any]:
        rng.manual_seed(0)
        return perform(stir, draw, settings)

    return run


Repeat = Callable[..., dict[str, Any]]

WHOLE: dict[str, Any] = {
    "inputs": {"image": Image(4, 8, 1), "text": Bytes(6)},
    "trunk": replace(TRUNK, depth=2),
    "outputs": {**OUTPUTS, "classes": Output(dim=8, channels=4)},
    "tokens": {"image": TokenConfig(positions=WAVES, dim=3)},
    "decoder": DecoderConfig(residual=True),
    "min_padding": 6,
    "mask_tokens": False,
    "init": "paper",
}
DECODER: dict[str, Any] = {
    "num_heads": 2,
    "qk_dim": 4,
    "v_dim": 4,
    "residual": True,
    "mlp_ratio": 2,
    "project": 9,
    "min_padding": 5,
    "chunk": 7,
}
# Which output a setting is tried on, the settings it starts from, and the other value.
OUTPUT: dict[str, tuple[str, dict[str, Any]]] = {
    "queries": ("image", {"queries": "tokens", "positions": PositionConfig()}),
    "length": ("classes", {"length": 2}),
    "dim": ("classes", {"dim": 7}),
    "modality": ("tokens", {"modality": "text"}),
    "positions": ("image", {"positions": PositionConfig(kind="learned", dim=3)}),
    "patch": ("image", {"patch": (2, 3)}),
    "sampled": ("image", {"sampled": "cell"}),
    "channels": ("classes", {"channels": 2}),
    "head": ("classes", {"head": "tanh_mlp"}),
    "mask_padding": ("text", {"mask_padding": False}),
    "divide_by": ("classes", {"divide_by": 2.0}),
}
POSITIONS: dict[str, Any] = {
    "kind": PositionConfig(kind="learned", dim=3),
    "num_bands": replace(WAVES, num_bands=3),
    "max_resolution": replace(WAVES, max_resolution=(9, 9)),
    "sine_only": replace(WAVES, sine_only=True),
    "keep_coordinates": replace(WAVES, keep_coordinates=False),
    "dim": PositionConfig(kind="learned", dim=4),
    "project": replace(WAVES, project=5),
    "extra_layers": replace(WAVES, extra_layers=1),
    "combine": replace(WAVES, project=1, combine="add"),
}
CONTENT: dict[str, Any] = {
    "content": {"content": "conv", "dim": 5},
    "stride": {"stride": (2, 1)},
    "patch": {"content": "patches", "patch": (2, 2)},
    "dim": {"dim": 5},
    "num_convs": {"content": "conv", "dim": 5, "num_convs": 2},
    "padding": {"content": "conv", "dim": 5, "padding": "hf"},
    "batch_norm": {"content": "conv", "dim": 5, "batch_norm": False},
    "contrast": {"content": "conv", "dim": 5, "contrast": 3},
    "positions": {"positions": PositionConfig()},
    "mask_rate": {"mask_rate": 1.0},
}


def test_the_tables_of_changes_are_complete() -> None:
    for table, kind in (
        (WHOLE, PerceiverIOConfig),
        (DECODER, DecoderConfig),
        (OUTPUT, Output),
        (POSITIONS, PositionConfig),
        (CONTENT, TokenConfig),
    ):
        assert list(table) == [f.name for f in fields(kind)]


@pytest.mark.parametrize("name", WHOLE)
def test_every_setting_of_the_model_changes_it(repeat: Repeat, name: str) -> None:
    assert differ(repeat({**BASE, name: WHOLE[name]}), repeat(BASE))
    assert not differ(repeat(BASE), repeat(BASE))


@pytest.mark.parametrize("name", DECODER)
def test_every_setting_of_the_decoder_changes_it(repeat: Repeat, name: str) -> None:
    changed = replace(DecoderConfig(), **{name: DECODER[name]})
    assert differ(repeat({**BASE, "decoder": changed}), repeat(BASE))


@pytest.mark.parametrize("name", OUTPUT)
def test_every_setting_of_an_output_changes_it(repeat: Repeat, name: str) -> None:
    which, change = OUTPUT[name]
    outputs = {**OUTPUTS, which: replace(OUTPUTS[which], **change)}
    assert differ(repeat({**BASE, "outputs": outputs}), repeat(BASE))


@pytest.mark.parametrize(
    ("where", "name"),
    [
        *(("tokens", name) for name in POSITIONS),
        # Queries have nothing to add their positions to; that is refused below.
        *(("outputs", name) for name in POSITIONS if name != "combine"),
    ],
)
def test_every_setting_of_positions_changes_tokens_and_queries(
    repeat: Repeat, name: str, where: str
) -> None:
    base, change = BASE, POSITIONS[name]
    if name == "dim":  # beside learned positions of another width
        base = {**BASE, "tokens": {"image": TokenConfig(positions=POSITIONS["kind"])}}
        base["outputs"] = {
            **OUTPUTS,
            "image": replace(OUTPUTS["image"], positions=POSITIONS["kind"]),
        }
    made = TokenConfig(positions=change) if where == "tokens" else None
    image = made or replace(OUTPUTS["image"], positions=change)
    changed = {**base, where: {**base[where], "image": image}}
    assert differ(repeat(changed), repeat(base))


@pytest.mark.parametrize("name", CONTENT)
def test_every_setting_of_tokens_changes_them(repeat: Repeat, name: str) -> None:
    large = {**BASE, "inputs": {**INPUTS, "image": Image(16, 16, 1)}}
    base: dict[str, Any] = {"positions": WAVES}
    if name in {"num_convs", "padding", "batch_norm", "contrast"}:
        base |= {"content": "conv", "dim": 5}
    one, other = (
        repeat({**large, "tokens": {"image": build_nested(TokenConfig, settings)}})
        for settings in ({**base, **CONTENT[name]}, base)
    )
    assert differ(one, other)


def test_json_restores_a_configuration() -> None:
    config = PerceiverIOConfig(**BASE)
    data = json.loads(json.dumps(config.to_json()))
    assert PerceiverIOConfig.from_json(data) == config
    data["outputs"]["image"]["positions"]["num_bands"] = 3
    assert PerceiverIOConfig.from_json(data) != config
    data["outputs"]["image"]["positions"]["bands"] = 3
    with pytest.raises(ConfigError, match=r"PositionConfig has no setting 'bands'"):
        PerceiverIOConfig.from_json(data)
    data = config.to_json()
    data["decoder"]["head"] = 2
    with pytest.raises(ConfigError, match=r"DecoderConfig has no setting 'head'"):
        PerceiverIOConfig.from_json(data)


BAD_OUTPUTS: list[tuple[dict[str, Any], str]] = [
    ({}, r"output\.dim is 0; learned queries need at least 1"),
    ({"dim": 4, "length": 0}, r"output\.length is 0; it must be at least 1"),
    ({"queries": "tokens"}, r"tokens queries need a modality; set output.modality"),
    ({"queries": "positions", "modality": "image"}, r"positions queries need positions: fourier"),
    (
        {"queries": "positions", "modality": "image", "positions": POSITIONS["combine"]},
        r"queries are position embeddings alone; combine='add' has no content to add",
    ),
    ({"dim": 4, "channels": -1}, r"output\.channels is -1; it must not be negative"),
    ({"dim": 4, "divide_by": 0.0}, r"output\.divide_by is 0\.0; it must be positive"),
    ({"dim": 4, "head": "tied", "channels": 3}, r"a tied head has as many channels as the voc"),
    ({"dim": 4, "head": "tanh_mlp"}, r"head='tanh_mlp' needs channels: values per element"),
    ({"dim": 4, "positions": WAVES}, r"output\.positions=.* has no effect with output\.queries"),
    ({"dim": 4, "channels": 1, "patch": (2,)}, r"output\.patch=\(2,\) has no effect with"),
    (
        {"queries": "tokens", "modality": "image", "length": 3},
        r"output\.length=3 has no effect with output\.queries='tokens'; leave it out",
    ),
    (
        {"queries": "tokens", "modality": "image", "sampled": "cell"},
        r"output\.sampled='cell' has no effect with output\.queries='tokens'",
    ),
    (
        {"queries": "positions", "modality": "image", "positions": WAVES, "dim": 5},
        r"output\.dim=5 has no effect with output\.queries='positions'",
    ),
]


@pytest.mark.parametrize(("settings", "text"), BAD_OUTPUTS)
def test_contradictory_outputs_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Output(**settings)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"outputs": {}}, r"outputs are \[\]; a model needs at least one, with names without dots"),
    ({"outputs": {"a.b": Output(dim=2)}}, r"outputs are \['a\.b'\]"),
    (
        {"outputs": {"x": replace(OUTPUTS["tokens"], modality="imag")}},
        r"output 'x' has the modality 'imag', but the inputs are .*did you mean 'image'\?",
    ),
    (
        {"outputs": {"x": Output(dim=4, head="tied")}},
        r"output 'x': a tied head needs the modality of its bytes",
    ),
    (
        {"outputs": {"x": Output(dim=4, length=24, modality="image", head="tied")}},
        r"output 'x': a tied head needs the modality of its bytes",
    ),
    (
        {"outputs": {"x": Output(dim=4, length=5, modality="text", head="tied")}},
        r"output 'x': 5 learned queries share the padding of 'text', which has 6 elements",
    ),
    (
        {"outputs": {"x": replace(OUTPUTS["image"], patch=(3, 3))}},
        r"output 'x': patch \(3, 3\) does not divide the grid \(4, 6\)",
    ),
    ({"min_padding": -1}, r"min_padding is -1; it must not be negative"),
    ({"tokens": {"txt": TokenConfig()}}, r"tokens are described for \['txt'\].*mean 'text'\?"),
]


@pytest.mark.parametrize(("settings", "text"), BAD)
def test_contradictory_configurations_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        PerceiverIOConfig(**{**BASE, **settings})


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"num_heads": 0}, r"decoder\.num_heads is 0; it must be at least 1"),
        ({"chunk": 0}, r"decoder\.chunk is 0; it must be at least 1"),
        ({"qk_dim": 0}, r"decoder\.qk_dim is 0; it must be at least 1"),
        ({"project": -3}, r"decoder\.project is -3; it must not be negative"),
        ({"min_padding": -1}, r"decoder\.min_padding is -1; it must not be negative"),
    ],
)
def test_contradictory_decoders_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        DecoderConfig(**settings)


def test_a_grid_of_queries_is_that_of_its_patches() -> None:
    config = PerceiverIOConfig(**{**BASE, "inputs": {**INPUTS, "table": Array((8,), 2)}})
    patched = Output(queries="positions", modality="table", positions=WAVES, patch=(4,), channels=2)
    assert config.grid(patched) == (2,)
    assert config.grid(replace(patched, patch=())) == (8,)
    assert config.num_queries == {"classes": 1, "image": 24, "text": 6}
