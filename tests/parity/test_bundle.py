"""Reading parity bundles: what they must state, and what is refused."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from perceivers.checkpoints.parity import Bundle, check_bundle, read_archive
from perceivers.errors import CheckpointError

GOLDEN = Path(__file__).parents[1] / "golden"
WHOLE = (GOLDEN / "io_single.npz").read_bytes()


def read_bundle(path: Path) -> Bundle:
    return check_bundle(read_archive(path), str(path))


@pytest.fixture
def arrays() -> dict[str, NDArray[Any]]:
    with np.load(GOLDEN / "io_single.npz") as archive:
        return {key: archive[key] for key in archive.files}


def change(arrays: dict[str, NDArray[Any]], path: Path, **changes: Any) -> Path:
    """Write a bundle with entries of its configuration changed, or dropped where None."""
    config = {**json.loads(str(arrays["config_json"])), **changes}
    config = {key: value for key, value in config.items() if value is not None}
    entries: dict[str, Any] = {**arrays, "config_json": np.array(json.dumps(config))}
    np.savez(path, **entries)
    return path


def test_a_bundle_is_read_whole(arrays: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    bundle = read_bundle(change(arrays, tmp_path / "x.npz"))
    assert bundle.model == "PerceiverIO"
    assert bundle.datasets == (("ds", (("image", (2, 30, 3)),)),)
    assert len(bundle.params) == sum(key.startswith("param/") for key in arrays)
    assert bundle.outputs.keys() == {"ds/input_reconstruction/image", "ds/latents/image"}
    assert bundle.absmax > 13


@pytest.mark.parametrize("key", ["model", "kwargs", "datasets", "output_absmax", "is_training"])
def test_nothing_is_guessed(arrays: dict[str, NDArray[Any]], tmp_path: Path, key: str) -> None:
    path = change(arrays, tmp_path / "x.npz", **{key: None})
    with pytest.raises(CheckpointError, match=rf"x\.npz: config_json lacks '{key}', which is req"):
        read_bundle(path)


def test_contradictions_are_refused(arrays: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"datasets": [["ds", [["image", [2, 31, 3]]]]]},
            r"has shape \(2, 30, 3\), declared \(2, 31",
        ),
        ({"datasets": [["ds", [["sound", [2, 30, 3]]]]]}, r"inputs lacks 'ds/sound'"),
        ({"datasets": [["ds", "image"]]}, r"datasets must be \[\[name, "),
        ({"is_training": True}, r"was made in training mode"),
    ]
    for changes, text in cases:
        with pytest.raises(CheckpointError, match=text):
            read_bundle(change(arrays, tmp_path / "x.npz", **changes))


def test_a_bundle_without_outputs_is_refused(
    arrays: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    rest = {key: value for key, value in arrays.items() if not key.startswith("output/")}
    with pytest.raises(CheckpointError, match=r"holds no output/"):
        read_bundle(change(rest, tmp_path / "x.npz"))


def test_files_that_are_no_bundles_are_refused(
    arrays: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(CheckpointError, match=r"x\.npz: (not an \.npz file|cannot be read)"):
        read_bundle(path)
    path.write_bytes(b"no archive")
    with pytest.raises(CheckpointError, match=r"x\.npz: not an \.npz file"):
        read_bundle(path)
    path.write_bytes(WHOLE[: len(WHOLE) // 2])
    with pytest.raises(CheckpointError, match=r"x\.npz: not an \.npz file"):
        read_bundle(path)
    np.savez(path, something=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"x\.npz lacks 'config_json'"):
        read_bundle(path)
    np.savez(path, config_json=np.array("{"))
    with pytest.raises(CheckpointError, match=r"config_json is not JSON"):
        read_bundle(path)
    np.savez(path, config_json=np.array("[1]"))
    with pytest.raises(CheckpointError, match=r"is not a JSON object"):
        read_bundle(path)


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, config_json=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(CheckpointError, match=r"Python objects, which are never loaded"):
        read_bundle(path)


def test_a_plain_array_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(CheckpointError, match=r"x\.npz: not an \.npz file"):
        read_bundle(path)


@given(data=st.data())
@settings(max_examples=30)
def test_damage_never_raises_anything_else(data: st.DataObject, tmp_path_factory: Any) -> None:
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(bytes(content))
    with suppress(CheckpointError):
        read_bundle(path)
