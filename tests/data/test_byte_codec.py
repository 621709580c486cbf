"""Texts to ids of bytes and back, against known values, the released code and another library."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceivers.data.byte_codec import decode_ids, encode_text, pad_ids, wrap_ids
from perceivers.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden" / "dmr_bytes_tokenizer.npz"


def test_every_byte_has_its_id() -> None:
    ids = encode_text(bytes(range(256)))
    assert ids.tolist() == list(range(6, 262))
    assert ids.dtype == np.int64


@given(text=st.text())
def test_a_text_survives_the_round_trip(text: str) -> None:
    ids = encode_text(text)
    assert decode_ids(ids) == text
    assert len(ids) == len(text.encode())


def test_bytes_that_are_no_utf8_keep_their_values() -> None:
    text = b"a\xff\x80".decode("utf-8", "surrogateescape")
    assert encode_text(text).tolist() == [97 + 6, 255 + 6, 128 + 6]
    assert decode_ids(encode_text(text)) == "a\ufffd\ufffd"


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InputError, match=r"character 1 of the text is '\\ud83d', half of a"):
        encode_text("a\ud83d")


@pytest.mark.parametrize("number", range(9))
def test_ids_are_those_of_the_released_code(number: int) -> None:
    golden = np.load(GOLDEN)
    text = golden[f"utf8/{number}"].tobytes()
    assert encode_text(text).tolist() == golden[f"ids/{number}"].tolist()
    assert encode_text(text.decode()).tolist() == golden[f"ids/{number}"].tolist()
    # The cut ids also hold BOS, MASK, PAD and EOS, and end within a character.
    cut = golden[f"cut_text_utf8/{number}"].tobytes().decode()
    assert decode_ids(golden[f"cut_ids/{number}"]) == cut


@pytest.mark.parametrize(
    "text", ["", "This is [MASK].", "[MASK][MASK]a", "\u00e9 \U0001f600", "[MASK"]
)
def test_ids_are_those_of_the_hugging_face_tokenizer(text: str) -> None:
    tokenizer = pytest.importorskip("transformers").PerceiverTokenizer()
    ids = encode_text(text, parse_masks=True)
    assert wrap_ids(ids).tolist() == tokenizer(text)["input_ids"]
    pair = wrap_ids(ids, encode_text("b"))
    assert pair.tolist() == tokenizer(text, "b")["input_ids"]
    padded = tokenizer(text, padding="max_length", max_length=40)["input_ids"]
    assert pad_ids(wrap_ids(ids), 40).tolist() == padded


def test_mask_letters_are_letters_unless_parsed() -> None:
    assert encode_text("x[MASK]", parse_masks=True).tolist() == [120 + 6, 3]
    assert decode_ids(encode_text("x[MASK]")) == "x[MASK]"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([262], r"ids lie in 262\.\.262; the vocabulary is 0\.\.261"),
        ([-1, 4], r"ids lie in -1\.\.4"),
        ([[7]], r"ids have shape \(1, 1\)"),
        ([0.5], "dtype float64"),
    ],
)
def test_ids_outside_the_vocabulary_are_refused(ids: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode_ids(np.array(ids))
    assert decode_ids([]) == ""


def test_padding_never_cuts() -> None:
    assert pad_ids(encode_text("ab"), 4).tolist() == [103, 104, 0, 0]
    with pytest.raises(InputError, match="takes 2 ids and the length is 1"):
        pad_ids(encode_text("ab"), 1)
