"""The restricted unpickler: parameters come through, code is refused before it runs."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceivers.checkpoints.pickles import read_parameter_pickle
from perceivers.errors import CheckpointError

TREE: dict[str, dict[str, Any]] = {
    "net/linear": {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.zeros(3, dtype=np.float64),
    },
    "net/norm": {
        "scale": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "offset": np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    },
}


class Call:
    """Pickles as a call of ``function`` with ``args``."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.args


class SetState(Call):
    """Pickles as a call whose result is then given a state."""

    def __reduce__(self) -> Any:
        return self.function, self.args[:-1], self.args[-1]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("outer", [dict, OrderedDict])
def test_nested_dictionaries_of_arrays_are_read(
    tmp_path: Path, protocol: int, outer: type[dict[str, Any]]
) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(outer(TREE), protocol=protocol))
    arrays = read_parameter_pickle(path)
    assert list(arrays) == ["net/linear:w", "net/linear:b", "net/norm:scale", "net/norm:offset"]
    for key, array in arrays.items():
        module, _, name = key.rpartition(":")
        assert array.dtype == TREE[module][name].dtype
        assert np.array_equal(array, TREE[module][name])


def canaries(path: Path) -> dict[str, Any]:
    """Pickles that would make the file ``path`` if anything in them ran."""
    text = str(path)
    return {
        "os.system": Call(os.system, f"touch {text}"),
        "builtins.eval": Call(eval, f"open({text!r}, 'w').close()"),
        "builtins.exec": Call(exec, f"open({text!r}, 'w').close()"),
        "io.open": Call(open, text, "w"),
        "numpy.load": Call(np.load, text),
        "numpy.save": Call(np.save, text, [1]),
        "builtins.getattr": Call(getattr, "", "join"),
        "pathlib": Call(Path.touch, path),
    }


@pytest.mark.parametrize("name", canaries(Path("x")))
@pytest.mark.parametrize("place", ["whole", "leaf", "key"])
@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_code_is_refused_and_never_runs(
    tmp_path: Path, name: str, place: str, protocol: int
) -> None:
    canary, path = tmp_path / "canary", tmp_path / "x.pkl"
    call = canaries(canary)[name]
    trees = {"whole": call, "leaf": {"m": {"w": call}}, "key": {call: {"w": np.zeros(1)}}}
    content = pickle.dumps(trees[place], protocol=protocol)
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"the pickle asks for .*; nothing was executed"
    ) as caught:
        read_parameter_pickle(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "canary").exists()


def test_the_canaries_would_sing(tmp_path: Path) -> None:
    """Control: an ordinary unpickler runs what the tests above hold."""
    for name in ("os.system", "builtins.eval", "pathlib"):
        canary = tmp_path / name
        pickle.loads(pickle.dumps(canaries(canary)[name]))  # our own bytes
        assert canary.exists()


def test_arrays_of_objects_and_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    wrong = {
        "object": np.array([1, "a"], dtype=object),
        "integers": np.arange(3),
        "text": np.array(["a"]),
        "number": 1.0,
        "list": [1.0],
    }
    for value in wrong.values():
        path.write_bytes(pickle.dumps({"m": {"w": value}}))
        with pytest.raises(CheckpointError, match=r"m:w is not an array of floats"):
            read_parameter_pickle(path)


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ([1, 2], r"holds a list, not module -> name -> array"),
        ({}, r"holds a dict, not module"),
        (np.zeros(3), r"holds a ndarray, not module"),
        ({"m": np.zeros(3)}, r"entry 'm' is not a module's dictionary of arrays"),
        ({1: {"w": np.zeros(3)}}, r"entry 1 is not a module's dictionary"),
    ],
)
def test_what_is_no_parameter_tree_is_refused(tmp_path: Path, tree: Any, text: str) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(tree))
    with pytest.raises(CheckpointError, match=text):
        read_parameter_pickle(path)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_every_truncation_is_refused(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "x.pkl"
    whole = pickle.dumps(TREE, protocol=protocol)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"x\.pkl"):
            read_parameter_pickle(path)


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(b"PK\x03\x04 no pickle")
    with pytest.raises(CheckpointError, match=r"is not a readable pickle"):
        read_parameter_pickle(path)
    with pytest.raises(CheckpointError, match=r"missing\.pkl"):
        read_parameter_pickle(tmp_path / "missing.pkl")


@pytest.mark.slow
@given(data=st.data())
def test_damage_never_raises_anything_else(data: st.DataObject, tmp_path_factory: Any) -> None:
    content = bytearray(pickle.dumps(TREE, protocol=data.draw(st.sampled_from([0, 2, 4, 5]))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(bytes(content))
    try:
        arrays = read_parameter_pickle(path)
    except CheckpointError:
        return
    assert all(array.dtype.kind == "f" for array in arrays.values())


def test_arrays_inside_jax_pickles_are_read(tmp_path: Path) -> None:
    """A JAX array pickles as its NumPy parts under a name of JAX; JAX itself is not needed."""
    array = np.arange(4, dtype=np.float32)
    build, args, state = array.__reduce__()  # pyright: ignore[reportAssignmentType]
    content = pickle.dumps({"m": {"w": Call(_jax_like, build, args, state, None)}}, protocol=2)
    here = f"c{_jax_like.__module__}\n_jax_like\n".encode()
    assert here in content
    path = tmp_path / "x.pkl"
    path.write_bytes(content.replace(here, b"cjax._src.array\n_reconstruct_array\n"))
    assert np.array_equal(read_parameter_pickle(path)["m:w"], array)


def _jax_like(*args: Any) -> None:
    raise AssertionError(f"never called, got {args}")
