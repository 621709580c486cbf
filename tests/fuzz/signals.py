"""Kinds of images, sounds and arrays."""

import io
import os
import pickle
import socket
import struct
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image
from tests.fuzz.bench import Bench, kind

SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "BMP": ".bmp", "WEBP": ".webp"}
RATE = 8000


def encode(pixels: np.ndarray, form: str) -> bytes:
    """Return an image file without optional parts."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def pixels(bench: Bench) -> np.ndarray:
    """Return a random colour image."""
    return bench.rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)


def write_photos(bench: Bench, form: str = "PNG") -> Path:
    """Write two classes of six images, and return their folder."""
    root = bench.folder / "photos"
    for name in ("cats", "dogs"):
        (root / name).mkdir(parents=True)
        for number in range(6):
            data = encode(pixels(bench), form)
            (root / name / f"{number}{SUFFIXES[form]}").write_bytes(data)
    return root


@kind
def picture_cut(bench: Bench) -> None:
    """An image that ends too early is named as broken, and the others are read."""
    form = bench.pick(*SUFFIXES)
    root = write_photos(bench, form)
    bad = root / "cats" / f"bad{SUFFIXES[form]}"
    bad.write_bytes(bench.cut(encode(pixels(bench), form)))
    bench.find_broken(root, bad.name)


@kind
def picture_with_a_flipped_bit(bench: Bench) -> None:
    """A PNG of which one bit before its last chunk is wrong fails its checksum and is named."""
    root = write_photos(bench)
    data = bytearray(encode(pixels(bench), "PNG"))
    data[bench.whole(0, len(data) - 16)] ^= 1 << bench.whole(0, 8)
    (root / "cats" / "bad.png").write_bytes(data)
    bench.find_broken(root, "bad.png")


@kind
def picture_that_is_none(bench: Bench) -> None:
    """Bytes that are no image are named as broken, whatever the ending says."""
    root = write_photos(bench)
    content = bench.pick(
        b"", bench.noise(bench.whole(1, 400)), b"<html></html>", b"\x89PNG\r\n\x1a\n"
    )
    name = f"bad{bench.pick(*SUFFIXES.values())}"
    (root / "dogs" / name).write_bytes(content)
    bench.find_broken(root, name)


@kind
def picture_that_is_no_regular_file(bench: Bench) -> None:
    """A pipe, a socket, a device or a loop of links in an image's place is named at once."""
    root = write_photos(bench)
    bad = root / "dogs" / "bad.png"
    form = bench.pick("pipe", "socket", "device", "loop", "dangling")
    if form == "pipe":
        os.mkfifo(bad)
    elif form == "socket":
        # A socket's path has at most 107 bytes; its name is given relative to the folder.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(bad))
    else:
        target = {"device": "/dev/zero", "loop": "bad.png", "dangling": "gone.png"}[form]
        bad.symlink_to(target)
    bench.find_broken(root, "bad.png")


@kind
def picture_that_promises_too_much(bench: Bench) -> None:
    """A PNG header of billions of pixels is refused before they are allocated."""
    import zlib

    root = write_photos(bench)
    side = bench.whole(20_000, 2**31 - 1)
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    data += struct.pack(">I", zlib.crc32(chunk)) + encode(pixels(bench), "PNG")[33:]
    (root / "cats" / "bad.png").write_bytes(data)
    bench.find_broken(root, "bad.png")


@kind
def picture_of_many_bands(bench: Bench) -> None:
    """Every band of a TIFF is a channel; none is lost or taken for opacity."""
    import tifffile

    bands = bench.pick(1, 2, 3, 4, 5, 8, 13)
    kind_of = bench.pick(np.uint8, np.uint16)
    top = np.iinfo(kind_of).max
    root = bench.folder / "bands"
    (root / "field").mkdir(parents=True)
    (root / "wood").mkdir()
    made = {}
    for number in range(12):
        array = bench.rng.integers(0, top + 1, (bands, 8, 8), dtype=kind_of)
        path = root / ("field", "wood")[number % 2] / f"{number}.tif"
        layout: dict[str, Any] = {"planarconfig": "separate"} if bands > 1 else {}
        stored: Any = array if bands > 1 else array[0]
        if bands > 1 and bench.pick(True, False):
            layout, stored = {"planarconfig": "contig"}, array.transpose(1, 2, 0)
        tifffile.imwrite(path, stored, photometric="minisblack", **layout)
        made[path.name] = array / top
    expected = list(made.values())
    for split in ("train", "val"):
        found = bench.read(root, split, 0, size=8, channels=bands)["image"]
        found = found / 255 if found.dtype == np.uint8 else found
        assert found.shape == (bands, 8, 8)
        assert any(np.allclose(found, each, atol=1e-3) for each in expected)


