"""The exact names and numbers of tensors in the released Hieras, without any file."""

import pytest
import torch
from tests.checkpoints.hiera_making import CLASSES, CLIP, OFFICIAL, PICTURE, TIMM

from perceivers.checkpoints.catalogue import CATALOGUE
from perceivers.checkpoints.hiera_names import (
    PREFIXES,
    Library,
    fusion_layout,
    grid_layout,
    hiera_entries,
    name_variant,
)
from perceivers.errors import CheckpointError
from perceivers.models import create_model
from perceivers.models.hiera import Hiera, HieraConfig, HieraHead

# Tensors of the released files: classifiers and autoencoders.
TENSORS = {
    "hiera_tiny_224": (157, 263),
    "hiera_small_224": (205, 311),
    "hiera_base_224": (301, 407),
    "hiera_base_plus_224": (301, 407),
    "hiera_large_224": (589, 695),
    "hiera_huge_224": (589, 695),
    "hiera_base_16x224": (302, 408),
    "hiera_base_plus_16x224": (302, 408),
    "hiera_large_16x224": (590, 696),
    "hiera_huge_16x224": (590, 696),
}
PARAMETERS = {w.variant: w.parameters for w in CATALOGUE if w.converter == "official"}


def on_meta(name: str) -> Hiera:
    """Build a released model without memory."""
    with torch.device("meta"):
        return create_model(name)


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("masked", [False, True])
def test_official_files_have_these_tensors_and_values(name: str, masked: bool) -> None:
    name_of = f"mae_{name}" if masked else name
    model = on_meta(name_of)
    entries = hiera_entries(model.config, "official")
    assert len({entry.theirs for entry in entries}) == len(entries) == TENSORS[name][masked]
    assert {entry.ours for entry in entries} == set(model.state_dict())
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name_of]
    assert name_variant(model.config) == name_of


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in TENSORS if n.endswith("_224") and "16x" not in n])
def test_other_libraries_have_as_many_tensors(name: str) -> None:
    model = on_meta(name)
    pairs: tuple[tuple[Library, str], ...] = (("timm", ""), ("hf", "hiera."))
    for library, prefix in pairs:
        entries = hiera_entries(model.config, library, prefix=prefix)
        assert len({entry.theirs for entry in entries}) == len(entries) == TENSORS[name][0]
    masked = hiera_entries(on_meta(f"mae_{name}").config, "hf", prefix="hiera.")
    assert len(masked) == TENSORS[name][1]


def test_the_window_variants_have_timm_s_tensors() -> None:
    for name, tensors, parameters in (
        ("hiera_small_abswin_256", 232, 34_361_800),
        ("hiera_base_abswin_256", 350, 51_267_304),
    ):
        model = on_meta(name)
        theirs = [entry.theirs for entry in hiera_entries(model.config, "timm")]
        assert len(theirs) == tensors
        assert sum(p.numel() for p in model.parameters()) == parameters
        assert {"pos_embed", "pos_embed_win", "blocks.0.ls1.gamma"} <= set(theirs)
        projects = any(f"blocks.{i}.proj.weight" in theirs for i in range(4))
        assert projects is (name == "hiera_base_abswin_256")
        assert name_variant(model.config) == name


def test_a_head_apart_the_variant_is_told() -> None:
    with torch.device("meta"):
        other = create_model("hiera_tiny_224", num_classes=11).config
        larger = create_model("hiera_tiny_224", drop_path_rate=0.1, mlp_ratio=3).config
    assert name_variant(other) == "hiera_tiny_224"
    assert name_variant(larger) == ""


@pytest.mark.parametrize(
    ("ours", "official", "timm", "hugging_face"),
    [
        (
            "encoder.stem.bias",
            "patch_embed.proj.bias",
            "patch_embed.proj.bias",
            "hiera.embeddings.patch_embeddings.projection.bias",
        ),
        (
            "encoder.positions.table",
            "pos_embed",
            "pos_embed",
            "hiera.embeddings.position_embeddings",
        ),
        (
            "encoder.blocks.3.shortcut.weight",
            "blocks.3.proj.weight",
            "blocks.3.proj.weight",
            "hiera.encoder.stages.2.layers.0.proj.weight",
        ),
        (
            "encoder.blocks.2.attention.out.weight",
            "blocks.2.attn.proj.weight",
            "blocks.2.attn.proj.weight",
            "hiera.encoder.stages.1.layers.1.attn.proj.weight",
        ),
        (
            "encoder.blocks.9.norm_mlp.bias",
            "blocks.9.norm2.bias",
            "blocks.9.norm2.bias",
            "hiera.encoder.stages.2.layers.6.layernorm_after.bias",
        ),
        ("norm.weight", "norm.weight", "head.norm.weight", "hiera.pooler.layernorm.weight"),
        ("head.bias", "head.projection.bias", "head.fc.bias", "classifier.bias"),
    ],
)
def test_names_are_these(ours: str, official: str, timm: str, hugging_face: str) -> None:
    config = on_meta("hiera_tiny_224").config
    found: dict[Library, str] = {"official": official, "timm": timm, "hf": hugging_face}
    for library, theirs in found.items():
        prefix = PREFIXES["HieraForImageClassification"] if library == "hf" else ""
        entries = hiera_entries(config, library, prefix=prefix)
        assert [entry.theirs for entry in entries if entry.ours == ours] == [theirs]


