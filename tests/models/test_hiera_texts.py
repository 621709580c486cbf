"""A Hiera that reads texts: bytes as one-hot rows under the convolution of its patches."""

import pytest
import torch
from torch import Tensor, nn

import perceivers as pv
from perceivers.errors import ConfigError, InputError
from perceivers.types import PAD

TEXTS = {"bytes": pv.Bytes(128)}


@pytest.fixture
def ids(rng: torch.Generator) -> Tensor:
    """Two texts, the second of 70 bytes."""
    drawn = torch.randint(6, 262, (2, 128), generator=rng)
    drawn[1, 70:] = PAD
    return drawn


def test_bytes_are_one_hot_rows_and_padding_is_nothing(ids: Tensor) -> None:
    model = pv.create_model("hiera_nano_text", inputs=TEXTS, num_classes=3)
    rows = model.channels_last(ids)
    assert rows.shape == (2, 128, 262)
    assert torch.equal(rows[0].argmax(-1), ids[0])
    assert rows.sum(-1)[1].tolist() == [1.0] * 70 + [0.0] * 58


def test_every_byte_counts_and_longer_texts_are_legal(ids: Tensor) -> None:
    model = pv.create_model("hiera_nano_text", inputs=TEXTS, num_classes=3).eval()
    nn.init.normal_(model.head.weight, std=0.3)
    with torch.no_grad():
        logits = model({"bytes": ids})
        assert logits.shape == (2, 3)
        changed = ids.clone()
        changed[0, 5] = 6 + (changed[0, 5] - 5) % 256
        other = model({"bytes": changed})
        assert not torch.allclose(other[0], logits[0], atol=1e-6)
        assert torch.allclose(other[1], logits[1], atol=1e-6)
        longer = model.resized({"bytes": pv.Bytes(256)})
        assert longer({"bytes": torch.cat([ids, ids], 1)}).shape == (2, 3)


def test_ids_that_are_no_integers_are_refused(ids: Tensor) -> None:
    model = pv.create_model("hiera_nano_text", inputs=TEXTS, num_classes=3)
    with pytest.raises(InputError, match=r"dtype torch\.float32; byte ids are integers"):
        model({"bytes": ids.float()})


def test_texts_have_no_masked_auto_encoder() -> None:
    with pytest.raises(ConfigError, match=r"no decoder; pre-train texts with a perceiver_io"):
        pv.create_model("hiera_nano_text", inputs=TEXTS, decoder=True)
    with pytest.raises(ConfigError, match=r"bytes have none; build a classifier"):
        pv.create_model("hiera_nano_audio", inputs=TEXTS, decoder=True)
    assert "mae_hiera_nano_text" not in pv.list_models()
