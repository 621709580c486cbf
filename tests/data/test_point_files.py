"""Files of points: every format, meshes by their surface, damage, folders of them, prediction."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from perceivers.data import find_files, make_eval_loader, open_data, read_files
from perceivers.data.augment import AugmentConfig
from perceivers.data.fitting import SampleReader
from perceivers.data.point_files import common_points, native_points, read_points
from perceivers.data.sources import Encoded
from perceivers.errors import DataError
from perceivers.types import Image, ModalitySpec, Points

pytest.importorskip("trimesh")
WriteFolder = Callable[[Mapping[str, bytes]], Path]
ROWS = np.array([[0.0, 0, 0], [1, 0, 0], [1, 2, 0], [0, 2, 0.5]])
XYZ = b"# x y z\n0 0 0\n1,0,0\n\n1 2 0\n0\t2 0.5\n"
HEAD = b"OFF\n# 2 wide and 4 high, in two triangles\n"
OFF = HEAD + b"4 2 0\n0 0 0\n2 0 0\n2 4 0\n0 4 0\n3 0 1 2\n3 0 2 3\n"
PLY = (
    b"ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\n"
    b"property float z\nproperty uchar red\nend_header\n0 0 0 9\n1 0 0 9\n1 2 0 9\n0 2 0.5 9\n"
)
OBJ = (
    b"mtllib none.mtl\no a\nv 0 0 0\nv 1 0 0\nv 1 1 0\nusemtl x\nf 1 2 3\n"
    b"o b\nv 0 0 1\nv 1 0 1\nv 1 1 1\nf 4 5 6\n"
)
STL = (
    b"solid s\n facet normal 0 0 1\n  outer loop\n   vertex 0 0 0\n   vertex 1 0 0\n"
    b"   vertex 1 1 0\n  endloop\n endfacet\nendsolid s\n"
)


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def clip(data: bytes, name: str) -> Encoded:
    return Encoded(name, data, "points")


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.xyz", XYZ), ("a.npy", npy(ROWS)), ("a.PLY", PLY), ("a.npy", npy(ROWS.astype("f4")))],
)
def test_clouds_are_read_row_by_row(name: str, data: bytes) -> None:
    encoded = clip(data, name)
    assert native_points(encoded) == Points(4, 3, ragged=True, scale="unit")
    # All of them, however few the spec has: which ones are left out is chosen later.
    np.testing.assert_array_equal(read_points(encoded, Points(2, 3)), ROWS)


def test_all_columns_of_arrays_and_tables_are_values_of_a_point() -> None:
    rows = np.arange(12.0).reshape(2, 6)
    assert native_points(clip(npy(rows), "a.npy")).channels == 6
    table = clip(b"1 2 3 0.5\n4 5 6 0.25\n", "a.xyz")
    assert read_points(table, Points(2, 4))[:, 3].tolist() == [0.5, 0.25]
    with pytest.raises(DataError, match=r"a\.xyz: 4 values per point, but the spec declares 3"):
        read_points(table, Points(2, 3))
    counts = npy(np.array([[200, 1, 2]], np.uint8))
    assert read_points(clip(counts, "a.npy"), Points(1)).tolist() == [[200.0, 1.0, 2.0]]


def test_a_mesh_gives_points_of_its_surface_evenly_by_area() -> None:
    mesh = clip(OFF, "a.off")
    assert native_points(mesh) == Points(1024, 3, ragged=True, scale="unit")
    points = read_points(mesh, Points(4000))
    assert points.shape == (4000, 3)
    assert not points[:, 2].any()
    # Uniform on the rectangle: means of half its sides, and no corner more often than the middle.
    assert points.mean(axis=0) == pytest.approx([1, 2, 0], abs=0.05)
    assert points.std(axis=0)[:2] == pytest.approx([2 / 12**0.5, 4 / 12**0.5], abs=0.05)
    inner = (np.abs(points[:, :2] - [1, 2]) < [0.5, 1]).all(axis=1)
    assert inner.mean() == pytest.approx(0.25, abs=0.03)
    joined = OFF.replace(HEAD, b"OFF")
    np.testing.assert_array_equal(read_points(clip(joined, "b.off"), Points(4000)), points)


def test_points_of_a_mesh_follow_the_generator_and_are_fixed_without() -> None:
    mesh = clip(OFF, "a.off")
    fixed = read_points(mesh, Points(50))
    np.testing.assert_array_equal(fixed, read_points(mesh, Points(50)))
    first, again, other = (
        read_points(mesh, Points(50), np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, fixed)


@pytest.mark.parametrize(("name", "data", "top"), [("a.obj", OBJ, 1.0), ("a.stl", STL, 0.0)])
def test_other_meshes_are_read_whole(name: str, data: bytes, top: float) -> None:
    points = read_points(clip(data, name), Points(200))
    assert points.shape == (200, 3)
    assert points[:, 2].max() == top
    assert points.min() >= 0
    assert points.max() <= 1
    # Below the diagonal of the triangles.
    assert (points[:, 0] - points[:, 1] > -1e-9).all()


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.off", OFF[: OFF.index(b"3 0 2 3")], r"it ends after 5 of 6 points and faces"),
        ("a.off", b"OFF\n", "the header is not OFF, then counts"),
        ("a.off", OFF.replace(b"3 0 2 3", b"3 0 2 9"), "face index outside"),
        (
            "a.off",
            OFF.replace(b"2 4 0", b"2 nan 0"),
            "NaN or infinite values in 1 of 4 points, first point 2",
        ),
        (
            "a.off",
            OFF.replace(b"2 4 0", b"2 0 0").replace(b"0 4 0", b"0 0 0"),
            "2 faces have an area of 0, ",
        ),
        ("a.off", b"", r"the file is empty \(0 bytes\)"),
        ("a.ply", PLY[:-12], "it ends after 3 of 4 points"),
        ("a.ply", b"\0" * 90, "cannot be decoded"),
        ("a.stl", STL[:40], "contains no points"),
        ("a.npy", npy(ROWS)[:-8], "its header declares"),
        ("a.npy", npy(np.zeros(4)), r"shape \(4,\) and dtype float64; points must be numbers"),
        ("a.npy", npy(np.array([["a", "b"]])), "dtype <U1"),
        ("a.npy", npy(np.array([{}], object)), "Python objects"),
        ("a.npy", npy(np.zeros((0, 3))), "contains no points"),
        ("a.npy", npy(np.array([[0, np.inf]])), "in 1 of 1 points, first point 0"),
        ("a.xyz", b"0 0 0\n1 1\n", "every line must be one point"),
        ("a.xyz", b"3\nwater\nO 0 0 0\n", "every line must be one point"),
        ("a.xyz", b"# nothing\n", "contains no points"),
        ("a.xyz", b"\xff\xfe\x00", "cannot be decoded"),
    ],
)
def test_broken_files_are_named(name: str, data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=rf"^{name}: .*{reason}"):
        read_points(clip(data, name), Points(8))


def test_the_default_spec_holds_most_clouds_whole() -> None:
    found = [Points(n, 3, ragged=True, scale="unit") for n in [*range(1, 100), 1000]]
    assert common_points(found) == Points(96, 3, ragged=True, scale="unit")


def cloud(count: int) -> bytes:
    return npy(np.random.default_rng(count).random((count, 3)))


def test_folders_of_points_are_data(write_folder: WriteFolder) -> None:
    files = {f"{s}/{c}/{n}.npy": cloud(n) for s in ("train", "test") for c in "ab" for n in (9, 16)}
    folder = write_folder(
        files | {"train/a/m.off": OFF, "README.txt": b"x", "train/b/bad.off": b"x"}
    )
    data = open_data(str(folder), val_share=0.3)
    assert data.classes == ("a", "b")
    (spec,) = data.specs(overrides={"points": {"points": 12}}).values()
    assert isinstance(spec, Points)
    assert (spec.points, spec.channels, spec.ragged, spec.scale) == (12, 3, True, "unit")
    (batch,) = make_eval_loader(data.splits["test"], {"points": spec}, batch_size=9)
    values = batch.inputs["points"].numpy()
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 0, 1, 1]
    # In the order of names: 16 points, of which 12 are taken, before 9.
    assert (~np.isnan(values[..., 0])).sum(axis=1).tolist() == [12, 9, 12, 9]
    assert np.nanmax(np.abs(values[1])) == pytest.approx(1)


def test_training_draws_points_by_its_generator_and_evaluation_does_not(
    write_folder: WriteFolder,
) -> None:
    folder = write_folder({"a/0.off": OFF, "b/0.xyz": XYZ, "a/1.off": OFF, "b/1.npy": cloud(40)})
    source = open_data(str(folder), val_share=0.5).splits["train"]
    reader = SampleReader(
        source, {"points": Points(16, ragged=True, scale="unit")}, AugmentConfig()
    )
    for index in range(len(source)):
        first, again, other = (
            reader(index, np.random.default_rng(seed))["points"] for seed in (1, 1, 2)
        )
        assert first.shape == (16, 3)
        assert first.dtype == np.float32
        np.testing.assert_array_equal(first, again)
        np.testing.assert_array_equal(reader(index)["points"], reader(index)["points"])
        if not source.names[index].endswith(".xyz"):
            assert not np.array_equal(first, other)


def test_points_are_paired_with_pictures(
    write_folder: WriteFolder, encode: Callable[..., bytes]
) -> None:
    files = {
        f"{c}/{n}.{e}": d for c in "ab" for n in "12" for e, d in (("png", encode()), ("xyz", XYZ))
    }
    data = open_data(str(write_folder(files)), val_share=0.5)
    specs = data.specs()
    assert specs["image"] == Image(64, 64, 3, mean=specs["image"].mean, std=specs["image"].std)
    (batch,) = make_eval_loader(data.splits["val"], specs, batch_size=4)
    assert batch.inputs["points"].shape == (2, 8, 3)
    assert batch.inputs["image"].shape == (2, 3, 64, 64)
    assert batch.present == {}


def test_files_of_points_are_found_and_read_for_prediction(write_folder: WriteFolder) -> None:
    folder = write_folder({"a.off": OFF, "b/c.xyz": XYZ, "d.ply": b"junk", "e.txt": b"x"})
    paths = find_files([str(folder)], ("points",))
    assert [path.name for path in paths] == ["a.off", "c.xyz", "d.ply"]
    specs: dict[str, ModalitySpec] = {"points": Points(8, ragged=True, scale="unit")}
    ((names, batch),) = read_files([*paths, folder / "e.txt"], specs, 4)
    assert [path.name for path in names] == ["a.off", "c.xyz"]
    assert batch.inputs["points"].shape == (2, 8, 3)
    assert [reason.partition(": ")[2].split(" (")[0] for reason in batch.bad] == [
        "cannot be decoded",
        "belongs to the texts, but the model reads points; give it .off, .ply, .npy, .xyz, .obj, "
        ".stl",
    ]
