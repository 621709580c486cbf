"""What is absent, hidden or padded in a Perceiver IO, and what may influence what."""

from dataclasses import replace

import pytest
import torch
from tests.models.perceiver_io_making import (
    EXACT,
    INPUTS,
    NAN,
    OUTPUTS,
    SHAPES,
    TRUNK,
    Draw,
    Stir,
    answer_of_nothing,
    build,
    draw_ragged,
)
from torch import Tensor

from perceivers.adapters.config import TokenConfig
from perceivers.models import DecoderConfig
from perceivers.models.flat.trunk import TrunkConfig
from perceivers.nn import attention
from perceivers.nn.attention import use_attention
from perceivers.types import PAD, Bytes, Labels, ModalitySpec, Video

# -- padding of queries ------------------------------------------------------------------------


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
    """Masked autoencoding asks for exactly what was hidden."""
    model, raw = build(stir), draw(INPUTS)
    valid = {"points": torch.tensor([[True] * 3 + [False] * 2] * 2)}
    encoded = model.encode(raw, valid=valid)
    rows = model.decode(encoded, "rows")
    assert not torch.isclose(rows, answer_of_nothing(model, "rows")).all(-1).any()
    plain = model.encode(raw)
    assert not torch.allclose(encoded.latents, plain.latents)
    half = {"sound": torch.tensor([[True, False, True, False]] * 2)}  # tokens are no queries here
    assert model.decode(model.encode(raw, valid=half), "wave").shape == (2, 1, 12)


# -- what may influence what -------------------------------------------------------------------


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
