"""Texts in two arrays."""

import pickle
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceivers.data.sources import PackedTexts


@given(st.lists(st.text(max_size=9), max_size=9))
def test_texts_come_back_as_they_were(texts: list[str]) -> None:
    packed = PackedTexts(texts)
    assert list(packed) == texts
    assert packed == texts
    assert len(packed) == len(texts)
    assert pickle.loads(pickle.dumps(packed)) == texts
    assert packed[1:3] == texts[1:3]
    assert [packed[i] for i in range(-len(texts), 0)] == texts


def test_some_are_taken_in_any_order() -> None:
    packed = PackedTexts(["ant", "", "caf\u00e9", "\udcff"])
    assert packed.take(np.array([2, 0, 2])) == ["caf\u00e9", "ant", "caf\u00e9"]
    assert packed[-1] == "\udcff"  # a name of a file that is not UTF-8
    assert packed != ["ant", "", "cafe", "\udcff"]
    assert packed != ["ant"]
    assert packed != "ant"
    assert "ant" in packed
    assert repr(packed[:1]) == "PackedTexts(['ant'], 1 in all)"
    for index in (4, -5):
        with pytest.raises(IndexError):
            packed[index]


def test_they_take_little_memory() -> None:
    texts = [f"clips-{i // 1000:04d}.tar/{i:08d}" for i in range(10_000)]
    listed = sys.getsizeof(texts) + sum(map(sys.getsizeof, texts))
    assert len(pickle.dumps(PackedTexts(texts))) < 10_000 * 40
    assert listed > 2 * 10_000 * 40
