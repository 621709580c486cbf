"""Several modalities in one array: padding vectors, mask tokens, hidden, kept, missing ones."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from perceivers.adapters.config import PositionConfig, TokenConfig
from perceivers.adapters.multimodal import TokenReaders
from perceivers.errors import ConfigError, InputError
from perceivers.types import Array, Bytes, Labels, ModalitySpec, Points

INPUTS: Mapping[str, ModalitySpec] = {
    "wide": Array((4,), 6),
    "narrow": Array((3,), 2),
    "label": Labels(5),
}
NAN = float("nan")


def build(rng: torch.Generator, *, train: bool = False, **settings: Any) -> TokenReaders:
    inputs = settings.pop("inputs", INPUTS)
    rates = settings.pop("rates", {})
    tokens = settings.pop("tokens", {})
    tokens = {n: tokens.get(n, TokenConfig(mask_rate=rates.get(n, 0.0))) for n in inputs}
    settings = {"min_padding": 2, "mask_tokens": bool(rates), **settings}
    readers = TokenReaders(inputs, tokens, **settings).double().train(train)
    with torch.no_grad():
        for parameter in readers.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
    return readers


def draw(rng: torch.Generator) -> dict[str, Tensor]:
    return {
        "wide": torch.randn(2, 4, 6, generator=rng, dtype=torch.float64),
        "narrow": torch.randn(2, 3, 2, generator=rng, dtype=torch.float64),
        "label": torch.tensor([[1], [4]]),
    }


def read(readers: TokenReaders, raw: Mapping[str, Tensor], **settings: Any) -> Tensor:
    return readers(raw, dtype=torch.float64, **settings).array


def test_tokens_are_padded_to_one_width_in_the_declared_order(rng: torch.Generator) -> None:
    readers, raw = build(rng), draw(rng)
    array = read(readers, dict(reversed(raw.items())))
    assert (readers.dim, tuple(array.shape)) == (8, (2, 8, 8))
    assert readers.num_tokens == {"wide": 4, "narrow": 3, "label": 1}
    assert torch.equal(array[:, :4, :6], raw["wide"])
    assert torch.equal(array[:, 4:7, :2], raw["narrow"])
    assert array[:, 7, :5].tolist() == [[0, 1, 0, 0, 0], [0, 0, 0, 0, 1]]
    for name, rows, width in (("wide", slice(0, 4), 6), ("narrow", slice(4, 7), 2)):
        padding = readers.padding[name]
        assert tuple(padding.shape) == (8 - width,)
        assert torch.equal(array[:, rows, width:], padding.expand(2, array[:, rows].shape[1], -1))


def test_a_single_modality_is_read_as_it_is(rng: torch.Generator) -> None:
    readers = build(rng, inputs={"wide": Array((4,), 6)}, mask_tokens=True)
    assert (readers.dim, list(readers.parameters())) == (6, [])
    raw = draw(rng)["wide"]
    assert torch.equal(read(readers, {"wide": raw}), raw)


def test_without_least_padding_the_widest_has_no_vector(rng: torch.Generator) -> None:
    assert set(build(rng, min_padding=0).padding) == {"narrow", "label"}
    assert set(build(rng).padding) == {"wide", "narrow", "label"}


@pytest.mark.parametrize("train", [False, True])
def test_a_rate_of_one_replaces_every_token_always(rng: torch.Generator, train: bool) -> None:
    readers, raw = build(rng, rates={"label": 1.0}, train=train), draw(rng)
    array = read(readers, raw)
    assert torch.equal(array[:, 7], readers.mask["label"].expand(2, -1))
    other = {**raw, "label": torch.tensor([[0], [-1]])}
    assert torch.equal(read(readers, other), array)
    assert not torch.equal(read(build(rng), other), read(build(rng), raw))


def test_a_rate_between_replaces_some_tokens_in_training_only(rng: torch.Generator) -> None:
    inputs: dict[str, ModalitySpec] = {"many": Array((4000,), 2), "label": Labels(5)}
    readers = build(rng, inputs=inputs, rates={"many": 0.3}, train=True)
    raw = {
        "many": torch.randn(2, 4000, 2, generator=rng, dtype=torch.float64),
        "label": torch.tensor([[1], [4]]),
    }
    masked = (read(readers, raw)[:, :4000] == readers.mask["many"]).all(-1)
    assert 0.27 < float(masked.double().mean()) < 0.33
    assert not torch.equal(masked[0], masked[1])
    again = (read(readers, raw)[:, :4000] == readers.mask["many"]).all(-1)
    assert not torch.equal(again, masked)
    still = (read(readers.eval(), raw)[:, :4000] == readers.mask["many"]).all(-1)
    assert not still.any()


def test_hidden_tokens_become_the_mask_token_and_no_others(rng: torch.Generator) -> None:
    readers, raw = build(rng, mask_tokens=True), draw(rng)
    hidden = torch.tensor([[True, False, False, True], [False, True, False, False]])
    plain, array = read(readers, raw), read(readers, raw, hidden={"wide": hidden})
    assert torch.equal(array[:, :4][hidden], readers.mask["wide"].expand(3, -1))
    assert torch.equal(array[:, :4][~hidden], plain[:, :4][~hidden])
    assert torch.equal(array[:, 4:], plain[:, 4:])


def test_hidden_goes_before_the_rate(rng: torch.Generator) -> None:
    readers, raw = build(rng, rates={"label": 1.0}), draw(rng)
    shown = read(readers, raw, hidden={"label": torch.tensor([[False], [True]])})
    assert shown[0, 7, :5].tolist() == [0, 1, 0, 0, 0]
    assert torch.equal(shown[1, 7], readers.mask["label"])


def test_kept_tokens_are_the_only_ones_read(rng: torch.Generator) -> None:
    readers, raw = build(rng), draw(rng)
    rows = torch.tensor([[0, 2], [3, 1]])
    whole = read(readers, raw)
    tokens = readers(raw, kept={"wide": rows}, dtype=torch.float64)
    assert tuple(tokens.array.shape) == (2, 6, 8)
    for sample in range(2):
        assert torch.equal(tokens.array[sample, :2], whole[sample, rows[sample]])
        assert torch.equal(tokens.array[sample, 2:], whole[sample, 4:])
    assert tokens.valid is None
    assert torch.equal(tokens.parts["wide"], raw["wide"])  # queries still know every token


def test_a_missing_modality_is_left_out(rng: torch.Generator) -> None:
    readers, raw = build(rng), draw(rng)
    whole = read(readers, raw)
    some = readers({"narrow": raw["narrow"]}, dtype=torch.float64)
    assert torch.equal(some.array, whole[:, 4:7])
    assert list(some.parts) == ["narrow"]


def test_what_is_real_is_joined_with_what_is_valid(rng: torch.Generator) -> None:
    inputs: dict[str, ModalitySpec] = {
        "cloud": Points(3, 2, ragged=True),
        "text": Bytes(2),
        "other": Array((2,), 2),
    }
    tokens = {"cloud": TokenConfig(), "text": TokenConfig(content="embedding", dim=3)}
    readers = build(rng, inputs=inputs, tokens=tokens)
    cloud = torch.randn(1, 3, 2, generator=rng, dtype=torch.float64)
    cloud[0, 0] = NAN
    raw = {
        "cloud": cloud,
        "text": torch.tensor([[7, 0]]),
        "other": torch.ones(1, 2, 2, dtype=torch.float64),
    }
    valid = {"cloud": torch.tensor([[True, True, False]]), "other": torch.tensor([[False, True]])}
    found = readers(raw, valid=valid, dtype=torch.float64)
    assert found.valid.tolist() == [[False, True, False, True, False, False, True]]
    assert found.real["cloud"].tolist() == [[False, True, True]]  # valid says nothing about it
    assert found.real["text"].tolist() == [[True, False]]
    assert "other" not in found.real
    rows = {"cloud": torch.tensor([[2, 1]])}
    kept = readers(raw, valid=valid, kept=rows, dtype=torch.float64)
    assert kept.valid.tolist() == [[False, True, True, False, False, True]]
    plain = readers({"other": raw["other"]}, dtype=torch.float64)
    assert plain.valid is None  # fast kernels need no mask then


MASK = torch.ones(2, 4, dtype=torch.bool)
BAD_CALLS: list[tuple[dict[str, Any], str]] = [
    ({"inputs": {"wyde": MASK}}, r"input 'wyde' is unknown; the model takes .*mean 'wide'\?"),
    ({"inputs": {}}, r"no input given; the model needs at least one of \['wide', 'narrow', 'label"),
    ({"inputs": {"wide": torch.tensor(1.0)}}, r"input 'wide' must be a tensor with a batch axis"),
    (
        {"inputs": {"wide": torch.ones(2, 4, 6), "narrow": torch.ones(3, 3, 2)}},
        r"inputs have different batch sizes \{'wide': 2, 'narrow': 3\}; they must be equal",
    ),
    ({"valid": {"wild": MASK}}, r"valid contains 'wild', which is not among the inputs"),
    ({"hidden": {"narrow": MASK}}, r"hidden\['narrow'\] has shape \(2, 4\); expected \[B, 3\]"),
    ({"kept": {"wide": MASK[0].long()}}, r"kept\['wide'\] has shape \(4,\); expected \[B, K\]"),
    (
        {"hidden": {"wide": MASK}},
        r"hidden\['wide'\] needs a mask token; build the model with several modalities and mask",
    ),
]


@pytest.mark.parametrize(("call", "text"), BAD_CALLS)
def test_wrong_calls_are_refused_with_their_values(
    rng: torch.Generator, call: dict[str, Any], text: str
) -> None:
    readers = build(rng)
    call = {"inputs": draw(rng), **call}
    with pytest.raises(InputError, match=text):
        readers(call.pop("inputs"), dtype=torch.float64, **call)


@pytest.mark.parametrize("inputs", [INPUTS, {"label": Labels(5)}])
def test_a_mask_rate_without_a_mask_token_is_refused(
    rng: torch.Generator, inputs: Mapping[str, ModalitySpec]
) -> None:
    with pytest.raises(
        ConfigError, match=r"input 'label' is masked at mask_rate=0\.5, but there is no mask token"
    ):
        build(rng, inputs=inputs, rates={"label": 0.5}, mask_tokens=len(inputs) == 1)


def test_padding_tells_equal_contents_apart(rng: torch.Generator) -> None:
    twins: dict[str, ModalitySpec] = {"a": Array((2,), 3), "b": Array((2,), 3)}
    positions = TokenConfig(positions=PositionConfig(kind="learned", dim=2))
    readers = build(rng, inputs=twins, tokens={"a": positions})
    same = torch.ones(1, 2, 3, dtype=torch.float64)
    array = read(readers, {"a": same, "b": same})
    assert not torch.allclose(array[:, :2], array[:, 2:])
