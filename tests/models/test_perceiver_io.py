"""Perceiver IO as a whole: queries of every kind, chunks, padding, masks, sizes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perceivers.adapters.config import PositionConfig, TokenConfig
from perceivers.checkpoints.loading import load
from perceivers.errors import ConfigError, InputError
from perceivers.models import DecoderConfig, Output, PerceiverIO, PerceiverIOConfig, create_model
from perceivers.models.flat.trunk import TrunkConfig
from perceivers.models.perceiver_io import decoder as decoding
from perceivers.models.perceiver_io.decoder import PositionQueries
from perceivers.nn import attention
from perceivers.nn.attention import use_attention
from perceivers.nn.positions import fourier_features, grid_coordinates
from perceivers.types import PAD, Audio, Bytes, Image, Labels, ModalitySpec, Points, Video

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
        "mask_tokens": True,
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


# -- what comes out --------------------------------------------------------------------------


def test_every_output_has_the_layout_of_what_it_speaks_of(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir), draw_ragged(draw)
    answers = model(raw)
    assert {name: tuple(x.shape) for name, x in answers.items()} == SHAPES
    assert {name: model.num_queries(name) for name in SHAPES} == QUERIES
    fresh = draw_ragged(draw)
    others = model(fresh)
    assert not any(torch.allclose(answers[name], others[name]) for name in SHAPES)
    assert all(x.isfinite().all() for x in answers.values())


def test_named_outputs_are_answered_alone(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir), draw_ragged(draw)
    answers = model(raw)
    assert torch.equal(model(raw, outputs=["grid"]), answers["grid"])
    two = model(raw, outputs=["rows", "classes"])
    assert list(two) == ["rows", "classes"]
    with pytest.raises(InputError, match=r"output 'class' is unknown; .*did you mean 'classes'\?"):
        model(raw, outputs=["class"])
    with pytest.raises(InputError, match=r"output None is unknown; the model answers \['classes'"):
        model.decode(model.forward_features(raw))


def test_one_output_is_returned_bare(stir: Stir, draw: Draw) -> None:
    model = build(stir, outputs={"classes": OUTPUTS["classes"]})
    raw = draw_ragged(draw)
    answer = model(raw)
    assert torch.equal(answer, model.decode(model.encode(raw)))
    assert answer.shape == (2, 3)
    bare = build(stir, outputs={"wave": OUTPUTS["wave"]}, inputs={"sound": Audio(12)}, tokens={})
    sound = raw["sound"]
    assert torch.equal(bare(sound), bare({"sound": sound}))
    with pytest.raises(InputError, match=r"a bare tensor is ambiguous"):
        model(sound)


def test_patches_are_put_back_where_they_belong(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir), draw_ragged(draw)
    encoded = model.encode(raw)
    patches = model.decode(encoded, "wave", ids=torch.arange(4))
    assert tuple(patches.shape) == (2, 4, 3)
    assert torch.equal(model.decode(encoded, "wave"), patches.reshape(2, 1, 12))


# -- chunks and indices ----------------------------------------------------------------------


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
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-11)
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


# -- where queries lie -----------------------------------------------------------------------


def places_of(model: PerceiverIO, name: str, ids: Tensor | None = None) -> Tensor:
    """Coordinates of an output's queries: the first channels of their positions."""
    queries = model.decoder.queries[name]
    assert isinstance(queries, PositionQueries)
    return queries(ids, torch.float64, torch.device("cpu"))[0, :, :2]


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
    with pytest.raises(InputError, match=r"'tokens' is read with the tokens of 'points', which"):
        model(absent)
    assert model(absent, outputs=["rows"]).shape == (2, 5, 3)  # these need no input


# -- padding of queries ----------------------------------------------------------------------


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


