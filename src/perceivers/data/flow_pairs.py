"""Optical flow: its file formats, folders of measured pairs, and pairs generated from images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, isfinite
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perceivers.data.augment import AugmentConfig, Look
from perceivers.data.containers import load_library
from perceivers.data.deep_pictures import to_eight_bits
from perceivers.data.drawing import fit_encoded
from perceivers.data.motions import Motion, draw_blob, draw_motion, frame_places
from perceivers.data.pictures import convert_channels, is_picture_name, read_bytes, read_picture
from perceivers.data.row_source import Column, Part, RowSource
from perceivers.data.sources import Names, Source
from perceivers.data.system_files import is_system_file, is_system_folder
from perceivers.errors import ConfigError, DataError, InputError
from perceivers.files import write_atomic
from perceivers.nn.patches import sample_pixels
from perceivers.reading import check_limit
from perceivers.types import Image

# -- Optical-flow files: Middlebury's ``.flo`` and KITTI's 16-bit PNG ----------------------------
#
# Legend: H W rows and columns. Flow is ``[2, H, W]`` in pixels from frame 1 to frame 2, channel 0
# = u (to the right), channel 1 = v (down); NaN where it is unknown.

FLOW_EXTENSIONS = (".flo", ".png")

# Middlebury (Baker et al. 2011), flowIO: the magic is the float 202021.25 in little-endian order.
FLO_MAGIC = b"PIEH"
FLO_HEADER = 12
FLO_UNKNOWN = 1e10
FLO_LARGEST = 1e9
# Larger than any image; beyond it the header is damaged.
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
        DataError: The file cannot be read, is cut short, or has another format.
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
    """Write a flow file, ``.flo`` or a 16-bit ``.png``; if that fails, an existing file is kept.

    Args:
        path: Path of the file; the extension chooses the format. A ``.png`` rounds to 1/64 pixel.
        flow: ``[2, H, W]`` in pixels; values that are not finite are written as unknown.
        valid: ``[H, W]``, False where the flow is unknown, whatever its value.

    Raises:
        InputError: The shapes do not match, or the format cannot hold the flow.
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
    # NaN compares false, so it counts as unknown too.
    valid = np.asarray((np.abs(flow) <= FLO_LARGEST).all(axis=0))
    return np.where(valid, flow, np.float32(np.nan)), valid


def _encode_flo(flow: NDArray[np.float64], known: NDArray[np.bool_]) -> bytes:
    largest = np.abs(flow[:, known]).max(initial=0.0)
    if largest > FLO_LARGEST:
        raise InputError(f"flow of {largest:g} pixels; in a .flo file, more than 1e9 means unknown")
    pairs = np.where(known, flow, FLO_UNKNOWN).transpose(1, 2, 0)
    header = FLO_MAGIC + np.array([flow.shape[2], flow.shape[1]], "<i4").tobytes()
    return header + pairs.astype("<f4").tobytes()


def _load_av(name: str) -> Any:
    """Load PyAV, because Pillow would silently read and write 16-bit colour as 8 bits."""
    try:
        return load_library("av")
    except DataError as error:
        raise DataError(
            f"{name}: 16-bit flow images need PyAV, which cannot be imported; run pip install "
            f'"perceivers[media]", or use .flo files'
        ) from error


