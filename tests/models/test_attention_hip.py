"""What a HiP reads: group by group, with padding, and followed down through the levels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from perceivers.errors import InputError
from perceivers.models import HiPHead, attention_maps, create_model
from perceivers.models.attention_maps import Explanation, TokenMap
from perceivers.models.hip.attention import follow_down
from perceivers.models.hip.attention import read_attention as read_hip
from perceivers.types import Array, Audio, Image, Labels, ModalitySpec

IMAGE: Mapping[str, ModalitySpec] = {"image": Image(8, 8, 1)}
SEVERAL: Mapping[str, ModalitySpec] = {"a": Audio(21), "b": Array((9, 5), 2)}


def build(inputs: Mapping[str, ModalitySpec] = IMAGE, **settings: Any) -> Any:
    torch.manual_seed(0)
    model = create_model("hip_nano", inputs=inputs, **{"num_classes": 4, **settings}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def explain(model: Any, inputs: Mapping[str, Tensor], **changes: Any) -> Explanation:
    with torch.no_grad():
        return read_hip(model, inputs, **{"head": "mean", "latents": 3, **changes})


def maps(found: Explanation) -> list[TokenMap]:
    of_answers = [answer.map for answer in found.answers if answer.map is not None]
    return [each for read in found.reads for each in read.maps] + of_answers


def total(found: TokenMap) -> float:
    return float(sum(grid.sum() for grid in found.shares.values()))


def stochastic(*shape: int) -> Tensor:
    return torch.rand(*shape).softmax(-1)


def test_maps_sum_to_one_and_latents_stay_in_their_group() -> None:
    model = build()
    found = explain(model, {"image": torch.rand(1, 1, 8, 8)})
    mean, *latents = found.reads[0].maps
    assert mean.shares["image"].shape == (8, 8)
    assert (mean.shares["image"] > 0).all()
    (share,) = model.layout().shares
    for each in latents:
        group = int(each.label.split()[1].rstrip(","))
        inside = np.zeros(64, bool)
        inside[group * share.size : (group + 1) * share.size] = True
        assert ((each.shares["image"].ravel() > 0) == inside).all()
        assert each.tokens == share.size
    for each in maps(found):
        assert total(each) == pytest.approx(1.0)


def test_a_model_that_looks_for_brightness_finds_it_in_every_group() -> None:
    model = build()
    inputs, attention = model.encoder.inputs, model.encoder.blocks[0].read.attention
    with torch.no_grad():
        inputs.positions["image"].table.zero_()
        inputs.embed["image"].weight.zero_()
        inputs.embed["image"].bias.zero_()
        inputs.embed["image"].weight[0, 0] = 5.0
        for part in (attention.q, attention.k):
            part.weight.zero_()
            part.bias.zero_()
        attention.k.weight[0, 0], attention.q.bias[0] = 1.0, 100.0
    picture = torch.zeros(1, 1, 8, 8)
    picture[0, 0, 5, 2] = 1.0
    found = explain(model, {"image": picture})
    mean = found.reads[0].maps[0].shares["image"]
    groups = model.config.levels[0].num_groups
    # All of its own group, and nothing to choose between in the others.
    assert mean[5, 2] == pytest.approx(1 / groups, rel=1e-2)
    answer = found.answers[0].map
    assert answer is not None
    assert np.unravel_index(answer.shares["image"].argmax(), (8, 8)) == (5, 2)
    assert answer.shares["image"][5, 2] > 5 * np.median(answer.shares["image"])


def test_modalities_with_padded_groups() -> None:
    model = build(SEVERAL)
    assert model.layout().is_padded
    raw = {"a": torch.randn(1, 1, 21), "b": torch.randn(1, 9, 5, 2)}
    found = explain(model, raw)
    for each in maps(found):
        assert {name: grid.shape for name, grid in each.shares.items()} == {"a": (21,), "b": (9, 5)}
        assert total(each) == pytest.approx(1.0)
        assert "empty" not in each.note
    assert found.reads[0].maps[0].tokens == 66
    groups = {share.name: share.num_groups for share in model.layout().shares}
    mean = found.reads[0].maps[0].shares
    assert mean["a"].sum() == pytest.approx(groups["a"] / sum(groups.values()))


def test_a_modality_that_is_not_given_has_no_map() -> None:
    found = explain(build(SEVERAL), {"b": torch.randn(1, 9, 5, 2)})
    for each in maps(found):
        assert list(each.shares) == ["b"]
        assert total(each) == pytest.approx(1.0)


def test_attention_of_the_released_code_to_padding_is_left_out_and_said() -> None:
    raw = {"a": torch.randn(1, 1, 21), "b": torch.randn(1, 9, 5, 2)}
    mean = explain(build(SEVERAL, mask_padding=False), raw).reads[0].maps[0]
    assert total(mean) == pytest.approx(1.0)
    assert mean.tokens == 66


def test_following_down_is_the_product_of_the_attentions() -> None:
    first, processor, query = stochastic(4, 3, 5), stochastic(1, 6, 12), stochastic(1, 6)
    found, lost = follow_down([first, processor], query, "reshape")
    latents = (query @ processor[0]).reshape(4, 3)
    torch.testing.assert_close(found, torch.einsum("gn,gns->gs", latents, first))
    assert lost == 0.0
    assert float(found.sum()) == pytest.approx(1.0)


def test_following_down_undoes_the_transposed_regrouping() -> None:
    """Two groups of two latents: token n * 2 + g of the level above was latent n of group g."""
    first, processor = torch.zeros(2, 2, 1), torch.zeros(1, 1, 4)
    first[:, :, 0] = 1.0
    processor[0, 0] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert follow_down([first, processor], None, "reshape")[0].flatten().tolist() == pytest.approx(
        [0.3, 0.7]
    )
    found, _ = follow_down([first, processor], None, "transpose_reshape")
    assert found.flatten().tolist() == pytest.approx([0.4, 0.6])


def test_attention_on_label_tokens_is_counted() -> None:
    first, processor = stochastic(2, 2, 3), torch.full((1, 1, 5), 0.2)
    found, lost = follow_down([first, processor], None, "reshape")
    assert lost == pytest.approx(0.2)
    assert float(found.sum()) == pytest.approx(0.8)


def test_the_mean_head_weighs_the_processor_s_latents_alike() -> None:
    found = explain(build(head="mean"), {"image": torch.rand(1, 1, 8, 8)})
    assert found.route.startswith("The mean of the processor's latents")
    assert found.answers[0].map is not None
    assert total(found.answers[0].map) == pytest.approx(1.0)


@pytest.mark.parametrize("decoder", [True, False])
def test_a_label_is_followed_and_label_tokens_are_left_out(decoder: bool) -> None:
    settings = {"labels": ("label",), "decoder": decoder, "num_classes": None}
    head = HiPHead(kind="label", modality="label")
    model = build({**IMAGE, "label": Labels(3)}, head=head, **settings)
    found = explain(model, {"image": torch.rand(1, 1, 8, 8)})
    (answer,) = found.answers
    assert answer.values.shape == (3,)
    assert answer.map is not None
    assert list(answer.map.shares) == ["image"]
    assert total(answer.map) == pytest.approx(1.0)
    assert answer.map.note.endswith("% on label tokens left out")


@pytest.mark.parametrize("kind", ["none", "dense_bottleneck"])
def test_a_reconstruction_is_not_followed_and_says_why(kind: Any) -> None:
    head = HiPHead() if kind == "none" else HiPHead(kind=kind, num_outputs=2, modality="image")
    model = create_model("hip_nano", inputs=IMAGE, head=head).eval()
    found = explain(model, {"image": torch.rand(1, 1, 8, 8)})
    assert found.answers == ()
    assert "only the first level is drawn" in found.route
    assert len(found.reads[0].maps) == 4


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    monkeypatch.setattr(attention_maps, "MAX_SCORES", 100)
    with pytest.raises(InputError, match=r"4 groups x 1 heads x 8 latents x 16 elements"):
        explain(model, {"image": torch.rand(1, 1, 8, 8)})
