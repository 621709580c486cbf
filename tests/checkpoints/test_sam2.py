"""SAM 2's trunk out of Meta's files and Hugging Face's folders, synthetic ones with their names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import perceivers as pv
from perceivers.checkpoints.formats import FORMATS
from perceivers.checkpoints.loading import load_with_info
from perceivers.checkpoints.names import grid_layout, take_from_model
from perceivers.checkpoints.sam2 import (
    Sam2Naming,
    find_trunk,
    model_from_sam2,
    read_sam2_folder,
    sam2_entries,
    sam2_from_tensors,
    split_trunk,
)
from perceivers.errors import CheckpointError, ConfigError
from perceivers.models import HieraDet, create_model
from perceivers.models.hiera_det.config import SAM2_INPUT
from perceivers.types import Image

META, HUGGING_FACE = "image_encoder.trunk.", "vision_encoder.backbone."
# Other parts of the two releases, by a few of their names.
REST: dict[str, tuple[int, ...]] = {
    "image_encoder.neck.convs.0.conv.weight": (4, 8, 1, 1),
    "image_encoder.neck.convs.0.conv.bias": (4,),
    "memory_attention.layers.0.norm1.weight": (4,),
    "sam_mask_decoder.iou_token.weight": (1, 4),
    "maskmem_tpos_enc": (7, 1, 1, 4),
}
# As transformers writes the nano variant into a config.json.
STATED: dict[str, Any] = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 32,
    "num_attention_heads": 1,
    "image_size": [64, 96],
    "window_positional_embedding_background_size": [4, 4],
    "num_query_pool_stages": 2,
    "blocks_per_stage": [1, 1, 3],
    "embed_dim_per_stage": [32, 64, 128],
    "num_attention_heads_per_stage": [1, 2, 4],
    "window_size_per_stage": [4, 2, 4],
    "global_attention_blocks": [3],
}
WHOLE = {
    "model_type": "sam2_video",
    "vision_config": {"model_type": "sam2_vision_model", "backbone_config": STATED},
}


def make_trunk(**settings: Any) -> HieraDet:
    torch.manual_seed(0)
    model = create_model("hiera_det_nano", **{"inputs": SAM2_INPUT, **settings}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def name_tensors(
    model: HieraDet, naming: Sam2Naming = "meta", prefix: str = META
) -> dict[str, Tensor]:
    """The model's weights under foreign names."""
    taken = take_from_model(model, sam2_entries(model.config, naming))
    return {prefix + name: tensor for name, tensor in taken.items()}


def rest() -> dict[str, Tensor]:
    return {name: torch.ones(shape) for name, shape in REST.items()}


def write_folder(folder: Path, stated: Any, tensors: dict[str, Tensor], **files: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(stated))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    save_file({name: x.contiguous() for name, x in tensors.items()}, folder / "model.safetensors")
    return folder


def equal(first: HieraDet, second: HieraDet) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "meta", "hugging_face"),
    [
        ("encoder.stem.bias", "patch_embed.proj.bias", "patch_embed.projection.bias"),
        ("encoder.positions.table", "pos_embed", "pos_embed"),
        ("encoder.positions.window", "pos_embed_window", "pos_embed_window"),
        (
            "encoder.blocks.3.shortcut.weight",
            "blocks.3.proj.weight",
            "blocks.3.proj.weight",
        ),
        (
            "encoder.blocks.11.mlp.hidden.weight",
            "blocks.11.mlp.layers.0.weight",
            "blocks.11.mlp.proj_in.weight",
        ),
        (
            "encoder.blocks.0.mlp.out.bias",
            "blocks.0.mlp.layers.1.bias",
            "blocks.0.mlp.proj_out.bias",
        ),
        (
            "encoder.blocks.7.norm_attention.weight",
            "blocks.7.norm1.weight",
            "blocks.7.layer_norm1.weight",
        ),
        ("encoder.blocks.7.attention.qkv.bias", "blocks.7.attn.qkv.bias", "blocks.7.attn.qkv.bias"),
    ],
)
def test_names_are_these(ours: str, meta: str, hugging_face: str) -> None:
    with torch.device("meta"):
        config = create_model("hiera_det_tiny").config
    namings: tuple[Sam2Naming, Sam2Naming] = ("meta", "hf")
    for naming, theirs in zip(namings, (meta, hugging_face), strict=True):
        entries = sam2_entries(config, naming)
        assert len(entries) == len({entry.theirs for entry in entries}) == 154
        assert [entry.theirs for entry in entries if entry.ours == ours] == [theirs]
    assert not any(e.theirs.startswith("blocks.0.proj") for e in sam2_entries(config, "hf"))


def test_tables_are_turned_row_by_row() -> None:
    turn = grid_layout((2, 3))
    theirs = torch.arange(24.0).reshape(1, 4, 2, 3)
    ours = turn.into(theirs)
    assert ours.shape == (6, 4)
    assert torch.equal(ours[4], theirs[0, :, 1, 1])
    assert torch.equal(turn.back(ours), theirs)