@pytest.mark.parametrize("name", ["bytes", "rows", "tokens"])
@pytest.mark.parametrize("size", [None, 2])
def test_queries_of_padding_attend_to_nothing(
    stir: Stir, draw: Draw, name: str, size: int | None
) -> None:
    """Zeros enter the output projection, so all of them give one constant row."""
    model, raw = build(stir), draw_ragged(draw)
    absent = raw["text"] == PAD if name == "bytes" else raw["points"].isnan().any(-1)
    out = model.decode(model.encode(raw), name, chunk_size=size)
    constant = answer_of_nothing(model, name)
    torch.testing.assert_close(out[absent], constant.expand_as(out[absent]), **EXACT)
    assert not torch.isclose(out[~absent], constant).all(-1).any()
    ids = torch.tensor([[4, 2, 0], [4, 2, 0]])
    picked = model.decode(model.encode(raw), name, ids=ids, chunk_size=size)
    torch.testing.assert_close(picked, out[:, [4, 2, 0]], **EXACT)


def test_queries_of_padding_answer_when_asked_to_as_in_the_port(stir: Stir, draw: Draw) -> None:
    raw = draw_ragged(draw)
    ported = {**OUTPUTS, "bytes": replace(OUTPUTS["bytes"], mask_padding=False)}
    model, other = build(stir), build(stir, outputs=ported)
    ours, theirs = model(raw)["bytes"], other(raw)["bytes"]
    absent = raw["text"] == PAD
    torch.testing.assert_close(ours[~absent], theirs[~absent], **EXACT)
    assert not torch.isclose(ours[absent], theirs[absent]).all(-1).any()
    assert not torch.allclose(theirs[0, 4], theirs[0, 5])


def test_keep_says_which_queries_mean_something(
    stir: Stir, draw: Draw, rng: torch.Generator
) -> None:
    model, raw = build(stir), draw_ragged(draw)
    encoded = model.encode(raw)
    keep = torch.rand(2, 24, generator=rng) < 0.5
    whole = model.decode(encoded, "grid").flatten(2).transpose(1, 2)
    for size in (None, 7):
        out = model.decode(encoded, "grid", keep=keep, chunk_size=size)
        out = out.flatten(2).transpose(1, 2)
        torch.testing.assert_close(out[keep], whole[keep], **EXACT)
        constant = answer_of_nothing(model, "grid")
        torch.testing.assert_close(out[~keep], constant.expand_as(out[~keep]), **EXACT)


def test_valid_hides_tokens_from_the_latents_not_from_the_queries(stir: Stir, draw: Draw) -> None:
    """Masked auto-encoding asks for exactly what was hidden."""
    model, raw = build(stir), draw(INPUTS)
    valid = {"points": torch.tensor([[True] * 3 + [False] * 2] * 2)}
    encoded = model.encode(raw, valid=valid)
    rows = model.decode(encoded, "rows")
    assert not torch.isclose(rows, answer_of_nothing(model, "rows")).all(-1).any()
    plain = model.encode(raw)
    assert not torch.allclose(encoded.latents, plain.latents)
    half = {"sound": torch.tensor([[True, False, True, False]] * 2)}  # tokens are no queries here
    assert model.decode(model.encode(raw, valid=half), "wave").shape == (2, 1, 12)


# -- what may influence what -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("trunk", "decoder"),
    [
        (TRUNK, DecoderConfig()),
        (
            replace(TRUNK, num_cross_heads=2, qk_dim=4, v_dim=8),
            DecoderConfig(num_heads=2, qk_dim=4, v_dim=12, residual=True),
        ),
        (replace(TRUNK, qk_dim=32, v_dim=40), DecoderConfig(qk_dim=96, v_dim=48, project=10)),
    ],
)
@pytest.mark.parametrize("kernel", ["plain", "padded"])
def test_both_attention_paths_agree(
    stir: Stir,
    draw: Draw,
    rng: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
    trunk: TrunkConfig,
    decoder: DecoderConfig,
    kernel: str,
) -> None:
    model, raw = build(stir, trunk=trunk, decoder=decoder), draw_ragged(draw)
    keep = torch.rand(2, 24, generator=rng) < 0.5

    def answers() -> dict[str, Tensor]:
        encoded = model.encode(raw)
        out = {name: model.decode(encoded, name) for name in SHAPES}
        return {**out, "kept": model.decode(encoded, "grid", keep=keep)}

    with use_attention(model, "reference"):
        expected = answers()
    if kernel == "padded":
        monkeypatch.setattr(attention, "PLAIN_SCORES", 0)
    torch.testing.assert_close(answers(), expected, rtol=0.0, atol=1e-9)
    raw = draw_ragged(draw)
    assert not torch.allclose(answers()["kept"], expected["kept"])


