"""Masked bytes: what is hidden and how, the loss by hand, and which models can learn it."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import perceivers as pv
from perceivers.data import Batch, encode_text
from perceivers.errors import ConfigError
from perceivers.tasks.mlm import (
    MaskedLanguage,
    MaskedLanguageConfig,
    hide_words,
    score_bytes,
    text_modality,
)
from perceivers.types import BYTE_VOCABULARY, CLS, FIRST_BYTE, MASK, PAD, SEP


def ids_of(text: str, length: int = 0) -> Tensor:
    """Ids of one text [1, L], padded."""
    ids = torch.from_numpy(encode_text(text).copy())
    return nn.functional.pad(ids, (0, max(0, length - len(ids))), value=PAD).unsqueeze(0)


def long_text(words: int = 4000) -> str:
    draws = np.random.default_rng(0).integers(1, 9, words)
    return " ".join("abcdefgh"[:size] for size in draws)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- what is hidden --------------------------------------------------------------------------------


def test_the_bytes_of_a_word_are_hidden_together() -> None:
    text = long_text(400)
    hidden = hide_words(ids_of(text), MaskedLanguageConfig(ratio=0.5), generator())
    flags = hidden.masked[0].tolist()
    place, states = 0, []
    for word in text.split(" "):
        part = flags[place : place + len(word)]
        assert len(set(part)) == 1, word
        states.append(part[0])
        place += len(word) + 1
    assert 0 < sum(states) < len(states)


def test_single_bytes_are_hidden_one_by_one() -> None:
    text = "abcdefgh " * 100
    hidden = hide_words(ids_of(text), MaskedLanguageConfig(ratio=0.5, unit="byte"), generator())
    flags = hidden.masked[0].unfold(0, 9, 9)[:, :8]
    assert ((flags.any(1)) & (~flags.all(1))).float().mean() > 0.9
    assert float(flags.float().mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("unit", ["word", "byte"])
def test_whitespace_special_ids_and_padding_are_never_hidden(unit: Any) -> None:
    text = ids_of("a b\tc\nd\re\x0bf\x0cg" * 30)
    ends = torch.tensor([[CLS]]), torch.tensor([[SEP, MASK, PAD, PAD]])
    ids = torch.cat([ends[0], text, ends[1]], 1)
    hidden = hide_words(ids, MaskedLanguageConfig(ratio=0.999, unit=unit), generator())
    letters = (ids >= FIRST_BYTE + ord("a")) & (ids <= FIRST_BYTE + ord("g"))
    assert torch.equal(hidden.masked & ~letters, torch.zeros_like(letters))
    assert hidden.masked[letters].float().mean() > 0.98
    assert torch.equal(hidden.ids[~hidden.masked], ids[~hidden.masked])


@pytest.mark.parametrize("ratio", [0.15, 0.4])
def test_the_share_of_hidden_words_is_the_ratio(ratio: float) -> None:
    text = long_text()
    hidden = hide_words(ids_of(text), MaskedLanguageConfig(ratio=ratio), generator())
    ends = [i for i, letter in enumerate(text + " ") if letter == " "]
    words = hidden.masked[0][torch.tensor(ends) - 1].float()
    # Four deviations of a binomial share of 4000.
    assert abs(float(words.mean()) - ratio) < 4 * math.sqrt(ratio * (1 - ratio) / 4000)


def test_hidden_words_become_mask_ids_random_bytes_or_stay() -> None:
    text = long_text()
    ids = ids_of(text)
    hidden = hide_words(ids, MaskedLanguageConfig(ratio=0.5), generator())
    starts = torch.tensor([0] + [i + 1 for i, letter in enumerate(text) if letter == " "])
    ends = torch.tensor([i for i, letter in enumerate(text + " ") if letter == " "])
    kinds = {"mask": 0, "same": 0, "random": 0}
    for first, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if not bool(hidden.masked[0, first]):
            continue
        shown, truth = hidden.ids[0, first:end], ids[0, first:end]
        if bool((shown == MASK).any()):
            assert bool((shown == MASK).all())  # one fate for the whole word
            kinds["mask"] += 1
        else:
            kinds["same" if torch.equal(shown, truth) else "random"] += 1
            assert int(shown.min()) >= FIRST_BYTE
            assert int(shown.max()) < BYTE_VOCABULARY
    total = sum(kinds.values())
    assert kinds["mask"] / total == pytest.approx(0.8, abs=0.04)
    assert kinds["random"] / total == pytest.approx(0.1, abs=0.03)
    assert kinds["same"] / total == pytest.approx(0.1, abs=0.03)


def test_shares_can_be_set() -> None:
    ids = ids_of(long_text(300))
    only = hide_words(ids, MaskedLanguageConfig(mask_share=1.0, random_share=0.0), generator())
    assert set(only.ids[only.masked].tolist()) == {MASK}
    kept = hide_words(ids, MaskedLanguageConfig(mask_share=0.0, random_share=0.0), generator())
    assert torch.equal(kept.ids, ids)
    assert bool(kept.masked.any())


def test_what_is_hidden_follows_from_the_generator() -> None:
    ids, config = ids_of(long_text(300)).repeat(2, 1), MaskedLanguageConfig(ratio=0.5)
    first, again = (hide_words(ids, config, generator()) for _ in range(2))
    other = hide_words(ids, config, generator(1))
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.masked, again.masked)
    assert not torch.equal(first.masked, other.masked)
    assert not torch.equal(first.masked[0], first.masked[1])  # every text draws for itself


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 0.0}, r"mlm\.ratio is 0\.0; it must be in \(0, 1\)"),
        ({"ratio": 1.0}, r"mlm\.ratio is 1\.0"),
        ({"mask_share": 0.8, "random_share": 0.3}, r"mask_share=0\.8 and mlm\.random_share=0\.3"),
        ({"random_share": -0.1}, r"random_share is -0\.1; it must be in \[0, 1\]"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MaskedLanguageConfig(**settings)


# -- the task --------------------------------------------------------------------------------------


class Constant(nn.Module):
    """Answers every byte with the same logits, and remembers what it was shown."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        output = SimpleNamespace(modality="bytes")
        self.config = SimpleNamespace(
            byte_outputs=("bytes",), outputs={"bytes": output}, data_inputs={"bytes": None}
        )
        self.shown: list[Tensor] = []

    def forward(self, inputs: dict[str, Tensor], outputs: list[str]) -> Tensor:
        """Logits [B, L, V]."""
        assert outputs == ["bytes"]
        self.shown.append(inputs["bytes"])
        return self.logits.expand(*inputs["bytes"].shape, -1)


