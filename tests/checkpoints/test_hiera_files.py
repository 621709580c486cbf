"""Files of the official Hiera and of timm's: read, written, told apart, and what is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints import hiera_making as making
from torch import Tensor

import perceivers as pv
from perceivers.checkpoints.formats import Source, find_format
from perceivers.checkpoints.hiera_files import (
    hiera_from_tensors,
    save_official,
    save_timm,
    tell_library,
)
from perceivers.checkpoints.hiera_names import (
    Library,
    constructor_arguments,
    hiera_entries,
    stated_by_hub,
)
from perceivers.checkpoints.loading import load_with_info
from perceivers.checkpoints.torch_files import read_tensor_file
from perceivers.checkpoints.verify import import_package
from perceivers.errors import CheckpointError, ConfigError, LicenseWarning
from perceivers.models.hiera import Hiera, HieraConfig, HieraDecoder

KINDS = [("official", name) for name in making.OFFICIAL] + [("timm", name) for name in making.TIMM]
SAVE = {"official": save_official, "timm": save_timm}


def config_of(library: str, name: str) -> HieraConfig:
    return (making.OFFICIAL if library == "official" else making.TIMM)[name]


def write(library: str, name: str, folder: Path) -> tuple[Hiera, Path]:
    """Write a tiny model as that library does, and return it with the file."""
    model = making.make(config_of(library, name))
    path = folder / ("x.pth" if library == "official" else "x.safetensors")
    SAVE[library](model, path)
    return model, path


def state_settings(folder: Path, **stated: Any) -> Path:
    (folder / "stated.json").write_text(json.dumps(stated))
    return folder / "stated.json"


def stated_of(config: HieraConfig) -> dict[str, Any]:
    return making.STATED_DECODER if config.decoder else making.STATED


# -- there and back --------------------------------------------------------------------------------


@pytest.mark.parametrize(("library", "name"), KINDS)
def test_a_file_goes_there_and_back_bit_by_bit(library: str, name: str, tmp_path: Path) -> None:
    model, path = write(library, name, tmp_path)
    settings = state_settings(tmp_path, **stated_of(model.config))
    done = pv.convert(path, tmp_path / "ours", config=settings)
    assert done.notes == ()
    loaded = load_with_info(tmp_path / "ours")
    assert loaded.model.config == model.config
    assert making.equal(loaded.model.state_dict(), model.state_dict())
    again = tmp_path / f"again{path.suffix}"
    pv.convert(tmp_path / "ours", again, to="official" if library == "official" else "timm")
    assert making.equal(read_tensor_file(again), read_tensor_file(path))
    titles = {"official": "official Hiera", "timm": "timm Hiera"}
    assert loaded.info.provenance["converted_from"] == titles[library]


def test_what_a_model_is_for_travels_along(tmp_path: Path) -> None:
    for name, task in (("image", "classify"), ("image_mae", "pretrain")):
        model, path = write("official", name, tmp_path)
        settings = state_settings(tmp_path, **stated_of(model.config))
        pv.convert(path, tmp_path / name, config=settings)
        info = load_with_info(tmp_path / name).info
        assert info.task == task
        assert info.classes == (("0", "1", "2", "3", "4") if task == "classify" else ())
        assert info.target == ("" if task == "classify" else "patch-normalised")


def test_the_official_layout_is_that_of_its_package(tmp_path: Path) -> None:
    _, path = write("official", "image_mae", tmp_path)
    whole = torch.load(path, weights_only=True)
    assert list(whole) == ["model_state"]
    shapes = {name: tuple(x.shape) for name, x in whole["model_state"].items()}
    wanted = {
        "pos_embed": (1, 256, 4),
        "mask_token": (1, 1, 8),
        "decoder_pos_embed": (1, 16, 8),
        "multi_scale_fusion_heads.0.weight": (32, 4, 4, 4),
        "multi_scale_fusion_heads.1.weight": (32, 8, 2, 2),
        "decoder_pred.weight": (768, 8),
        "encoder_norm.bias": (32,),
    }
    assert {name: shapes[name] for name in wanted} == wanted


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
def test_timm_s_weights_are_read_from_any_kind_of_file(suffix: str, tmp_path: Path) -> None:
    model = making.make(making.TIMM["window_pool"])
    path = tmp_path / f"hiera{suffix}"
    save_timm(model, path)
    tensors = read_tensor_file(path)
    assert tuple(tensors["pos_embed"].shape) == (1, 4, 5, 5)
    assert tuple(tensors["pos_embed_win"].shape) == (1, 4, 8, 8)
    again = hiera_from_tensors(tensors, "timm", making.STATED, "x")
    assert making.equal(again.state_dict(), model.state_dict())


def test_timm_keeps_the_encoder_of_an_auto_encoder(tmp_path: Path) -> None:
    model = making.make(making.OFFICIAL["image_mae"])
    model.save_pretrained(tmp_path / "ours")
    done = pv.convert(tmp_path / "ours", tmp_path / "x.safetensors", to="timm")
    left = sum(name.startswith("decoder.") for name in model.state_dict())
    assert done.notes == (f"timm has no decoder: {left} tensors are not written",)
    encoder = hiera_from_tensors(load_file(tmp_path / "x.safetensors"), "timm", making.STATED, "x")
    assert encoder.config.pools == 3
    kept = {n: x for n, x in model.state_dict().items() if not n.startswith("decoder.")}
    assert making.equal(encoder.state_dict(), kept)


def test_a_bare_backbone_leaves_the_norm_without_effect(tmp_path: Path) -> None:
    model, path = write("timm", "headless", tmp_path)
    tensors = {n: x for n, x in load_file(path).items() if not n.startswith("head.")}
    bare = hiera_from_tensors(tensors, "timm", making.STATED, "x")
    assert bare.norm is not None
    assert torch.equal(bare.norm.weight, torch.ones(32))
    assert torch.equal(bare.norm.bias, torch.zeros(32))
    x = torch.rand(1, 3, 64, 64)
    first, second = (m.forward_features(x).maps[-1] for m in (bare, model))
    assert torch.equal(first, second)


# -- what is told, and what must be stated ---------------------------------------------------------


@pytest.mark.parametrize(("library", "name"), KINDS)
def test_whose_names_they_are_is_told(library: str, name: str, tmp_path: Path) -> None:
    _, path = write(library, name, tmp_path)
    tensors = read_tensor_file(path)
    assert tell_library(tensors) == library
    assert find_format(Source(path)).name == library


def test_tensors_of_nobody_are_refused(tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"holds 2 tensors \(a\.weight, b, \.\.\.\) of no kn"):
        pv.convert(tmp_path / "x.safetensors", tmp_path / "ours")


def test_released_widths_need_nothing_stated() -> None:
    with torch.device("meta"):
        model = pv.create_model("mae_hiera_base_plus_16x224")
        tensors = tensors_of(model, "official")
        again = hiera_from_tensors(tensors, "official", {}, "x")
    assert again.config == model.config


def tensors_of(model: Hiera, library: Library) -> Mapping[str, Tensor]:
    """The tensors of a model without memory, in a library's layout."""
    state = model.state_dict()
    return {e.theirs: e.turn.back(state[e.ours]) for e in hiera_entries(model.config, library)}


