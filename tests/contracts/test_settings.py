"""Every number of every config has a range, and every setting that may be without effect says so.

The classes and their fields are walked, so that a new one is found here without being named.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from importlib import import_module
from pkgutil import walk_packages
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import yaml

import perceivers
from perceivers.adapters.config import PositionConfig
from perceivers.data.clouds import PointMask
from perceivers.data.masks import Mask
from perceivers.errors import ConfigError
from perceivers.models.entity_set import EntitySetConfig
from perceivers.models.flat.trunk import TrunkConfig
from perceivers.models.hiera import HieraConfig, HieraDecoder
from perceivers.models.hiera_det import HieraDetConfig
from perceivers.models.hip import HiPConfig, HiPHead, HiPLevel
from perceivers.models.perceiver import PerceiverConfig
from perceivers.models.perceiver_io import PerceiverIOConfig
from perceivers.models.perceiver_io.config import DecoderConfig, Output
from perceivers.plan.estimates import PlanSettings
from perceivers.settings import (
    Range,
    Settings,
    UsedIf,
    declared,
    find_ranges,
    hints_of,
    prefix_of,
    tolerating,
    unused,
)
from perceivers.training.config import TrainConfig, build_config
from perceivers.training.run_folder import TASKS
from perceivers.types import Array, Audio, Bytes, Image, Labels, Points, Video
from perceivers.workflows.bakeoff_state import BakeoffSettings
from perceivers.workflows.shuffling import ShuffleSettings
from perceivers.workflows.starting import REASONS

RUN: dict[str, Any] = {"model": "hip_nano", "data": "digits", "out": "run"}
TRUNK: dict[str, Any] = {"num_latents": 4, "latent_dim": 8, "depth": 1}
LEVEL: dict[str, Any] = {
    "num_groups": 1,
    "num_latents": 4,
    "latent_dim": 8,
    "depth": 1,
    "num_heads": 1,
}
PICTURE = {"image": Image(32, 32, 1)}
CLOUD = {"points": Points(4)}
# What the classes that have required fields need.
REQUIRED: Mapping[type, Mapping[str, Any]] = {
    **dict.fromkeys((TrainConfig, *TASKS.values()), RUN),
    PlanSettings: {"model": "hip_nano"},
    BakeoffSettings: {"data": "digits", "steps": 1},
    ShuffleSettings: {"data": "digits"},
    Image: {"height": 4, "width": 4},
    Video: {"frames": 2, "height": 4, "width": 4},
    Audio: {"samples": 8},
    Points: {"points": 4},
    Array: {"shape": (3, 4)},
    Labels: {"num_classes": 3},
    Bytes: {"length": 8},
    Mask: {"height": 4, "width": 4},
    PointMask: {"points": 4},
    TrunkConfig: TRUNK,
    Output: {"dim": 4},
    HiPLevel: LEVEL,
    HiPConfig: {
        "inputs": PICTURE,
        "levels": (HiPLevel(**LEVEL),) * 3,
        "token_dim": 8,
        "position_dim": 8,
    },
    PerceiverConfig: {"inputs": PICTURE, "trunk": TrunkConfig(**TRUNK), "num_outputs": 2},
    PerceiverIOConfig: {
        "inputs": PICTURE,
        "trunk": TrunkConfig(**TRUNK),
        "outputs": {"classes": Output(dim=4)},
    },
    EntitySetConfig: {"inputs": CLOUD, "trunk": TrunkConfig(**TRUNK)},
    HieraConfig: {"inputs": PICTURE, "depths": (1, 1), "mask_unit": (4, 4)},
    HieraDetConfig: {"inputs": PICTURE, "global_blocks": ()},
}


TWO = {"a": Image(4, 4, 1), "b": Image(4, 4, 1)}
WAVES = PositionConfig(kind="fourier", num_bands=2)
ASKED = {"queries": "positions", "modality": "image"}
FLAT = {"grouping": "concatenate", "levels": (HiPLevel(**LEVEL),)}
WAVY = {"positions": "fourier"}
ENCODER = {"decoder": False, "head": HiPHead(kind="mean", num_outputs=2)}
CLIPS = {
    "inputs": {"video": Video(4, 16, 16)},
    "patch_kernel": (3, 3, 3),
    "patch_stride": (2, 2, 2),
    "mask_unit": (1, 4, 4),
    "pool": (1, 2, 2),
}


def subclasses(kind: type) -> Iterator[type]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


def every_module() -> None:
    for module in walk_packages(perceivers.__path__, "perceivers."):
        if "__main__" not in module.name and ".runtime" not in module.name:
            import_module(module.name)


every_module()
# Bases without fields of their own are never made.
CONFIGS = [
    kind
    for kind in dict.fromkeys(subclasses(Settings))
    if kind.__module__.startswith("perceivers.") and fields(kind)  # pyright: ignore[reportArgumentType]
]
NUMBERS = [(kind, each) for kind in CONFIGS for each in fields(kind) if each.init]  # pyright: ignore[reportArgumentType]


def leaves(hint: Any, limits: Range | None = None) -> Iterator[tuple[type, Range | None]]:
    """Every int and float in an annotation, with the range that holds for it."""
    if get_origin(hint) is Annotated:
        found = declared(hint, Range)
        yield from leaves(get_args(hint)[0], found[0] if found else limits)
    elif hint in {int, float}:
        yield hint, limits
    elif get_origin(hint) is not Literal:
        for part in get_args(hint):
            yield from leaves(part, limits)


def outside(kind: type, limits: Range) -> Iterator[Any]:
    """Numbers just outside a range, in the type of the field."""
    step = 1 if kind is int else 1e-9
    for bound, sign in ((limits.least, -1), (limits.most, 1)):
        if bound is not None:
            yield kind(bound) + sign * max(step, step * abs(bound))
    for bound in (limits.above, limits.below):
        if bound is not None:
            yield kind(bound)
    if kind is float:
        yield from (math.nan, math.inf, -math.inf)
    else:
        yield 10**30


def inside(limits: Range) -> Any:
    """A number in a range."""
    candidates = (1, 0.5, 0, limits.least, limits.most)
    return next(each for each in candidates if each is not None and each in limits)


def wrong(hint: Any, limits: Range | None = None) -> Iterator[Any]:
    """Values of a type, of which exactly one number is out of range."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        found = declared(hint, Range)
        yield from wrong(parts[0], found[0] if found else limits)
    elif hint in {int, float}:
        assert limits is not None
        yield from outside(hint, limits)
    elif origin in {Union, UnionType}:
        for part in parts:
            yield from wrong(part, limits)
    elif origin is tuple and parts[-1] is not Ellipsis:
        for place, part in enumerate(parts):
            good = [float(inside(find_ranges(each)[0])) for each in parts]
            for value in wrong(part, limits):
                yield tuple(value if i == place else g for i, g in enumerate(good))
    elif origin in {dict, Mapping}:
        yield from ({"a": value} for value in wrong(parts[1], limits))
    elif origin is not None and origin is not Literal and parts:
        yield from ((value,) for value in wrong(parts[0], limits))


