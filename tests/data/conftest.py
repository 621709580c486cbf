"""Small pictures, folders and tars that the tests of ``data`` are made of."""

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def numpy_rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """Encode a random picture."""

    def encode(
        seed: int = 0, size: tuple[int, int] = (12, 10), kind: str = "PNG", mode: str = "RGB"
    ) -> bytes:
        values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(values).convert(mode).save(file, kind)
        return file.getvalue()

    return encode


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[[Mapping[str, bytes]], Path]:
    """Write files by relative path below a new folder."""

    def write_folder(files: Mapping[str, bytes]) -> Path:
        for name, data in files.items():
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return tmp_path / "data"

    return write_folder


@pytest.fixture
def write_tar() -> Callable[[Path, Mapping[str, bytes]], Path]:
    """Write members by name into an uncompressed tar."""

    def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write_tar