def test_what_padding_holds_changes_nothing(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir), draw_ragged(draw)
    expected = model(raw)
    shorter = model.resized({**INPUTS, "text": Bytes(4)})
    cut = {name: x[:1] for name, x in raw.items()}
    cut["text"] = cut["text"][:, :4]
    for name in ("classes", "grid", "tokens"):
        torch.testing.assert_close(shorter(cut)[name], expected[name][:1], **EXACT)
    torch.testing.assert_close(shorter(cut)["bytes"], expected["bytes"][:1, :4], **EXACT)
    spoiled = raw["points"].clone()
    spoiled[1, 2, 1:] = 7.0  # its first value is still NaN
    torch.testing.assert_close(model({**raw, "points": spoiled}), expected, **EXACT)


def test_tokens_are_a_set_and_queries_follow_their_own(
    stir: Stir, draw: Draw, rng: torch.Generator
) -> None:
    model, raw = build(stir), draw_ragged(draw)
    order = torch.randperm(5, generator=rng)
    expected = model(raw)
    turned = model({**raw, "points": raw["points"][:, order]})
    for name in ("classes", "grid", "wave"):
        torch.testing.assert_close(turned[name], expected[name], **EXACT)
    torch.testing.assert_close(turned["tokens"], expected["tokens"][:, order], **EXACT)
    assert not torch.allclose(turned["tokens"], expected["tokens"])


def test_a_sample_without_anything_real_is_finite(stir: Stir, draw: Draw) -> None:
    inputs = {"points": INPUTS["points"]}
    model = build(stir, inputs=inputs, tokens={}, outputs={"tokens": OUTPUTS["tokens"]})
    raw = draw(inputs)["points"]
    raw[1] = NAN
    out = model(raw)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    constant = answer_of_nothing(model, "tokens")
    torch.testing.assert_close(out[1], constant.expand(5, -1), **EXACT)
    torch.testing.assert_close(model(raw[:1]), out[:1], **EXACT)


def test_samples_do_not_see_one_another(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir), draw_ragged(draw)
    whole, alone = model(raw), model({name: x[1:] for name, x in raw.items()})
    for name in SHAPES:
        torch.testing.assert_close(alone[name], whole[name][1:], **EXACT)
        assert not torch.allclose(alone[name], whole[name][:1])


def test_kept_tokens_are_all_that_the_latents_read(
    stir: Stir, draw: Draw, rng: torch.Generator
) -> None:
    model, raw = build(stir), draw_ragged(draw)
    rows = torch.rand(2, 24, generator=rng).argsort(-1)[:, :10]
    valid = torch.zeros(2, 24, dtype=torch.bool).scatter(1, rows, value=True)
    kept = model.encode(raw, kept={"image": rows})
    masked = model.encode(raw, valid={"image": valid})
    torch.testing.assert_close(kept.latents, masked.latents, **EXACT)
    assert kept.tokens.array.shape[1] == masked.tokens.array.shape[1] - 14
    assert not torch.allclose(kept.latents, model.encode(raw).latents)
    opposite = model.encode(raw, valid={"image": ~valid})
    assert not torch.allclose(opposite.latents, kept.latents)