def title(case: tuple[type, Field[Any]]) -> str:
    return f"{case[0].__name__}.{case[1].name}"


def test_every_config_is_checked() -> None:
    """A dataclass that is named as one derives from the base that checks."""
    named = re.compile(r"(Config|Settings|Head|Level)$")
    # Made by the program of settings that were checked.
    made = {"MaskSettings"}
    found = {
        each
        for name, module in list(vars(import_module("sys"))["modules"].items())
        if name.startswith("perceivers.")
        for each in vars(module).values()
        if isinstance(each, type) and is_dataclass(each) and named.search(each.__name__)
    }
    assert {each.__name__ for each in found if not issubclass(each, Settings)} == made
    assert found - set(CONFIGS) - {Settings} == {e for e in found if e.__name__ in made}
    assert len(CONFIGS) > 40


@pytest.mark.parametrize(("kind", "field"), NUMBERS, ids=map(title, NUMBERS))
def test_every_number_declares_a_range(kind: type, field: Field[Any]) -> None:
    for number, limits in leaves(hints_of(kind)[field.name]):
        assert limits is not None, f"{title((kind, field))} holds an {number.__name__} of any size"


RANGED = [case for case in NUMBERS if any(leaves(hints_of(case[0])[case[1].name]))]


@pytest.mark.parametrize(("kind", "field"), RANGED, ids=map(title, RANGED))
def test_a_number_outside_its_range_is_refused_by_name(kind: type, field: Field[Any]) -> None:
    required = REQUIRED.get(kind, {})
    kind(**required)
    name = re.escape(prefix_of(kind) + field.name)
    values = list(wrong(hints_of(kind)[field.name]))
    assert values
    for value in values:
        with pytest.raises(ConfigError, match=rf"{name}\b.* is "):
            kind(**{**required, field.name: value})


