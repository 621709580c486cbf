"""Explaining from files to pictures: every modality, names, hidden bytes, and bad input."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image as Pillow

import perceivers as pv
from perceivers.data.byte_codec import encode_text
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.models import attention_maps, create_model
from perceivers.models.saving import ModelInfo
from perceivers.report.figures.canvases import ClipCanvas, PictureCanvas, WaveCanvas
from perceivers.types import (
    MASK,
    PAD,
    Array,
    Audio,
    Bytes,
    Image,
    ModalitySpec,
    Points,
    Video,
)
from perceivers.workflows import explaining
from perceivers.workflows.explaining import (
    is_data_set,
    make_canvases,
    make_panel,
    middle_word,
    prepare,
    replace_masks,
)

Save = Callable[..., Path]
CLASSES = ("cat", "dog")


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Return a function that writes the folder of a small fresh model."""

    def write(
        name: str,
        inputs: Mapping[str, ModalitySpec],
        info: dict[str, Any] | None = None,
        **more: Any,
    ) -> Path:
        settings = {"task": "classify", "classes": CLASSES} if info is None else info
        if info is None:
            more = {"num_classes": 2, **more}
        model = create_model(name, inputs=inputs, **more)
        return model.save_pretrained(tmp_path / "model", info=ModelInfo(**settings))

    return write


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect what figures are asked to show, instead of drawing them."""
    asked: list[Any] = []

    def spy(path: Path, sections: Any, **rest: Any) -> Path:
        asked.append((sections, rest))
        return path

    monkeypatch.setattr(explaining, "draw_attention", spy)
    return asked


def picture(path: Path, side: int = 8) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)
    Pillow.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("name", ["hip_nano", "perceiver_nano", "perceiver_io_nano"])
def test_pictures_are_explained(name: str, save: Save, tmp_path: Path, words: list[Any]) -> None:
    model = save(name, {"image": Image(8, 8, 1)})
    (tmp_path / "more").mkdir()
    files = [picture(tmp_path / "a.png"), picture(tmp_path / "more" / "a.png")]
    written = pv.explain(model, files, tmp_path / "out", latents=2)
    names = ["a_attention.png", "a-2_attention.png", "overview.png"]
    assert [path.name for path in written] == names
    sections, rest = words[0]
    assert rest["title"] == "a.png"
    assert rest["note"].startswith("Model output: ")
    assert "50.0 %" in rest["note"] or "cat" in rest["note"] or "dog" in rest["note"]
    assert [len(section.panels) for section in sections[:2]] == [2, 3]
    for section in sections:
        for panel in section.panels:
            total = sum(grid.sum() for grid in (panel.shares or {}).values())
            assert panel.shares is None or total == pytest.approx(1.0)
    overview = words[-1][0][0]
    assert [panel.label.partition(":")[0] for panel in overview.panels] == ["a", "a"]


def test_a_pretrained_hip_shows_its_first_level_alone(
    save: Save, tmp_path: Path, words: list[Any]
) -> None:
    model = save("hip_nano", {"image": Image(8, 8, 1)}, {"task": "pretrain"})
    pv.explain(model, [picture(tmp_path / "a.png")], tmp_path / "out")
    sections, rest = words[0]
    assert len(sections[0].panels) == 1
    assert "skip connections" in sections[0].text
    assert rest["note"] == ""
    assert words[-1][1]["title"] == "Attention: what the latents read on average"


def test_sounds_are_explained(save: Save, tmp_path: Path, words: list[Any]) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 800), 8000)
    model = save("perceiver_io_nano", {"audio": Audio(640, sample_rate=8000)})
    assert len(pv.explain(model, [path], tmp_path / "out")) == 2
    assert words[0][0][0].panels[1].shares["audio"].shape == (40,)


def test_texts_are_explained_and_the_hidden_word_is_told(
    save: Save, tmp_path: Path, words: list[Any]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("to be or not")
    model = save("perceiver_io_nano", {"bytes": Bytes(16)}, {"task": "mlm"})
    pv.explain(model, [path], tmp_path / "out")
    sections, _ = words[0]
    labels = [panel.label for panel in sections[0].panels[1:]]
    assert [label.partition(":")[0] for label in labels] == [
        "position 6 (hidden",
        "position 7 (hidden",
    ]
    assert "'o')" in labels[0]
    for panel in sections[0].panels[1:]:
        assert panel.shares["bytes"][12:].tolist() == [0.0] * 4
    assert "\u25a1 MASK" in sections[0].panels[0].notes[0]


def test_data_sets_of_points_are_explained(save: Save, tmp_path: Path, words: list[Any]) -> None:
    rng = np.random.default_rng(0)
    sizes = [5, 7, 3] * 10
    offsets = np.cumsum([0, *sizes])
    data = {"offsets": offsets, "xyz": rng.normal(size=(offsets[-1], 3)).astype(np.float32)}
    np.savez(tmp_path / "data.npz", **data)
    inputs = {"points": Points(8, 3, ragged=True, scale="unit")}
    written = pv.explain(save("perceiver_nano", inputs), [tmp_path / "data.npz"], tmp_path / "out")
    assert written[0].name == "val-0_attention.png"
    assert words[0][1]["title"] == f"{tmp_path / 'data.npz'}: val sample 0"
    shares = words[0][0][0].panels[1].shares["points"]
    size = int((shares > 0).sum())
    assert size in {3, 5, 7}
    assert (shares[size:] == 0).all()


@pytest.mark.usefixtures("words")
def test_built_in_sets_are_explained_eight_at_most(save: Save, tmp_path: Path) -> None:
    model = save("entity_set_nano", {"points": Points(32, 6, ragged=True)}, {})
    written = pv.explain(model, ["selection"], tmp_path / "out", latents=0)
    assert [path.stem for path in written[:2]] == ["test-0_attention", "test-1_attention"]
    assert len(written) == 9


@pytest.mark.slow
def test_an_earlier_overview_is_not_replaced_unasked(save: Save, tmp_path: Path) -> None:
    model, path = save("perceiver_nano", {"image": Image(8, 8, 1)}), picture(tmp_path / "a.png")
    (tmp_path / "overview.png").write_bytes(b"old")
    with pytest.raises(ConfigError, match=r"overview.png exists; pass --overwrite"):
        pv.explain(model, [path], tmp_path)
    assert (tmp_path / "overview.png").read_bytes() == b"old"
    for made in pv.explain(model, [path], tmp_path, overwrite=True):
        assert made.read_bytes().startswith(b"\x89PNG")


def test_unreadable_files_are_named_and_do_not_end_the_job(
    save: Save, tmp_path: Path, words: list[Any]
) -> None:
    model, good = save("perceiver_nano", {"image": Image(8, 8, 1)}), picture(tmp_path / "a.png")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    assert len(pv.explain(model, [good, bad], tmp_path / "out")) == 2
    assert f"Not readable and left out: {bad}" in words[-1][1]["note"]
    with pytest.raises(DataError, match=r"bad\.png"):
        pv.explain(model, [bad], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_settings_out_of_range_are_refused(save: Save, tmp_path: Path) -> None:
    model, path = save("perceiver_nano", {"image": Image(8, 8, 1)}), picture(tmp_path / "a.png")
    for latents in (-1, 101):
        with pytest.raises(ConfigError, match=rf"latents is {latents}; it must be in \[0, 100\]"):
            pv.explain(model, [path], tmp_path / "out", latents=latents)
    with pytest.raises(ConfigError, match=r"head is 4; use 'all', 'mean' or a number"):
        pv.explain(model, [path], tmp_path / "out", head=4)
    with pytest.raises(DataError, match="no such file"):
        pv.explain(model, [tmp_path / "b.png"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_inputs_without_files_of_their_own_are_data_addresses(save: Save, tmp_path: Path) -> None:
    model = save("perceiver_nano", {"points": Points(8, 3)})
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        pv.explain(model, ["nowhere"], tmp_path / "out")


def test_maps_that_do_not_fit_are_refused(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_maps, "MAX_SCORES", 10)
    model, path = save("perceiver_nano", {"image": Image(8, 8, 1)}), picture(tmp_path / "a.png")
    with pytest.raises(pv.UserError, match=r"4,096 scores .* the limit is 10"):
        pv.explain(model, [path], tmp_path / "out")


# -- parts -----------------------------------------------------------------------------------------


def test_masks_in_a_text_become_one_id_each() -> None:
    ids = np.pad(encode_text("a[MASK][MASK]b[MAS"), (0, 2))
    found = replace_masks(ids, len(ids))
    assert found[:4].tolist() == [6 + ord("a"), MASK, MASK, 6 + ord("b")]
    assert found[4:8].tolist() == encode_text("[MAS").tolist()
    assert found[8:].tolist() == [PAD] * 12


@pytest.mark.parametrize(
    ("text", "places"),
    [("to be or not", [6, 7]), ("word", [0, 1, 2, 3]), (" a ", [1]), ("a  b", [3]), (" \n ", [])],
)
def test_the_word_nearest_to_the_middle(text: str, places: list[int]) -> None:
    assert middle_word(np.pad(encode_text(text), (0, 30))) == places


def test_only_texts_to_be_filled_in_are_hidden() -> None:
    ids = torch.from_numpy(np.pad(encode_text("to be or not"), (0, 4)))[None]
    masked = create_model("perceiver_io_nano", inputs={"bytes": Bytes(16)})
    sample = prepare(masked, "a", "a.txt", {"bytes": ids})
    assert sample.hidden == {6: 6 + ord("o"), 7: 6 + ord("r")}
    assert sample.inputs["bytes"][0, 5:9].tolist() == [6 + 32, MASK, MASK, 6 + 32]
    assert ids[0, 6] == 6 + ord("o")
    classifier = create_model("perceiver_io_nano", inputs={"bytes": Bytes(16)}, num_classes=2)
    plain = prepare(classifier, "a", "a.txt", {"bytes": ids})
    assert plain.hidden == {}
    assert torch.equal(plain.inputs["bytes"], ids)


def test_packed_data_and_built_in_names_are_data_sets(tmp_path: Path) -> None:
    assert is_data_set("digits")
    assert is_data_set("warps:photos")
    assert is_data_set("x/train.tar")
    assert not is_data_set("x/a.png")
    assert not is_data_set(str(tmp_path))
    (tmp_path / "test.csv").touch()
    assert is_data_set(str(tmp_path))


def test_each_kind_of_input_has_its_canvas() -> None:
    inputs = {"a": Array(6, 2), "b": Array((3, 4)), "video": Video(3, 4, 4)}
    model = create_model("perceiver_nano", inputs=inputs, num_classes=2)
    raw = {
        "a": torch.rand(1, 6, 2),
        "b": torch.rand(1, 3, 4, 1),
        "video": torch.rand(1, 3, 3, 4, 4),
    }
    canvases = make_canvases(model, raw)
    assert [type(canvas) for canvas in canvases.values()] == [WaveCanvas, PictureCanvas, ClipCanvas]
    flow = create_model("perceiver_io_flow_tiny", inputs={"video": Video(2, 4, 4, 3)})
    both = make_canvases(flow, {"video": torch.rand(1, 3, 2, 4, 4)})["video"]
    assert isinstance(both, PictureCanvas)
    assert "both frames" in both.caption
    cube = create_model("perceiver_nano", inputs={"x": Array((2, 2, 2))}, num_classes=2)
    with pytest.raises(CheckpointError, match=r"'x' is an array of 3 axes \(2, 2, 2\)"):
        make_canvases(cube, {"x": torch.rand(1, 2, 2, 2, 1)})


def test_attention_on_inputs_that_cannot_be_seen_is_named() -> None:
    shares = {"x": np.array([0.25, 0.5]), "label": np.array([0.25])}
    found = attention_maps.TokenMap("map", shares, 3)
    panel = make_panel({"x": WaveCanvas(np.ones((1, 2)))}, found, "words")
    assert panel.notes == ["25.0 % on label left out"]
    assert panel.tokens == 2
    assert panel.shares is not None
    np.testing.assert_allclose(panel.shares["x"], [1 / 3, 2 / 3])
