"""Masks: ids as they are stored, one view for picture and mask, classes that are left out."""

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perceivers import data as pvdata
from perceivers.data.augment import AugmentConfig, Look, View
from perceivers.data.masks import (
    IGNORED,
    Mask,
    count_pixels,
    find_mask,
    fit_mask,
    fit_masked,
    holds_ids,
    kept_classes,
    number_ids,
    read_ids,
)
from perceivers.errors import ConfigError, DataError
from perceivers.types import Image as ImageSpec

WriteTar = Callable[[Path, Mapping[str, bytes]], Path]
Encode = Callable[..., bytes]


def png(ids: np.ndarray, *, palette: bool = False) -> bytes:
    """A mask file."""
    picture = Image.fromarray(ids.astype(np.uint8))
    if palette:
        held = Image.new("P", picture.size)
        held.frombytes(picture.tobytes())
        held.putpalette([255 - v for v in range(256) for _ in range(3)])
        picture = held
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def halves(height: int = 10, width: int = 12) -> np.ndarray:
    """Class 0 to the left, 1 to the right."""
    ids = np.zeros((height, width), np.uint8)
    ids[:, width // 2 :] = 1
    return ids


def test_a_palette_gives_indices_and_not_colours() -> None:
    ids = halves()
    opened = Image.open(io.BytesIO(png(ids, palette=True)))
    assert opened.mode == "P"
    assert np.array_equal(read_ids(opened, "a"), ids)
    assert not np.array_equal(np.asarray(opened.convert("L")), ids)


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "'RGB'"), ("RGBA", "'RGBA'")])
def test_colours_are_no_ids(mode: str, kind: str) -> None:
    with pytest.raises(DataError, match=rf"x: the mask has mode {kind}.*class ids"):
        read_ids(Image.new(mode, (2, 2)), "x")
    with pytest.raises(DataError, match=r"shape \(2, 2, 1\).*\[H, W\]"):
        read_ids(np.zeros((2, 2, 1), np.uint8), "x")
    with pytest.raises(DataError, match="dtype float32"):
        read_ids(np.zeros((2, 2), np.float32), "x")


def test_ids_above_an_ignored_one_move_down() -> None:
    spec = Mask(1, 5, 3, ignore=(1, 255))
    ids = np.array([[0, 1, 2, 3, 255]], np.uint8)
    assert number_ids(ids, spec, "a").tolist() == [[0, 255, 1, 2, 255]]
    last = Mask(1, 5, 3, ignore=(3, 255))
    assert number_ids(ids, last, "a").tolist() == [[0, 1, 2, 255, 255]]


def test_an_id_without_a_class_is_named() -> None:
    with pytest.raises(DataError, match=r"a\.png: the mask contains the ids \[2, 7\].*0\.\.1"):
        number_ids(np.array([[0, 7, 2]]), Mask(1, 3, 2), "a.png")
    with pytest.raises(DataError, match=r"\[-1, 300\]"):
        number_ids(np.array([[0, 300, -1]]), Mask(1, 3, 2), "a.png")
    assert number_ids(np.array([[0, 1]]), Mask(1, 2, 2), "a").tolist() == [[0, 1]]


def test_a_mask_is_never_blended() -> None:
    ids = np.zeros((90, 90), np.uint8)
    ids[:, 45:] = 4
    fitted = fit_mask(ids, "a", Mask(7, 7, 5))
    assert fitted.shape == (7, 7)
    assert fitted.dtype == np.uint8
    assert set(np.unique(fitted)) == {0, 4}


def test_picture_and_mask_are_seen_in_the_same_view() -> None:
    ids = halves(40, 60)
    ids[:10] = 2
    # Every class has a colour of its own, so the picture tells which class it shows.
    picture = np.stack([np.array([0, 120, 240], np.uint8)[ids]] * 3)
    augment = AugmentConfig(crop_scale=(0.2, 0.8), crop_ratio=(0.8, 1.25), flip=True)
    agreed, seen = [], set()
    for seed in range(12):
        look = Look(np.random.default_rng(seed), augment)
        values, mask = fit_masked(picture, ids, "a", ImageSpec(24, 24), Mask(24, 24, 3), look)
        shown = np.rint(values[0] / 120).astype(int)
        agreed.append(float((shown == mask).mean()))
        seen.add(mask.tobytes())
    assert min(agreed) > 0.9
    assert len(seen) > 6