@pytest.mark.parametrize("prefix", [META, "trunk.", "", HUGGING_FACE, "backbone."])
def test_a_trunk_is_found_below_any_prefix(prefix: str) -> None:
    assert find_trunk({f"{prefix}pos_embed_window": 0, f"{prefix}pos_embed": 0}) == prefix
    assert find_trunk({f"{prefix}pos_embed": 0, f"{prefix}old_pos_embed_window": 0}) is None
    with pytest.raises(CheckpointError, match=r"several trunks, below \['a\.', 'b\.'\]"):
        find_trunk({"a.pos_embed_window": 0, "b.pos_embed_window": 0})


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [META, "trunk.", ""])
def test_a_file_of_meta_becomes_a_model_folder(tmp_path: Path, prefix: str) -> None:
    trunk, source = make_trunk(), tmp_path / "sam2.1_hiera_tiny.pt"
    others = rest() if prefix else {}
    torch.save({"model": {**name_tensors(trunk, prefix=prefix), **others}}, source)
    done = pv.convert(source, tmp_path / "out")
    assert done.parameters == sum(p.numel() for p in trunk.parameters())
    if prefix == META:
        assert done.notes == (
            "image_encoder.neck is not used: 36 values in 2 tensors",
            "maskmem_tpos_enc is not used: 28 values in 1 tensor",
            "memory_attention is not used: 4 values in 1 tensor",
            "sam_mask_decoder is not used: 4 values in 1 tensor",
        )
    loaded = load_with_info(tmp_path / "out")
    assert equal(loaded.model, trunk)
    assert loaded.model.config == trunk.config
    assert loaded.info.license == "Apache-2.0"
    assert loaded.info.provenance["converted_from"] == "trunk of SAM 2"
    raw = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded.model(raw), trunk(raw))


def test_the_licence_of_an_unknown_file_is_not_claimed(tmp_path: Path) -> None:
    torch.save({"model": name_tensors(make_trunk())}, tmp_path / "mine.pt")
    pv.convert(tmp_path / "mine.pt", tmp_path / "out")
    assert load_with_info(tmp_path / "out").info.license.startswith("as stated by the source")


def test_a_trunk_is_a_layout_of_its_own() -> None:
    tensors = name_tensors(make_trunk())
    bare = {name.removeprefix(META): x for name, x in tensors.items()}
    for names in (tensors, bare):
        assert [row.name for row in FORMATS if row.knows and row.knows(names)] == ["sam2"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({f"{META}blocks.2.norm1.bias": None}, r"missing: blocks\.2\.norm1\.bias"),
        ({f"{META}blocks.2.norm3.bias": (32,)}, r"unexpected: blocks\.2\.norm3\.bias"),
        ({f"{META}head.weight": (32,)}, r"unexpected: head\.weight"),
        (
            {f"{META}blocks.2.norm1.bias": (5,)},
            r"another shape: blocks\.2\.norm1\.bias \(file \(5,\), model \(64,\)\)",
        ),
        (
            {f"{META}pos_embed_window": (1, 32, 8, 8)},
            r"pos_embed_window \(file \(1, 32, 8, 8\), model \(1, 32, 4, 4\)\)",
        ),
    ],
)
def test_every_tensor_of_the_trunk_must_fit(
    tmp_path: Path, change: dict[str, tuple[int, ...] | None], text: str
) -> None:
    tensors = {**name_tensors(make_trunk()), **rest()}
    for name, shape in change.items():
        tensors.pop(name, None)
        if shape is not None:
            tensors[name] = torch.zeros(shape)
    torch.save({"model": tensors}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=text):
        pv.convert(tmp_path / "x.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_without_a_trunk_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"x holds no trunk of SAM 2: none of its 5 tensors"):
        split_trunk(rest(), "x")


@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
def test_released_trunks_are_told_by_their_shapes(size: str) -> None:
    """On the meta device: names and shapes only, no values."""
    with torch.device("meta"):
        config = create_model(f"hiera_det_{size}").config
        model = HieraDet(config)
        state = model.state_dict()
        tensors = {
            META + e.theirs: e.turn.back(state[e.ours]) for e in sam2_entries(config, "meta")
        }
        built, notes = sam2_from_tensors(tensors, {}, "x")
    assert built.config == config
    assert notes == []


def test_an_unknown_trunk_must_be_stated(tmp_path: Path) -> None:
    trunk = make_trunk(dim=16, num_heads=2, windows=(2, 2, 6), global_blocks=())
    torch.save({"model": {**name_tensors(trunk)}}, tmp_path / "x.pt")
    with pytest.raises(
        CheckpointError,
        match=r"'dim': 16, 'depths': \(1, 1, 3\), 'position_grid': \(4, 4\)\} is none of .*do not "
        r"determine \['num_heads', 'windows', 'global_blocks'\]; give them with --config",
    ):
        pv.convert(tmp_path / "x.pt", tmp_path / "out")
    stated = {"num_heads": 2, "windows": [2, 2, 6], "global_blocks": []}
    (tmp_path / "x.json").write_text(json.dumps(stated))
    pv.convert(tmp_path / "x.pt", tmp_path / "out", config=tmp_path / "x.json")
    loaded = pv.load(tmp_path / "out")
    assert loaded.config == trunk.config
    assert equal(loaded, trunk)
    (tmp_path / "x.json").write_text(json.dumps({**stated, "heads": 2}))
    with pytest.raises(ConfigError, match=r"no setting 'heads'"):
        pv.convert(tmp_path / "x.pt", tmp_path / "again", config=tmp_path / "x.json")


def test_an_input_may_be_stated() -> None:
    spec = {"type": "image", "height": 256, "width": 128, "channels": 3}
    stated = {"inputs": {"photo": spec}}
    model, _ = sam2_from_tensors(name_tensors(make_trunk()), stated, "x")
    assert model.config.inputs == {"photo": Image(256, 128, 3)}


# -- folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "prefix"),
    [
        (WHOLE, HUGGING_FACE),
        ({**WHOLE, "model_type": "sam2"}, HUGGING_FACE),
        (WHOLE["vision_config"], "backbone."),
        (STATED, ""),
    ],
)
def test_a_folder_of_any_part_becomes_a_model_folder(
    tmp_path: Path, stated: Any, prefix: str
) -> None:
    trunk = make_trunk()
    others = {
        "vision_encoder.neck.convs.0.weight": torch.ones(4),
        "no_memory_embedding": torch.ones(3),
    }
    tensors = name_tensors(trunk, "hf", prefix) | (others if prefix == HUGGING_FACE else {})
    folder = write_folder(tmp_path / "sam2.1-hiera-tiny", stated, tensors)
    done = pv.convert(folder, tmp_path / "out")
    loaded = load_with_info(tmp_path / "out")
    assert equal(loaded.model, trunk)
    statistics = SAM2_INPUT["image"]
    assert loaded.model.config.spec == Image(64, 96, 3, statistics.mean, statistics.std)
    assert loaded.info.license == "Apache-2.0"
    if prefix == HUGGING_FACE:
        assert done.notes == (
            "no_memory_embedding is not used: 3 values in 1 tensor",
            "vision_encoder.neck is not used: 4 values in 1 tensor",
        )


