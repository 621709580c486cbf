"""Every stand-alone module of the official code, against its stored outputs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perceivers.nn.attention import CrossAttention, SelfAttention, attend, use_attention
from perceivers.nn.blocks import Mlp, Read, SelfAttentionLayer
from perceivers.nn.grouping import deal_groups, regroup
from perceivers.nn.positions import fourier_dim, fourier_features, grid_coordinates

GOLDEN = Path(__file__).parents[1] / "golden"
Arrays = Mapping[str, NDArray[Any]]
HAIKU = {"w": "weight", "b": "bias", "scale": "weight", "offset": "bias"}


@pytest.fixture(scope="module")
def primitives() -> Arrays:
    with np.load(GOLDEN / "hip_primitives.npz") as archive:
        return {key: archive[key] for key in archive.files}


def tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def parameters(primitives: Arrays, tag: str, root: str, names: Mapping[str, str]) -> dict:
    """Our state from the parameters of ``tag``; ``names`` maps modules below ``root``."""
    state, fused = {}, {}
    prefix = f"{tag}/param/{root}"
    for key in primitives:
        if not key.startswith(f"{prefix}/") and not key.startswith(f"{prefix}:"):
            continue
        module, _, name = key[len(prefix) :].lstrip("/").rpartition(":")
        if name == "pos_embs":
            continue
        value = tensor(primitives[key].T if name == "w" else primitives[key])
        ours, _, part = names[module].partition("#")
        if part:
            fused.setdefault(f"{ours}.{HAIKU[name]}", {})[int(part)] = value
        else:
            state[f"{ours}.{HAIKU[name]}".lstrip(".")] = value
    return state | {name: torch.cat([p[0], p[1], p[2]]) for name, p in fused.items()}


def check(primitives: Arrays, tag: str, out: Tensor) -> None:
    expected = tensor(primitives[f"{tag}/out"])
    assert out.shape == expected.shape
    torch.testing.assert_close(out, expected, rtol=0.0, atol=1e-5 * float(expected.abs().max()))


CROSS_NAMES = {f"{name}_linear": ours for name, ours in (("query", "q"), ("key", "k"))} | {
    "value_linear": "v",
    "attention_output_linear": "out",
}
SELF_NAMES = {
    "query_linear": "qkv#0",
    "key_linear": "qkv#1",
    "value_linear": "qkv#2",
    "attention_output_linear": "out",
}
MLP_NAMES = {"mlp_hidden_linear": "hidden", "mlp_output_linear": "out"}
LAYER_NAMES = {
    "layer_norm": "norm_attention",
    "layer_norm_1": "norm_mlp",
    **{f"attention/{theirs}": f"attention.{ours}" for theirs, ours in SELF_NAMES.items()},
    **{f"dense/{theirs}": f"mlp.{ours}" for theirs, ours in MLP_NAMES.items()},
}
READ_NAMES = {
    "layer_norm": "norm_query",
    "layer_norm_1": "norm_tokens",
    "layer_norm_2": "norm_mlp",
    "pre_attention_residual_linear": "skip",
    **{f"attention/{theirs}": f"attention.{ours}" for theirs, ours in CROSS_NAMES.items()},
    **{f"dense/{theirs}": f"mlp.{ours}" for theirs, ours in MLP_NAMES.items()},
}


@pytest.mark.parametrize("masked", [False, True])
def test_attend_is_the_official_attention(primitives: Arrays, masked: bool) -> None:
    q, k, v = (  # [B, G, N, H, D] there, [F, H, N, D] here
        tensor(primitives[f"attend/{name}"]).flatten(0, 1).transpose(1, 2) for name in "qkv"
    )
    mask = tensor(primitives["attend/mask"]).bool().flatten(0, 1).unsqueeze(1) if masked else None
    out = attend(q, k, v, mask).transpose(1, 2).flatten(2).unflatten(0, (2, 3))
    expected = tensor(primitives[f"attend/out_{'mask' if masked else 'nomask'}"])
    torch.testing.assert_close(out, expected, rtol=0.0, atol=1e-5)
    other = tensor(primitives[f"attend/out_{'nomask' if masked else 'mask'}"])
    assert not torch.allclose(out, other, atol=1e-3)


@pytest.mark.parametrize("tag", ["layer_norm", "layer_norm_zero_row"])
def test_layer_norm_is_the_official_one(primitives: Arrays, tag: str) -> None:
    norm = nn.LayerNorm(12)
    norm.load_state_dict(parameters(primitives, tag, "layer_norm", {"": ""}))
    check(primitives, tag, norm(tensor(primitives[f"{tag}/in0"])))


@pytest.mark.parametrize(
    ("tag", "activation"),
    [
        ("dense_sq_relu", "squared_relu"),
        ("dense_gelu", "gelu_tanh"),
        ("dense_relu", "relu"),
        ("dense_silu", "silu"),
    ],
)
def test_mlp_is_the_official_one(primitives: Arrays, tag: str, activation: str) -> None:
    mlp = Mlp(dim=12, ratio=3, activation=activation)
    mlp.load_state_dict(parameters(primitives, tag, "dense", MLP_NAMES))
    x = tensor(primitives[f"{tag}/in0"])
    check(primitives, tag, mlp(x))
    wrong = Mlp(dim=12, ratio=3, activation="gelu")
    wrong.load_state_dict(mlp.state_dict())
    with pytest.raises(AssertionError, match="not close"):
        check(primitives, tag, wrong(x))


def test_self_attention_module_is_the_official_one(primitives: Arrays) -> None:
    tag = "attention_self"
    matching = []
    for heads in (1, 2, 3, 4, 6):
        module = SelfAttention(dim=12, num_heads=heads)
        module.load_state_dict(parameters(primitives, tag, "attention", SELF_NAMES))
        out = module(tensor(primitives[f"{tag}/in0"]))
        if torch.allclose(out, tensor(primitives[f"{tag}/out"]), atol=1e-5):
            matching.append(heads)
    assert matching == [HEADS[tag]]


# Heads are not stored in the file; exactly one number reproduces each output.
HEADS = {"attention_self": 4, "attention_cross": 3, "attention_cross_masked": 2}


@pytest.mark.parametrize("tag", ["attention_cross", "attention_cross_masked"])
def test_cross_attention_module_is_the_official_one(primitives: Arrays, tag: str) -> None:
    state = parameters(primitives, tag, "attention", CROSS_NAMES)
    queries, kv = (tensor(primitives[f"{tag}/in{i}"]) for i in (0, 1))
    mask = primitives.get(f"{tag}/mask")
    mask = None if mask is None else tensor(mask).bool()
    matching = []
    for heads in (1, 2, 3, 4):
        qk_dim, v_dim = state["q.weight"].shape[0], state["v.weight"].shape[0]
        if qk_dim % heads or v_dim % heads:
            continue
        module = CrossAttention(
            query_dim=8,
            kv_dim=12,
            qk_dim=qk_dim,
            v_dim=v_dim,
            out_dim=state["out.weight"].shape[0],
            num_heads=heads,
        )
        module.load_state_dict(state)
        if torch.allclose(module(queries, kv, mask), tensor(primitives[f"{tag}/out"]), atol=1e-5):
            matching.append(heads)
    assert matching == [HEADS[tag]]


def test_self_attention_layer_is_the_official_one(primitives: Arrays) -> None:
    tag = "self_attention"
    matching = []
    for heads in (1, 2, 3, 4, 6):
        layer = SelfAttentionLayer(dim=12, num_heads=heads, mlp_ratio=2)
        layer.load_state_dict(parameters(primitives, tag, tag, LAYER_NAMES))
        out = layer(tensor(primitives[f"{tag}/in0"]))
        if torch.allclose(out, tensor(primitives[f"{tag}/out"]), atol=1e-5):
            matching.append(heads)
    assert len(matching) == 1


@pytest.mark.parametrize(
    "tag",
    [
        "hip_cross_query_noresidual",
        "hip_cross_query_residual",
        "hip_cross_pre_residual",
        "hip_cross_learned",
        "hip_cross_masked",
    ],
)
@pytest.mark.parametrize("path", ["sdpa", "reference"])
def test_read_is_the_official_cross_attention_block(
    primitives: Arrays, tag: str, path: Any
) -> None:
    root = "hi_p_cross_attention"
    state = parameters(primitives, tag, root, READ_NAMES)
    tokens = tensor(primitives[f"{tag}/in0"])
    if tag == "hip_cross_learned":
        learned = tensor(primitives[f"{tag}/param/{root}/query_inputs:pos_embs"])
        queries = learned.unflatten(0, (3, -1)).unsqueeze(0)  # [1, G, N, C], group major
    else:
        queries = tensor(primitives[f"{tag}/in1"])
    skip = primitives.get(f"{tag}/in2")
    mask = primitives.get(f"{tag}/mask")
    matching = []
    for heads in (1, 2, 3):
        for residual in (False, True):
            read = Read(
                query_dim=queries.shape[-1],
                token_dim=12,
                num_heads=heads,
                mlp_ratio=state["mlp.hidden.weight"].shape[0] // queries.shape[-1],
                residual=residual,
                skip_dim=0 if skip is None else skip.shape[-1],
            )
            read.load_state_dict(state)
            with use_attention(read, path):
                out = read(
                    queries,
                    tokens,
                    None if mask is None else tensor(mask).bool(),
                    None if skip is None else tensor(skip),
                )
            expected = tensor(primitives[f"{tag}/out"])
            if torch.allclose(out, expected, rtol=0, atol=1e-5 * float(expected.abs().max())):
                matching.append((heads, residual))
    assert len(matching) == 1
    assert matching[0][1] == (tag != "hip_cross_query_noresidual")


@pytest.mark.parametrize("how", ["reshape", "transpose_reshape"])
@pytest.mark.parametrize("num_groups", [1, 2, 3, 8, 12])
def test_regroup_is_the_official_one(primitives: Arrays, how: Any, num_groups: int) -> None:
    x = tensor(primitives["regroup/in"])
    expected = tensor(primitives[f"regroup/{how}/{num_groups}"])
    assert torch.equal(regroup(x, num_groups, how), expected)
    other = {"reshape": "transpose_reshape", "transpose_reshape": "reshape"}[how]
    assert not torch.equal(regroup(x, num_groups, other), expected)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("index", range(4))
def test_grouping_is_the_official_one(primitives: Arrays, index: int) -> None:
    info = json.loads(str(primitives[f"grouper/{index}/info_json"]))
    layout = deal_groups(dict(info["modalities"]), info["num_groups"])
    shares = [[s.name, s.num_groups, s.final_padding, s.group_padding] for s in layout.shares]
    assert shares == info["info"]
    raw = {s.name: tensor(primitives[f"grouper/{index}/in/{s.name}"]) for s in layout.shares}
    grouped = layout.join([share.split(raw[share.name]) for share in layout.shares])
    assert torch.equal(grouped, tensor(primitives[f"grouper/{index}/grouped"]))
    for share in layout.shares:
        assert torch.equal(share.merge(layout.part(grouped, share.name)), raw[share.name])


def grouping_rows() -> list[dict[str, Any]]:
    with np.load(GOLDEN / "hip_grouping_tables.npz") as archive:
        return json.loads(str(archive["rows_json"]))


def test_the_grouping_table_has_seventy_rows() -> None:
    assert len(grouping_rows()) == 70


@pytest.mark.parametrize("row", grouping_rows(), ids=lambda row: f"{row['index_dims']}")
def test_groups_are_dealt_as_by_the_official_helper(row: dict[str, Any]) -> None:
    lengths = {f"m{i}": length for i, length in enumerate(row["index_dims"])}
    layout = deal_groups(lengths, row["num_groups"])
    assert [s.num_groups for s in layout.shares] == row["groups_per_modality"]
    assert {s.slots for s in layout.shares} == {row["index_dim_per_group"]}
    assert [s.final_padding for s in layout.shares] == row["final_padding"]
    assert [s.group_padding for s in layout.shares] == row["group_padding"]


@pytest.mark.parametrize(
    ("lengths", "num_groups", "groups", "slots", "padding"),
    [
        ([224 * 224], 16, [16], 3136, [(0, 0)]),
        ([224 * 224], 256, [256], 196, [(0, 0)]),
        ([512 * 512], 16, [16], 16384, [(0, 0)]),
        ([2048], 16, [16], 128, [(0, 0)]),
        ([122_880], 256, [256], 480, [(0, 0)]),
        ([401_408, 122_880], 256, [196, 60], 2048, [(0, 0), (0, 0)]),
        ([401_408, 122_880], 16, [12, 4], 33451, [(4, 0), (0, 2731)]),
        ([50_176, 1], 16, [15, 1], 3346, [(14, 0), (0, 3345)]),
    ],
)
def test_groups_of_the_paper_s_inputs(
    lengths: list[int], num_groups: int, groups: list[int], slots: int, padding: list[tuple]
) -> None:
    layout = deal_groups({str(i): n for i, n in enumerate(lengths)}, num_groups)
    assert [s.num_groups for s in layout.shares] == groups
    assert [s.slots for s in layout.shares] == [slots] * len(lengths)
    assert [(s.final_padding, s.group_padding) for s in layout.shares] == padding


@pytest.mark.parametrize(
    "tag",
    [
        "1d",
        "1d_maxres",
        "2d",
        "2d_maxres",
        "2d_sine",
        "2d_noconcat",
        "3d",
        "3d_maxres",
        "1band",
        "len1",
    ],
)
def test_fourier_features_are_the_official_ones(tag: str) -> None:
    with np.load(GOLDEN / "dmr_fourier.npz") as archive:
        cases = json.loads(str(archive["config_json"]))["cases"]
        case = next(case for case in cases if case["tag"] == tag)
        expected, grid = (
            tensor(archive[f"fourier/{tag}"]),
            tensor(archive[f"linear_positions/{tag}"]),
        )
    dims, bands = case["index_dims"], case["num_bands"]
    settings = {"sine_only": case["sine_only"], "keep_coordinates": case["concat_pos"]}
    resolution = case["max_resolution"] or dims
    ours = fourier_features(grid_coordinates(dims), bands, resolution, **settings)
    assert ours.shape[1] == fourier_dim(len(dims), bands, **settings)
    torch.testing.assert_close(ours, expected, rtol=0.0, atol=5e-5)
    torch.testing.assert_close(grid_coordinates(dims), grid.flatten(0, -2), rtol=0.0, atol=1e-6)
    wrong = fourier_features(grid_coordinates(dims).flip(0) * 0.5, bands, resolution, **settings)
    assert not torch.allclose(wrong, expected, atol=1e-2)


def test_fourier_features_of_points_off_any_grid_are_the_official_ones() -> None:
    with np.load(GOLDEN / "dmr_fourier.npz") as archive:
        case = json.loads(str(archive["config_json"]))["arbitrary_positions"]
        places, expected = (tensor(archive[f"arbitrary_positions/{k}"]) for k in ("pos", "out"))
    ours = fourier_features(places, case["num_bands"], case["max_resolution"])
    torch.testing.assert_close(ours, expected, rtol=0.0, atol=5e-5)
    turned = fourier_features(places, case["num_bands"], case["max_resolution"][::-1])
    assert not torch.allclose(turned, expected, atol=1e-2)