def test_mirroring_turns_both() -> None:
    look = Look(np.random.default_rng(1), AugmentConfig(flip=True))
    flips = []
    for seed in range(6):
        look = Look(np.random.default_rng(seed), AugmentConfig(flip=True))
        picture = np.stack([halves(8, 8) * 255] * 3)
        values, mask = fit_masked(picture, halves(8, 8), "a", ImageSpec(8, 8), Mask(8, 8, 2), look)
        assert np.array_equal(values[0] > 127, mask == 1)
        flips.append(int(mask[0, 0]))
    assert set(flips) == {0, 1}


def test_what_lies_outside_the_picture_is_ignored() -> None:
    view = View(0.0, 0.0, 1.0, 1.0, angle=0.6)
    turned = fit_mask(halves(20, 20), "a", Mask(20, 20, 2), view=view)
    assert turned[0, 0] == IGNORED
    assert turned[10, 3] == 0
    assert turned[10, 16] == 1
    assert IGNORED not in fit_mask(halves(20, 20), "a", Mask(20, 20, 2))


def test_colours_change_in_the_picture_alone() -> None:
    ids = halves(16, 16)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    changed = 0
    for seed in range(8):
        look = Look(np.random.default_rng(seed), AugmentConfig(rand_augment=2, magnitude=9))
        values, mask = fit_masked(picture, Image.fromarray(ids), "a", ImageSpec(16, 16),
                                  Mask(16, 16, 2), look)  # fmt: skip
        assert np.array_equal(mask, ids)
        changed += not np.array_equal(values, np.asarray(picture).transpose(2, 0, 1))
    assert changed > 4


def test_picture_and_mask_must_be_of_one_size() -> None:
    with pytest.raises(DataError, match=r"12x10 pixels .* its mask 10x12"):
        fit_masked(
            np.zeros((3, 10, 12), np.uint8), halves(12, 10), "a", ImageSpec(4, 4), Mask(4, 4, 2)
        )


def test_void_is_left_out_where_there_is_one() -> None:
    assert kept_classes(("a", "void", "b"), "void") == (("a", "b"), (1, 255))
    assert kept_classes(("a", "b"), "void") == (("a", "b"), (255,))
    assert kept_classes(("a", "b", "c"), 0) == (("b", "c"), (0, 255))
    assert kept_classes(("a", "b"), 255) == (("a", "b"), (255,))
    with pytest.raises(DataError, match=r"'sky' should be ignored.*\['a', 'b'\]"):
        kept_classes(("a", "b"), "sky")
    with pytest.raises(DataError, match=r"\['b'\] without the ignored 'a'"):
        kept_classes(("a", "b"), "a")
    with pytest.raises(DataError, match="id 300"):
        kept_classes(("a", "b"), 300)


def test_sizes_of_a_mask_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"Mask\.height is 0"):
        Mask(0, 4, 2)
    assert Mask(3, 4, 2).raw_shape == (3, 4)


def test_tars_hold_masks_beside_pictures(
    tmp_path: Path, write_tar: WriteTar, encode: Encode
) -> None:
    members = {}
    for number in range(6):
        members[f"s{number}.jpg"] = encode(number, kind="JPEG")
        members[f"s{number}.png"] = png(halves() * number, palette=number % 2 == 0)
    write_tar(tmp_path / "train.tar", members)
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\nvoid\n")
    dataset = pvdata.open_data(str(tmp_path), val_share=0.3)
    assert dataset.mask_classes == ("a", "b", "c", "d", "e", "void")
    assert dataset.classes == ()
    assert not any("several pictures" in note for note in dataset.notes)
    specs = dataset.specs(size=(10, 12))
    assert list(specs) == ["image"]
    classes, ignored = kept_classes(dataset.mask_classes, "void")
    specs["mask"] = spec = Mask(10, 12, len(classes), ignored)
    loader = pvdata.make_eval_loader(dataset.splits["train"], specs, batch_size=8)
    masks = next(iter(loader)).inputs["mask"]
    assert masks.shape[1:] == (10, 12)
    assert set(masks[:, 0, 11].tolist()) <= {0, 1, 2, 3, 4, IGNORED}
    # Every sample shows class 0 in one half; number 5 is void.
    counts = count_pixels(dataset.splits["train"], spec)
    kept = [int(name.removeprefix("train.tar/s")) for name in dataset.splits["train"].names]
    assert counts.tolist() == [
        60 * (len(kept) + (0 in kept)), *(60 * (n in kept) for n in range(1, 5))
    ]  # fmt: skip


