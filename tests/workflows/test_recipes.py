"""Packaged recipes: listed, copied, and every one of them builds what it promises."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import perceivers as pv
from perceivers.errors import ConfigError
from perceivers.models.registry import FAMILIES, find_family, list_models
from perceivers.training.config import build_config, read_yaml
from perceivers.training.run_folder import TASKS
from perceivers.types import ModalitySpec
from perceivers.workflows.building import model_options
from perceivers.workflows.opening import copy_recipe, find_recipe, list_recipes, settings_file
from perceivers.workflows.task_table import tasks_of

NAMES = [recipe.name for recipe in list_recipes()]
# What each recipe's data hold, where the recipe does not say.
SPECS: dict[str, dict[str, ModalitySpec]] = {
    "clip_autoencoding": {
        "video": pv.Video(8, 48, 48),
        "audio": pv.Audio(5120, sample_rate=16000),
        "label": pv.Labels(4),
    },
    "clip_finetuning": {"video": pv.Video(16, 64, 64)},
    "hip_photographs": {"image": pv.Image(64, 64)},
    "hip_photograph_finetuning": {"image": pv.Image(64, 64)},
    "masked_bytes": {"bytes": pv.Bytes(128)},
    "masked_clips": {"video": pv.Video(16, 64, 64)},
    "masked_photographs": {"image": pv.Image(64, 64)},
    "nano_photographs": {"image": pv.Image(64, 64)},
    "nano_photograph_finetuning": {"image": pv.Image(64, 64)},
    "photograph_finetuning": {"image": pv.Image(64, 64)},
    "photographs": {"image": pv.Image(48, 48)},
    "raw_audio": {"audio": pv.Audio(4096, sample_rate=8000)},
    "raw_audio_video": {"video": pv.Video(20, 72, 72), "audio": pv.Audio(12800)},
    "raw_images": {"image": pv.Image(64, 64)},
    "raw_points": {"points": pv.Points(296, ragged=True, scale="unit")},
    "raw_texts": {"bytes": pv.Bytes(256)},
    "regression": {"image": pv.Image(64, 64)},
    "segmentation": {"image": pv.Image(64, 64)},
    "point_segmentation": {"points": pv.Points(64, 3, ragged=True, scale="centre")},
    "point_clouds": {"points": pv.Points(64, 3, ragged=True, scale="unit")},
    "sound_labels": {"audio": pv.Audio(8000, sample_rate=8000)},
    "sounds": {"audio": pv.Audio(80000, sample_rate=44100)},
    "spoken_words": {"audio": pv.Audio(9000, sample_rate=8000)},
    "text_classification": {"bytes": pv.Bytes(256)},
    "text_multitask": {"bytes": pv.Bytes(256)},
    "texts": {"bytes": pv.Bytes(512)},
    "unit_selection": {"points": pv.Points(32, 6, ragged=True)},
}
CLASSES: dict[str, Any] = {
    "clip_finetuning": 4,
    "hip_photograph_finetuning": 6,
    "nano_photograph_finetuning": 6,
    "photograph_finetuning": 6,
    "photographs": 10,
    "point_clouds": 26,
    "point_segmentation": 2,
    "regression": 1,
    "segmentation": 11,
    "sound_labels": 20,
    "sounds": 10,
    "spoken_words": 10,
    "text_classification": 4,
    "texts": 14,
    "text_multitask": {"topics": 4, "intents": 77},
}
REQUIRED = {"data": "warps:DATA", "out": "OUT"}  # flow pairs are generated; others do not care
# At the size of a paper; the others are for a CPU.
LARGE = {name for name in NAMES if name == "imagenet" or name.startswith("hiera_")}
# What fine-tuning starts from.
PRETRAINED = {
    "clip_finetuning": "hiera_nano_video",
    "hip_photograph_finetuning": "hip_tiny",
    "nano_photograph_finetuning": "hiera_nano",
    "photograph_finetuning": "hiera_pico",
    "hiera_imagenet_finetuning": "hiera_base_224",
    "hiera_kinetics_finetuning": "hiera_base_16x224",
}


def model_of(name: str, model: str) -> str:
    """The variant that a recipe trains."""
    assert (model in list_models()) != (name in PRETRAINED)
    return PRETRAINED.get(name, model)


def test_recipes_are_listed_by_name_with_a_sentence() -> None:
    assert sorted(NAMES) == NAMES
    assert {"imagenet", "masked_bytes", "optical_flow"} <= set(NAMES)
    for recipe in list_recipes():
        assert recipe.title.endswith(".")
        assert recipe.text.startswith(f"# {recipe.title}\n# {recipe.command}")
        assert find_recipe(recipe.name) == recipe


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"recipe 'masked_byte' is unknown; there are .*masked_byt"
    ):
        find_recipe("masked_byte")
    with pytest.raises(ConfigError, match=r"did you mean 'masked_bytes'\?"):
        find_recipe("masked_byte")


def test_a_copy_is_the_file_and_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = copy_recipe("masked_bytes", tmp_path)
    assert path == tmp_path / "masked_bytes.yaml"
    assert path.read_text() == find_recipe("masked_bytes").text
    path.write_text("steps: 3\n")
    with pytest.raises(ConfigError, match=r"masked_bytes\.yaml exists; pass --overwrite"):
        copy_recipe("masked_bytes", tmp_path)
    assert path.read_text() == "steps: 3\n"
    copy_recipe("masked_bytes", tmp_path, overwrite=True)
    assert path.read_text() == find_recipe("masked_bytes").text


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_a_config_of_its_task(name: str, tmp_path: Path) -> None:
    settings = read_yaml(copy_recipe(name, tmp_path))
    task = settings.pop("task")
    config = build_config(TASKS[task], {**settings, **REQUIRED})
    model_options(config, find_family(model_of(name, config.model)))
    # The command in the second line is that of the task, and names the file.
    words = find_recipe(name).command.split()
    assert words[:4] == ["perceivers", words[1], "--config", f"{name}.yaml"]
    assert task in tasks_of(words[1])
    flags = {word for word in words if word.startswith("--")}
    assert {"--config", "--data", "--out"} <= flags
    rebuilt = build_config(TASKS[task], yaml.safe_load(yaml.safe_dump(config.to_json())))
    assert rebuilt == config


@pytest.mark.parametrize("name", [n for n in NAMES if n not in LARGE])
def test_every_recipe_for_a_cpu_builds_its_model(name: str) -> None:
    settings = yaml.safe_load(find_recipe(name).text)
    task = settings.pop("task")
    config = build_config(TASKS[task], {**settings, **REQUIRED})
    variant = model_of(name, config.model)
    options = model_options(config, find_family(variant))
    inputs = {
        modality: replace(spec, **config.inputs.get(modality, {}))
        for modality, spec in SPECS.get(name, {}).items()
    }
    assert config.inputs.keys() <= inputs.keys()
    with torch.device("meta"):
        model = pv.create_model(
            variant, inputs=inputs or None, num_classes=CLASSES.get(name), **options
        )
    assert model.family in FAMILIES
    assert sum(parameter.numel() for parameter in model.parameters()) < 20_000_000
    assert task != "multitask" or set(model.config.outputs) == {"topics", "intents"}
    assert task != "autoencode" or set(model.config.outputs) == set(inputs)
    assert task != "flow" or list(model.config.outputs) == ["flow"]


@pytest.mark.parametrize("name", sorted(LARGE))
def test_the_recipes_of_the_papers_build_on_the_meta_device(name: str) -> None:
    settings = yaml.safe_load(find_recipe(name).text)
    config = build_config(TASKS[settings.pop("task")], {**settings, **REQUIRED})
    variant = model_of(name, config.model)
    options = model_options(config, find_family(variant))
    masked: dict[str, Any] = {"decoder": True} if name.endswith("pretraining") else {}
    classes = None if masked else 1000
    with torch.device("meta"):
        model = pv.create_model(variant, num_classes=classes, **masked, **options)
    ((modality, spec),) = model.config.inputs.items()
    stated = config.inputs.get(modality, {"height": config.size, "width": config.size})
    assert {key: getattr(spec, key) for key in stated if key != "frame_rate"} == {
        key: value for key, value in stated.items() if key != "frame_rate"
    }
    assert (model.config.num_classes == 1000) != bool(masked)


def test_a_name_means_a_recipe_unless_there_is_such_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("texts", "texts.yaml"):
        assert settings_file(name).read_text() == find_recipe("texts").text
    for name in ("absent", "other/texts.yaml", ""):
        assert settings_file(name) == Path(name)
    Path("texts.yaml").write_text("seed: 1\n")
    assert settings_file("texts.yaml") == Path("texts.yaml")
    assert settings_file("texts").read_text() == find_recipe("texts").text