def batch_of(ids: Tensor) -> Batch:
    return Batch({"bytes": ids}, None, torch.arange(len(ids)), [])


def test_the_loss_counts_hidden_bytes_alone() -> None:
    # The byte "a" is e^2 times as likely as each other entry.
    logits = torch.zeros(BYTE_VOCABULARY)
    logits[FIRST_BYTE + ord("a")] = 2.0
    norm = math.log(math.exp(2.0) + BYTE_VOCABULARY - 1)
    model = Constant(logits)
    task = MaskedLanguage(model, MaskedLanguageConfig(ratio=0.5))
    ids = ids_of("a b " * 40, 200)
    losses = task(batch_of(ids), generator())
    hidden = hide_words(ids, task.config, generator()).masked
    right = int((hidden & (ids == FIRST_BYTE + ord("a"))).sum())
    count = int(hidden.sum())
    assert 0 < right < count
    expected = ((norm - 2.0) * right + norm * (count - right)) / count
    assert float(losses.total.detach()) == pytest.approx(expected, rel=1e-5)
    assert bool((model.shown[0] == MASK).any())
    figures = task.evaluate([batch_of(ids)])
    assert set(figures) == {"loss", "bits_per_byte", "top1"}


def test_figures_are_in_nats_bits_and_shares() -> None:
    model = Constant(torch.zeros(BYTE_VOCABULARY))
    task = MaskedLanguage(model, MaskedLanguageConfig(ratio=0.5))
    figures = task.evaluate([batch_of(ids_of("abc de " * 20)), batch_of(ids_of("fg hij " * 20))])
    assert figures["loss"] == pytest.approx(math.log(BYTE_VOCABULARY), rel=1e-6)
    assert figures["bits_per_byte"] == pytest.approx(figures["loss"] / math.log(2))
    assert figures["top1"] == 0.0  # the first of equal logits is the padding
    assert task.evaluate([batch_of(ids_of("abc de " * 20))])["loss"] > 0
    assert not task.training


def test_evaluation_hides_the_same_bytes_every_time() -> None:
    model = Constant(torch.zeros(BYTE_VOCABULARY))
    task = MaskedLanguage(model, MaskedLanguageConfig())
    for _ in range(2):
        task.evaluate([batch_of(ids_of(long_text(60)))])
    assert torch.equal(model.shown[0], model.shown[1])


