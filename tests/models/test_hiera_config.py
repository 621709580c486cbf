"""HieraConfig: every field changes something, JSON, folders, and the text of every refusal."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from tests.models.hiera_making import (
    CLASSES,
    CLIP,
    DECODER,
    KINDS,
    MAP,
    PICTURE,
    SOUND,
    draw_one,
)

from perceivers.errors import ConfigError, InputError
from perceivers.models import Hiera, HieraConfig, HieraDecoder, HieraHead
from perceivers.types import Array, Audio, Bytes, Image, Labels, Points

BASE = HieraConfig(**PICTURE, head=CLASSES)
IMAGE = {"image": Image(32, 32, 3)}
WINDOW: dict[str, Any] = {"positions": "window", "position_grid": (3, 5)}
# A field, what to build it in, and what to change it to.
CHANGES: list[tuple[str, dict[str, Any], Any]] = [
    ("inputs", {}, {"image": Image(16, 32, 2)}),
    ("dim", {}, 16),
    ("num_heads", {}, 4),
    ("depths", {}, (1, 1, 2)),
    ("patch_kernel", {}, (5, 3)),
    ("patch_stride", {}, (4, 2)),
    ("mask_unit", {}, (8, 4)),
    ("pool", {}, (2, 1)),
    ("num_pools", {}, 1),
    ("local_stages", {}, 1),
    ("mlp_ratio", {}, 2),
    ("shortcut", {}, "pool"),
    ("layer_scale", {}, 0.1),
    ("positions", {}, "window"),
    ("position_grid", WINDOW, (2, 2)),
    ("position_resize", {}, "plain"),
    ("position_antialias", WINDOW, False),
    ("dropout_rate", {}, 0.5),
    ("drop_path_rate", {}, 0.5),
    ("unit_drop_rate", {}, 0.5),
    ("pad", {}, True),
    ("feature_norms", {}, (1,)),
    ("head", {}, MAP),
    ("decoder", {"head": HieraHead()}, DECODER),
    ("init", {}, "autoencoder"),
]
# The same for the head and the decoder.
HEADS: list[tuple[str, HieraHead, Any]] = [
    ("kind", HieraHead(kind="segmentation", num_outputs=5), "mean"),
    ("num_outputs", CLASSES, 6),
    ("dim", MAP, 12),
]
DECODERS: list[tuple[str, Any]] = [
    ("dim", 24),
    ("depth", 1),
    ("num_heads", 2),
    ("order", "channels_last"),
    ("all_frames", True),
    ("latent_head", True),
]


def perform(config: HieraConfig) -> dict[str, Any]:
    """Everything a setting may change: names and shapes, first weights, results at some sizes."""
    torch.manual_seed(0)
    model = Hiera(config).double()
    trace: dict[str, Any] = {f"initial {n}": p.clone() for n, p in model.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    grid = config.spec.grid
    for size in (grid, tuple(2 * n for n in grid), tuple(n + 3 for n in grid)):
        x = draw_one(model, generator, size)
        for mode in (True, False):
            model.train(mode)
            try:
                out = model(x)
                trace[f"{size}, training {mode}"] = (
                    next(iter(out.values())) if isinstance(out, dict) else out
                )
                trace[f"{size}, maps"] = model.forward_features(x).maps
                if config.decoder is not None:
                    trace[f"{size}, patches"] = model.patches(x)
            except InputError:
                trace[f"{size}, training {mode}"] = torch.empty(0)
    return trace


def differ(first: Any, second: Any) -> bool:
    try:
        torch.testing.assert_close(first, second, rtol=0.0, atol=1e-9)
    except (AssertionError, ValueError, TypeError):
        return True
    return False


@pytest.mark.parametrize(("name", "given", "value"), CHANGES, ids=[c[0] for c in CHANGES])
def test_every_field_changes_something(name: str, given: dict[str, Any], value: Any) -> None:
    base = replace(BASE, **given)
    # What was derived from the rest is derived anew.
    derived = {} if name == "num_pools" else {"num_pools": None}
    changed = replace(base, **{**derived, name: value})
    assert getattr(changed, name) != getattr(base, name)
    assert not differ(perform(base), perform(base))
    assert differ(perform(base), perform(changed))


def test_no_field_is_forgotten() -> None:
    assert {c[0] for c in CHANGES} == {f.name for f in fields(HieraConfig)}
    assert {c[0] for c in HEADS} == {f.name for f in fields(HieraHead)}
    assert {c[0] for c in DECODERS} == {f.name for f in fields(HieraDecoder)}


@pytest.mark.parametrize(("name", "base", "value"), HEADS, ids=[c[0] for c in HEADS])
def test_every_field_of_the_head_changes_something(name: str, base: Any, value: Any) -> None:
    base = replace(base, dim=128) if name == "kind" else base
    first = replace(BASE, head=base)
    assert differ(perform(first), perform(replace(first, head=replace(base, **{name: value}))))


@pytest.mark.parametrize(("name", "value"), DECODERS, ids=[c[0] for c in DECODERS])
def test_every_field_of_the_decoder_changes_something(name: str, value: Any) -> None:
    first = HieraConfig(**CLIP, decoder=DECODER)
    other = replace(first, decoder=replace(DECODER, **{name: value}))
    assert differ(perform(first), perform(other))


# -- JSON ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [{"head": CLASSES}, {"head": MAP}, {"decoder": DECODER}, {}])
def test_json_brings_everything_back(kind: str, part: dict[str, Any]) -> None:
    config = HieraConfig(**{**KINDS[kind], **part})
    data = json.loads(json.dumps(config.to_json()))
    assert HieraConfig.from_json(data) == config
    assert hash(HieraConfig.from_json(data).layout) == hash(config.layout)


def test_json_of_another_version_is_refused() -> None:
    data = HieraConfig(**PICTURE, decoder=DECODER).to_json()
    with pytest.raises(ConfigError, match=r"HieraConfig has no setting 'dims'.*did you mean 'dim'"):
        HieraConfig.from_json({**data, "dims": 3})
    with pytest.raises(ConfigError, match=r"HieraDecoder has no setting 'depht'.*mean 'depth'"):
        HieraConfig.from_json({**data, "decoder": {"depht": 3}})


@pytest.mark.unhooked
def test_words_that_are_not_known_are_refused() -> None:
    data = HieraConfig(**PICTURE, decoder=DECODER).to_json()
    with pytest.raises(ConfigError, match=r"order is 'middle'; choose from \['channels_first'"):
        HieraConfig.from_json({**data, "decoder": {"order": "middle"}})
    with pytest.raises(ConfigError, match=r"kind is 'maen'; choose from .*did you mean 'mean'"):
        HieraConfig.from_json({**data, "head": {"kind": "maen", "num_outputs": 2}})
    with pytest.raises(ConfigError, match=r"positions is 'learned'; choose from"):
        HieraConfig.from_json({**data, "positions": "learned"})


@pytest.mark.unhooked
def test_lists_are_tuples_like_any_other() -> None:
    sizes: dict[str, Any] = {"depths": [1, 2, 2], "mask_unit": [4, 4], "feature_norms": [0]}
    made, plain = replace(BASE, **sizes), replace(BASE, feature_norms=(0,))
    assert made == plain
    assert hash(made.layout) == hash(plain.layout)


# -- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": (2, 2, 2)}, r"pool=\(2, 2, 2\): give one size per axis in each"),
        ({"dim": 0}, r"dim is 0; it must be at least 1 \(default 96\)"),
        ({"depths": (1, 0, 1)}, r"depths\[1\] is 0; it must be at least 1"),
        ({"depths": ()}, r"depths is \(\); a Hiera has at least one stage"),
        ({"patch_stride": (2, -2)}, r"patch_stride\[1\] is -2; it must be at least 1"),
        ({"mask_unit": (0, 4)}, r"mask_unit\[0\] is 0; it must be at least 1"),
        ({"patch_kernel": (4, 3)}, r"patch_kernel is \(4, 3\); its sizes must be odd"),
        ({"dim": 9}, r"dim=9 is not a multiple of num_heads=2"),
        (
            {"local_stages": 4},
            r"local_stages=4, num_pools=2: with 3 stages the first lies in 0\.\.",
        ),
        ({"num_pools": 3}, r"local_stages=2, num_pools=3: .* the second in 0\.\.2"),
        ({"num_pools": -1}, r"num_pools is -1; it must not be negative"),
        (
            {"drop_path_rate": 1.0},
            r"drop_path_rate is 1.0; it must be in \[0, 1",
        ),
        ({"unit_drop_rate": -0.1}, r"unit_drop_rate is -0.1; it must be"),
        ({"dropout_rate": 1.0}, r"dropout_rate is 1.0; it must be"),
        ({"dropout_rate": 0.1, "head": HieraHead()}, r"dropout_rate=0.1 acts before logits"),
        ({"unit_drop_rate": 0.1, "head": MAP}, r"unit_drop_rate=0.1 drops units, but segmentation"),
        ({"feature_norms": (3,)}, r"feature_norms=\(3,\); stages are 0\.\.2"),
        ({"shortcut": "pool", "num_pools": 1}, r"shortcut='pool' doubles channels by pooling"),
        ({"mask_unit": (4, 6)}, r"a mask unit of \(4, 6\) tokens cannot be pooled 2 times"),
        ({"positions": "separable"}, r"positions='separable' .* but there are 2 axes"),
        ({"positions": "window", "position_grid": (3,)}, r"position_grid=\(3,\) must have 2 sizes"),
        ({**WINDOW, "position_grid": (3, 0)}, r"position_grid\[1\] is 0; it must be at least 1"),
        ({**WINDOW, "position_resize": "plain"}, r"position_resize='plain' has no effect with"),
        (
            {"position_grid": (3, 5)},
            r"position_grid=\(3, 5\) has no effect with positions='absolute'",
        ),
        ({"position_antialias": False}, r"position_antialias=False has no effect with pos"),
        ({"decoder": DECODER}, r"an autoencoder \(decoder\) has no head"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(BASE, **{"num_pools": None, **settings})


@pytest.mark.parametrize(
    "inputs",
    [
        {"sound": Audio(320)},
        {"labels": Labels(3, 64)},
        {"text": Bytes(64)},
        {"cloud": Points(64)},
        {"table": Array((4, 4, 4))},
        {"a": Image(16, 16), "b": Image(16, 16)},
        {},
    ],
)
def test_inputs_that_are_no_grid_of_these_axes_are_refused(inputs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"this Hiera has 2 axes and reads one modality on such"):
        replace(BASE, inputs=inputs)


def test_points_and_labels_are_no_sound() -> None:
    for inputs in ({"cloud": Points(320)}, {"labels": Labels(3, 320)}):
        with pytest.raises(ConfigError, match=r"this Hiera has 1 axes"):
            HieraConfig(**{**SOUND, "inputs": inputs})


def test_a_native_size_must_be_whole_unless_padded() -> None:
    with pytest.raises(InputError, match=r"an input of \(20, 24\) is not made of whole mask units"):
        replace(BASE, inputs={"image": Image(20, 24, 2)})
    assert replace(BASE, inputs={"image": Image(20, 24, 2)}, pad=True).native_grid == (12, 12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "mean"}, r"head\.num_outputs is 0; a head of kind 'mean' needs at least 1"),
        ({"num_outputs": 2}, r"head\.num_outputs=2 has no effect with head\.kind='none'"),
        ({"num_outputs": -2}, r"head\.num_outputs is -2; it must not be negative"),
        ({"kind": "segmentation", "num_outputs": 2, "dim": 0}, r"head\.dim is 0; it must be at"),
        (
            {"kind": "mean", "num_outputs": 2, "dim": 5},
            r"head\.dim=5 has no effect with head\.kind='m",
        ),
    ],
)
def test_impossible_heads_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HieraHead(**settings)


@pytest.mark.parametrize("settings", [{"dim": 10}, {"depth": 0}, {"num_heads": 0}, {"dim": -16}])
def test_impossible_decoders_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"decoder\.\w+ is -?\d+; it must be (at|a mult)"):
        HieraDecoder(**settings)