def write_sounds(bench: Bench) -> Path:
    """Write two classes of six sounds, and return their folder."""
    root = bench.folder / "sounds"
    for name in ("low", "high"):
        (root / name).mkdir(parents=True)
        for number in range(6):
            wave = bench.rng.uniform(-0.5, 0.5, 400)
            soundfile.write(root / name / f"{number}.wav", wave, RATE)
    return root


@kind
def sound_cut(bench: Bench) -> None:
    """A sound that ends before its header says is named as broken."""
    root = write_sounds(bench)
    form = bench.pick("WAV", "FLAC", "AIFF")
    buffer = io.BytesIO()
    soundfile.write(buffer, bench.rng.uniform(-0.5, 0.5, 4000), RATE, format=form)
    name = f"bad.{form.lower()}"
    (root / "low" / name).write_bytes(bench.cut(buffer.getvalue()))
    bench.find_broken(root, name)


@kind
def sound_that_is_none(bench: Bench) -> None:
    """Bytes that are no sound are named as broken."""
    root = write_sounds(bench)
    content = bench.pick(b"", bench.noise(bench.whole(1, 400)), b"RIFF\xff\xff\xff\xffWAVEfmt ")
    name = f"bad.{bench.pick('wav', 'flac', 'mp3', 'ogg')}"
    (root / "high" / name).write_bytes(content)
    bench.find_broken(root, name)


@kind
def sound_in_every_format(bench: Bench) -> None:
    """A sine of amplitude 0.5 has an RMS of 0.354 in every container, type and byte order."""
    containers = ("WAV", "WAVEX", "AIFF", "AU", "CAF", "W64", "RF64", "FLAC")
    container = bench.pick(*containers)
    subtypes = soundfile.available_subtypes(container).keys()
    known = [s for s in subtypes if s.startswith(("PCM", "FLOAT", "DOUBLE", "ULAW", "ALAW"))]
    subtype = bench.pick(*sorted(known))
    endian = bench.pick("FILE", "BIG", "LITTLE")
    if not soundfile.check_format(container, subtype, endian):
        endian = "FILE"
    rate = bench.pick(8000, 16000, 22050)
    # Of bytes, an AIFF file holds an even number; libsndfile reads its padding as one more sample.
    length = rate // 4 * 2
    wave = 0.5 * np.sin(2 * np.pi * 200 * np.arange(length) / rate)
    root = bench.folder / "tones"
    suffix = container.lower() if container in {"AIFF", "AU", "CAF", "FLAC"} else "wav"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(6):
            soundfile.write(
                root / name / f"{number}.{suffix}", wave, rate, subtype, endian, container
            )
    found = bench.read(root)["audio"].astype(np.float64)
    assert found.shape == (1, length)
    np.testing.assert_allclose(np.sqrt(np.mean(found**2)), 0.5 / np.sqrt(2), rtol=0.02)


def write_array(bench: Bench) -> Path:
    """Write a sound array file of two classes."""
    path = bench.folder / "data.npz"
    image = bench.rng.integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)
    np.savez(path, image=image, label=np.arange(24) % 2)
    return path


@kind
def array_cut(bench: Bench) -> None:
    """An array file that ends too early, or that is none, is refused by name."""
    path = write_array(bench)
    path.write_bytes(bench.pick(bench.cut(path.read_bytes(), 0.0, 0.95), bench.noise(300), b""))
    bench.refuse("data", "check", path, says=("data.npz",))


@kind
def array_that_promises_too_much(bench: Bench) -> None:
    """An array header of terabytes is refused before anything is allocated."""
    import zipfile

    head = {"descr": "<f4", "fortran_order": False, "shape": (bench.whole(10**9, 10**12), 512)}
    text = repr(head).encode()
    text += b" " * (-(10 + len(text) + 1) % 64) + b"\n"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bench.noise(64)
    path = bench.folder / "data.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("image.npy", member)
        file.writestr("label.npy", member)
    bench.refuse("data", "check", path, says=("data.npz",))


@kind
def array_with_code(bench: Bench) -> None:
    """An array of pickled objects is refused, and nothing in it is executed."""
    path = bench.folder / "data.npz"
    mark = bench.folder / "executed"

    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (mark,))

    values = np.array([Harm()] * bench.whole(1, 5), dtype=object)
    np.savez(path, image=values, label=np.zeros(len(values)))
    pickle.dumps(values)  # control: the object can be pickled, so it is in the file
    bench.refuse("data", "check", path, says=("data.npz",))
    assert not mark.exists()


@kind
def array_with_numbers_that_are_not_finite(bench: Bench) -> None:
    """NaN and infinity in an array are refused, with the row."""
    path = bench.folder / "data.npz"
    values = bench.rng.normal(size=(24, 1, 8, 8)).astype(np.float32)
    row = bench.whole(0, 24)
    values[row, 0, bench.whole(0, 8), bench.whole(0, 8)] = bench.pick(np.nan, np.inf, -np.inf)
    np.savez(path, image=values, label=np.arange(24) % 2)
    bench.refuse("data", "check", path, says=("data.npz", rf"\b{row}\b"))