@pytest.mark.unhooked
@pytest.mark.parametrize(("kind", "field"), RANGED, ids=map(title, RANGED))
def test_what_is_no_number_is_refused_by_name(kind: type, field: Field[Any]) -> None:
    required = REQUIRED.get(kind, {})
    name = re.escape(prefix_of(kind) + field.name)
    (number, _), *_ = leaves(hints_of(kind)[field.name])
    for value in (True, "many", object(), *([math.nan, 1.5] if number is int else [])):
        if isinstance(value, str) and str in get_args(hints_of(kind)[field.name]):
            continue
        with pytest.raises(ConfigError, match=rf"{name}\b.* is "):
            kind(**{**required, field.name: value})


def nested(kind: type, prefix: str = "") -> Iterator[tuple[str, Field[Any], Any]]:
    """Every number of a training config by its name in a file, with its annotation."""
    for field in fields(kind):  # pyright: ignore[reportArgumentType]
        hint = hints_of(kind)[field.name]
        if isinstance(hint, type) and issubclass(hint, Settings):
            yield from nested(hint, f"{prefix}{field.name}.")
        elif any(leaves(hint)):
            yield f"{prefix}{field.name}", field, hint


def as_tree(name: str, value: Any) -> dict[str, Any]:
    first, _, rest = name.partition(".")
    return {first: as_tree(rest, value) if rest else value}


OWN = [(task, *each) for task, kind in TASKS.items() for each in nested(kind)]
# What all tasks share is tried once.
OWN = list({case[1]: case for case in OWN}.values())


@pytest.mark.slow
def test_files_are_checked_alike() -> None:
    for task, name, _, hint in OWN:
        value = list(wrong(hint))[-1]  # minus infinity, or an integer of thirty digits
        plain = list(value) if isinstance(value, tuple) else value
        text = yaml.safe_dump({**RUN, **as_tree(name, plain)})
        with pytest.raises(ConfigError, match=name.rpartition(".")[2]):
            build_config(TASKS[task], yaml.safe_load(text))


# -- settings without effect -------------------------------------------------------------------

