"""Attention blocks and the stem of DeepMind's Perceiver code, against its stored outputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perceivers.adapters.config import TokenConfig
from perceivers.adapters.tokens import ConvStem
from perceivers.nn.attention import use_attention
from perceivers.nn.blocks import Mlp, Read, SelfAttentionLayer
from perceivers.types import Image

GOLDEN = Path(__file__).parents[1] / "golden"
Arrays = Mapping[str, NDArray[Any]]
NORMS = {"scale": "weight", "offset": "bias"}
LINEARS = {"w": "weight", "b": "bias"}
ATTENTION = ("q", "k", "v", "out")


@pytest.fixture(scope="module")
def blocks() -> Arrays:
    with np.load(GOLDEN / "dmr_blocks.npz") as archive:
        return {key: archive[key] for key in archive.files}


def tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def linear(blocks: Arrays, prefix: str, index: int) -> dict[str, Tensor]:
    root = f"{prefix}/linear{f'_{index}' if index else ''}"
    return {"weight": tensor(blocks[f"{root}:w"].T), "bias": tensor(blocks[f"{root}:b"])}


def state_of(blocks: Arrays, tag: str, kind: str, norms: tuple[str, ...]) -> dict[str, Tensor]:
    """Our state of an attention block, written out once more without the converter."""
    root = f"{tag}/param/{kind}"
    state = {}
    for i, name in enumerate(norms):
        norm = f"{root}/layer_norm{f'_{i}' if i else ''}"
        state |= {f"{name}.{ours}": tensor(blocks[f"{norm}:{n}"]) for n, ours in NORMS.items()}
    parts = {name: linear(blocks, f"{root}/attention", i) for i, name in enumerate(ATTENTION)}
    if kind == "self_attention":
        fused = {n: torch.cat([parts[p][n] for p in "qkv"]) for n in ("weight", "bias")}
        parts = {"qkv": fused, "out": parts["out"]}
    for name, values in parts.items():
        state |= {f"attention.{name}.{n}": x for n, x in values.items()}
    for i, name in enumerate(("hidden", "out")):
        state |= {f"mlp.{name}.{n}": x for n, x in linear(blocks, f"{root}/mlp", i).items()}
    return state


def agrees(out: Tensor, expected: Tensor) -> bool:
    assert out.shape == expected.shape
    return torch.allclose(out, expected, rtol=0.0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("path", ["sdpa", "reference"])
@pytest.mark.parametrize(
    ("tag", "residual"),
    [
        ("cross_kv_residual", True),
        ("cross_q_residual", True),
        ("cross_kv_noresidual", False),
        ("cross_qkv_channels", True),
        ("cross_masked", True),
    ],
)
def test_a_read_is_the_official_cross_attention(
    blocks: Arrays, tag: str, residual: bool, path: Any
) -> None:
    """Heads are not stored; exactly one setting reproduces each output."""
    state = state_of(blocks, tag, "cross_attention", ("norm_query", "norm_tokens", "norm_mlp"))
    queries, tokens, expected = (tensor(blocks[f"{tag}/{k}"]) for k in ("in0", "in1", "out"))
    mask = blocks.get(f"{tag}/mask")
    qk, value = state["attention.q.weight"].shape[0], state["attention.v.weight"].shape[0]
    matching = []
    for heads in (1, 2, 4):
        for added in (False, True):
            if qk % heads or value % heads:
                continue
            read = Read(
                query_dim=queries.shape[-1],
                token_dim=tokens.shape[-1],
                num_heads=heads,
                mlp_ratio=state["mlp.hidden.weight"].shape[0] // queries.shape[-1],
                activation="gelu_tanh",
                residual=added,
                qk_dim=qk,
                v_dim=value,
            )
            read.load_state_dict(state)
            with use_attention(read, path):
                out = read(
                    queries.unsqueeze(1),
                    tokens.unsqueeze(1),
                    None if mask is None else tensor(mask).bool().unsqueeze(1),
                ).squeeze(1)
            if agrees(out, expected):
                matching.append(added)
    assert matching == [residual]


@pytest.mark.parametrize("tag", ["self", "self_qkv_channels"])
def test_a_layer_is_the_official_self_attention(blocks: Arrays, tag: str) -> None:
    state = state_of(blocks, tag, "self_attention", ("norm_attention", "norm_mlp"))
    x, expected = (tensor(blocks[f"{tag}/{k}"]) for k in ("in0", "out"))
    value = state["attention.out.weight"].shape[1]
    qk = (len(state["attention.qkv.bias"]) - value) // 2
    matching = []
    for heads in (1, 2, 4):
        for activation in ("gelu", "gelu_tanh"):
            layer = SelfAttentionLayer(
                dim=x.shape[-1],
                num_heads=heads,
                mlp_ratio=state["mlp.hidden.weight"].shape[0] // x.shape[-1],
                activation=activation,
                qk_dim=qk,
                v_dim=value,
            )
            layer.load_state_dict(state)
            if agrees(layer(x.unsqueeze(1)).squeeze(1), expected):
                matching.append(activation)
    assert matching == ["gelu_tanh"]


def test_the_mlp_has_the_tanh_gelu(blocks: Arrays) -> None:
    tag = "mlp_gelu_tanh"
    x, expected = (tensor(blocks[f"{tag}/{k}"]) for k in ("in0", "out"))
    found = {}
    for activation in ("gelu", "gelu_tanh"):
        mlp = Mlp(dim=12, ratio=3, activation=activation)
        names = {"hidden": 0, "out": 1}
        parts = {n: linear(blocks, f"{tag}/param/mlp", i) for n, i in names.items()}
        mlp.load_state_dict({f"{n}.{k}": v for n, part in parts.items() for k, v in part.items()})
        found[activation] = agrees(mlp(x), expected)
    assert found == {"gelu": False, "gelu_tanh": True}


def test_the_mean_comes_before_the_projection(blocks: Arrays) -> None:
    root = "projection_decoder/param/projection_decoder/~/logits"
    head = nn.Linear(12, 7)
    weight, bias = tensor(blocks[f"{root}:w"].T), tensor(blocks[f"{root}:b"])
    head.load_state_dict({"weight": weight, "bias": bias})
    x, expected = (tensor(blocks[f"projection_decoder/{k}"]) for k in ("in0", "out"))
    assert agrees(head(x.mean(1)), expected)
    assert not agrees(head(x[:, 0]), expected)


@pytest.mark.parametrize("tag", ["conv2d_downsample", "conv2d_downsample_odd_size"])
@pytest.mark.parametrize("padding", ["same", "hf"])
def test_the_stem_is_the_official_one_and_pads_unevenly(
    blocks: Arrays, tag: str, padding: Any
) -> None:
    root = f"{tag}/param/conv2_d_downsample/~"
    raw, expected = tensor(blocks[f"{tag}/in0"]), tensor(blocks[f"{tag}/out"])
    normed = f"{root}/batchnorm:scale" in blocks
    config = TokenConfig(content="conv", dim=6, batch_norm=normed, padding=padding)
    stem = ConvStem(Image(raw.shape[1], raw.shape[2], 3), config).eval()
    state = {"convs.0.weight": tensor(blocks[f"{root}/conv:w"].transpose(3, 2, 0, 1))}
    if normed:
        averages = f"{tag}/state/conv2_d_downsample/~/batchnorm/~"
        state |= {
            "norms.0.weight": tensor(blocks[f"{root}/batchnorm:scale"]).flatten(),
            "norms.0.bias": tensor(blocks[f"{root}/batchnorm:offset"]).flatten(),
            "norms.0.running_mean": tensor(blocks[f"{averages}/mean_ema:average"]).flatten(),
            "norms.0.running_var": tensor(blocks[f"{averages}/var_ema:average"]).flatten(),
            "norms.0.num_batches_tracked": torch.tensor(0),
        }
    stem.load_state_dict(state)
    out = stem(raw.flatten(1, 2)).unflatten(1, stem.grid)
    if padding == "same":
        assert agrees(out, expected)
    else:
        assert out.shape != expected.shape
