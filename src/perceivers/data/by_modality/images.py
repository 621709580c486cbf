"""Images: decoding, fitting, and facts about samples.

Legend: C channels, H W rows and columns.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from PIL.Image import Image as Picture
from torch import Tensor
from torch.nn import functional as F

from perceivers.data.augment import PLAIN, Look
from perceivers.data.containers import open_bytes
from perceivers.data.deep_pictures import (
    UNSIGNED,
    count_channels,
    describe_values,
    is_deep,
    read_deep,
    read_layout,
)
from perceivers.data.drawing import choose_view, fit_array, fit_encoded, fit_picture
from perceivers.data.erasing import erase_box
from perceivers.data.masks import Mask, fit_masked
from perceivers.data.modality import Cut, Modality, RawFacts, read_values
from perceivers.data.pictures import GRAY_MODES, PICTURE_EXTENSIONS, read_picture
from perceivers.data.rand_augment import as_picture
from perceivers.data.sources import Encoded, RawSample
from perceivers.errors import DataError
from perceivers.types import Image, ModalitySpec

PICTURE_SIZE = 64
# Side in pixels of the images that are features.
SIDE = 16


def decode(path: str, data: bytes) -> Picture | Encoded:
    """Decode an image; one of 16 bits per value stays undecoded: Pillow has no such colour modes.

    Raises:
        DataError: It cannot be decoded.
    """
    return Encoded(path, data, "image") if is_deep(data) else read_picture(data, path)


def fit_image(raw: Any, path: str, spec: Image, look: Look = PLAIN) -> NDArray:
    """Fit an image, decoded or not, or an array ``[C, H, W]`` of any size."""
    target = (spec.width, spec.height)
    if isinstance(raw, Encoded):
        assert raw.data is not None, path
        return fit_encoded(Encoded(raw.path, raw.data), spec, look)
    if isinstance(raw, Picture):
        return fit_picture(raw, path, spec, choose_view(raw.size, target, look), look)
    view = choose_view((raw.shape[2], raw.shape[1]), target, look)
    if look.rng is not None and look.augment.rand_augment:
        return fit_picture(as_picture(raw), path, spec, view, look)
    return fit_array(raw, spec, view)


def fit_segmented(
    sample: RawSample, path: str, specs: Mapping[str, ModalitySpec], look: Look
) -> dict[str, NDArray]:
    """Fit an image and its mask to the same view; empty if there are not both."""
    pictures = [(name, spec) for name, spec in specs.items() if isinstance(spec, Image)]
    masks = [(name, spec) for name, spec in specs.items() if isinstance(spec, Mask)]
    if not masks or not pictures:
        return {}
    (name, spec), (mask_name, mask_spec) = pictures[0], masks[0]
    picture, ids = fit_masked(sample[name], sample[mask_name], path, spec, mask_spec, look)
    return {name: picture, mask_name: ids}


def native_image(raw: Picture | NDArray | Encoded, ragged: bool) -> Image:
    """Return the spec of an image; gray files get 3 channels, as others may be RGB."""
    if isinstance(raw, Picture):
        return Image(PICTURE_SIZE, PICTURE_SIZE, 3)
    if isinstance(raw, Encoded):
        bands = count_channels(raw.data or b"", raw.path)
        return Image(PICTURE_SIZE, PICTURE_SIZE, max(bands, 3) if bands == 1 else bands)
    channels, height, width = raw.shape
    return Image(height, width, channels)


def common_image(found: Sequence[Image]) -> Image:
    """Return the first spec with the most common channels; files may differ, arrays do not."""
    ((channels, _),) = Counter(spec.channels for spec in found).most_common(1)
    return replace(found[0], channels=channels)


def is_image(raw: NDArray, name: str, spec: Image) -> bool:
    """Tell whether an array is an image with the channels of a spec.

    Raises:
        DataError: It is not.
    """
    if raw.ndim == 3 and raw.shape[0] in {1, spec.channels}:
        return True
    raise DataError(
        f"modality {name!r} has shape {raw.shape} [C, H, W], but the spec has "
        f"{spec.channels} channels; use the channels of the data"
    )


def inspect(raw: Picture | NDArray | Encoded, path: str, cut: Cut) -> RawFacts:
    """Describe an image, decoded or not."""
    if isinstance(raw, Encoded):
        return measure_deep(raw)
    return measure_picture(raw) if isinstance(raw, Picture) else _measure_array(raw)


def measure_picture(picture: Picture) -> RawFacts:
    """Describe a decoded, upright image."""
    width, height = picture.size
    low_high = picture.getextrema()
    pairs = low_high if isinstance(low_high[0], tuple) else (low_high,)
    flat = all(low == high for low, high in pairs)  # pyright: ignore[reportGeneralTypeIssues]
    flags = ("of one colour only",) if flat else ()
    return RawFacts({"width": width, "height": height}, {"colours": _colours(picture)}, flags)


def _colours(picture: Picture) -> str:
    if picture.mode in GRAY_MODES:
        return "gray" if picture.mode in {"1", "L"} else "16-bit gray"
    has_alpha = picture.mode in {"LA", "La", "PA", "RGBA", "RGBa"}
    if has_alpha or "transparency" in picture.info:
        return "with transparency"
    return "RGB" if picture.mode in {"RGB", "P"} else picture.mode


def measure_deep(clip: Encoded) -> RawFacts:
    """Describe an image that Pillow cannot hold."""
    with open_bytes(clip) as file:
        data = file.read()
    channels, layout = count_channels(data, clip.path), read_layout(data)
    facts = _measure_array(read_deep(data, clip.path, channels))
    if layout is None or (channels in {1, 3} and layout.format == UNSIGNED and layout.bits == 16):
        return facts._replace(values={"colours": "16 bits per value"})
    said = {"channels": str(channels), "values": describe_values(layout)}
    return facts._replace(values=said)


def _measure_array(raw: NDArray) -> RawFacts:
    """Describe an array ``[C, H, W]``."""
    channels, height, width = raw.shape
    flags = ("of one colour only",) if raw.min() == raw.max() else ()
    return RawFacts({"width": width, "height": height}, {"channels": str(channels)}, flags)


def shrink(pictures: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
    """Return pixels, averaged to at most 16 x 16."""
    height, width = pictures.shape[-2:]
    return F.adaptive_avg_pool2d(pictures, (min(height, SIDE), min(width, SIDE))).flatten(1)


def summarise(raw: Shaped[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
    """Return the pixels of small copies."""
    return shrink(read_values(raw))


ROW = Modality(
    spec=Image,
    fit=fit_image,
    native=native_image,
    merge=common_image,
    is_valid=is_image,
    augment=erase_box,
    inspect=inspect,
    summarise=summarise,
    mask=Mask,
    noun="image",
    endings=PICTURE_EXTENSIONS,
    decode=decode,
    words=("image", "img", "rgb", "photo", "picture", "input"),
)
