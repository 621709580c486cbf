"""A Perceiver IO with an output of every kind, which the tests of this family share."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from perceivers.adapters.config import PositionConfig, TokenConfig
from perceivers.models import Output, PerceiverIO, PerceiverIOConfig
from perceivers.models.flat.trunk import TrunkConfig
from perceivers.models.perceiver_io.decoder import PositionQueries
from perceivers.types import PAD, Audio, Bytes, Image, ModalitySpec, Points

Stir = Callable[..., PerceiverIO]
Draw = Callable[..., dict[str, Tensor]]
EXACT: dict[str, Any] = dict(rtol=0.0, atol=1e-11)
NAN = float("nan")
TRUNK = TrunkConfig(num_latents=5, latent_dim=8, depth=1, num_heads=2)
WAVES = PositionConfig(kind="fourier", num_bands=3)
ROWS = PositionConfig(kind="learned", dim=6)
INPUTS: Mapping[str, ModalitySpec] = {
    "image": Image(4, 6, 1),
    "text": Bytes(7),
    "points": Points(5, 3, ragged=True),
    "sound": Audio(12),
}
TOKENS = {
    "image": TokenConfig(positions=WAVES),
    "text": TokenConfig(
        content="embedding",
        dim=4,
        positions=PositionConfig(kind="learned", dim=4, combine="add"),
    ),
    "points": TokenConfig(
        content="coordinates",
        positions=PositionConfig(kind="fourier", num_bands=2, max_resolution=(8, 8, 8)),
    ),
    "sound": TokenConfig(content="patches", patch=(3,), positions=WAVES),
}
OUTPUTS = {
    "classes": Output(dim=6, channels=3),
    "tasks": Output(length=4, dim=7, channels=3, head="tanh_mlp"),
    "bytes": Output(length=7, dim=5, modality="text", head="tied"),
    "grid": Output(queries="positions", modality="image", positions=WAVES, channels=2),
    "cell": Output(
        queries="positions", modality="image", positions=WAVES, channels=2, sampled="cell"
    ),
    "rows": Output(queries="positions", modality="points", positions=ROWS, channels=3),
    "wave": Output(queries="positions", modality="sound", positions=WAVES, patch=(3,), channels=1),
    "tokens": Output(queries="tokens", modality="points", channels=2, divide_by=10.0),
}
SHAPES = {
    "classes": (2, 3),
    "tasks": (2, 4, 3),
    "bytes": (2, 7, 262),
    "grid": (2, 2, 4, 6),
    "cell": (2, 2, 4, 6),
    "rows": (2, 5, 3),
    "wave": (2, 1, 12),
    "tokens": (2, 5, 2),
}
QUERIES = dict(zip(SHAPES, (1, 4, 7, 24, 24, 5, 4, 5), strict=True))


def build(stir: Stir, **settings: Any) -> PerceiverIO:
    config = {
        "inputs": INPUTS,
        "tokens": TOKENS,
        "trunk": TRUNK,
        "outputs": OUTPUTS,
        "mask_tokens": len(settings.get("inputs", INPUTS)) > 1,
        **settings,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return stir(PerceiverIO(PerceiverIOConfig(**config)))


def draw_ragged(draw: Draw) -> dict[str, Tensor]:
    """A batch whose texts end in padding and whose clouds lack points."""
    raw = draw(INPUTS)
    raw["text"][0, 4:] = PAD
    raw["points"][1, 2] = NAN
    return raw


def places_of(model: PerceiverIO, name: str, ids: Tensor | None = None) -> Tensor:
    """Coordinates of an output's queries: the first channels of their positions."""
    queries = model.decoder.queries[name]
    assert isinstance(queries, PositionQueries)
    return queries(ids, torch.float64, torch.device("cpu"))[0, :, :2]


def answer_of_nothing(model: PerceiverIO, name: str) -> Tensor:
    """What a query answers that attends to nothing, by hand."""
    read = model.decoder.read
    x = read.attention.out.bias
    x = x + read.mlp(read.norm_mlp(x))
    if model.decoder.project is not None:
        x = model.decoder.project(x)
    head = model.decoder.heads[name]
    tied = model._tied_rows(name)
    out = head(x) if tied is None else head(x, tied)
    return out / model.config.outputs[name].divide_by