def _read_kitti(data: bytes, name: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    av = _load_av(name)
    # Check the size in the PNG header before the decoder allocates memory for it.
    width, height = (int.from_bytes(data[place : place + 4]) for place in (16, 20))
    check_limit("pixels", width * height, name)
    try:
        frames = av.CodecContext.create("png", "r").decode(av.Packet(data))
    except av.error.FFmpegError as error:
        raise DataError(f"{name}: cannot be decoded as PNG; it is damaged or cut short") from error
    if not frames or frames[0].format.name != KITTI_FORMAT:
        found = frames[0].format.name if frames else "nothing"
        raise DataError(
            f"{name}: the image has the format {found}; a KITTI flow image has three channels of "
            f"16 bits ({KITTI_FORMAT})"
        )
    values = frames[0].to_ndarray(format="rgb48le").astype(np.float32)
    valid = values[..., 2] > 0
    flow = (values[..., :2].transpose(2, 0, 1) - KITTI_ZERO) / np.float32(KITTI_SCALE)
    return np.where(valid, flow, np.float32(np.nan)), valid


def _encode_kitti(flow: NDArray[np.float64], known: NDArray[np.bool_]) -> bytes:
    av = _load_av("writing flow")
    scaled = np.rint(np.where(known, flow, 0.0) * KITTI_SCALE + KITTI_ZERO)
    if scaled.min() < 0 or scaled.max() > 65535:
        low, high = flow[:, known].min(), flow[:, known].max()
        raise InputError(
            f"flow of {low:g}..{high:g} pixels; a 16-bit image can hold -512..511.98, write a "
            f".flo file"
        )
    values = np.stack([*np.where(known, scaled, 0.0), known], axis=-1).astype(np.uint16)
    codec = av.CodecContext.create("png", "w")
    codec.height, codec.width = values.shape[:2]
    codec.pix_fmt, codec.time_base = KITTI_FORMAT, Fraction(1)
    frame = av.VideoFrame.from_ndarray(values, format="rgb48le").reformat(format=KITTI_FORMAT)
    return b"".join(bytes(packet) for packet in (*codec.encode(frame), *codec.encode(None)))


# -- Folders of real frame pairs with measured flow, such as Middlebury's: for evaluation --------
#
# Legend: H W rows and columns.


@dataclass(frozen=True, eq=False)
class FlowCells(Column):
    """Cells that are frame pairs with measured flow, each of its own size.

    A cell gives ``video``, uint8 ``[3, 2, H, W]`` (frame 1, frame 2), and ``flow``, float32
    ``[2, H, W]`` in pixels from frame 1 to frame 2, channel 0 = u (to the right), 1 = v (down); NaN
    where it is unknown.

    Args:
        files: Paths of frame 1, frame 2 and the flow of each pair.
    """

    files: Sequence[tuple[str, str, str]]

    @property
    def is_fitted(self) -> bool:
        """Pairs keep their size, so that their flow stays as it was measured."""
        return False

    def find_present(self) -> NDArray[np.bool_]:
        """Return that no pair is missing ``[n]``."""
        return np.ones(len(self.files), np.bool_)

    def load(self, row: int) -> Mapping[str, NDArray]:
        """Return one pair and its flow.

        Raises:
            DataError: A file cannot be read, or the three differ in size.
        """
        *paths, flow_path = self.files[row]
        frames = [_read_frame(path) for path in paths]
        flow, _ = read_flow(flow_path)
        sizes = {array.shape[1:] for array in (*frames, flow)}
        if len(sizes) > 1:
            raise DataError(
                f"{flow_path}: flow of {flow.shape[1:]} pixels for frames of "
                f"{frames[0].shape[1:]} and {frames[1].shape[1:]}; all must have the same size"
            )
        return {"video": np.stack(frames, axis=1), "flow": flow}


def _hold_pairs(cells: Column, names: Sequence[str]) -> RowSource:
    """Return a source of frame pairs and their flow."""
    parts = {"video": Part("video", cells), "flow": Part("array", cells)}
    return RowSource(parts, np.arange(len(names)), names)


def open_flow_pairs(folder: str | PathLike[str]) -> RowSource:
    """Find the frame pairs in a folder and in its direct sub-folders.

    A pair is a folder with one flow file, ``*.flo`` or ``flow*.png`` (KITTI's 16-bit format), and
    two images, of which the first by name is frame 1. Folders without a flow file are ignored.

    Raises:
        DataError: The folder does not exist, there is no pair, or a flow file lies beside other
            than two images.
    """
    root = Path(folder).expanduser()
    try:
        inside = sorted(
            path for path in root.iterdir() if path.is_dir() and not is_system_folder(path.name)
        )
    except OSError as error:
        raise DataError(f"{root}: cannot be listed ({error.strerror or error})") from error
    found = {path: files for path in (root, *inside) if (files := _find_pair(path))}
    if not found:
        raise DataError(
            f"{root}: no flow file (*.flo, flow*.png), neither here nor in {len(inside)} folders; "
            f"each pair is a folder with two images and their flow"
        )
    names = ["." if path == root else path.name for path in found]
    return _hold_pairs(FlowCells(list(found.values())), names)


def _find_pair(folder: Path) -> tuple[str, str, str] | None:
    """Return frame 1, frame 2 and flow of a folder; None if there is no flow."""
    files = sorted(path for path in folder.iterdir() if not is_system_file(path.name))
    flows = [path for path in files if _is_flow(path)]
    if not flows:
        return None
    frames = [path for path in files if is_picture_name(path.name) and path not in flows]
    if len(flows) > 1 or len(frames) != 2:
        raise DataError(
            f"{folder}: {len(flows)} flow files and {len(frames)} images; a folder contains one "
            f"pair, which is one flow file and two images"
        )
    return str(frames[0]), str(frames[1]), str(flows[0])


def _is_flow(path: Path) -> bool:
    name = path.name.lower()
    return path.is_file() and (
        name.endswith(".flo") or (name.startswith("flow") and name.endswith(".png"))
    )


def _read_frame(path: str) -> NDArray[np.uint8]:
    """Return an image file as uint8 ``[3, H, W]``."""
    picture = convert_channels(read_picture(read_bytes(path), path), 3, path)
    return np.asarray(picture).transpose(2, 0, 1)


# ------------------------------------------------------------------------------------------------
# Training pairs for optical flow, generated from single images, with exact ground truth.
#
# Frame 2 is a crop of an image. Frame 1 is generated by sampling frame 2, for each pixel x of frame
# 1, at x + flow(x), where flow is a formula (``motions``): so the flow is exact at every pixel of
# frame 1, whatever the filter. Images are resampled to a canvas that exceeds the frame by the
# longest motion, so no content is made up at the edges.
#
# In a fraction of the pairs, a piece of another image moves in front, with a motion of its own. The
# shape of the piece is defined in frame 2; in frame 1, both shape and content are sampled where its
# motion points. The flow is that of whatever is visible in frame 1. Background that the piece
# covers in frame 2 alone keeps its true motion although its end point is hidden there, as in Sintel
# or FlyingChairs.
#
# Legend: H W rows and columns of the frames.

# Prefix of an address of images from which pairs are generated.
WARPS = "warps:"
MIN_SIDE = 16
DEFAULT_MAX_FLOW = 8.0
# Areas are at most doubled, so that images of the frame's size do not become blurred.
CROPS = AugmentConfig(crop_scale=(0.5, 1.0), flip=True)
# Pixels that a bicubic filter reads next to a position.
FILTER_MARGIN = 2

# Differences in exposure between frames: gain, offset as a fraction of full scale, and sensor noise
# with a standard deviation of at most 3 in 0..255.
JITTER_GAIN = 0.05
JITTER_OFFSET = 0.02
JITTER_NOISE = 3.0


@dataclass(frozen=True, eq=False)
class WarpCells(Column):
    """Cells that are generated frame pairs; a row always gives the same pair.

    A cell gives ``video``, uint8 ``[3, 2, H, W]`` (frame 1, frame 2), and ``flow``, float32
    ``[2, H, W]`` in pixels from frame 1 to frame 2, channel 0 = u (to the right), 1 = v (down).

    Args:
        photographs: A source of image files.
        height: Rows H of the frames.
        width: Columns W of the frames.
        max_flow: Longest motion in pixels, at most half the shorter side.
        seed: Seed of crops, motions and shapes, together with the index.
        repeats: Pairs per image, each with another crop and another motion. Pair i is made from
            image i modulo their number, so one pass uses all of them before any repeats.
        layered: Fraction of the pairs, 0..1, in which a piece of another image moves in front.
        jitter: Whether the frames differ a little in brightness (gain within 5 %, offset within 2 %
            of full scale) and have independent noise (standard deviation up to 3 of 255).

    Raises:
        ConfigError: A setting is out of range.
        DataError: The source is empty, or not one of image files.
    """

    photographs: Source
    height: int
    width: int
    max_flow: float = DEFAULT_MAX_FLOW
    seed: int = 0
    repeats: int = 1
    layered: float = 0.5
    jitter: bool = True

    def __post_init__(self) -> None:
        if min(self.height, self.width) < MIN_SIDE:
            raise ConfigError(
                f"frames of {self.height} x {self.width} pixels; both sides must be at least "
                f"{MIN_SIDE}"
            )
        limit = min(self.height, self.width) / 2
        if not (isfinite(self.max_flow) and 0 < self.max_flow <= limit):
            raise ConfigError(
                f"max_flow is {self.max_flow}; for frames of {self.height} x {self.width} pixels "
                f"it must be above 0 and at most {limit:g}"
            )
        if self.repeats < 1 or self.seed < 0:
            raise ConfigError(
                f"repeats is {self.repeats} and seed is {self.seed}; they must be at least 1 and 0"
            )
        if not 0 <= self.layered <= 1:
            raise ConfigError(f"layered is {self.layered}; it is a fraction and must lie in 0..1")
        if not self.photographs.is_pictures:
            raise DataError(
                f"flow pairs are made from image files, not from {self._describe_source()}; give a "
                f"folder of images or tars of them"
            )
        if not len(self.photographs):
            raise DataError("flow pairs need at least 1 image, and the source contains none")

    @property
    def is_alike(self) -> bool:
        """All pairs have the same shape."""
        return True

    def as_source(self) -> RowSource:
        """Return a source of all pairs."""
        return _hold_pairs(self, Names(len(self.photographs) * self.repeats, self.name_pair))

    def name_pair(self, row: int) -> str:
        """Return the image's name and the number of its pair."""
        copy, photograph = divmod(row, len(self.photographs))
        return f"{self.photographs.names[photograph]}#warp{copy}"

    def find_present(self) -> NDArray[np.bool_]:
        """Return that no pair is missing ``[n]``."""
        return np.ones(len(self.photographs) * self.repeats, np.bool_)

    def load(self, row: int) -> Mapping[str, NDArray]:
        """Return one pair and its flow.

        Raises:
            DataError: An image cannot be read.
        """
        rng = np.random.default_rng((self.seed, row))
        photograph = row % len(self.photographs)
        places = frame_places(self.height, self.width)
        canvas = self._canvas(photograph, rng)
        motion = draw_motion(rng, self.height, self.width, self.max_flow)
        flow, frame1, frame2 = motion(places), self._seen(canvas, motion), self._seen(canvas, None)
        if rng.random() < self.layered and len(self.photographs) > 1:
            others = rng.integers(1, len(self.photographs))
            canvas = self._canvas(int(photograph + others) % len(self.photographs), rng)
            motion = draw_motion(rng, self.height, self.width, self.max_flow)
            shape = draw_blob(rng, self.height, self.width)
            moved = motion(places)
            before, after = shape(places + moved), shape(places)
            flow = np.where(before > 0.5, moved, flow)
            frame1 += before * (self._seen(canvas, motion) - frame1)
            frame2 += after * (self._seen(canvas, None) - frame2)
        frames = [self._develop(frame, rng) for frame in (frame1, frame2)]
        return {"video": np.stack(frames, axis=1), "flow": flow.astype(np.float32)}

    def _describe_source(self) -> str:
        kinds = sorted(set(self.photographs.kind_by_modality.values()))
        return "arrays of images" if kinds == ["image"] else f"data of {' and '.join(kinds)}"

    @property
    def _margin(self) -> int:
        """Pixels by which a canvas exceeds the frame on each side."""
        return ceil(self.max_flow) + FILTER_MARGIN

    def _canvas(self, index: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Return a crop of an image with a margin around the frame: ``[3, H + .., W + ..]``."""
        room = 2 * self._margin
        spec = Image(self.height + room, self.width + room)
        return to_eight_bits(fit_encoded(self.photographs.encoded(index), spec, Look(rng, CROPS)))

    def _seen(self, canvas: NDArray[np.uint8], motion: Motion | None) -> NDArray[np.float64]:
        """Return a frame ``[3, H, W]`` in 0..255: frame 1 with a motion, frame 2 without."""
        margin = self._margin
        if motion is None:
            inner = canvas[:, margin : margin + self.height, margin : margin + self.width]
            return inner.astype(np.float64)
        places = frame_places(self.height, self.width)
        places = torch.from_numpy(places + motion(places) + margin)
        # Single precision would be off by a visible fraction of a pixel on large frames.
        scene = torch.from_numpy(np.ascontiguousarray(canvas)).to(places.dtype)
        return sample_pixels(scene[None], places[None], "bicubic")[0].numpy()

    def _develop(self, frame: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Apply differences in exposure and noise, as a camera would."""
        if self.jitter:
            gain = 1 + rng.uniform(-JITTER_GAIN, JITTER_GAIN)
            offset = 255 * rng.uniform(-JITTER_OFFSET, JITTER_OFFSET)
            noise = rng.standard_normal(frame.shape) * rng.uniform(0.0, JITTER_NOISE)
            frame = frame * gain + offset + noise
        return np.rint(frame).clip(0, 255).astype(np.uint8)


def make_warps(
    splits: Mapping[str, Source],
    *,
    height: int,
    width: int,
    max_flow: float = DEFAULT_MAX_FLOW,
    seed: int = 0,
    repeats: int = 1,
) -> dict[str, RowSource]:
    """Turn every split of a data set of images into a split of frame pairs with flow.

    Args:
        splits: Sources of image files by split, as ``open_data`` returns them.
        height: Rows H of the frames.
        width: Columns W of the frames.
        max_flow: Longest motion in pixels.
        seed: Seed of crops, motions and shapes.
        repeats: Pairs per image in ``train``, so that longer training uses new motions; the other
            splits have one.

    Raises:
        ConfigError: A setting is out of range.
        DataError: A split does not consist of image files.
    """
    return {
        split: WarpCells(
            source,
            height,
            width,
            max_flow=max_flow,
            seed=seed,
            repeats=repeats if split == "train" else 1,
        ).as_source()
        for split, source in splits.items()
    }
