"""Archives of torch.save are read without running anything that they name."""

import argparse
import os
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from perceivers.checkpoints.pickles import Inert, StoredTensor, TorchArchive
from perceivers.checkpoints.torch_files import find_sets, read_tensor_file
from perceivers.errors import CheckpointError


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.args


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def read(path: Path) -> dict[str, Tensor]:
    """All tensors at the top of an archive."""
    with TorchArchive(path) as archive:
        held = {k: v for k, v in archive.content.items() if isinstance(v, StoredTensor)}
        return {name: archive.load(tensor) for name, tensor in held.items()}


DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.uint16,
    torch.float8_e4m3fn,
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_are_those_that_torch_reads(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.arange(24).reshape(4, 6).to(dtype)
    content = {"plain": values, "turned": values.T, "part": values[1:, ::2], "none": values[:0]}
    path = save({**content, "learned": nn.Parameter(torch.ones(3))}, tmp_path / "x.pt")
    wanted, found = torch.load(path, weights_only=True), read(path)
    assert list(found) == list(wanted)
    for name, tensor in found.items():
        assert tensor.dtype == wanted[name].dtype
        assert tensor.tolist() == wanted[name].tolist()
    other = read(save({**content, "plain": values.flip(0)}, tmp_path / "y.pt"))
    assert other["plain"].tolist() != found["plain"].tolist()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_scripts_keep_beside_tensors_is_no_obstacle(protocol: int, tmp_path: Path) -> None:
    beside = {
        "args": argparse.Namespace(lr=1e-3, out=Path("runs")),
        "best": np.float64(0.5),
        "counts": defaultdict(int, {"a": 1}),
        "ordered": OrderedDict(a=1),
        "device": torch.device("cpu"),
        "set": {1, 2},
        "list": [argparse.Namespace()],
    }
    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(2), **beside}, path, pickle_protocol=protocol)
    assert read(path)["w"].tolist() == [1.0, 1.0]
    with TorchArchive(path) as archive:
        assert isinstance(archive.content["args"], Inert)
        assert type(archive.content["args"]).origin == "argparse.Namespace"
        assert archive.content["counts"] == {"a": 1}


def test_a_whole_module_gives_its_state_dict(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    path = save({"model": module}, tmp_path / "x.pt")
    with TorchArchive(path) as archive:
        held = find_sets(archive.content)["model"]
        found = {name: archive.load(tensor) for name, tensor in held.items()}
    wanted = module.state_dict()
    assert sorted(found) == sorted(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("call", "refused"),
    [
        (Calls(os.system, "touch {marker}"), True),
        (Calls(eval, "open('{marker}', 'w')"), True),
        (Calls(exec, "open('{marker}', 'w')"), True),
        (Calls(open, "{marker}", "w"), True),
        (Calls(getattr, "x", "upper"), False),
        (Calls(Path.touch, Path("{marker}")), False),
        (Calls(np.fromfile, "{marker}"), False),
        (Calls(torch.save, [1], "{marker}"), False),
    ],
    ids=["system", "eval", "exec", "open", "getattr", "touch", "fromfile", "save"],
)
@pytest.mark.parametrize("where", ["beside", "in_state"])
def test_nothing_in_a_malicious_file_is_run(
    call: Calls, refused: bool, where: str, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    args = tuple(a.format(marker=marker) if isinstance(a, str) else a for a in call.args)
    args = tuple(marker if a == Path("{marker}") else a for a in args)
    bad = Calls(call.function, *args)
    content = {"w": torch.ones(2), "bad": bad if where == "beside" else {"deep": [bad]}}
    path = save(content, tmp_path / "x.pt")
    if refused:
        with pytest.raises(CheckpointError, match=r"x\.pt asks to call .* nothing was executed"):
            read(path)
    else:
        assert list(read(path)) == ["w"]
    assert not marker.exists()
    if call.function is Path.touch:
        torch.load(path, weights_only=False)  # the control: this file does run something
        assert marker.exists()


def test_functions_of_the_reader_cannot_be_changed(tmp_path: Path) -> None:
    """BUILD on a known function would set its attributes, for every later file."""
    pickled = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb."
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
    with pytest.raises(CheckpointError, match=r"sets attributes of a function"):
        read(path)


def test_views_beyond_the_stored_values_are_refused(tmp_path: Path) -> None:
    class Forged(pickle._Pickler):
        """Writes a tensor of more values than are stored."""

    path = save({"w": torch.arange(4.0)}, tmp_path / "x.pt")
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    for old, new, reason in [
        (b"K\x04\x85", b"K\x09\x85", r"shape \(9,\) has 4 values"),
        (b"QK\x00K\x04", b"QK\x03K\x04", r"out of bounds"),
    ]:
        forged = {n: d.replace(old, new) if n.endswith(".pkl") else d for n, d in records.items()}
        assert forged != records
        with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
            for name, data in forged.items():
                archive.writestr(name, data)
        with pytest.raises(CheckpointError, match=rf"y\.pt is not a complete.*{reason}"):
            read(tmp_path / "y.pt")


@pytest.mark.parametrize("length", [0, 3, 200, 900])
def test_files_cut_short_are_named(length: int, tmp_path: Path) -> None:
    path = save({"w": torch.arange(64.0)}, tmp_path / "x.pt")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"x\.pt is not a complete file of weights") as caught:
        read_tensor_file(path)
    assert "weights_only" not in str(caught.value)


def test_torchscript_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/constants.pkl", b"\x80\x02}.")
    with pytest.raises(CheckpointError, match=r"x\.pt is a TorchScript program, .* not run"):
        read(path)


def test_files_of_before_archives_are_read_as_weights_only(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert read_tensor_file(path)["w"].tolist() == [1.0, 1.0]
    content = {"w": torch.ones(2), "args": argparse.Namespace()}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before PyTorch 1\.6 and holds more than") as caught:
        read_tensor_file(path)
    assert "weights_only" not in str(caught.value)
