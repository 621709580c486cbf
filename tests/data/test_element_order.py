"""Elements in another order: the same ones, one order for all or one each, padding at the end."""

from typing import Any

import numpy as np
import pytest

from perceivers.data import AugmentConfig, make_eval_loader, make_train_loader
from perceivers.data.arrays import hold_arrays
from perceivers.data.fits import reorder_sample
from perceivers.data.fitting import SampleReader
from perceivers.data.masks import Mask
from perceivers.data.row_source import RowSource
from perceivers.errors import ConfigError
from perceivers.types import (
    CLS,
    FIRST_BYTE,
    PAD,
    SEP,
    Array,
    Audio,
    Bytes,
    Image,
    ModalitySpec,
    Points,
    Video,
    spec_from_json,
    spec_to_json,
)

SPECS: dict[str, Any] = {
    "image": lambda **order: Image(4, 5, 3, **order),
    "video": lambda **order: Video(3, 4, 5, 2, **order),
    "audio": lambda **order: Audio(40, 2, **order),
    "points": lambda **order: Points(30, 3, **order),
    "array": lambda **order: Array((4, 5), 2, **order),
    "bytes": lambda **order: Bytes(30, **order),
}


def numbered(spec: ModalitySpec) -> np.ndarray:
    """A sample whose values tell their element and channel."""
    if isinstance(spec, Bytes):
        return np.arange(spec.length) + FIRST_BYTE
    count = spec.num_tokens
    values = np.arange(count)[:, None] * 10 + np.arange(spec.channels)
    if spec.channels_first:
        values = values.T
    return values.reshape(spec.raw_shape).astype(np.float32)


def elements(values: np.ndarray, spec: ModalitySpec) -> list[tuple[float, ...]]:
    """The elements of a sample, row-major, each with all its channels."""
    if isinstance(spec, Bytes):
        return [(float(value),) for value in values]
    flat = values.reshape(spec.channels, -1).T if spec.channels_first else values
    return [tuple(map(float, row)) for row in flat.reshape(-1, spec.channels)]


def reorder(spec: ModalitySpec, key: int, name: str = "x") -> list[tuple[float, ...]]:
    values = {name: numbered(spec)}
    reorder_sample(values, {name: spec}, key)
    return elements(values[name], spec)


@pytest.mark.parametrize("kind", SPECS)
def test_elements_are_the_same_ones_in_the_order_asked_for(kind: str) -> None:
    make = SPECS[kind]
    plain = elements(numbered(make()), make())
    assert reorder(make(), 0) == plain
    fixed, other = (make(order="fixed", order_seed=seed) for seed in (0, 1))
    each = make(order="per_sample")
    found = [reorder(fixed, 0), reorder(other, 0), reorder(each, 0), reorder(each, 1)]
    # All are permutations, and no two the same.
    assert all(sorted(order) == sorted(plain) for order in found)
    assert len({tuple(order) for order in [plain, *found]}) == 5
    # One order for all samples; the same sample always in the same order.
    assert reorder(fixed, 7) == found[0]
    assert reorder(each, 1) == found[3]
    # Modalities of one sample have orders of their own.
    assert reorder(fixed, 0, "y") != found[0]


@pytest.mark.parametrize("order", ["fixed", "per_sample"])
def test_padding_and_special_ids_of_texts_stay_where_they_are(order: Any) -> None:
    spec = Bytes(12, wrap="cls_sep", order=order)
    ids = np.array([CLS, *(FIRST_BYTE + np.arange(7)), SEP, PAD, PAD, PAD])
    values = {"bytes": ids.copy()}
    reorder_sample(values, {"bytes": spec}, 3)
    found = values["bytes"]
    assert found[0] == CLS
    assert found[8:].tolist() == [SEP, PAD, PAD, PAD]
    assert sorted(found[1:8]) == sorted(ids[1:8])
    assert found.tolist() != ids.tolist()


