"""Batches of views: all views of a sample together, and samples that cannot be read."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from perceivers.data import make_eval_loader
from perceivers.data.arrays import hold_arrays
from perceivers.data.augment import Views
from perceivers.data.row_source import hold_pictures
from perceivers.errors import ConfigError
from perceivers.types import Bytes, Image, ModalitySpec, Video

WriteFolder = Callable[[Mapping[str, bytes]], Path]
Encode = Callable[..., bytes]


def test_evaluation_sees_all_views_of_a_sample_one_after_the_other() -> None:
    video = np.zeros((3, 1, 9, 8, 24), np.uint8)
    video += np.arange(9, dtype=np.uint8).reshape(1, 1, 9, 1, 1) * 10  # the time
    video += np.repeat(np.arange(3, dtype=np.uint8), 8)  # the place: 0, 1, 2
    video += np.array([0, 100, 150], np.uint8).reshape(3, 1, 1, 1, 1)
    source = hold_arrays({"video": video}, list("abc"), np.arange(3))
    specs: dict[str, ModalitySpec] = {"video": Video(1, 8, 8, 1)}
    views = Views(temporal=2, spatial=3)
    batches = list(make_eval_loader(source, specs, batch_size=13, views=views))
    assert [batch.index.tolist() for batch in batches] == [[0, 1], [2]]
    assert [len(batch) for batch in batches] == [2, 1]
    seen = torch.cat([batch.inputs["video"][:, 0, 0, 0, 0] for batch in batches]).tolist()
    each = [0, 1, 2, 80, 81, 82]
    assert seen == [first + value for first in (0, 100, 150) for value in each]
    for batch in batches:  # every view is of one time and one place
        assert torch.equal(
            batch.inputs["video"].amin((1, 2, 3, 4)), batch.inputs["video"][:, 0, 0, 0, 0]
        )
        assert batch.labels is not None
        assert batch.labels.tolist() == batch.index.tolist()
    small = list(make_eval_loader(source, specs, batch_size=1, views=views, workers=1))
    assert [batch.inputs["video"].shape[0] for batch in small] == [6, 6, 6]
    (plain,) = make_eval_loader(source, specs, batch_size=13)
    assert plain.inputs["video"][:, 0, 0, 0, 0].tolist() == [41, 141, 191]


def test_views_of_picture_files_and_damaged_ones(write_folder: WriteFolder, encode: Encode) -> None:
    content = {"0.png": encode(0, (30, 10)), "1.png": b"", "2.png": encode(2, (10, 30))}
    folder = write_folder(content)
    paths = [str(folder / name) for name in content]
    source = hold_pictures(paths, list(content))
    specs: dict[str, ModalitySpec] = {"image": Image(10, 10, 3)}
    (batch,) = make_eval_loader(source, specs, batch_size=9, views=Views(spatial=3))
    assert batch.index.tolist() == [0, 2]
    assert len(batch.bad) == 1
    pictures = batch.inputs["image"]
    assert pictures.shape == (6, 3, 10, 10)
    with Picture.open(paths[0]) as opened:
        whole = torch.from_numpy(np.array(opened)).permute(2, 0, 1)
    assert torch.equal(torch.cat([*pictures[:3]], dim=2), whole)
    with Picture.open(paths[2]) as opened:
        whole = torch.from_numpy(np.array(opened)).permute(2, 0, 1)
    assert torch.equal(torch.cat([*pictures[3:]], dim=1), whole)
    with pytest.raises(ConfigError, match="views are 2x1, but 2 temporal views need videos"):
        make_eval_loader(source, specs, batch_size=9, views=Views(temporal=2))
    text = hold_arrays({"bytes": np.zeros((1, 4), np.uint8)}, ["a"])
    with pytest.raises(ConfigError, match="3 spatial views need images or videos"):
        make_eval_loader(text, {"bytes": Bytes(4)}, batch_size=9, views=Views(spatial=3))