def test_training_may_hide_more_than_evaluation() -> None:
    config = MaskedLanguageConfig(ratio=0.1, train_ratio=0.8, mask_share=1.0, random_share=0.0)
    model = Constant(torch.zeros(BYTE_VOCABULARY))
    task, batch = MaskedLanguage(model, config), batch_of(ids_of(long_text(2000)))
    task.train()(batch, generator())
    task.evaluate([batch])
    letters = (ids_of(long_text(2000)) != FIRST_BYTE + ord(" ")).sum()
    shares = [float((shown == MASK).sum() / letters) for shown in model.shown]
    assert shares == pytest.approx([0.8, 0.1], abs=0.04)


def test_a_text_without_hidden_bytes_costs_nothing() -> None:
    task = MaskedLanguage(Constant(torch.zeros(BYTE_VOCABULARY)), MaskedLanguageConfig())
    empty = batch_of(torch.full((2, 4), PAD))
    assert float(task(empty, generator()).total.detach()) == 0.0
    assert task.evaluate([empty]) == {"loss": 0.0, "bits_per_byte": 0.0, "top1": 0.0}


@pytest.mark.parametrize("name", ["perceiver_io_nano", "hip_nano", "mae_hiera_nano_text"])
def test_a_real_model_sees_hidden_ids_and_gets_a_slope(name: str) -> None:
    model = pv.create_model(name, inputs={"bytes": pv.Bytes(64)})
    assert text_modality(model) == "bytes"
    task = MaskedLanguage(model, MaskedLanguageConfig(ratio=0.5))
    batch = batch_of(ids_of("hello all of you", 64))
    losses = task(batch, generator())
    losses.total.backward()
    assert float(losses.total.detach()) > 1.0
    assert all(p.grad is not None for p in model.parameters())
    assert set(task.evaluate([batch])) == {"loss", "bits_per_byte", "top1"}
    # Every byte of the text may be asked for, hidden or not.
    assert score_bytes(model, batch.inputs, {}).shape == (1, 64, BYTE_VOCABULARY)


def test_all_families_are_asked_for_the_same_hidden_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tensor] = []

    def remember(ids: Tensor, *given: Any) -> Any:
        hidden = hide_words(ids, *given)
        asked.append(hidden.masked)
        return hidden

    monkeypatch.setattr("perceivers.tasks.mlm.hide_words", remember)
    for name in ("perceiver_io_nano", "hip_nano", "mae_hiera_nano_text"):
        model = pv.create_model(name, inputs={"bytes": pv.Bytes(192)})
        batch = batch_of(ids_of(long_text(30), 192))
        MaskedLanguage(model, MaskedLanguageConfig()).evaluate([batch])
    assert bool(asked[0].any())
    assert all(torch.equal(each, asked[0]) for each in asked[1:])


def test_modalities_beside_the_text_are_read_with_it() -> None:
    specs = {"bytes": pv.Bytes(16), "audio": pv.Audio(12)}
    model = pv.create_model("hip_nano", inputs=specs)
    nn.init.normal_(model.decoder.readout.unembed["bytes"].weight)  # starts at zero
    batch = batch_of(ids_of("hello all of you", 16))
    batch.inputs["audio"] = torch.randn(1, 1, 12, generator=generator())
    losses = MaskedLanguage(model, MaskedLanguageConfig(ratio=0.5))(batch, generator())
    losses.total.backward()
    assert model.encoder.inputs.positions["audio"].table.grad.any()


def test_models_that_answer_no_bytes_are_refused() -> None:
    text, picture = {"bytes": pv.Bytes(16)}, {"image": pv.Image(8, 8, 1)}
    cases: list[tuple[str, Any, dict[str, Any]]] = [
        ("perceiver_io_nano", text, {"num_classes": 3}),
        ("perceiver_io_nano", picture, {}),
        ("perceiver_nano", text, {"num_classes": 3}),
        ("hip_nano", picture, {}),
        ("hip_nano", text, {"num_classes": 3}),
        ("hiera_nano_text", {"bytes": pv.Bytes(64)}, {}),
    ]
    for name, inputs, settings in cases:
        model = pv.create_model(name, inputs=inputs, **settings)
        with pytest.raises(ConfigError, match=r"needs a model with bytes as input and out"):
            MaskedLanguage(model, MaskedLanguageConfig())
