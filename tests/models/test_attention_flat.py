"""What flat systems read: known peaks, padding, composition by hand, and every kind of answer."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from perceivers.errors import ConfigError, InputError
from perceivers.models import attention_maps, create_model
from perceivers.models.attention_maps import Explanation, TokenMap
from perceivers.nn.attention import CrossAttention, use_attention
from perceivers.types import MASK, Audio, Bytes, Image, Labels, ModalitySpec, Points, Video
from perceivers.workflows.explaining import read_maps as read_flat

IMAGE: Mapping[str, ModalitySpec] = {"image": Image(6, 6, 1)}


def build(name: str, inputs: Mapping[str, ModalitySpec], **settings: Any) -> Any:
    """Return a model whose answers differ from one another."""
    torch.manual_seed(0)
    model = create_model(name, inputs=inputs, **settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def explain(model: Any, inputs: Mapping[str, Tensor], **changes: Any) -> Explanation:
    with torch.no_grad():
        return read_flat(model, inputs, **{"head": "mean", "latents": 3, **changes})


def maps(found: Explanation) -> list[TokenMap]:
    of_answers = [answer.map for answer in found.answers if answer.map is not None]
    return [each for read in found.reads for each in read.maps] + of_answers


def total(found: TokenMap) -> float:
    return float(sum(grid.sum() for grid in found.shares.values()))


def stare(attention: CrossAttention, sharpness: float = 60.0) -> None:
    """Let every query look for the tokens whose first channel is largest."""
    with torch.no_grad():
        for part in (attention.q, attention.k):
            part.weight.zero_()
            part.bias.zero_()
        attention.k.weight[0, 0] = 1.0
        attention.q.bias[0] = sharpness


def bright(row: int, column: int) -> Tensor:
    picture = torch.zeros(1, 1, 6, 6)
    picture[0, 0, row, column] = 5.0
    return picture


@pytest.mark.parametrize("name", ["perceiver_nano", "perceiver_io_nano"])
def test_a_model_that_looks_for_brightness_peaks_at_the_bright_pixel(name: str) -> None:
    model = build(name, IMAGE, num_classes=4)
    for read in model.trunk.reads:
        stare(read.attention)
    found = explain(model, {"image": bright(4, 1)})
    for each in maps(found):
        assert np.unravel_index(each.shares["image"].argmax(), (6, 6)) == (4, 1)
        assert each.shares["image"].max() > 0.9
        assert total(each) == pytest.approx(1.0)
        assert each.tokens == 36


def test_every_read_of_shared_weights_has_its_own_maps() -> None:
    model = build("perceiver_nano", IMAGE, num_classes=4, trunk={"num_reads": 3, "num_blocks": 3})
    found = explain(model, {"image": torch.rand(1, 1, 6, 6)})
    assert [read.title for read in found.reads] == ["Read 1 of 3", "Read 2 of 3", "Read 3 of 3"]
    means = [read.maps[0].shares["image"] for read in found.reads]
    assert len(model.trunk.reads) == 2
    assert not np.allclose(means[1], means[2])
    answer = found.answers[0].map
    assert answer is not None
    np.testing.assert_allclose(answer.shares["image"], np.mean(means, 0), atol=1e-6)
    assert "3 reads are averaged" in found.route


def test_the_answer_of_perceiver_io_is_the_product_of_two_attentions() -> None:
    model = build("perceiver_io_nano", IMAGE, num_classes=4)
    picture = torch.rand(1, 1, 6, 6)
    found = explain(model, {"image": picture})
    with torch.no_grad(), use_attention(model, "reference", keep_weights=True) as modules:
        logits = model({"image": picture})
        inward = modules["trunk.reads.0.attention"].weights
        outward = modules["decoder.read.attention"].weights
        assert inward is not None
        assert outward is not None
        expected = (outward[0, 0].mean(0) @ inward[0, 0].mean(0)).reshape(6, 6).numpy()
    answer = found.answers[0]
    assert answer.map is not None
    np.testing.assert_allclose(answer.map.shares["image"], expected, atol=1e-6)
    assert not np.allclose(expected, found.reads[0].maps[0].shares["image"], atol=1e-4)
    torch.testing.assert_close(answer.values, logits[0], atol=1e-5, rtol=1e-5)
    assert "identity" in found.route


def test_padding_of_a_text_has_no_attention() -> None:
    model = build("perceiver_io_nano", {"bytes": Bytes(20)}, num_classes={"a": 3, "b": 4})
    ids = torch.zeros(1, 20, dtype=torch.int64)
    ids[0, :7] = torch.randint(6, 262, (7,))
    found = explain(model, {"bytes": ids})
    assert [answer.output for answer in found.answers] == ["a", "b"]
    for each in maps(found):
        assert each.shares["bytes"][7:].tolist() == [0.0] * 13
        assert (each.shares["bytes"][:7] > 0).all()
        assert total(each) == pytest.approx(1.0)
        assert each.tokens == 7


def test_every_hidden_byte_is_a_query_up_to_six() -> None:
    model = build("perceiver_io_nano", {"bytes": Bytes(20)}).double()
    ids = torch.randint(6, 262, (1, 20))
    ids[0, [3, 4, 11]] = MASK
    found = explain(model, {"bytes": ids})
    assert [answer.index for answer in found.answers] == [3, 4, 11]
    assert found.answers[2].place == (11.5 / 20,)
    first, second, _ = (answer.map for answer in found.answers)
    assert first is not None
    assert second is not None
    assert not np.allclose(first.shares["bytes"], second.shares["bytes"], atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(found.answers[1].values, model({"bytes": ids})[0, 4].float())
    ids[0] = MASK
    assert len(explain(model, {"bytes": ids}).answers) == 6


def test_absent_points_have_no_attention_and_the_middle_is_a_real_one() -> None:
    model = build("perceiver_io_nano", {"points": Points(12, 3, ragged=True)})
    points = torch.randn(1, 12, 3)
    points[0, 5:] = float("nan")
    found = explain(model, {"points": points})
    for each in maps(found):
        assert each.shares["points"][5:].tolist() == [0.0] * 7
        assert total(each) == pytest.approx(1.0)
        assert each.tokens == 5
    assert found.answers[0].index == 2


def test_modalities_share_one_map_and_labels_are_hidden() -> None:
    inputs = {"video": Video(4, 8, 8), "audio": Audio(64), "label": Labels(5)}
    model = build("perceiver_io_nano", inputs, mask_tokens=True)
    raw = {"video": torch.rand(1, 3, 4, 8, 8), "audio": torch.randn(1, 1, 64)}
    found = explain(model, raw)
    for each in maps(found):
        assert {name: grid.shape for name, grid in each.shares.items()} == {
            "video": (4, 2, 2),
            "audio": (4,),
            "label": (1,),
        }
        assert total(each) == pytest.approx(1.0)
    video, audio, label = found.answers
    # The query in the middle of 4 x 8 x 8 pixels, and of 4 patches of 16 samples.
    assert (video.index, video.place) == (2 * 64 + 4 * 8 + 4, (0.625, 0.5625, 0.5625))
    assert (audio.index, audio.values.shape) == (2, (16,))
    assert label.place == ()
    with torch.no_grad():
        hidden = {"label": torch.ones(1, 1, dtype=torch.bool)}
        given = {**raw, "label": torch.full((1, 1), 3)}
        blind = model.decode(model.encode(given, hidden=hidden), "label")[0]
    torch.testing.assert_close(label.values, blind, atol=1e-5, rtol=1e-5)


def test_flow_asks_for_the_token_in_the_middle() -> None:
    model = build("perceiver_io_flow_tiny", {"video": Video(2, 16, 8, 3)}).eval()
    video = torch.rand(1, 3, 2, 16, 8)
    (answer,) = explain(model, {"video": video}).answers
    # The middle one of 4 x 2 tokens, which answers 4 x 4 pixels.
    assert (answer.output, answer.index, answer.place) == ("flow", 2 * 2 + 1, (0.625, 0.75))
    assert answer.map is not None
    assert answer.map.shares["video"].shape == (4, 2)
    with torch.no_grad():
        expected = model({"video": video})[0, :, 8:12, 4:8].movedim(0, -1)
    torch.testing.assert_close(answer.values, expected.flatten(), atol=1e-5, rtol=1e-5)


def test_an_entity_set_follows_the_query_of_the_chosen_entity() -> None:
    model = build("entity_set_nano", {"points": Points(8, 4, ragged=True)})
    points = torch.randn(1, 8, 4)
    points[0, 6:] = float("nan")
    found = explain(model, {"points": points}, head="all")
    with torch.no_grad():
        chosen = int(model({"points": points}).argmax())
    (answer,) = found.answers
    assert answer.index == chosen
    assert len(found.reads) == 4
    assert found.reads[3].title == "Latents to input, head 3 of 0 to 3"
    assert "all are averaged" in found.route
    alone = explain(model, {"points": points}, head="2")
    assert [read.title for read in alone.reads] == ["Latents to input, head 2 of 0 to 3"]
    assert "only number 2 is used" in alone.route
    assert not np.allclose(maps(alone)[-1].shares["points"], maps(found)[-1].shares["points"])
    for each in maps(found):
        assert each.shares["points"][6:].tolist() == [0.0, 0.0]
        assert total(each) == pytest.approx(1.0)


def test_a_model_without_an_answer_has_maps_of_its_reads_alone() -> None:
    found = explain(build("perceiver_nano", IMAGE, num_classes=0), {"image": bright(0, 0)})
    assert found.answers == ()
    assert "no output to trace back" in found.route
    assert len(found.reads[0].maps) == 4


def test_what_does_not_fit_is_refused_before_it_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build("perceiver_nano", IMAGE, num_classes=4)
    monkeypatch.setattr(attention_maps, "MAX_SCORES", 2 * 32 * 36 - 1)
    with pytest.raises(InputError, match="2 reads x 1 heads x 32 latents x 36 tokens"):
        explain(model, {"image": bright(0, 0)})
    with pytest.raises(ConfigError, match=r"head is '1'; .* from 0 to 0: this .* with 1 head$"):
        explain(model, {"image": bright(0, 0)}, head="1")


def test_the_answer_of_a_conv_head_follows_its_own_query() -> None:
    """All queries are asked, because the convolutions mix them; the map is that of the middle."""
    waves = {"kind": "fourier", "num_bands": 4}
    asked = {"queries": "positions", "modality": "image", "positions": waves, "channels": 1}
    inputs: Mapping[str, ModalitySpec] = {"image": Image(8, 8, 1)}
    outputs = {"image": {**asked, "patch": (4, 4), "head": "conv"}}
    model = build("perceiver_io_nano", inputs, outputs=outputs)
    picture = torch.rand(1, 1, 8, 8)
    found = explain(model, {"image": picture})
    with torch.no_grad(), use_attention(model, "reference", keep_weights=True) as modules:
        made = model({"image": picture})
        inward = modules["trunk.reads.0.attention"].weights
        outward = modules["decoder.read.attention"].weights
        assert inward is not None
        assert outward is not None
        expected = (outward[0, 0].mean(0) @ inward[0, 0].mean(0)).reshape(4, 8, 8).numpy()
    (answer,) = found.answers
    assert answer.map is not None
    np.testing.assert_allclose(answer.map.shares["image"], expected[3], atol=1e-6)
    assert not np.allclose(expected[3], expected[0], atol=1e-6)
    torch.testing.assert_close(answer.values, made[0, 0, 4:, 4:].flatten(), atol=1e-5, rtol=1e-5)
