"""The list of models, the released weights, and what a machine is told about itself."""

import pytest

import perceivers as pv
from perceivers.models.registry import FAMILIES
from perceivers.workflows import inspection
from perceivers.workflows.inspection import describe_models, describe_weights, diagnose


@pytest.mark.slow
def test_every_variant_of_every_family_is_counted() -> None:
    rows = {row.name: row for row in describe_models()}
    assert list(rows) == pv.list_models()
    for family, entry in FAMILIES.items():
        for name in entry.variants:
            row = rows[name]
            assert row.paper == entry.paper
            assert 0 < row.core <= row.total, family
            assert row.latents.count(" x ") == 1
            assert row.inputs


def test_counts_are_those_of_the_built_model() -> None:
    (row,) = describe_models("perceiver_io_nano")
    model = pv.create_model("perceiver_io_nano", inputs={"image": pv.Image(224, 224, 3)})
    parameters = {name: p.numel() for name, p in model.named_parameters()}
    assert row.total == sum(parameters.values())
    assert row.core == sum(n for name, n in parameters.items() if name.startswith(model.core))
    assert row.latents == "32 x 64"
    assert row.structure == "1 read, 1 x 2 layers"
    assert row.inputs == "image 3x224x224"


def test_a_pattern_chooses_models_and_weights() -> None:
    names = [row.name for row in describe_models("perceiver_io_*")]
    assert names == pv.list_models("perceiver_io_*")
    assert "perceiver_nano" not in names
    assert len(names) > 10
    assert describe_models("gpt*") == []
    everything = describe_weights()
    assert everything
    assert describe_weights(everything[0].name) == [everything[0]]
    variants = describe_weights("perceiver_io_*")
    assert all(w.variant.startswith("perceiver_io_") for w in variants)
    assert variants
    assert describe_weights("gpt*") == []


def test_what_is_missing_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = {what: (text, ok) for what, text, ok in diagnose()}
    assert fine["a forward and backward pass"] == ("works", True)
    monkeypatch.setattr(inspection, "is_installed", lambda name: name != "matplotlib")
    found = {what: (text, ok) for what, text, ok in diagnose()}
    text, ok = found["extra train"]
    assert not ok
    assert text == 'missing matplotlib - pip install "perceivers[train]"'