def test_statistics_and_gaps_of_a_folder(tmp_path: Path) -> None:
    trunk = make_trunk()
    tensors = name_tensors(trunk, "hf", "")
    preprocessor = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.1, 0.2, 0.3]}
    one = {**STATED, "image_size": 128, "patch_stride": None, "query_stride": 2}
    folder = write_folder(tmp_path / "a", one, tensors, preprocessor_config=preprocessor)
    config = model_from_sam2(read_sam2_folder(folder)).config
    assert config.spec == Image(128, 128, 3, (0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    assert (config.patch_stride, config.pool) == ((4, 4), (2, 2))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"hidden_act": "relu"}, r"config\.json: HieraDet does not support hidden_act='relu'"),
        ({"embed_dim_per_stage": [32, 64, 96]}, r"embed_dim_per_stage=\(32, 64, 96\) \(not \(32, "),
        ({"num_query_pool_stages": 1}, r"num_query_pool_stages=1 \(not 2\)"),
        ({"patch_padding": [2, 3]}, r"patch_padding=\(2, 3\) \(not \(3, 3\)\)"),
        ({"mlp_ratio": 2.5}, r"mlp_ratio=2\.5 \(not 2\)"),
        ({"global_attention_blocks": [2]}, r"global_blocks=\(2,\): name each block"),
        ({"window_size_per_stage": 3}, r"config\.json: "),
        ({"model_type": "sam3"}, r"model_type is 'sam3'; expected one of SAM 2's, \['sam2', "),
    ],
)
def test_other_trunks_are_refused(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    tensors = name_tensors(make_trunk(), "hf", "")
    folder = write_folder(tmp_path / "a", {**STATED, **change}, tensors)
    with pytest.raises(CheckpointError, match=text):
        model_from_sam2(read_sam2_folder(folder))


def test_another_kind_of_backbone_is_refused(tmp_path: Path) -> None:
    stated = {"model_type": "sam2_vision_model", "backbone_config": {"model_type": "swin"}}
    folder = write_folder(tmp_path / "a", stated, name_tensors(make_trunk(), "hf", "backbone."))
    with pytest.raises(
        CheckpointError, match=r"the trunk's model_type is 'swin'; only 'sam2_hiera"
    ):
        pv.convert(folder, tmp_path / "out")


def test_a_flavour_is_refused(tmp_path: Path) -> None:
    torch.save({"model": name_tensors(make_trunk())}, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match=r"leave out flavour=hf"):
        pv.convert(tmp_path / "x.pt", tmp_path / "out", flavour="hf")
