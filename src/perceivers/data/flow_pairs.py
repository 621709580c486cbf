"""Folders of real frame pairs with measured flow, such as Middlebury's: for evaluation.

Legend: H W rows and columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perceivers.data.flow_files import read_flow
from perceivers.data.pictures import convert_channels, is_picture_name, read_bytes, read_picture
from perceivers.data.system_files import is_system_file, is_system_folder
from perceivers.errors import DataError


@dataclass(frozen=True, eq=False)
class FlowPairs:
    """A source of frame pairs, each of its own size.

    A sample holds ``video``, uint8 ``[3, 2, H, W]`` (frame 1, frame 2), and ``flow``, float32
    ``[2, H, W]`` in pixels from frame 1 to frame 2, channel 0 = u (to the right), 1 = v (down); NaN
    where it is unknown.

    Args:
        names: Stable ids.
        files: Paths of frame 1, frame 2 and the flow, for every pair.
    """

    names: Sequence[str]
    files: Sequence[tuple[str, str, str]]
    labels: None = field(default=None, init=False)

    def __len__(self) -> int:
        """Count the pairs."""
        return len(self.files)

    def read(self, index: int) -> dict[str, NDArray]:
        """Return one pair and its flow.

        Raises:
            DataError: A file cannot be read, or the three differ in size.
        """
        *paths, flow_path = self.files[index]
        frames = [_read_frame(path) for path in paths]
        flow, _ = read_flow(flow_path)
        sizes = {array.shape[1:] for array in (*frames, flow)}
        if len(sizes) > 1:
            raise DataError(
                f"{flow_path}: flow of {flow.shape[1:]} pixels for frames of "
                f"{frames[0].shape[1:]} and {frames[1].shape[1:]}; all must have one size"
            )
        return {"video": np.stack(frames, axis=1), "flow": flow}


def open_flow_pairs(folder: str | PathLike[str]) -> FlowPairs:
    """Find the pairs of a folder: in itself, and in the folders directly in it.

    A pair is a folder with one flow file, ``*.flo`` or ``flow*.png`` (KITTI's 16-bit format), and
    two pictures, of which the first by name is frame 1. Folders without a flow file are left out.

    Raises:
        DataError: No such folder, no pair, or a flow file without exactly two pictures.
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
            f"each pair is a folder with two pictures and their flow"
        )
    names = ["." if path == root else path.name for path in found]
    return FlowPairs(names, list(found.values()))


def _find_pair(folder: Path) -> tuple[str, str, str] | None:
    """Return frame 1, frame 2 and flow of a folder, or None where there is no flow."""
    files = sorted(path for path in folder.iterdir() if not is_system_file(path.name))
    flows = [path for path in files if _is_flow(path)]
    if not flows:
        return None
    frames = [path for path in files if is_picture_name(path.name) and path not in flows]
    if len(flows) > 1 or len(frames) != 2:
        raise DataError(
            f"{folder}: {len(flows)} flow files and {len(frames)} pictures; a folder holds one "
            f"pair, which is one flow file and two pictures"
        )
    return str(frames[0]), str(frames[1]), str(flows[0])


def _is_flow(path: Path) -> bool:
    """Tell whether a file holds flow, by its name."""
    name = path.name.lower()
    return path.is_file() and (
        name.endswith(".flo") or (name.startswith("flow") and name.endswith(".png"))
    )


def _read_frame(path: str) -> NDArray[np.uint8]:
    """Return a picture file as uint8 ``[3, H, W]``."""
    picture = convert_channels(read_picture(read_bytes(path), path), 3, path)
    return np.asarray(picture).transpose(2, 0, 1)
