"""HiPConfig: every field changes something, JSON, and the text of every refusal."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from perceivers.errors import ConfigError
from perceivers.models import HiP, HiPConfig, HiPHead, HiPLevel, list_models
from perceivers.models.registry import FAMILIES, find_family
from perceivers.types import Array, Audio, Image, Labels, ModalitySpec

INPUTS: Mapping[str, ModalitySpec] = {"a": Audio(21), "b": Array((9, 5), 2)}
OUTER = HiPLevel(num_groups=6, num_latents=4, latent_dim=8, depth=1, num_heads=2)
MIDDLE = HiPLevel(num_groups=1, num_latents=12, latent_dim=16, depth=2, num_heads=4)
BETWEEN = HiPLevel(num_groups=3, num_latents=4, latent_dim=8, depth=1, num_heads=2)
BASE = HiPConfig(inputs=INPUTS, levels=(OUTER, MIDDLE, OUTER), token_dim=8, position_dim=8)
HEAD = HiPHead(kind="dense_full", num_outputs=3, modality="b")


def perform(config: HiPConfig) -> dict[str, Any]:
    """Everything a setting may change: names and shapes, first weights, results, work."""
    torch.manual_seed(0)
    model = HiP(config).double()
    trace: dict[str, Any] = {
        f"initial {n}": p.detach().clone() for n, p in model.named_parameters()
    }
    generator = torch.Generator().manual_seed(1)
    raw: dict[str, Tensor] = {}
    for name, spec in sorted(config.inputs.items()):
        if spec.kind == "labels":
            raw[name] = torch.zeros(2, *spec.raw_shape, dtype=torch.int64)
        else:
            raw[name] = torch.randn(2, *spec.raw_shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    reads: list[int] = []
    if model.decoder is not None:
        model.decoder.readout.read.register_forward_hook(lambda *_: reads.append(1))
    alone = {"a": raw["a"]} if config.head.modality != "b" else raw
    for mode in (True, False):
        model.train(mode)
        for name, sample in {"all": raw, "alone": alone}.items():
            out = model(sample)
            trace[f"{name}, training {mode}"] = dict(out) if isinstance(out, dict) else {"": out}
    trace["reads"] = len(reads)
    return trace


def differ(first: Any, second: Any) -> bool:
    try:
        torch.testing.assert_close(first, second, rtol=0.0, atol=1e-9)
    except (AssertionError, ValueError, TypeError):
        return True
    return False


def level(**changes: Any) -> dict[str, Any]:
    return {"levels": (OUTER, replace(MIDDLE, **changes), OUTER)}


# Field -> (settings before, settings after); both are legal.
FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "inputs": ({}, {"inputs": dict(reversed(INPUTS.items()))}),
    "levels": ({}, level(depth=1)),
    "token_dim": ({"project_positions": "modality"}, {"token_dim": 12}),
    "position_dim": ({"project_positions": "modality"}, {"position_dim": 5}),
    "positions": ({}, {"positions": "fourier"}),
    "num_bands": ({"positions": "fourier"}, {"num_bands": 3}),
    "project_positions": ({}, {"project_positions": "modality"}),
    "position_slots": (
        {"project_positions": "slot", "position_slots": 2},
        {"position_slots": 3},
    ),
    "grouping": (
        {"levels": (MIDDLE,), "grouping": "concatenate"},
        {"levels": (OUTER, MIDDLE, OUTER), "grouping": "deal"},
    ),
    "deal_over": ({}, {"deal_over": "present"}),
    "mask_padding": ({}, {"mask_padding": False}),
    # Without a level between, there is nothing to mix: one group is read as a set.
    "regroup": (
        {"levels": (OUTER, BETWEEN, MIDDLE, BETWEEN, OUTER)},
        {"regroup": "transpose_reshape"},
    ),
    "labels": ({"inputs": {**INPUTS, "c": Labels(3)}}, {"labels": ("c",)}),
    "decoder": ({"head": HiPHead(kind="mean", num_outputs=2)}, {"decoder": False}),
    "head": ({}, {"head": HEAD}),
    "activation": ({}, {"activation": "gelu"}),
    "dropout_rate": ({}, {"dropout_rate": 0.5}),
    "drop_path_rate": ({}, {"drop_path_rate": 0.5}),
    "drop_path_schedule": ({"drop_path_rate": 0.9}, {"drop_path_schedule": "linear"}),
    "drop_path_rescale": ({"drop_path_rate": 0.5}, {"drop_path_rescale": False}),
    "init": ({}, {"init": "paper"}),
    "decode_chunk": ({}, {"decode_chunk": 5}),
    "position_stride": ({}, {"position_stride": 2}),
    "position_init": ({}, {"position_init": "fourier"}),
    "position_product": ({}, {"position_product": True}),
    "embed_scale": ({}, {"embed_scale": 0.5}),
    "query_residual": ({}, {"query_residual": True}),
    "query_product": ({}, {"query_product": True}),
    "query_heads": ({}, {"query_heads": 2}),
    "query_elements": ({}, {"query_elements": True}),
    "element_order": ({}, {"element_order": "morton"}),
    "element_layers": ({}, {"element_layers": 1}),
    "element_heads": ({"element_layers": 1}, {"element_heads": 2}),
    "element_rotary": (
        {"element_layers": 1, "element_heads": 1},
        {"element_rotary": True},
    ),
    "latent_head": ({}, {"latent_head": True}),
}
LEVEL_FIELDS: dict[str, Any] = {
    "num_latents": 18,
    "latent_dim": 8,
    "depth": 0,
    "num_heads": 2,
    "num_cross_heads": 2,
    "mlp_ratio": 2,
    "cross_mlp_ratio": 2,
    "cross_dim": 12,
    "train_latents": 6,
}
HEAD_FIELDS: dict[str, Any] = {"kind": "dense_bottleneck", "num_outputs": 4, "modality": "a"}


def test_the_tables_below_name_every_field() -> None:
    assert FIELDS.keys() == {f.name for f in fields(HiPConfig)}
    assert {*LEVEL_FIELDS, "num_groups"} == {f.name for f in fields(HiPLevel)}
    assert HEAD_FIELDS.keys() == {f.name for f in fields(HiPHead)}


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_changes_something(name: str) -> None:
    before, after = FIELDS[name]
    base = replace(BASE, **before)
    trace = perform(base)
    assert not differ(trace, perform(replace(base)))  # control: nothing else makes a difference
    assert differ(trace, perform(replace(base, **after)))


@pytest.mark.parametrize("name", LEVEL_FIELDS)
def test_every_level_setting_changes_something(name: str) -> None:
    changed = replace(BASE, **level(**{name: LEVEL_FIELDS[name]}))
    assert differ(perform(BASE), perform(changed))


def test_the_number_of_groups_changes_something() -> None:
    outer = replace(OUTER, num_groups=3)
    assert differ(perform(BASE), perform(replace(BASE, levels=(outer, MIDDLE, outer))))


@pytest.mark.parametrize("name", HEAD_FIELDS)
def test_every_head_setting_changes_something(name: str) -> None:
    base = replace(BASE, head=HEAD)
    changed = replace(BASE, head=replace(HEAD, **{name: HEAD_FIELDS[name]}))
    assert differ(perform(base), perform(changed))


# -- JSON ------------------------------------------------------------------------------------


def through_json(config: HiPConfig) -> HiPConfig:
    return HiPConfig.from_json(json.loads(json.dumps(config.to_json())))


@pytest.mark.parametrize("name", [n for n in list_models() if find_family(n) == "hip"])
def test_every_variant_survives_json(name: str) -> None:
    family = FAMILIES[find_family(name)]
    config = family.config(inputs={"image": Image(32, 32, mean=(0.5,))}, **family.variants[name])
    assert through_json(config) == config
    assert through_json(config) != replace(config, init="paper")


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_survives_json(name: str) -> None:
    before, after = FIELDS[name]
    config = replace(BASE, **{**before, **after})
    assert through_json(config) == config
    assert list(through_json(config).inputs) == list(config.inputs)


def test_json_with_unknown_or_missing_fields_is_refused() -> None:
    data = BASE.to_json()
    with pytest.raises(
        ConfigError,
        match=r"HiP config has unknown fields \['drop_pth_rate'\]; did you mean 'drop_path_rate'\?",
    ):
        HiPConfig.from_json({**data, "drop_pth_rate": 0.1})
    for key in ("inputs", "levels", "token_dim"):
        partial = {k: v for k, v in data.items() if k != key}
        with pytest.raises(ConfigError, match=rf"HiP config is incomplete or malformed: .*{key}"):
            HiPConfig.from_json(partial)
    with pytest.raises(ConfigError, match=r"incomplete or malformed: .*num_gruops"):
        HiPConfig.from_json({**data, "levels": [{**data["levels"][0], "num_gruops": 3}]})
    with pytest.raises(ConfigError, match=r"incomplete or malformed"):
        HiPConfig.from_json({**data, "inputs": ["a"]})


# -- refusals --------------------------------------------------------------------------------

REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"levels": (OUTER, MIDDLE)}, r"2 levels with grouping='deal'; a hierarchy has an odd number"),
    ({"levels": (MIDDLE,)}, r"1 levels with grouping='deal'"),
    (
        {"grouping": "concatenate"},
        r"3 levels with grouping='concatenate'; .* a flat model exactly 1",
    ),
    ({"levels": (OUTER, OUTER, OUTER)}, r"the middle level has 6 groups; it must have 1"),
    (level(num_heads=3), r"level 1: latent_dim=16 must be a multiple of num_heads=3, and the 8 "),
    (level(num_cross_heads=3), r"the 8 channels below it of num_cross_heads=3"),
    ({"element_layers": 1, "element_heads": 3}, r"element_heads=3 must divide the 8 channels"),
    (
        {"element_layers": 1, "element_heads": 8, "element_rotary": True},
        r"a head has 1 channels \(8 over element_heads=8\), which must be even and at least",
    ),
    ({"query_heads": 3}, r"query_heads=3 must divide the 8 channels of the last level"),
    (level(num_cross_heads=2, cross_dim=9), r"cross_dim=9 of num_cross_heads=2"),
    (
        {"levels": (OUTER, MIDDLE, replace(OUTER, num_latents=8))},
        r"level 0 has 6 groups of 4 latents, its mirror 6 of 8; they must be equal",
    ),
    (
        {"levels": (replace(OUTER, num_groups=3), MIDDLE, OUTER)},
        r"level 0 has 3 groups of 4 latents, its mirror 6 of 4",
    ),
    (
        level(train_latents=13),
        r"level 1: train_latents=13; only the middle level may use fewer .* num_latents=12",
    ),
    (
        {"levels": (replace(OUTER, train_latents=2), MIDDLE, OUTER)},
        r"level 0: train_latents=2; only the middle",
    ),
    (level(num_latents=7), r"7 latents of one level cannot be dealt into 6 groups of the next"),
    (level(num_latents=12, train_latents=5), r"5 latents of one level cannot be dealt into 6"),
    (level(num_latents=13, train_latents=12), r"13 latents of one level cannot be dealt into 6"),
    (
        {"inputs": {"c": Labels(3)}, "labels": ("c",)},
        r"a model needs at least one input modality that is not a label",
    ),
    ({"labels": ("c",)}, r"labels \['c'\] are not among the inputs \['a', 'b'\]"),
    (
        {
            "inputs": {**INPUTS, "c": Labels(3)},
            "labels": ("c",),
            "levels": (MIDDLE,),
            "grouping": "concatenate",
        },
        r"bottleneck labels need a hierarchy",
    ),
    (
        {"inputs": {"a.b": Audio(21)}},
        r"modality names \['a\.b'\] must be non-empty and without dots",
    ),
    ({"inputs": {"": Audio(21)}}, r"modality names \[''\] must be non-empty"),
    ({"inputs": {"items": Audio(21)}}, r"modality names \['items'\] are taken by torch"),
    (
        {"positions": "fourier", "project_positions": "modality"},
        r"Fourier positions are never projected",
    ),
    (
        {"position_dim": 5},
        r"position_dim=5 differs from token_dim=8; set project_positions='modality'",
    ),
    ({"project_positions": "slot"}, r"position_slots=0 with project_positions='slot'"),
    ({"position_slots": 2}, r"position_slots=2 with project_positions='none'"),
    (
        {"inputs": {f"m{i}": Audio(4) for i in range(7)}},
        r"7 modalities \['m0'.*cannot share 6 groups",
    ),
    ({"head": HiPHead(kind="mean")}, r"head 'mean' needs num_outputs of at least 1, got 0"),
    (
        {"head": HiPHead(kind="label", modality="a")},
        r"head 'label' needs modality in labels=\(\), got 'a'",
    ),
    (
        {"head": HiPHead(kind="dense_full", num_outputs=2, modality="z")},
        r"head 'dense_full' needs a modality of \['a', 'b'\], got 'z'",
    ),
    ({"decoder": False}, r"head 'none' needs decoder=True"),
    ({"decoder": False, "head": HEAD}, r"head 'dense_full' needs decoder=True"),
    ({"activation": "swish"}, r"activation 'swish' is unknown; choose from \['gelu'"),
    ({"dropout_rate": 1.0}, r"dropout_rate is 1\.0; it must be in \[0, 1\)"),
    ({"drop_path_rate": -0.1}, r"drop_path_rate is -0\.1; it must be in \[0, 1\)"),
    ({"decode_chunk": 0}, r"decode_chunk is 0; it must be at least 1"),
    ({"token_dim": 0}, r"token_dim is 0; it must be at least 1"),
]


@pytest.mark.parametrize(("changes", "text"), REFUSALS, ids=lambda value: str(value)[:40])
def test_contradictions_are_refused_with_their_values(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        replace(BASE, **changes)


@pytest.mark.parametrize(
    "name", [f.name for f in fields(HiPLevel) if f.name not in {"depth", "train_latents"}]
)
def test_level_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"level {name} is 0; it must be at least 1"):
        replace(MIDDLE, **{name: 0})


def test_a_negative_depth_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"level depth is -1; it must not be negative"):
        replace(MIDDLE, depth=-1)


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("name", "wrong", "close"),
    [
        ("positions", "fourrier", "fourier"),
        ("regroup", "transpose", "transpose_reshape"),
        ("init", "papr", "paper"),
        ("grouping", "dael", "deal"),
        ("deal_over", "presnt", "present"),
        ("drop_path_schedule", "linar", "linear"),
        ("project_positions", "modalities", "modality"),
    ],
)
def test_a_word_that_is_no_choice_is_refused(name: str, wrong: str, close: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is '{wrong}'; choose from .*'{close}'\?"):
        replace(BASE, **{name: wrong})
    with pytest.raises(ConfigError, match=rf"{name} is '{wrong}'"):
        HiPConfig.from_json({**BASE.to_json(), name: wrong})


@pytest.mark.unhooked
def test_an_unknown_head_kind_is_refused() -> None:
    kind: Any = "querry"
    with pytest.raises(
        ConfigError, match=r"head\.kind is 'querry'; choose from .*did you mean 'query'\?"
    ):
        replace(BASE, head=HiPHead(kind=kind, num_outputs=2))