@pytest.mark.parametrize(
    ("ours", "official", "hugging_face"),
    [
        ("norm.bias", "encoder_norm.bias", "encoder_norm.bias"),
        (
            "decoder.fusion.merges.1.weight",
            "multi_scale_fusion_heads.1.weight",
            "multiscale_fusion.multi_scale_fusion_heads.1.weight",
        ),
        ("decoder.mask_token", "mask_token", "decoder.mask_token"),
        ("decoder.positions", "decoder_pos_embed", "decoder.decoder_position_embeddings"),
        ("decoder.embed.weight", "decoder_embed.weight", "decoder.decoder_embeddings.weight"),
        (
            "decoder.blocks.7.norm_attention.weight",
            "decoder_blocks.7.norm1.weight",
            "decoder.decoder_block.layers.7.layernorm_before.weight",
        ),
        ("decoder.predict.bias", "decoder_pred.bias", "decoder.decoder_pred.bias"),
    ],
)
def test_names_of_auto_encoders_are_these(ours: str, official: str, hugging_face: str) -> None:
    config = on_meta("mae_hiera_tiny_224").config
    found: dict[Library, str] = {"official": official, "hf": hugging_face}
    for library, theirs in found.items():
        entries = hiera_entries(config, library)
        assert [entry.theirs for entry in entries if entry.ours == ours] == [theirs]


def test_what_a_library_has_no_place_for_is_refused() -> None:
    segments = HieraHead(kind="segmentation", num_outputs=3)
    cases: list[tuple[HieraConfig, Library, str]] = [
        (OFFICIAL["image_mae"], "timm", r"timm layout .* does not support 'autoencoder\.norm'"),
        (OFFICIAL["video"], "hf", r"hf layout .* does not support 'encoder\.positions\.spatial'"),
        (TIMM["window"], "official", r"does not support 'encoder\.positions\.window'"),
        (HieraConfig(**CLIP, feature_norms=(1,)), "official", r"does not support 'feature_norms'"),
        (HieraConfig(**PICTURE, layer_scale=1.0), "hf", r"does not support 'scale_attention'"),
    ]
    for config, library, text in cases:
        with pytest.raises(CheckpointError, match=text):
            hiera_entries(config, library)
    libraries: tuple[Library, ...] = ("official", "timm", "hf")
    for library in libraries:
        assert hiera_entries(HieraConfig(**PICTURE, head=CLASSES), library)
        with pytest.raises(CheckpointError, match=rf"{library} does not support a segmentation"):
            hiera_entries(HieraConfig(**PICTURE, head=segments), library)


def test_a_fusion_is_the_convolution_that_it_was(rng: torch.Generator) -> None:
    """Over one unit of 4 x 4 tokens, in the order in which two poolings would join them."""
    weight = torch.randn(3, 2, 4, 4, generator=rng)
    grid = torch.randn(1, 4, 4, 2, generator=rng)
    turn = fusion_layout((2, 2), 2)
    linear = turn.into(weight)
    assert linear.shape == (3, 32)
    assert torch.equal(turn.back(linear), weight)
    wanted = torch.nn.functional.conv2d(grid.movedim(-1, 1), weight, stride=4)[0, :, 0, 0]
    # Rows of tokens by the place's digits, the first pooled slowest: y0 x0 y1 x1.
    tokens = grid.reshape(2, 2, 2, 2, 2).permute(1, 3, 0, 2, 4).reshape(-1)
    torch.testing.assert_close(linear @ tokens, wanted)


def test_a_table_on_a_grid_is_transposed_and_back(rng: torch.Generator) -> None:
    theirs = torch.randn(1, 3, 2, 5, generator=rng)
    turn = grid_layout((2, 5))
    ours = turn.into(theirs)
    assert ours.shape == (10, 3)
    assert torch.equal(ours[7], theirs[0, :, 1, 2])
    assert torch.equal(turn.back(ours), theirs)