def test_what_shapes_do_not_tell_must_be_stated(tmp_path: Path) -> None:
    _, path = write("official", "image_mae", tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"stage 4 channels wide\), and shapes do not determine num_heads, decoder\.num_heads",
    ):
        pv.convert(path, tmp_path / "ours")
    settings = state_settings(tmp_path, num_head=2)
    with pytest.raises(ConfigError, match=r"no setting 'num_head'.*did you mean 'num_heads'"):
        pv.convert(path, tmp_path / "ours", config=settings)
    settings = state_settings(tmp_path, num_heads=3, decoder={"num_heads": 2})
    with pytest.raises(ConfigError, match=r"dim=4 is not a multiple of num_heads=3"):
        pv.convert(path, tmp_path / "ours", config=settings)
    settings = state_settings(tmp_path, **making.STATED_DECODER, patch_stride=[8, 8])
    with pytest.raises(CheckpointError, match=r"decoder_pred\.weight \(file \(768, 8\), model \(3"):
        pv.convert(path, tmp_path / "ours", config=settings)


def test_an_input_that_is_no_square_must_be_stated(tmp_path: Path) -> None:
    wide = pv.Image(32, 64, 3, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    config = HieraConfig(**{**making.PICTURE, "inputs": {"photo": wide}}, head=making.CLASSES)
    model = making.make(config)
    save_official(model, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"128 positions do not form a square; .*inputs"):
        hiera_from_tensors(read_tensor_file(tmp_path / "x.pth"), "official", making.STATED, "x")
    settings = state_settings(tmp_path, num_heads=2, inputs=config.to_json()["inputs"])
    pv.convert(tmp_path / "x.pth", tmp_path / "ours", config=settings)
    assert pv.load(tmp_path / "ours").config == config


def test_folders_of_the_hub_describe_themselves(tmp_path: Path) -> None:
    official = making.OFFICIAL["video"]
    arguments = constructor_arguments(official, "official")
    assert stated_by_hub(arguments, "x") == {
        "num_heads": 2,
        "patch_stride": (2, 4, 4),
        "mask_unit": (1, 8, 8),
        "pool": (1, 2, 2),
        "local_stages": 2,
    }
    model = making.make(official)
    save_official(model, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(arguments))
    pv.convert(tmp_path, tmp_path / "ours")
    assert pv.load(tmp_path / "ours").config == official
    with pytest.raises(
        CheckpointError, match=r"patch_padding \[0, 0\] is not half of patch_kernel"
    ):
        stated_by_hub({"patch_kernel": [7, 7], "patch_padding": [0, 0]}, "x")
    with pytest.raises(CheckpointError, match=r"by stage, is \[False, True\]; stages with it must"):
        stated_by_hub({"mask_unit_attn": [False, True]}, "x")


def test_a_timm_folder_brings_its_size_and_its_licence(tmp_path: Path) -> None:
    folder = tmp_path / "hiera_small_abswin_256.sbb2_e200_in12k"
    folder.mkdir()
    save_timm(making.make(making.TIMM["window_pool"]), folder / "model.safetensors")
    settings = state_settings(tmp_path, **making.STATED)
    pretrained = {"input_size": [3, 288, 288], "mean": [0.5] * 3, "std": [0.5] * 3}
    stated = {"architecture": "hiera_small_abswin_256", "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps(stated))
    pv.convert(folder, tmp_path / "ours", config=settings)
    loaded = load_with_info(tmp_path / "ours")
    half = (0.5, 0.5, 0.5)
    assert loaded.model.config.inputs == {"image": pv.Image(288, 288, 3, mean=half, std=half)}
    assert loaded.info.license == "Apache-2.0"
    pv.convert(folder / "model.safetensors", tmp_path / "alone", config=settings)
    alone = load_with_info(tmp_path / "alone")
    assert alone.model.config.inputs["image"].grid == (256, 256)
    assert alone.info.license == "Apache-2.0"


def test_the_licence_of_an_official_file_warns(tmp_path: Path) -> None:
    _, path = write("official", "image", tmp_path)
    path = path.rename(tmp_path / "hiera_base_224.pth")
    settings = state_settings(tmp_path, **making.STATED)
    said = r"forbids commercial use \(CC-BY-NC-4\.0\)"
    with pytest.warns(LicenseWarning, match=said):
        pv.convert(path, tmp_path / "ours", config=settings)
    with pytest.warns(LicenseWarning, match=said):
        pv.load(tmp_path / "ours")


# -- what is refused -------------------------------------------------------------------------------


def test_every_tensor_must_be_used_and_none_may_be_missing(tmp_path: Path) -> None:
    _, path = write("official", "image", tmp_path)
    settings = state_settings(tmp_path, **making.STATED)
    tensors = read_tensor_file(path)
    gone = tensors.pop("blocks.2.mlp.fc1.bias")
    torch.save({"model_state": {**tensors, "what": gone}}, path)
    with pytest.raises(
        CheckpointError, match=r"missing: blocks\.2\.mlp\.fc1\.bias; unexpected: what"
    ):
        pv.convert(path, tmp_path / "ours", config=settings)
    torch.save({"model_state": {**tensors, "blocks.2.mlp.fc1.bias": gone[1:]}}, path)
    with pytest.raises(CheckpointError, match=r"fc1\.bias \(file \(15,\), model \(16,\)\)"):
        pv.convert(path, tmp_path / "ours", config=settings)


def test_a_file_that_asks_for_more_than_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"model_state": {"patch_embed.proj.weight": Path("evil")}}, path)
    with pytest.raises(CheckpointError, match=r"x\.pth holds a dict of model_state, not tensors"):
        pv.convert(path, tmp_path / "ours")
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"x\.pth is not a complete file of weights"):
        pv.convert(path, tmp_path / "ours")
    torch.save({"model_state": {"a": 1}}, path)
    with pytest.raises(CheckpointError, match=r"holds a dict of model_state, not tensors by name"):
        pv.convert(path, tmp_path / "ours")