def test_hidden_tokens_are_replaced_and_others_are_not(stir: Stir, draw: Draw) -> None:
    model, raw, fresh = build(stir), draw_ragged(draw), draw_ragged(draw)
    hidden = torch.zeros(2, 24, dtype=torch.bool)
    hidden[:, ::2] = True
    latents = model.encode(raw, hidden={"image": hidden}).latents
    cells = hidden.reshape(2, 1, 4, 6)
    same = {**raw, "image": torch.where(cells, fresh["image"], raw["image"])}
    torch.testing.assert_close(
        model.encode(same, hidden={"image": hidden}).latents, latents, **EXACT
    )
    other = {**raw, "image": torch.where(cells, raw["image"], fresh["image"])}
    assert not torch.allclose(model.encode(other, hidden={"image": hidden}).latents, latents)
    assert not torch.allclose(model.encode(raw).latents, latents)


@pytest.mark.parametrize("train", [False, True])
def test_the_released_auto_encoder_never_sees_the_label(
    draw: Draw, rng: torch.Generator, train: bool, stir: Stir
) -> None:
    inputs: dict[str, ModalitySpec] = {"video": Video(2, 4, 4), "label": Labels(5)}
    tokens = {"label": TokenConfig(mask_rate=1.0)}
    model = build(stir, inputs=inputs, tokens=tokens, outputs={"label": OUTPUTS["classes"]})
    model.train(train)
    raw = draw(inputs)
    expected = model(raw)
    assert torch.equal(model({**raw, "label": (raw["label"] + 1) % 5}), expected)
    seen = {"label": torch.zeros(2, 1, dtype=torch.bool)}
    assert not torch.allclose(model.encode(raw, hidden=seen).latents, model.encode(raw).latents)


def test_a_missing_modality_equals_one_without_valid_tokens(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir), draw_ragged(draw)
    alone = {name: x for name, x in raw.items() if name != "image"}
    nothing = {"image": torch.zeros(2, 24, dtype=torch.bool)}
    expected = model.encode(alone).latents
    torch.testing.assert_close(model.encode(raw, valid=nothing).latents, expected, **EXACT)
    assert not torch.allclose(model.encode(raw).latents, expected)
    assert model(alone, outputs=["grid"]).shape == (2, 2, 4, 6)


def test_every_parameter_gets_a_gradient(stir: Stir, draw: Draw) -> None:
    model = build(stir, decoder=DecoderConfig(residual=True, project=9)).train()
    torch.stack([x.square().sum() for x in model(draw_ragged(draw)).values()]).sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {f"inputs.mask.{name}" for name in INPUTS}  # nothing was masked


def test_recomputation_changes_neither_values_nor_gradients(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir, trunk=replace(TRUNK, dropout_rate=0.3)).train(), draw_ragged(draw)
    results = []
    for on in (False, True):
        model.set_recompute(on)
        model.zero_grad()
        torch.manual_seed(1)
        out = model(raw)
        torch.stack([x.square().sum() for x in out.values()]).sum().backward()
        results.append(
            ({n: x.detach() for n, x in out.items()}, [p.grad for p in model.parameters()])
        )
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-11)


# -- heads -----------------------------------------------------------------------------------


def test_a_tied_head_shares_the_embedding_of_the_bytes(stir: Stir, draw: Draw) -> None:
    text = {"text": INPUTS["text"]}
    tied = Output(length=7, dim=4, modality="text", head="tied")
    model = build(stir, inputs=text, tokens={"text": TOKENS["text"]}, outputs={"bytes": tied})
    raw = draw(text)
    head = model.decoder.heads["bytes"]
    assert [name for name, _ in head.named_parameters()] == ["bias"]  # as wide as the rows
    before = model(raw)
    rows = model.get_parameter("inputs.readers.text.content.rows.weight")
    silent = int(next(i for i in range(6, 262) if i not in raw["text"].flatten().tolist()))
    with torch.no_grad():
        rows[silent] += 1.0
    after = model(raw)
    changed = ~torch.isclose(after, before).all(0).all(0)
    assert changed.nonzero().flatten().tolist() == [silent]
    among = build(stir).decoder.heads["bytes"]
    assert {name for name, _ in among.named_parameters()} >= {"bias", "project.weight"}


