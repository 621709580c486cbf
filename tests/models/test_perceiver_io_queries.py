"""Queries of a Perceiver IO: chunks and indices change nothing; where they lie."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.models.perceiver_io_making import (
    EXACT,
    OUTPUTS,
    QUERIES,
    SHAPES,
    Draw,
    Stir,
    build,
    draw_ragged,
    places_of,
)
from torch import Tensor

from perceivers.errors import InputError
from perceivers.models import DecoderConfig
from perceivers.models.perceiver_io import decoder as decoding
from perceivers.nn.positions import fourier_features, grid_coordinates

# -- chunks and indices ------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("size", [1, 3])
def test_chunks_change_nothing(stir: Stir, draw: Draw, name: str, size: int) -> None:
    model, raw = build(stir), draw_ragged(draw)
    encoded = model.encode(raw)
    whole = model.decode(encoded, name)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            parts = model.decode(encoded, name, chunk_size=size)
        torch.testing.assert_close(parts, whole, **EXACT)
    assert not torch.allclose(model.decode(model.encode(draw_ragged(draw)), name), whole)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("size", [None, 2])
def test_indices_pick_rows_of_the_whole_answer(
    stir: Stir, draw: Draw, rng: torch.Generator, name: str, size: int | None
) -> None:
    model, raw = build(stir), draw_ragged(draw)
    encoded, total = model.encode(raw), QUERIES[name]
    whole = model.decode(encoded, name, ids=torch.arange(total))
    laid = {"grid": lambda x: x.flatten(2).transpose(1, 2), "wave": lambda x: x.reshape(2, 4, 3)}
    full = model.decode(encoded, name)
    full = laid.get("grid" if name == "cell" else name, lambda x: x.reshape(2, total, -1))(full)
    torch.testing.assert_close(full, whole, **EXACT)
    shared = torch.randint(total, (3,), generator=rng)
    own = torch.randint(total, (2, 3), generator=rng)
    picked = model.decode(encoded, name, ids=shared, chunk_size=size)
    torch.testing.assert_close(picked, whole[:, shared], **EXACT)
    mine = model.decode(encoded, name, ids=own, chunk_size=size)
    for sample in range(2):
        torch.testing.assert_close(mine[sample], whole[sample, own[sample]], **EXACT)
    if total > 1:
        other = model.decode(encoded, name, ids=(own + 1) % total)
        assert not torch.allclose(other, mine)


def test_gradients_of_chunks_are_those_of_the_whole(stir: Stir, draw: Draw) -> None:
    raw, results = draw_ragged(draw), []
    for chunk in (10_000, 3):
        model = build(stir, decoder=DecoderConfig(chunk=chunk, residual=True)).train()
        answers = model(raw)
        torch.stack([x.square().sum() for x in answers.values()]).sum().backward()
        results.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-10)
    assert any(g is not None and g.any() for g in results[0])


def test_only_several_chunks_are_computed_again(stir: Stir, draw: Draw) -> None:
    raw = draw_ragged(draw)
    for chunk, reads in ((24, 1), (23, 4), (8, 6)):  # 24 queries: as equal chunks as can be
        model = build(stir, decoder=DecoderConfig(chunk=chunk)).train()
        calls: list[int] = []

        def count(_: Any, args: tuple[Tensor, ...], calls: list[int] = calls) -> None:
            calls.append(args[0].shape[2])

        model.decoder.read.register_forward_pre_hook(count)
        model.decode(model.encode(raw), "grid").sum().backward()
        assert len(calls) == reads
        assert max(calls) == 24 // (1 if reads == 1 else reads // 2)


def test_the_encoder_runs_once_however_often_one_asks(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir), draw_ragged(draw)
    calls: list[int] = []
    model.trunk.register_forward_hook(lambda *_: calls.append(1))
    encoded = model.encode(raw)
    for name in SHAPES:
        model.decode(encoded, name, chunk_size=2)
    assert calls == [1]


# -- where queries lie -------------------------------------------------------------------------


def test_grid_queries_reach_both_ends_and_cell_queries_do_not(stir: Stir, draw: Draw) -> None:
    model = build(stir)
    grid, cell = places_of(model, "grid"), places_of(model, "cell")
    assert grid[0].tolist() == cell[0].tolist() == [-1.0, -1.0]
    assert grid[-1].tolist() == [1.0, 1.0]
    torch.testing.assert_close(cell[-1], torch.tensor([1 - 2 / 4, 1 - 2 / 6]).double())
    torch.testing.assert_close(grid, grid_coordinates((4, 6)).double())
    ids = torch.tensor([1, 23, 8])
    for name, places in (("grid", grid), ("cell", cell)):
        torch.testing.assert_close(places_of(model, name, ids), places[ids])
    same = replace(OUTPUTS["cell"], sampled="grid")
    other = build(stir, outputs={**OUTPUTS, "cell": same})
    other.load_state_dict(model.state_dict())
    raw = draw_ragged(draw)
    assert not torch.allclose(model(raw)["cell"], other(raw)["cell"])
    torch.testing.assert_close(model(raw)["grid"], other(raw)["grid"], **EXACT)


def test_long_grids_keep_no_table_and_answer_alike(
    stir: Stir, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, model = draw_ragged(draw), build(stir)
    monkeypatch.setattr(decoding, "CACHED_QUERIES", 10)
    long = build(stir)
    long.load_state_dict(model.state_dict())
    assert list(long.decoder.queries["grid"].buffers()) == []
    assert len(list(model.decoder.queries["grid"].buffers())) == 1
    ids = torch.tensor([[5, 1], [23, 0]])
    calls: list[dict[str, Any]] = [{}, {"chunk_size": 5}, {"ids": ids}]
    for settings in calls:
        torch.testing.assert_close(
            long.decode(long.encode(raw), "grid", **settings),
            model.decode(model.encode(raw), "grid", **settings),
            rtol=0.0,
            atol=1e-6,  # angles in float32
        )


def test_queries_of_tokens_are_the_tokens(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir), draw_ragged(draw)
    encoded = model.encode(raw)
    made = model.decoder.make_queries("tokens", encoded.tokens, None, torch.float64)
    part = encoded.tokens.parts["points"]
    assert torch.equal(made[..., : part.shape[-1]], part)
    clouds = raw["points"].nan_to_num()
    expected = fourier_features(clouds, 2, (8, 8, 8))
    torch.testing.assert_close(part, expected, **EXACT)
    absent = {name: x for name, x in raw.items() if name != "points"}
    with pytest.raises(InputError, match=r"'tokens' is queried with the tokens of 'points', which"):
        model(absent)
    assert model(absent, outputs=["rows"]).shape == (2, 5, 3)  # these need no input
