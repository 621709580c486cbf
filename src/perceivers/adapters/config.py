"""Configuration of tokens and their position embeddings, and building of nested configs.

Papers: Perceiver (arXiv 2103.03206) Sec. 3.2; Perceiver IO (arXiv 2107.14795) App. G, H and I.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from perceivers.errors import ConfigError, suggest
from perceivers.settings import Count, Fraction, Natural, Settings, UsedIf, settle
from perceivers.types import ModalitySpec

Config = TypeVar("Config")
WAVES, LEARNED = UsedIf("kind", "fourier"), UsedIf("kind", "learned")
PLACED = UsedIf("kind", "fourier", "learned")
RAW, CONV = UsedIf("content", "elements"), UsedIf("content", "conv")
Content = Literal["elements", "patches", "frame_patches", "conv", "embedding", "coordinates"]


@dataclass(frozen=True, kw_only=True)
class PositionConfig(Settings, prefix="positions."):
    """Position embeddings of tokens or queries."""

    kind: Literal["none", "fourier", "learned"] = "none"
    """fourier: sines and cosines of the coordinates; learned: one embedding per token."""
    num_bands: Annotated[Count, WAVES] = 64
    """Fourier: frequencies per axis, evenly spaced from 1 to half of max_resolution."""
    max_resolution: Annotated[tuple[Count, ...] | None, WAVES] = None
    """Fourier: length per axis whose Nyquist frequency is the highest frequency; the grid when
    None."""
    sine_only: Annotated[bool, WAVES] = False
    """Fourier: leave the cosines out."""
    keep_coordinates: Annotated[bool, WAVES] = True
    """Fourier: prepend the coordinates themselves."""
    dim: Annotated[Natural, LEARNED] = 0
    """Learned: channels of an embedding."""
    project: Annotated[Natural, PLACED] = 0
    """Project positions to this width by a linear layer; 0: no projection."""
    extra_layers: Annotated[Natural, PLACED] = 0
    """Number of residual linear layers on the positions, with ReLU between them (n_extra_pos_mlp in
    the released code)."""
    combine: Annotated[Literal["concat", "add"], PLACED] = "concat"
    """Concatenate positions to the content, or add them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "learned" and self.dim < 1:
            raise ConfigError(
                f"positions.dim is {self.dim}; learned positions need it to be at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class TokenConfig(Settings, prefix="tokens."):
    """Conversion of one modality to tokens."""

    content: Content = "elements"
    """elements: one token per raw element; patches: space-to-depth; frame_patches: 3x3 windows of
    two frames at every pixel (flow); conv: 7x7 convolution and pooling of an image, or of two
    frames concatenated as channels; embedding: a learned embedding per byte; coordinates: points,
    whose first channels are their positions."""
    stride: Annotated[tuple[Count, ...], RAW] = ()
    """elements: use every n-th element along each axis."""
    patch: tuple[Count, ...] = ()
    """patches: elements per patch along each axis."""
    dim: Natural = 0
    """Channels of the content: the width of conv and embedding, for other content that of a linear
    projection; 0: no projection."""
    num_convs: Annotated[Count, CONV] = 1
    """conv: number of layers; each reduces height and width to a quarter."""
    padding: Annotated[Literal["same", "hf"], CONV] = "same"
    """conv: padding as in TensorFlow (same), or as in the Hugging Face port, which pads both sides
    equally before the convolution and does not pad before pooling (hf)."""
    batch_norm: Annotated[bool, CONV] = True
    """conv: use batch normalisation."""
    contrast: Annotated[Natural, CONV] = 0
    """conv: odd side of the square around every pixel whose mean colour is subtracted, per frame,
    to remove local brightness; 0: no subtraction."""
    positions: PositionConfig = field(default_factory=PositionConfig)
    mask_rate: Fraction = 0.0
    """Several modalities: probability of replacing a token by the mask token of its modality in
    training; 1 replaces all tokens, in evaluation too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.content == "patches") != bool(self.patch):
            raise ConfigError(
                f"token content {self.content!r} with patch={self.patch}; patches need a patch "
                f"size, the others take none"
            )
        if self.content in {"conv", "embedding"} and self.dim < 1:
            raise ConfigError(f"token content {self.content!r} needs dim of at least 1")
        if self.contrast and self.contrast % 2 == 0:
            raise ConfigError(
                f"tokens.contrast is {self.contrast}; it must be odd, so that a pixel is in the "
                f"centre of its square, or 0"
            )
        if self.content == "coordinates" and self.positions.kind != "fourier":
            raise ConfigError("token content 'coordinates' needs Fourier positions")


def covered_grid(spec: ModalitySpec, config: TokenConfig) -> tuple[int, ...]:
    """Return the grid of elements that tokens cover.

    This is the grid of the modality, or that of one frame if tokens contain both frames of a pair.

    Args:
        spec: Specification of the modality.
        config: Token config of the modality.
    """
    joined = spec.kind == "video" and config.content in {"frame_patches", "conv"}
    return spec.grid[1:] if joined else spec.grid


def change_fields(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return a copy of a config with some fields replaced; nested configs may be mappings.

    Raises:
        ConfigError: A field is unknown, has an invalid value, or is changed without effect.
    """
    own = {f.name: getattr(config, f.name) for f in fields(config)}  # pyright: ignore[reportArgumentType]
    return build_nested(type(config), {**own, **changes}, given=tuple(changes))


def build_nested(
    kind: type[Config], data: Mapping[str, Any] | Config, *, given: Sequence[str] | None = None
) -> Config:
    """Build a config from a mapping, in which nested configs are mappings too.

    Args:
        kind: Class of the config.
        data: Fields by name, or a config of that class, which is returned as it is.
        given: Fields set by the user, which must have an effect: all if None; use ``()`` for stored
            configs.

    Raises:
        ConfigError: A field is unknown, missing, has an invalid value or has no effect.
    """
    if isinstance(data, kind):
        return data
    if not isinstance(data, Mapping):
        raise ConfigError(f"{kind.__name__} needs settings by name, got {data!r}")
    known = {f.name: f for f in fields(kind)}  # pyright: ignore[reportArgumentType]
    hints = get_type_hints(kind)
    values = {}
    for name, value in data.items():
        if name not in known:
            raise ConfigError(
                f"{kind.__name__} has no setting {name!r}; its settings are {sorted(known)}"
                + suggest(name, known)
            )
        nested = hints[name]
        if hasattr(nested, "__dataclass_fields__"):
            inner = None if given is None or name in given else ()
            value = build_nested(nested, value, given=inner)
        values[name] = tuple(value) if isinstance(value, list) else value
    try:
        return settle(kind, values, given)
    except TypeError as error:
        raise ConfigError(f"{kind.__name__}: a value is of the wrong type ({error})") from error