def test_a_second_picture_in_colour_is_no_mask(
    tmp_path: Path, write_tar: WriteTar, encode: Encode
) -> None:
    members = {f"s{i}.{e}": encode(i, kind=k) for i in range(3) for e, k in
               (("jpg", "JPEG"), ("png", "PNG"))}  # fmt: skip
    dataset = pvdata.open_data(str(write_tar(tmp_path / "x.tar", members)))
    assert dataset.mask_classes == ()
    assert any("3 samples have several images" in note for note in dataset.notes)
    assert not holds_ids(encode(0), "a")
    assert not holds_ids(b"x", "a")
    assert holds_ids(png(halves()), "a")


def test_a_named_mask_goes_before_a_second_picture() -> None:
    parts = {"jpg": 1, "png": 2, "seg.png": 3}
    assert find_mask(parts, 1) == "seg.png"
    assert find_mask({"png": 2, "seg.png": 3}, 2) == "seg.png"
    assert find_mask({"png": 2}, 2) is None
    assert find_mask(parts, None) is None


def test_classes_without_names_are_numbered_up_to_the_highest(
    tmp_path: Path, write_tar: WriteTar, encode: Encode
) -> None:
    members = {}
    for number in range(3):
        members[f"s{number}.jpg"] = encode(number, kind="JPEG")
        ids = halves() + number
        ids[0, 0] = 255
        members[f"s{number}.mask.png"] = png(ids)
    dataset = pvdata.open_data(str(write_tar(tmp_path / "x.tar", members)))
    assert dataset.mask_classes == ("0", "1", "2", "3")
    assert "no classes.txt: 4 pixel classes, named by their numbers" in dataset.notes
    (tmp_path / "blank").mkdir()
    blank = {k: (png(halves() * 0) if k.endswith("png") else v) for k, v in members.items()}
    with pytest.raises(DataError, match=r"the highest class id in \d masks is 0"):
        pvdata.open_data(str(write_tar(tmp_path / "blank" / "x.tar", blank)))


def test_samples_may_have_masks_and_labels(
    tmp_path: Path, write_tar: WriteTar, encode: Encode
) -> None:
    members = {}
    for number in range(4):
        members[f"s{number}.jpg"] = encode(number, kind="JPEG")
        members[f"s{number}.png"] = png(halves())
        members[f"s{number}.json"] = f'{{"place": "{"xy"[number % 2]}"}}'.encode()
    path = str(write_tar(tmp_path / "x.tar", members))
    dataset = pvdata.open_data(path, labels=["place"], val_share=0.3)
    assert dataset.classes == ("x", "y")
    assert dataset.mask_classes == ("0", "1")


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (
            (0, 7, 11, 255),
            r"12 pixel classes.*; 9 of these ids occur in none .* \(1, 2, 3, 4, 5, 6, 8, 9",
        ),
        ((0, 1, 2, 255), r"no classes\.txt: 3 pixel classes, named by their numbers$"),
    ],
)
def test_ids_that_no_mask_holds_are_named(
    ids: tuple[int, ...], said: str, tmp_path: Path, write_tar: WriteTar, encode: Encode
) -> None:
    mask = png(np.array(ids, np.uint8).reshape(2, 2))
    files = {f"{i}.jpg": encode(i, (2, 2), "JPEG") for i in range(4)}
    masks = {f"{i}.png": mask for i in range(4)}
    dataset = pvdata.open_data(str(write_tar(tmp_path / "x.tar", files | masks)))
    assert any(re.search(said, note) for note in dataset.notes), dataset.notes


def test_masks_of_black_and_white_are_told_what_to_do(
    tmp_path: Path, write_tar: WriteTar, encode: Encode
) -> None:
    mask = png(np.array([[0, 255], [0, 255]], np.uint8))
    files = {f"{i}.jpg": encode(i, (2, 2), "JPEG") for i in range(4)}
    path = write_tar(tmp_path / "x.tar", files | {f"{i}.png": mask for i in range(4)})
    with pytest.raises(DataError, match=r"save masks of 0 and 255 as 0 and 1"):
        pvdata.open_data(str(path))