def test_settings_without_meaning_here_are_refused(tmp_path: Path) -> None:
    model, path = write("official", "image", tmp_path)
    settings = state_settings(tmp_path, **making.STATED)
    with pytest.raises(ConfigError, match=r"compute the same .* leave out flavour=hf"):
        pv.convert(path, tmp_path / "ours", config=settings, flavour="hf")
    model.save_pretrained(tmp_path / "ours")
    for to, text in (("official", r"written to a \.pth file"), ("timm", r"written to \.safetens")):
        with pytest.raises(ConfigError, match=text):
            pv.convert(tmp_path / "ours", tmp_path / "x.npz", to=to)
    with pytest.raises(CheckpointError, match=r"x\.pth exists; choose another file, or pass"):
        pv.convert(tmp_path / "ours", path, to="official")
    pv.create_model("hip_nano", inputs={"image": pv.Image(4, 4, 3)}).save_pretrained(
        tmp_path / "hip"
    )
    with pytest.raises(
        CheckpointError, match=r"does not support models of family 'hip', only of hiera"
    ):
        pv.convert(tmp_path / "hip", tmp_path / "y.pth", to="official")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            HieraConfig(**making.PICTURE, shortcut="pool"),
            r"does not support shortcut='pool' \(it projects\)",
        ),
        (HieraConfig(**making.PICTURE, **making.LAST), r"order='channels_last' \(here it has 'cha"),
        (
            HieraConfig(**making.CLIP, decoder=HieraDecoder(**making.DECODER, all_frames=True)),
            r"order='channels_first' .*all_frames=True \(it predicts the first",
        ),
    ],
)
def test_what_the_official_class_computes_otherwise_is_not_written(
    config: HieraConfig, text: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=text):
        save_official(making.make(config), tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


def test_how_to_get_the_other_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise RuntimeError(f"operator torchvision::nms does not exist ({name})")

    monkeypatch.setattr("perceivers.checkpoints.verify.import_module", broken)
    with pytest.raises(
        ConfigError, match=r"cannot be imported \(operator .*pip install hiera-transformer"
    ):
        import_package("official")
    with pytest.raises(ConfigError, match=r"pip install timm, with a torchvision that fits"):
        import_package("timm")


# -- positions -------------------------------------------------------------------------------------


def test_positions_are_taken_apart_exactly(tmp_path: Path, rng: torch.Generator) -> None:
    model, path = write("official", "image", tmp_path)
    settings = state_settings(tmp_path, **making.STATED)
    pv.convert(path, tmp_path / "ours", config=settings, positions="window")
    window = pv.load(tmp_path / "ours")
    assert window.config.positions == "window"
    x = torch.rand(2, 3, 64, 64, generator=rng)
    torch.testing.assert_close(window(x), model(x), rtol=0, atol=2e-6)
    # At other sizes the two forms agree as well: plain tables are taken apart when stretched.
    assert window.config.position_grid == (16, 16)
    pv.convert(path, tmp_path / "plain", config=settings)
    done = pv.convert(tmp_path / "plain", tmp_path / "b", positions="window", verify=True)
    assert [d.output for d in done.differences] == ["positions"]
    assert done.is_verified
    assert making.equal(pv.load(tmp_path / "b").state_dict(), window.state_dict())
    back = pv.convert(tmp_path / "plain", tmp_path / "x.safetensors", to="timm", positions="window")
    assert back.parameters == done.parameters
    assert "pos_embed_win" in load_file(tmp_path / "x.safetensors")


def test_only_one_absolute_table_can_be_taken_apart(tmp_path: Path) -> None:
    for name, text in (("video", r"positions are 'separable'"), ("image", r"'window'; only abs")):
        model, path = write("official", name, tmp_path)
        settings = state_settings(tmp_path, **making.STATED)
        where = tmp_path / f"{name}_ours"
        if name == "image":
            model.with_window_positions().save_pretrained(where)
            path, settings = where, None
        with pytest.raises(ConfigError, match=text):
            pv.convert(path, tmp_path / "out", config=settings, positions="window")
    golden = Path(__file__).parents[1] / "golden" / "io_two.npz"
    with pytest.raises(ConfigError, match=r"positions=window is for Hiera models; .* does not"):
        pv.convert(golden, tmp_path / "out", positions="window")
    with pytest.raises(ConfigError, match=r"positions is 'windows'; choose from \['keep', 'windo"):
        pv.convert(golden, tmp_path / "out", positions="windows")  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "out").exists()