# A value of every setting that has a condition, and settings under which it has no effect and one.
EFFECTS: Mapping[str, tuple[Any, Mapping[str, Any], Mapping[str, Any]]] = {
    "OptimizerConfig.momentum": (0.9, {}, {"name": "muon"}),
    "OptimizerConfig.matrix_lr": (1.0, {}, {"name": "muon"}),
    "OptimizerConfig.decay_arrays": (True, {"weight_decay": 0.0}, {}),
    "ScheduleConfig.constant": (0.3, {}, {"name": "constant-cosine"}),
    "AugmentConfig.magnitude": (7, {}, {"rand_augment": 1}),
    "AugmentConfig.time_fill": ("wrap", {}, {"time_shift": 0.1}),
    "AugmentConfig.noise_ratio": ((0.0, 9.0), {}, {"noise": 0.5}),
    "AugmentConfig.turn_axis": ("x", {}, {"turn": 5.0}),
    "RegressionConfig.delta": (2.0, {}, {"loss": "huber"}),
    "FlowTrainConfig.max_flow": (2.0, {}, {"data": "warps:x"}),
    "FlowTrainConfig.repeats": (2, {}, {"data": "warps:x"}),
    "PlanSettings.classes": (5, {"data": "digits"}, {}),
    "PlanSettings.epochs": (2.0, {"steps": 3}, {}),
    "PlanSettings.peak": (9.0, {"measure": 1}, {}),
    "PlanSettings.utilisation": (0.5, {"measure": 1}, {}),
    "PlanSettings.sharded": (True, {}, {"devices": 2}),
    **{
        f"{kind}.order_seed": (5, {}, {"order": "fixed"})
        for kind in ("Image", "Video", "Audio", "Points", "Array", "Bytes")
    },
    "PositionConfig.num_bands": (4, {"kind": "learned", "dim": 4}, {"kind": "fourier"}),
    "PositionConfig.max_resolution": ((4,), {}, {"kind": "fourier"}),
    "PositionConfig.sine_only": (True, {}, {"kind": "fourier"}),
    "PositionConfig.keep_coordinates": (False, {}, {"kind": "fourier"}),
    "PositionConfig.dim": (4, {}, {"kind": "learned"}),
    "PositionConfig.project": (4, {}, {"kind": "fourier"}),
    "PositionConfig.extra_layers": (1, {}, {"kind": "fourier"}),
    "PositionConfig.combine": ("add", {}, {"kind": "fourier"}),
    "TokenConfig.stride": ((2,), {"content": "conv", "dim": 4}, {}),
    "TokenConfig.num_convs": (2, {}, {"content": "conv", "dim": 4}),
    "TokenConfig.padding": ("hf", {}, {"content": "conv", "dim": 4}),
    "TokenConfig.batch_norm": (False, {}, {"content": "conv", "dim": 4}),
    "TokenConfig.contrast": (3, {}, {"content": "conv", "dim": 4}),
    "TrunkConfig.share_blocks": (False, {}, {"num_blocks": 2}),
    "TrunkConfig.reads": ("at_start", {}, {"num_reads": 2}),
    "TrunkConfig.share_reads": ("all", {}, {"num_reads": 2, "num_blocks": 2}),
    "TrunkConfig.num_heads": (4, {"depth": 0}, {}),
    "TrunkConfig.attention_width": ("latents", {"qk_dim": 8}, {}),
    "TrunkConfig.mlp_ratio": (4, {"depth": 0}, {}),
    "TrunkConfig.dropout_rate": (0.1, {"depth": 0}, {}),
    "Output.length": (2, {**ASKED, "positions": WAVES, "dim": 0}, {}),
    "Output.dim": (8, {**ASKED, "positions": WAVES}, {}),
    "Output.positions": (WAVES, {}, {**ASKED, "dim": 0}),
    "Output.patch": (
        (2, 2),
        {"channels": 1},
        {**ASKED, "positions": WAVES, "dim": 0, "channels": 1},
    ),
    "Output.sampled": ("cell", {}, {**ASKED, "positions": WAVES, "dim": 0}),
    "PerceiverConfig.min_padding": (8, {}, {"inputs": TWO}),
    "PerceiverConfig.mask_tokens": (True, {}, {"inputs": TWO}),
    "PerceiverIOConfig.min_padding": (8, {}, {"inputs": TWO}),
    "PerceiverIOConfig.mask_tokens": (True, {}, {"inputs": TWO}),
    "PerceiverIOConfig.decoder": (
        DecoderConfig(min_padding=8),
        {},
        {"outputs": {"a": Output(dim=4), "b": Output(dim=4)}},
    ),
    "HiPLevel.mlp_ratio": (2, {"depth": 0}, {}),
    "HiPHead.num_outputs": (5, {}, {"kind": "mean"}),
    "HiPHead.modality": ("x", {"kind": "query", "num_outputs": 2}, {"kind": "label"}),
    "HiPConfig.num_bands": (2, {}, {"positions": "fourier"}),
    "HiPConfig.position_stride": (2, WAVY, {}),
    "HiPConfig.position_init": ("fourier", WAVY, {}),
    "HiPConfig.position_product": (True, WAVY, {}),
    "HiPConfig.query_residual": (True, ENCODER, {}),
    "HiPConfig.query_product": (True, ENCODER, {}),
    "HiPConfig.query_heads": (2, ENCODER, {}),
    "HiPConfig.query_elements": (True, ENCODER, {}),
    "HiPConfig.element_order": ("morton", FLAT, {}),
    "HiPConfig.element_layers": (2, FLAT, {}),
    "HiPConfig.element_heads": (2, {}, {"element_layers": 1}),
    "HiPConfig.element_rotary": (True, {}, {"element_layers": 1, "element_heads": 1}),
    "HiPConfig.latent_head": (True, ENCODER, {}),
    "MaskedAutoencodingConfig.teacher": ("runs/a", {}, {"target": "latent"}),
    "MaskedAutoencodingConfig.latent_weight": (0.5, {}, {"target": "latent"}),
    "HiPConfig.deal_over": ("present", FLAT, {}),
    "HiPConfig.mask_padding": (False, FLAT, {}),
    "HiPConfig.regroup": ("transpose_reshape", FLAT, {}),
    "HiPConfig.drop_path_schedule": ("linear", {}, {"drop_path_rate": 0.1}),
    "HiPConfig.decode_chunk": (7, ENCODER, {}),
    "HieraHead.num_outputs": (5, {}, {"kind": "mean"}),
    "HieraHead.dim": (
        8,
        {"kind": "mean", "num_outputs": 2},
        {"kind": "segmentation", "num_outputs": 2},
    ),
    "HieraConfig.position_grid": ((3, 3), {}, {"positions": "window"}),
    "HieraConfig.position_resize": ("plain", {"positions": "window"}, {}),
    "HieraConfig.position_antialias": (False, {}, {"positions": "window"}),
    "HieraConfig.decoder": (HieraDecoder(all_frames=True), {}, CLIPS),
}
CONDITIONAL = [case for case in NUMBERS if declared(hints_of(case[0])[case[1].name], UsedIf)]


