"""A Hiera that reads texts: bytes as one-hot rows under the convolution of its patches."""

import pytest
import torch
from torch import Tensor, nn

import perceivers as pv
from perceivers.errors import ConfigError, InputError
from perceivers.masking import MaskPlan
from perceivers.models.hiera.objective import PatchObjective
from perceivers.models.masked import byte_errors
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


@pytest.mark.parametrize("order", ["channels_first", "channels_last"])
def test_hidden_bytes_are_scored_by_cross_entropy_where_they_stand(
    ids: Tensor, rng: torch.Generator, order: str
) -> None:
    model = pv.create_model("hiera_nano_text", inputs=TEXTS, decoder={"order": order})
    plan = pv.draw_unit_plan("bytes", model.num_units(), 2, ratio=0.5, generator=rng)
    objective = PatchObjective(model)
    scored = objective.score({"bytes": ids}, plan, "per-channel")["bytes"]
    with torch.no_grad():
        encoded = model.encode({"bytes": ids}, plan)
        # [B, L, V]: what the model says of every byte, in the order of the text.
        scores = model.unpatch(model.reconstruct(encoded), encoded.units).movedim(1, -1)
    errors = byte_errors(scores, ids)
    shown = torch.zeros(2, 2, dtype=torch.bool).scatter(1, plan.kept["bytes"], value=True)
    hidden = ~shown.repeat_interleave(64, 1) & (ids != PAD)
    assert int(scored.weight.sum()) == int(hidden.sum())
    mean = (scored.errors * scored.weight).sum() / scored.weight.sum()
    torch.testing.assert_close(mean, errors[hidden].mean())
    assert model(ids)["bytes"].shape == (2, 128, 262)
    imagined = objective.imagine({"bytes": ids}, plan, "per-channel")["bytes"]
    assert torch.equal(imagined.visible, shown.repeat_interleave(64, 1))
    assert torch.equal(imagined.reconstructed[imagined.visible], ids[imagined.visible])
    assert torch.equal(imagined.reconstructed == PAD, ids == PAD)


def test_padding_weighs_nothing_and_hidden_units_leak_nothing(rng: torch.Generator) -> None:
    model = pv.create_model("mae_hiera_nano_text", inputs=TEXTS).double()
    ids = torch.randint(6, 262, (2, 128), generator=rng)
    ids[1] = PAD
    plan = pv.draw_unit_plan("bytes", 2, 2, ratio=0.5, generator=rng)
    both = pv.mae_losses(model, {"bytes": ids}, plan).total
    row = MaskPlan(
        kept={"bytes": plan.kept["bytes"][:1]},
        masked={"bytes": plan.masked["bytes"][:1]},
        axis="unit",
    )
    alone = pv.mae_losses(model, {"bytes": ids[:1]}, row).total
    torch.testing.assert_close(both, alone)
    changed = ids[:1].clone().unflatten(1, (2, 64))
    changed[0, plan.masked["bytes"][0]] = 9
    shown = [model.encode({"bytes": x}, row).stages[-1] for x in (ids[:1], changed.flatten(1))]
    assert torch.equal(*shown)


def test_only_targets_of_a_vocabulary_are_offered() -> None:
    model = pv.create_model("mae_hiera_nano_text", inputs=TEXTS)
    assert pv.MaskedAutoencodingConfig().settings(model).target == "per-channel"
    with pytest.raises(ConfigError, match=r"'patch-normalised' is not for this hiera model"):
        pv.MaskedAutoencodingConfig(target="patch-normalised").settings(model)
