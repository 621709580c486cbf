"""Loaders: determinism, resuming, ranks, and samples that cannot be read."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perceivers.data import AugmentConfig, Batch, Dataset, make_eval_loader, make_train_loader
from perceivers.data import open_data as open_address
from perceivers.data.arrays import hold_arrays
from perceivers.data.row_source import RowSource, hold_pictures
from perceivers.errors import ConfigError, DataError
from perceivers.types import Array, Audio, Image, ModalitySpec

WriteFolder = Callable[[Mapping[str, bytes]], Path]
Encode = Callable[..., bytes]
AUGMENT = AugmentConfig(crop_scale=(0.5, 1.0), flip=True, rotate=10.0, shift=0.1)
SPECS: dict[str, ModalitySpec] = {"image": Image(8, 8, 1)}


@pytest.fixture
def source(numpy_rng: np.random.Generator) -> RowSource:
    """Ten labelled pictures."""
    image = numpy_rng.integers(0, 256, (10, 1, 8, 8), np.uint8)
    return hold_arrays({"image": image}, [f"x/{i}" for i in range(10)], np.arange(10) % 3)


def train(source: Any, **options: Any) -> list[Batch]:
    values: dict[str, Any] = {
        "batch_size": 4,
        "seed": 0,
        "augment": AUGMENT,
        "start_step": 0,
        "num_steps": 6,
    }
    specs = options.pop("specs", SPECS)
    return list(make_train_loader(source, specs, **(values | options)))


def equal(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.index, b.index)
        and a.bad == b.bad
        and (a.labels is None or (b.labels is not None and torch.equal(a.labels, b.labels)))
        and all(torch.equal(a.inputs[name], b.inputs[name]) for name in a.inputs)
        for a, b in zip(left, right, strict=True)
    )


def images_of(source: RowSource) -> np.ndarray:
    return np.stack([np.asarray(source.read(i)["image"]) for i in range(len(source))])


def files(folder: Path, count: int) -> RowSource:
    names = [f"{i}.png" for i in range(count)]
    return hold_pictures([str(folder / name) for name in names], names, np.arange(count))


def test_the_same_seed_gives_the_same_batches_and_another_does_not(source: RowSource) -> None:
    assert equal(train(source), train(source))
    assert not equal(train(source), train(source, seed=1))
    plain = {"augment": AugmentConfig()}
    assert not equal(train(source), train(source, **plain))


@pytest.mark.parametrize("start", [1, 3, 5, 6])
def test_resuming_at_any_step_continues_the_stream(source: RowSource, start: int) -> None:
    whole = train(source)
    assert equal(train(source, start_step=start), whole[start:])
    assert not equal(train(source, start_step=5), whole[4:5])


def test_workers_do_not_change_the_batches(source: RowSource) -> None:
    whole = train(source)
    assert equal(train(source, workers=2), whole)
    assert equal(train(source, workers=2, start_step=3), whole[3:])
    assert not equal(train(source, workers=2, seed=1), whole)


def test_every_epoch_sees_every_sample_once_in_a_new_order(source: RowSource) -> None:
    stream = torch.cat([batch.index for batch in train(source, num_steps=5)]).tolist()
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert stream[:10] != stream[10:]


def test_the_augmentation_changes_with_the_epoch_and_keeps_the_label(source: RowSource) -> None:
    assert source.labels is not None
    batches = train(source, num_steps=5)
    indices = torch.cat([batch.index for batch in batches])
    images = torch.cat([batch.inputs["image"] for batch in batches])
    for i in range(10):
        first, second = images[indices == i]
        assert not torch.equal(first, second)
    for batch in batches:
        assert batch.labels is not None
        assert batch.labels.tolist() == source.labels[batch.index.numpy()].tolist()
        assert batch.labels.dtype == batch.index.dtype == torch.int64
        assert batch.inputs["image"].dtype == torch.uint8


def test_without_augmentation_the_values_are_those_of_the_source(source: RowSource) -> None:
    for batch in train(source, augment=AugmentConfig()):
        expected = images_of(source)[batch.index.numpy()]
        assert np.array_equal(batch.inputs["image"].numpy(), expected)
        assert not np.array_equal(batch.inputs["image"].numpy(), expected[::-1])


def test_a_batch_may_be_larger_than_the_data(source: RowSource) -> None:
    small = source.subset(np.arange(3))
    batches = train(small, batch_size=7, num_steps=3)
    assert [len(batch) for batch in batches] == [7, 7, 7]
    assert sorted(torch.cat([b.index for b in batches]).tolist()) == [0] * 7 + [1] * 7 + [2] * 7
    assert equal(batches[2:], train(small, batch_size=7, num_steps=3, start_step=2))


def test_two_ranks_share_out_the_batch_of_one(source: RowSource) -> None:
    whole = train(source, batch_size=4)
    ranks = [train(source, batch_size=2, rank=rank, world_size=2) for rank in (0, 1)]
    joined = [
        Batch(
            {"image": torch.cat([a.inputs["image"], b.inputs["image"]])},
            None,
            torch.cat([a.index, b.index]),
            [],
        )
        for a, b in zip(*ranks, strict=True)
    ]
    assert equal(joined, whole)
    assert not equal(joined[::-1], whole)


def test_the_global_generator_is_left_alone(source: RowSource) -> None:
    before = torch.random.get_rng_state()
    train(source, workers=1, num_steps=1)
    list(make_eval_loader(source, SPECS, batch_size=4))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_length_of_a_loader_is_its_number_of_steps(source: RowSource) -> None:
    loader = make_train_loader(
        source, SPECS, batch_size=4, seed=0, augment=AUGMENT, start_step=2, num_steps=9
    )
    assert len(loader) == 7
    assert len(make_eval_loader(source, SPECS, batch_size=4)) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_sample_is_replaced_by_the_next_and_named(
    write_folder: WriteFolder, encode: Encode, workers: int
) -> None:
    good = {f"{i}.png": encode(i) for i in range(5)}
    folder = write_folder(good | {"1.png": good["1.png"][:60], "2.png": b""})
    whole = train(files(folder, 5), batch_size=5, num_steps=1, workers=workers, augment=AUGMENT)
    (batch,) = whole
    assert sorted(batch.index.tolist()) == [0, 3, 3, 3, 4]
    assert batch.labels is not None
    assert torch.equal(batch.labels, batch.index)
    assert len(batch.bad) == 3
    assert {reason.split(": ")[0] for reason in batch.bad} == {
        str(folder / "1.png"),
        str(folder / "2.png"),
    }
    write_folder(good)
    (mended,) = train(files(folder, 5), batch_size=5, num_steps=1, workers=workers)
    assert sorted(mended.index.tolist()) == [0, 1, 2, 3, 4]
    assert mended.bad == []


@pytest.mark.parametrize("workers", [0, 1])
def test_training_stops_with_a_plain_message_when_nothing_can_be_read(
    write_folder: WriteFolder, workers: int
) -> None:
    source = files(write_folder({"0.png": b"", "1.png": b""}), 2)
    with pytest.raises(DataError, match=r"^none of 2 training samples could be read; the first: /"):
        train(source, workers=workers)


def test_evaluation_reads_every_sample_once_in_order(source: RowSource) -> None:
    batches = list(make_eval_loader(source, SPECS, batch_size=4))
    assert [batch.index.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    values = torch.cat([batch.inputs["image"] for batch in batches]).numpy()
    assert np.array_equal(values, images_of(source))
    assert not np.array_equal(values[::-1], images_of(source))
    assert equal(batches, list(make_eval_loader(source, SPECS, batch_size=4, workers=2)))


def test_ranks_share_out_the_batches_of_an_evaluation(source: RowSource) -> None:
    ranks = [
        [
            b.index.tolist()
            for b in make_eval_loader(source, SPECS, batch_size=3, rank=r, world_size=2)
        ]
        for r in (0, 1)
    ]
    assert ranks == [[[0, 1, 2], [6, 7, 8]], [[3, 4, 5], [9]]]


@pytest.mark.parametrize("bad", [(0, 1), (2, 3), (4, 5), (0, 1, 4, 5), (1, 2)])
def test_evaluation_leaves_unreadable_samples_out_and_loses_no_name(
    write_folder: WriteFolder, encode: Encode, bad: tuple[int, ...]
) -> None:
    content = {f"{i}.png": b"" if i in bad else encode(i) for i in range(6)}
    folder = write_folder(content)
    source = files(folder, 6)
    batches = list(make_eval_loader(source, SPECS, batch_size=2))
    assert all(len(batch) for batch in batches)
    read = [i for batch in batches for i in batch.index.tolist()]
    assert read == [i for i in range(6) if i not in bad]
    named = [reason.split(": ")[0] for batch in batches for reason in batch.bad]
    assert named == [str(folder / source.names[i]) for i in bad]


def test_evaluating_only_unreadable_samples_names_the_first(write_folder: WriteFolder) -> None:
    source = files(write_folder({"0.png": b"", "1.png": b""}), 2)
    with pytest.raises(DataError, match=r"^none of 2 samples could be read; the first: .*/0\.png"):
        list(make_eval_loader(source, SPECS, batch_size=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"workers": -1}, "workers is -1; it must not be negative"),
        ({"rank": 2, "world_size": 2}, "rank is 2 of world_size 2"),
        ({"seed": -1}, "seed is -1; it must be in"),
        ({"start_step": 7}, "start_step is 7 of num_steps 6"),
    ],
)
def test_numbers_that_make_no_loader_are_refused(
    source: RowSource, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(source, **options)


def test_specs_that_do_not_fit_are_refused_before_reading(source: RowSource) -> None:
    for specs, message in (
        ({}, "no modality is asked for"),
        ({"audio": Audio(4)}, r"'audio' is requested, but the data contain image;"),
    ):
        with pytest.raises(DataError, match=message):
            train(source, specs=specs, augment=AugmentConfig())
    five = hold_arrays({"image": np.zeros((2, 5, 4, 4), np.uint8)}, ["a", "b"])
    with pytest.raises(DataError, match=r"shape \(5, 4, 4\) \[C, H, W\], but the spec has 3"):
        train(five, specs={"image": Image(4, 4, 3)})
    sound = hold_arrays({"audio": np.zeros((2, 1, 9), np.float32)}, ["a", "b"])
    with pytest.raises(DataError, match=r"shape \(1, 9\) per sample, .* expects \(2, 9\)"):
        train(sound, specs={"audio": Audio(9, 2)}, augment=AugmentConfig())
    grid = hold_arrays({"array": np.zeros((2, 3, 1), np.float32)}, ["a", "b"])
    with pytest.raises(DataError, match=r"shape \(3, 1\) per sample, .* expects \(4, 1\)"):
        train(grid, specs={"array": Array(4)}, augment=AugmentConfig())
    with pytest.raises(
        ConfigError, match=r"crop_scale changes image and video, but the modalities are \['audio'\]"
    ):
        train(sound, specs={"audio": Audio(9)})
    with pytest.raises(DataError, match="none of 1 training samples could be read"):
        train(hold_pictures(["a"], ["a"]), specs={"image": Image(4, 4, 2)})
    with pytest.raises(DataError, match="the source contains no samples"):
        train(hold_pictures([], []))


def test_modalities_that_are_no_pictures_pass_through(numpy_rng: np.random.Generator) -> None:
    audio = numpy_rng.random((4, 2, 9), np.float32)
    source = hold_arrays({"audio": audio}, list("abcd"))
    (batch,) = make_eval_loader(source, {"audio": Audio(9, 2)}, batch_size=8)
    assert np.array_equal(batch.inputs["audio"].numpy(), audio)
    assert batch.labels is None


def test_label_columns_follow_into_batches(source: RowSource) -> None:
    columns = np.stack([np.arange(10), np.full(10, -1)], axis=1)
    several = replace(source, labels=columns)
    for batch in (*train(several), *make_eval_loader(several, SPECS, batch_size=4)):
        assert batch.labels is not None
        assert batch.labels.tolist() == [[i, -1] for i in batch.index.tolist()]


def test_parts_are_drawn_anew_in_every_epoch_without_augmentation() -> None:
    sound = np.arange(100, dtype=np.float32).reshape(1, 1, 100)
    source = hold_arrays({"audio": sound}, ["a"])
    options = {"specs": {"audio": Audio(10)}, "augment": AugmentConfig(), "batch_size": 1}
    first, again = train(source, **options), train(source, **options)
    assert equal(first, again)
    assert equal(train(source, start_step=3, **options), first[3:])
    starts = {int(batch.inputs["audio"][0, 0, 0]) for batch in first}
    assert len(starts) > 3
    (batch,) = make_eval_loader(source, {"audio": Audio(10)}, batch_size=1)
    assert batch.inputs["audio"][0, 0].tolist() == list(range(45, 55))


def test_a_batch_moves_its_tensors_and_keeps_its_names(source: RowSource) -> None:
    (batch, *_) = train(source)
    moved = batch.to("meta")
    assert moved.inputs["image"].device.type == "meta"
    assert moved.labels is not None
    assert moved.labels.device.type == "meta"
    assert torch.equal(moved.index, batch.index)
    assert moved.bad is batch.bad


def test_opened_data_train_with_their_own_specs() -> None:
    dataset: Dataset = open_address("digits")
    batch = next(
        iter(
            make_train_loader(
                dataset.splits["train"],
                dataset.specs(size=12, channels=3),
                batch_size=5,
                seed=0,
                augment=AUGMENT,
                start_step=0,
                num_steps=1,
            )
        )
    )
    assert batch.inputs["image"].shape == (5, 3, 12, 12)


# -- copies ----------------------------------------------------------------------------------------


def with_copies(copies: int, **settings: Any) -> AugmentConfig:
    return AugmentConfig(crop_scale=(0.5, 1.0), flip=True, copies=copies, **settings)


def test_every_sample_of_a_batch_stands_in_it_as_often_as_asked(source: RowSource) -> None:
    """The samples are those of the stream without copies, each several times and each other."""
    plain = train(source, augment=with_copies(1), batch_size=2)
    batches = train(source, augment=with_copies(3), batch_size=6)
    for batch, single in zip(batches, plain, strict=True):
        assert batch.index.tolist() == single.index.repeat_interleave(3).tolist()
        assert batch.labels is not None
        assert single.labels is not None
        assert batch.labels.tolist() == single.labels.repeat_interleave(3).tolist()
        views = batch.inputs["image"].unflatten(0, (2, 3))
        assert torch.equal(views[:, 0], single.inputs["image"])
    different = [
        not torch.equal(batch.inputs["image"][a], batch.inputs["image"][b])
        for batch in batches
        for first in (0, 3)
        for a, b in ((first, first + 1), (first, first + 2), (first + 1, first + 2))
    ]
    assert all(different)


def test_an_epoch_of_copies_is_as_many_times_as_long(source: RowSource) -> None:
    stream = torch.cat(
        [b.index for b in train(source, augment=with_copies(2), num_steps=10)]
    ).tolist()
    assert sorted(stream[:20]) == sorted(stream[20:]) == sorted(2 * list(range(10)))
    assert stream[:20] != stream[20:]


@pytest.mark.parametrize("start", [1, 4, 6])
def test_copies_resume_exactly_whatever_the_workers(source: RowSource, start: int) -> None:
    options: dict[str, Any] = {"augment": with_copies(2, erase=0.5, rand_augment=1)}
    whole = train(source, **options)
    assert equal(train(source, start_step=start, **options), whole[start:])
    assert not equal(train(source, start_step=0, **options)[:1], whole[1:2])
    if start == 4:
        assert equal(train(source, start_step=start, workers=2, **options), whole[start:])


def test_two_ranks_share_out_the_copies_of_one(source: RowSource) -> None:
    augment = with_copies(2)
    whole = torch.cat([b.inputs["image"] for b in train(source, augment=augment)])
    ranks = [train(source, augment=augment, batch_size=2, rank=r, world_size=2) for r in (0, 1)]
    pairs = zip(*ranks, strict=True)
    joined = torch.cat([batch.inputs["image"] for pair in pairs for batch in pair])
    assert torch.equal(joined, whole)


def test_copies_read_other_parts_of_what_is_no_picture() -> None:
    sound = np.arange(1000, dtype=np.float32).reshape(1, 1, 1000)
    source = hold_arrays({"audio": sound}, ["a"])
    specs: dict[str, ModalitySpec] = {"audio": Audio(10)}
    augment = AugmentConfig(copies=4)
    batches = train(source, specs=specs, augment=augment, batch_size=4)
    assert all(len(set(batch.inputs["audio"][:, 0, 0].tolist())) > 2 for batch in batches)


def test_a_batch_holds_all_copies_of_a_sample(source: RowSource) -> None:
    with pytest.raises(ConfigError, match=r"batch_size is 4 and augment.copies 3; .* a multiple"):
        train(source, augment=with_copies(3))


def test_erasing_changes_nothing_else(source: RowSource) -> None:
    plain, erased = train(source), train(source, augment=replace(AUGMENT, erase=0.5))
    shares = []
    for before, after in zip(plain, erased, strict=True):
        same = before.inputs["image"] == after.inputs["image"]
        shares += same.float().mean((1, 2, 3)).tolist()
    assert min(shares) > 0.6
    assert max(shares) == 1.0
    assert sum(share == 1.0 for share in shares) < len(shares)
