"""Augmentation of texts: what is left out, where it lies, and draws that depend on the sample."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from perceivers.data.arrays import hold_arrays
from perceivers.data.augment import AugmentConfig, Look
from perceivers.data.augment_signals import change_text, drop_words
from perceivers.data.by_modality.texts import fit_text
from perceivers.data.fitting import SampleReader
from perceivers.errors import ConfigError
from perceivers.types import FIRST_BYTE, PAD, Audio, Bytes

ROOM = 64


def text(words: str) -> NDArray[np.uint8]:
    return np.frombuffer(words.encode(), np.uint8)


def look(seed: int = 0, **settings: Any) -> Look:
    return Look(np.random.default_rng(seed), AugmentConfig(**settings))


@pytest.mark.parametrize(
    ("words", "share", "left"),
    [("one two  three four", 0.5, 2), ("one two  three four", 0.24, 4), ("a b c d", 1.0, 1)],
)
def test_a_share_of_the_words_is_left_out_with_their_blanks(
    words: str, share: float, left: int
) -> None:
    for seed in range(20):
        found = drop_words(text(words), share, np.random.default_rng(seed)).tobytes().decode()
        kept = found.split()
        assert len(kept) == left
        there = iter(words.split())
        assert all(word in there for word in kept), "in their order"
        assert "   " not in found


@pytest.mark.parametrize("words", ["single", "   ", "  single ", "\n"])
def test_a_text_of_one_word_or_none_stays(words: str) -> None:
    assert drop_words(text(words), 1.0, np.random.default_rng(0)).tobytes().decode() == words


def test_blanks_before_the_first_word_stay_and_any_bytes_are_legal() -> None:
    found = drop_words(text("  one two"), 0.5, np.random.default_rng(0)).tobytes()
    assert found in {b"  one ", b"  two"}
    noise = np.random.default_rng(0).integers(0, 256, 500).astype(np.uint8)
    assert 0 < len(drop_words(noise, 0.9, np.random.default_rng(1))) < 500


def test_the_share_is_drawn_up_to_the_setting() -> None:
    words = text(" ".join("abcdefghij"))
    left = [
        len(change_text(words, ROOM, look(s, word_drop=0.5)).tobytes().split()) for s in range(300)
    ]
    assert (min(left), max(left)) == (6, 10)


def test_a_shift_puts_blanks_before_the_text_and_loses_nothing() -> None:
    words = text("one two")
    found = [change_text(words, 16, look(s, text_shift=100)).tobytes() for s in range(300)]
    assert {len(each) - 7 for each in found} == set(range(10))
    assert all(each.lstrip(b" ") == b"one two" for each in found)
    assert change_text(words, 4, look(0, text_shift=100)).tobytes() == b"one two"


def test_evaluation_and_defaults_change_nothing_and_draw_nothing() -> None:
    words = text("one two")
    assert change_text(words, ROOM, Look(None, AugmentConfig(word_drop=1.0))) is words
    rng = np.random.default_rng(0)
    assert change_text(words, ROOM, Look(rng, AugmentConfig(flip=True))) is words
    assert rng.random() == np.random.default_rng(0).random()


def test_fitted_texts_are_changed_and_ids_are_not() -> None:
    spec = Bytes(16)
    found = fit_text(text("one two"), "a", spec, look(3, text_shift=9))
    real = found[found != PAD] - FIRST_BYTE
    assert real.astype(np.uint8).tobytes().lstrip(b" ") == b"one two"
    assert found.shape == (16,)
    ids = np.arange(10)
    assert fit_text(ids, "a", spec, look(3, text_shift=9, word_drop=1.0))[:10].tolist() == list(ids)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"word_drop": 1.5}, r"augment.word_drop is 1.5; it must be in \[0, 1\]"),
        ({"word_drop": float("nan")}, "augment.word_drop is nan"),
        ({"text_shift": -1}, "augment.text_shift is -1; it must not be negative"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AugmentConfig(**settings)


def test_without_texts_they_are_refused() -> None:
    sounds = hold_arrays({"audio": np.zeros((2, 1, 8), np.float32)}, ["a", "b"])
    with pytest.raises(ConfigError, match=r"augment.word_drop changes bytes, but"):
        SampleReader(sounds, {"audio": Audio(8)}, AugmentConfig(word_drop=0.1))
