"""Perceiver IO as a whole: what comes out, heads, other sizes, files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.models.perceiver_io_making import (
    EXACT,
    INPUTS,
    OUTPUTS,
    QUERIES,
    SHAPES,
    TOKENS,
    Draw,
    Stir,
    build,
    draw_ragged,
    places_of,
)
from torch import nn

from perceivers.checkpoints.loading import load
from perceivers.errors import ConfigError, InputError
from perceivers.models import Output, PerceiverIO, create_model
from perceivers.types import Audio, Bytes, Image, ModalitySpec, Points

# -- what comes out ----------------------------------------------------------------------------


def test_every_output_has_the_layout_of_what_it_speaks_of(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir), draw_ragged(draw)
    answers = model(raw)
    assert {name: tuple(x.shape) for name, x in answers.items()} == SHAPES
    assert {name: model.num_queries(name) for name in SHAPES} == QUERIES
    fresh = draw_ragged(draw)
    others = model(fresh)
    assert not any(torch.allclose(answers[name], others[name]) for name in SHAPES)
    assert all(x.isfinite().all() for x in answers.values())


def test_named_outputs_are_answered_alone(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir), draw_ragged(draw)
    answers = model(raw)
    assert torch.equal(model(raw, outputs=["grid"]), answers["grid"])
    two = model(raw, outputs=["rows", "classes"])
    assert list(two) == ["rows", "classes"]
    with pytest.raises(InputError, match=r"output 'class' is unknown; .*did you mean 'classes'\?"):
        model(raw, outputs=["class"])
    with pytest.raises(
        InputError, match=r"output None is unknown; the model has the outputs \['classes'"
    ):
        model.decode(model.forward_features(raw))


def test_one_output_is_returned_bare(stir: Stir, draw: Draw) -> None:
    model = build(stir, outputs={"classes": OUTPUTS["classes"]})
    raw = draw_ragged(draw)
    answer = model(raw)
    assert torch.equal(answer, model.decode(model.encode(raw)))
    assert answer.shape == (2, 3)
    bare = build(stir, outputs={"wave": OUTPUTS["wave"]}, inputs={"sound": Audio(12)}, tokens={})
    sound = raw["sound"]
    assert torch.equal(bare(sound), bare({"sound": sound}))
    with pytest.raises(InputError, match=r"a bare tensor is ambiguous"):
        model(sound)


def test_patches_are_put_back_where_they_belong(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir), draw_ragged(draw)
    encoded = model.encode(raw)
    patches = model.decode(encoded, "wave", ids=torch.arange(4))
    assert tuple(patches.shape) == (2, 4, 3)
    assert torch.equal(model.decode(encoded, "wave"), patches.reshape(2, 1, 12))


# -- heads -------------------------------------------------------------------------------------


def test_a_tied_head_shares_the_embedding_of_the_bytes(stir: Stir, draw: Draw) -> None:
    text = {"text": INPUTS["text"]}
    tied = Output(length=7, dim=4, modality="text", head="tied")
    model = build(stir, inputs=text, tokens={"text": TOKENS["text"]}, outputs={"bytes": tied})
    raw = draw(text)
    head = model.decoder.heads["bytes"]
    assert [name for name, _ in head.named_parameters()] == ["bias"]  # as wide as the rows
    before = model(raw)
    rows = model.get_parameter("inputs.readers.text.content.rows.weight")
    silent = int(next(i for i in range(6, 262) if i not in raw["text"].flatten().tolist()))
    with torch.no_grad():
        rows[silent] += 1.0
    after = model(raw)
    changed = ~torch.isclose(after, before).all(0).all(0)
    assert changed.nonzero().flatten().tolist() == [silent]
    among = build(stir).decoder.heads["bytes"]
    assert {name for name, _ in among.named_parameters()} >= {"bias", "project.weight"}


def test_values_are_divided(stir: Stir, draw: Draw) -> None:
    raw, found = draw_ragged(draw), []
    for by in (1.0, 10.0):
        outputs = {**OUTPUTS, "tokens": replace(OUTPUTS["tokens"], divide_by=by)}
        found.append(build(stir, outputs=outputs)(raw)["tokens"])
    torch.testing.assert_close(found[0], 10 * found[1], **EXACT)


def test_queries_are_padded_by_a_vector_of_their_output(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir), draw_ragged(draw)
    widths = {n: model.decoder.dim - len(p) for n, p in model.decoder.padding.items()}
    assert widths["classes"] == 6
    assert max(widths.values()) == model.decoder.dim - 2  # the least padding
    before = model(raw)
    with torch.no_grad():
        model.decoder.padding["grid"].add_(1.0)
    after = model(raw)
    assert {n for n in SHAPES if not torch.allclose(after[n], before[n])} == {"grid"}


def test_a_bare_answer_has_the_width_of_the_queries(stir: Stir, draw: Draw) -> None:
    output = {"tokens": Output(queries="tokens", modality="points")}
    inputs = {"points": INPUTS["points"]}
    model = build(stir, inputs=inputs, tokens={"points": TOKENS["points"]}, outputs=output)
    assert model(draw(inputs)).shape == (2, 5, model.inputs.reader("points").dim)
    assert isinstance(model.decoder.heads, nn.ModuleDict)
    assert not len(model.decoder.heads)


# -- sizes and files ---------------------------------------------------------------------------


def test_a_resized_model_answers_for_the_new_sizes(stir: Stir, draw: Draw) -> None:
    model = build(stir)
    other: dict[str, ModalitySpec] = {
        "image": Image(8, 6, 1),
        "text": Bytes(5),
        "points": Points(8, 3, ragged=True),
        "sound": Audio(15),
    }
    resized = model.resized(other)
    shapes = {name: tuple(x.shape) for name, x in resized(draw(other)).items()}
    assert shapes == {
        **SHAPES,
        "bytes": (2, 5, 262),
        "grid": (2, 2, 8, 6),
        "cell": (2, 2, 8, 6),
        "rows": (2, 8, 3),
        "wave": (2, 1, 15),
        "tokens": (2, 8, 2),
    }
    ours, theirs = model.state_dict(), resized.state_dict()
    cut = "decoder.queries.bytes.table"
    assert torch.equal(theirs[cut], ours[cut][:5])
    rows = "decoder.queries.rows.positions.source.table"
    assert tuple(theirs[rows].shape) == (8, 6)
    grown = {n for n in theirs if theirs[n].shape != ours[n].shape}
    assert grown == {cut, rows, "inputs.readers.text.positions.source.table"}
    # Both grids have their first cell at the same place, and so the same query.
    assert torch.equal(places_of(model, "grid")[0], places_of(resized, "grid")[0])
    corner = [
        m.decoder.make_queries("grid", m.encode(d).tokens, None, torch.float64)[0, 0]
        for m, d in ((model, draw(INPUTS)), (resized, draw(other)))
    ]
    torch.testing.assert_close(corner[0], corner[1], **EXACT)
    with pytest.raises(ConfigError, match=r"texts of 7 bytes has no position embeddings for 8"):
        model.resized({**INPUTS, "text": Bytes(8)})
    with pytest.raises(ConfigError, match=r"names, kinds and channels must stay"):
        model.resized({"image": Image(4, 6, 1)})


def test_a_folder_restores_the_model(stir: Stir, draw: Draw, tmp_path: Path) -> None:
    model = build(stir).float()
    raw = {n: x if x.dtype == torch.int64 else x.float() for n, x in draw_ragged(draw).items()}
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is PerceiverIO
    assert loaded.config == model.config
    for name, answer in loaded(raw).items():
        assert torch.equal(answer, model(raw)[name])


def test_the_small_variants_run_in_bfloat16(rng: torch.Generator) -> None:
    model = create_model("perceiver_io_nano", inputs={"image": Image(8, 8)}, num_classes=3)
    logits = model.bfloat16()(torch.rand(2, 3, 8, 8, generator=rng))
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