def test_every_condition_is_tried() -> None:
    assert {title(case) for case in CONDITIONAL} == set(EFFECTS)


@pytest.mark.parametrize(("kind", "field"), CONDITIONAL, ids=map(title, CONDITIONAL))
def test_a_setting_without_effect_is_refused_with_the_reason(kind: type, field: Field[Any]) -> None:
    value, idle, used = EFFECTS[title((kind, field))]
    required = REQUIRED.get(kind, {})
    name = re.escape(prefix_of(kind) + field.name)
    with pytest.raises(ConfigError, match=rf"^{name}\b.* has no effect .*; leave it out"):
        kind(**{**required, **idle, field.name: value})
    made = kind(**{**required, **used, field.name: value})
    assert unused(made) == {}
    # Defaults are never refused: a recorded config holds them all.
    given = {key: each for key, each in {**required, **idle}.items() if key != field.name}
    kind(**given)
    with tolerating("unused") as notes:
        kind(**{**required, **idle, field.name: value})
    assert len(notes) == 1


# Settings without a condition on others, after the reason that they share.
ALWAYS: Mapping[str, str] = {
    "OptimizerConfig": "each enters every update: name lr betas weight_decay eps layer_decay clip",
    "ScheduleConfig": "each shapes every schedule: name warmup final",
    "AugmentConfig": (
        "each changes samples by itself, of the kinds that it declares: crop_scale crop_ratio "
        "crop_from flip rotate shift rand_augment erase copies gain time_shift noise invert turn "
        "point_scale jitter point_drop word_drop text_shift"
    ),
    "TrainConfig": (
        "what is trained, on what, how long; unknown columns are refused: model data out "
        "steps batch_size accumulate labels modalities inputs seed optimizer schedule augment"
        " integer_labels modality_dropout ema recompute compile model_options precision device "
        "devices nodes strategy workers log_every eval_every checkpoint_every minutes limit "
        "max_bad_share loader_timeout memory_limit loggers"
    ),
    "PretrainConfig": "refused by name if the model has no such part: mask",
    "MaskedAutoencodingConfig": "refused for other families: ratio kind target weights queried",
    "ClassifyConfig": "refused where a family has no such head: head loss",
    "ClassificationConfig": "each changes the loss: label_smoothing mixup cutmix class_weights",
    "MlmConfig": "of the task: mlm",
    "MaskedLanguageConfig": "each changes what is hidden: ratio train_ratio unit mask_share "
    "random_share",
    "AutoencodeConfig": "of the task: autoencode",
    "AutoencodingConfig": "each changes the loss: points mask_ratio loss weights",
    "MultitaskConfig": "changes the loss: label_smoothing",
    "MultilabelTrainConfig": "of the task: multilabel",
    "MultilabelConfig": "unknown modalities are refused: input_dropout",
    "FlowTrainConfig": "of the task: flow",
    "FlowConfig": "each changes the loss: kind scale",
    "SegmentConfig": "refused where a family has no such head: head segment",
    "SegmentationConfig": "a class that is not there is refused: ignore class_weights exif_masks",
    "RegressConfig": "columns that are not there are refused: targets head regress",
    "RegressionConfig": "changes the loss: loss",
    "PlanSettings": (
        "each is part of what is counted or of the machine: model task data inputs batch_size "
        "accumulate precision recompute settings samples steps device memory devices measure "
        "sample_bytes hourly_cost"
    ),
    "BenchSettings": (
        "each changes what is measured or written: models sizes passes rounds peers reference "
        "memory_limit batch_size threads precision device timeout"
    ),
    "BakeoffSettings": (
        "each changes who competes or for how long: data minutes steps reduce task labels targets "
        "models rates seed settings"
    ),
    "ShuffleSettings": (
        "each changes all runs alike: data model steps seeds seed batch_size lr task labels "
        "targets settings"
    ),
    "AnomalySettings": "each changes scores or maps: repeats ratio top draw batch_size seed",
    "Views": "views that would all be the same are refused: temporal spatial",
    "PositionConfig": "tests/adapters changes it: kind",
    "TokenConfig": "tests/adapters change each; a mask rate without mask token is refused: content "
    "patch dim positions mask_rate",
    "TrunkConfig": "tests/models/test_flat_trunk.py changes each: num_latents latent_dim depth "
    "num_blocks num_reads num_cross_heads qk_dim v_dim cross_mlp_ratio residual activation",
    "Output": "tests/models/test_perceiver_io*.py change each: queries modality channels head "
    "mask_padding divide_by",
    "DecoderConfig": "tests/models/test_perceiver_io*.py change each: num_heads qk_dim v_dim "
    "residual mlp_ratio project min_padding chunk",
    "PerceiverConfig": "test_perceiver.py changes each: inputs trunk num_outputs tokens init",
    "PerceiverIOConfig": "test_perceiver_io_config.py changes each: inputs trunk outputs tokens "
    "init",
    "EntitySetConfig": "tests/models/test_entity_set.py changes each: inputs trunk token_dim "
    "embed_dim decoder pointer",
    "HiPLevel": "sizes of weights: num_groups num_latents latent_dim depth num_heads "
    "num_cross_heads cross_dim cross_mlp_ratio train_latents",
    "HiPHead": "what the others depend on: kind",
    # Released models do not rescale; a rate that is set for fine-tuning acts as theirs did.
    "HiPConfig": "tests/models/test_config.py and test_hip.py; contradictions are refused: inputs "
    "levels token_dim position_dim positions project_positions position_slots embed_scale "
    "grouping labels decoder head activation dropout_rate drop_path_rate drop_path_rescale init",
    "HieraHead": "what the others depend on: kind",
    "HieraDecoder": "tests/models/test_hiera_config.py changes each: dim depth num_heads order "
    "all_frames latent_head",
    "HieraConfig": "tests/models/test_hiera_config.py changes each: inputs dim num_heads depths "
    "patch_kernel patch_stride mask_unit pool num_pools local_stages mlp_ratio shortcut "
    "layer_scale positions dropout_rate drop_path_rate unit_drop_rate pad feature_norms head init",
    "HieraDetConfig": "tests/models/test_hiera_det.py; contradictions are refused: inputs dim "
    "num_heads depths windows global_blocks patch_kernel patch_stride pool position_grid mlp_ratio "
    "dropout_rate drop_path_rate head",
    "Image": "what is read: height width channels mean std order",
    "Video": "what is read: frames height width channels frame_rate mean std order",
    "Audio": "what is read: samples channels sample_rate mean std order",
    "Points": "what is read: points channels mean std ragged scale order",
    "Array": "what is read: shape channels mean std order",
    "Labels": "what is read: num_classes length",
    "Bytes": "what is read: length wrap order",
    "Mask": "what is read: height width num_classes ignore exif",
    "PointMask": "what is read: points num_classes ignore",
}


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_every_setting_has_a_condition_or_a_reason_to_have_none(kind: type) -> None:
    inherited = {
        each.name
        for base in kind.__mro__[1:]
        if base in CONFIGS
        for each in fields(base)  # pyright: ignore[reportArgumentType]
    }
    own = {each.name for each in fields(kind) if each.init} - inherited  # pyright: ignore[reportArgumentType]
    conditional = {field.name for owner, field in CONDITIONAL if owner is kind}
    judged = {name.rpartition(".")[2] for name in REASONS if is_of(kind, name)}
    listed = set(ALWAYS.get(kind.__name__, ": ").partition(": ")[2].split())
    assert own == (conditional & own) | (judged & own) | listed
    assert not listed & (conditional - PARTS | judged)


# Conditions on a part of a nested config leave the field itself always effective.
PARTS = {"decoder"}


def is_of(kind: type, name: str) -> bool:
    """Tell whether a setting that is judged when the data are open is a field of a config."""
    group = name.rpartition(".")[0]
    return prefix_of(kind) == (f"{group}." if group else "") and issubclass(
        kind, TrainConfig if not group else Settings
    )
