"""Optical-flow files: Middlebury's ``.flo`` and KITTI's 16-bit PNG.

Legend: H W rows and columns. Flow is ``[2, H, W]`` in pixels from frame 1 to frame 2, channel 0 = u
(to the right), channel 1 = v (down); NaN where it is unknown.
"""

from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.data.containers import load_library
from perceivers.data.pictures import read_bytes
from perceivers.errors import DataError, InputError
from perceivers.files import write_atomic
from perceivers.limits import check_limit

FLOW_EXTENSIONS = (".flo", ".png")

# Middlebury (Baker et al. 2011), flowIO: the magic is the float 202021.25 in little-endian order.
FLO_MAGIC = b"PIEH"
FLO_HEADER = 12
FLO_UNKNOWN = 1e10
FLO_LARGEST = 1e9
# More than any picture has; beyond it the header is damaged.
MAX_SIDE = 99_999

# KITTI (Geiger et al. 2012): red and green hold 64 * flow + 32768, blue is 1 where it is known.
KITTI_SCALE = 64.0
KITTI_ZERO = 32768.0
KITTI_FORMAT = "rgb48be"


def read_flow(path: str | PathLike[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Read a flow file, ``.flo`` or a 16-bit ``.png``.

    Returns:
        Flow ``[2, H, W]``, NaN where unknown, and booleans ``[H, W]``, True where it is known.

    Raises:
        DataError: The file cannot be read, is cut short, or is not of that format.
    """
    name = str(path)
    kind = _extension(name)
    data = read_bytes(name)
    if not data:
        raise DataError(f"{name}: the file is empty (0 bytes)")
    return _read_flo(data, name) if kind == ".flo" else _read_kitti(data, name)


def write_flow(
    path: str | PathLike[str], flow: NDArray[Any], valid: NDArray[np.bool_] | None = None
) -> Path:
    """Write a flow file, ``.flo`` or a 16-bit ``.png``; an old file survives any failure.

    Args:
        path: Where it goes; the extension chooses the format. A ``.png`` rounds to 1/64 pixel.
        flow: ``[2, H, W]`` in pixels; what is not finite is written as unknown.
        valid: ``[H, W]``, False where the flow is unknown whatever stands there.

    Raises:
        InputError: Shapes that do not fit, or flow that the format cannot hold.
        DataError: Another extension.
    """
    kind = _extension(str(path))
    if flow.ndim != 3 or flow.shape[0] != 2 or not flow.size:
        raise InputError(f"flow has shape {flow.shape}; it must be [2, H, W]")
    known = np.asarray(np.isfinite(flow).all(axis=0))
    if valid is not None:
        if valid.shape != flow.shape[1:]:
            raise InputError(
                f"valid has shape {valid.shape} for flow of shape {flow.shape}; it must be "
                f"{flow.shape[1:]}"
            )
        known = known & valid
    encode = _encode_flo if kind == ".flo" else _encode_kitti
    return write_atomic(Path(path), encode(np.asarray(flow, np.float64), known))


def _extension(name: str) -> str:
    """Return the format's extension."""
    extension = Path(name).suffix.lower()
    if extension not in FLOW_EXTENSIONS:
        raise DataError(f"{name}: flow files are {' or '.join(FLOW_EXTENSIONS)}, not {extension!r}")
    return extension


def _read_flo(data: bytes, name: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Decode ``PIEH``, int32 width and height, then (u, v) pairs row by row."""
    if data[:4] != FLO_MAGIC:
        raise DataError(
            f"{name}: starts with {data[:4]!r}; a .flo file starts with {FLO_MAGIC!r} "
            f"(little-endian float 202021.25)"
        )
    if len(data) < FLO_HEADER:
        raise DataError(f"{name}: cut short after {len(data)} bytes; the header alone has 12")
    width, height = (int(side) for side in np.frombuffer(data, "<i4", 2, offset=4))
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise DataError(
            f"{name}: the header says {width} x {height} pixels; both must lie in 1..{MAX_SIDE}"
        )
    wanted = FLO_HEADER + 8 * width * height
    if len(data) != wanted:
        raise DataError(
            f"{name}: {len(data)} bytes, but {width} x {height} pixels take {wanted}; the file was "
            f"cut short or is damaged"
        )
    pairs = np.frombuffer(data, "<f4", offset=FLO_HEADER).reshape(height, width, 2)
    flow = pairs.transpose(2, 0, 1).astype(np.float32)
    # NaN compares false, and so is unknown too.
    valid = np.asarray((np.abs(flow) <= FLO_LARGEST).all(axis=0))
    return np.where(valid, flow, np.float32(np.nan)), valid


def _encode_flo(flow: NDArray[np.float64], known: NDArray[np.bool_]) -> bytes:
    """Return the content of a ``.flo`` file."""
    largest = np.abs(flow[:, known]).max(initial=0.0)
    if largest > FLO_LARGEST:
        raise InputError(f"flow of {largest:g} pixels; a .flo file calls more than 1e9 unknown")
    pairs = np.where(known, flow, FLO_UNKNOWN).transpose(1, 2, 0)
    header = FLO_MAGIC + np.array([flow.shape[2], flow.shape[1]], "<i4").tobytes()
    return header + pairs.astype("<f4").tobytes()


def _load_av(name: str) -> Any:
    """Return PyAV: Pillow would read and write 16-bit colour as 8 bits, without a word."""
    try:
        return load_library("av")
    except DataError as error:
        raise DataError(
            f"{name}: 16-bit flow pictures need PyAV, which cannot be imported; run pip install "
            f'"perceivers[media]", or use .flo files'
        ) from error


def _read_kitti(data: bytes, name: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Decode a 16-bit colour PNG."""
    av = _load_av(name)
    # The sides, in the first chunk; a decoder makes room for them.
    width, height = (int.from_bytes(data[place : place + 4]) for place in (16, 20))
    check_limit("pixels", width * height, name)
    try:
        frames = av.CodecContext.create("png", "r").decode(av.Packet(data))
    except av.error.FFmpegError as error:
        raise DataError(f"{name}: cannot be decoded as PNG; it is damaged or cut short") from error
    if not frames or frames[0].format.name != KITTI_FORMAT:
        found = frames[0].format.name if frames else "nothing"
        raise DataError(
            f"{name}: the picture holds {found}; a KITTI flow picture has three channels of 16 "
            f"bits ({KITTI_FORMAT})"
        )
    values = frames[0].to_ndarray(format="rgb48le").astype(np.float32)
    valid = values[..., 2] > 0
    flow = (values[..., :2].transpose(2, 0, 1) - KITTI_ZERO) / np.float32(KITTI_SCALE)
    return np.where(valid, flow, np.float32(np.nan)), valid


def _encode_kitti(flow: NDArray[np.float64], known: NDArray[np.bool_]) -> bytes:
    """Return the content of a 16-bit colour PNG."""
    av = _load_av("writing flow")
    scaled = np.rint(np.where(known, flow, 0.0) * KITTI_SCALE + KITTI_ZERO)
    if scaled.min() < 0 or scaled.max() > 65535:
        low, high = flow[:, known].min(), flow[:, known].max()
        raise InputError(
            f"flow of {low:g}..{high:g} pixels; a 16-bit picture holds -512..511.98, write a .flo "
            f"file"
        )
    values = np.stack([*np.where(known, scaled, 0.0), known], axis=-1).astype(np.uint16)
    codec = av.CodecContext.create("png", "w")
    codec.height, codec.width = values.shape[:2]
    codec.pix_fmt, codec.time_base = KITTI_FORMAT, Fraction(1)
    frame = av.VideoFrame.from_ndarray(values, format="rgb48le").reformat(format=KITTI_FORMAT)
    return b"".join(bytes(packet) for packet in (*codec.encode(frame), *codec.encode(None)))