def test_values_are_divided(stir: Stir, draw: Draw) -> None:
    raw, found = draw_ragged(draw), []
    for by in (1.0, 10.0):
        outputs = {**OUTPUTS, "tokens": replace(OUTPUTS["tokens"], divide_by=by)}
        found.append(build(stir, outputs=outputs)(raw)["tokens"])
    torch.testing.assert_close(found[0], 10 * found[1], **EXACT)


def test_queries_are_padded_by_a_vector_of_their_output(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir), draw_ragged(draw)
    widths = {n: model.decoder.dim - len(p) for n, p in model.decoder.padding.items()}
    assert widths["classes"] == 6
    assert max(widths.values()) == model.decoder.dim - 2  # the least padding
    before = model(raw)
    with torch.no_grad():
        model.decoder.padding["grid"].add_(1.0)
    after = model(raw)
    assert {n for n in SHAPES if not torch.allclose(after[n], before[n])} == {"grid"}


def test_a_bare_answer_has_the_width_of_the_queries(stir: Stir, draw: Draw) -> None:
    output = {"tokens": Output(queries="tokens", modality="points")}
    inputs = {"points": INPUTS["points"]}
    model = build(stir, inputs=inputs, tokens={"points": TOKENS["points"]}, outputs=output)
    assert model(draw(inputs)).shape == (2, 5, model.inputs.reader("points").dim)
    assert isinstance(model.decoder.heads, nn.ModuleDict)
    assert not len(model.decoder.heads)


# -- sizes and files -------------------------------------------------------------------------


def test_a_resized_model_answers_for_the_new_sizes(stir: Stir, draw: Draw) -> None:
    model = build(stir)
    other: dict[str, ModalitySpec] = {
        "image": Image(8, 6, 1),
        "text": Bytes(5),
        "points": Points(8, 3, ragged=True),
        "sound": Audio(15),
    }
    resized = model.resized(other)
    shapes = {name: tuple(x.shape) for name, x in resized(draw(other)).items()}
    assert shapes == {
        **SHAPES,
        "bytes": (2, 5, 262),
        "grid": (2, 2, 8, 6),
        "cell": (2, 2, 8, 6),
        "rows": (2, 8, 3),
        "wave": (2, 1, 15),
        "tokens": (2, 8, 2),
    }
    ours, theirs = model.state_dict(), resized.state_dict()
    cut = "decoder.queries.bytes.table"
    assert torch.equal(theirs[cut], ours[cut][:5])
    rows = "decoder.queries.rows.positions.source.table"
    assert tuple(theirs[rows].shape) == (8, 6)
    grown = {n for n in theirs if theirs[n].shape != ours[n].shape}
    assert grown == {cut, rows, "inputs.readers.text.positions.source.table"}
    # Both grids have their first cell at the same place, and so the same query.
    assert torch.equal(places_of(model, "grid")[0], places_of(resized, "grid")[0])
    corner = [
        m.decoder.make_queries("grid", m.encode(d).tokens, None, torch.float64)[0, 0]
        for m, d in ((model, draw(INPUTS)), (resized, draw(other)))
    ]
    torch.testing.assert_close(corner[0], corner[1], **EXACT)
    with pytest.raises(ConfigError, match=r"texts of 7 bytes has no positions for 8"):
        model.resized({**INPUTS, "text": Bytes(8)})
    with pytest.raises(ConfigError, match=r"names, kinds and channels must stay"):
        model.resized({"image": Image(4, 6, 1)})


def test_a_folder_restores_the_model(stir: Stir, draw: Draw, tmp_path: Path) -> None:
    model = build(stir).float()
    raw = {n: x if x.dtype == torch.int64 else x.float() for n, x in draw_ragged(draw).items()}
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is PerceiverIO
    assert loaded.config == model.config
    for name, answer in loaded(raw).items():
        assert torch.equal(answer, model(raw)[name])


def test_the_small_variants_run_in_bfloat16(rng: torch.Generator) -> None:
    model = create_model("perceiver_io_nano", inputs={"image": Image(8, 8)}, num_classes=3)
    logits = model.bfloat16()(torch.rand(2, 3, 8, 8, generator=rng))
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