@pytest.mark.parametrize("order", ["fixed", "per_sample"])
def test_rows_of_ragged_clouds_that_are_no_points_stay_at_the_end(order: Any) -> None:
    spec = Points(10, 2, ragged=True, order=order)
    cloud = np.arange(20, dtype=np.float32).reshape(10, 2)
    cloud[6:] = np.nan
    values = {"points": cloud.copy()}
    reorder_sample(values, {"points": spec}, 0)
    assert np.isnan(values["points"][6:]).all()
    assert sorted(map(tuple, values["points"][:6])) == sorted(map(tuple, cloud[:6]))
    assert not np.array_equal(values["points"][:6], cloud[:6])


def test_a_mask_moves_with_its_picture() -> None:
    spec = Image(4, 5, 1, order="per_sample")
    pixels = np.arange(20, dtype=np.uint8).reshape(1, 4, 5)
    values = {"image": pixels, "mask": pixels[0].copy()}
    reorder_sample(values, {"image": spec, "mask": Mask(4, 5, 20)}, 2)
    assert not np.array_equal(values["image"], pixels)
    assert np.array_equal(values["image"][0], values["mask"])


def source(count: int = 6) -> RowSource:
    image = np.random.default_rng(0).integers(0, 256, (count, 1, 4, 4), np.uint8)
    return hold_arrays({"image": image}, [f"x/{i}" for i in range(count)])


def read_training(spec: Image, start: int, steps: int, workers: int = 0) -> list[np.ndarray]:
    loader = make_train_loader(
        source(),
        {"image": spec},
        batch_size=4,
        seed=0,
        augment=AugmentConfig(),
        start_step=start,
        num_steps=steps,
        workers=workers,
    )
    return [batch.inputs["image"].numpy() for batch in loader]


def test_loaders_repeat_the_orders_of_single_samples() -> None:
    spec, plain = Image(4, 4, 1, order="per_sample"), Image(4, 4, 1)
    whole = read_training(spec, 0, 6)
    resumed = read_training(spec, 2, 6)
    assert all(np.array_equal(a, b) for a, b in zip(whole[2:], resumed, strict=True))
    kept = read_training(plain, 0, 6)
    pairs = [(a, b) for x, y in zip(whole, kept, strict=True) for a, b in zip(x, y, strict=True)]
    assert all(np.array_equal(np.sort(a, None), np.sort(b, None)) for a, b in pairs)
    # A sample that comes again comes in another order.
    seen = {tuple(a.ravel()) for a, _ in pairs}
    assert len(seen) == len(pairs) > len({tuple(b.ravel()) for _, b in pairs})
    # In evaluation it comes in the same one every time.
    first, second = (
        [b.inputs["image"] for b in make_eval_loader(source(), {"image": spec}, batch_size=2)]
        for _ in range(2)
    )
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))


def test_a_fixed_order_is_that_of_training_and_evaluation() -> None:
    spec = Image(4, 4, 1, order="fixed", order_seed=3)
    evaluated = {
        tuple(row.ravel().tolist())
        for batch in make_eval_loader(source(), {"image": spec}, batch_size=6)
        for row in batch.inputs["image"].numpy()
    }
    trained = {tuple(row.ravel().tolist()) for x in read_training(spec, 0, 3) for row in x}
    assert trained == evaluated


def test_optical_flow_needs_frames_in_place() -> None:
    video = Video(2, 4, 4, 3, order="fixed")
    arrays = hold_arrays(
        {"video": np.zeros((1, 3, 2, 4, 4), np.uint8), "flow": np.zeros((1, 2, 4, 4), np.float32)},
        ["x/0"],
    )
    with pytest.raises(ConfigError, match=r"optical flow needs elements in place.*'fixed'"):
        SampleReader(arrays, {"video": video, "flow": Array((2, 4), 4)}, AugmentConfig())


def test_orders_are_saved_with_a_spec_and_left_out_where_elements_are_in_place() -> None:
    assert "order" not in spec_to_json(Image(4, 4))
    for spec in (Image(4, 4), Image(4, 4, order="fixed", order_seed=5)):
        assert spec_from_json(spec_to_json(spec)) == spec
