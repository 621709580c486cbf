"""How a modality becomes tokens: what a token holds, and how it knows its place.

Papers: Perceiver (arXiv 2103.03206) Sec. 3.2; Perceiver IO (arXiv 2107.14795) App. G, H and I.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from perceivers.errors import ConfigError, suggest
from perceivers.types import ModalitySpec

Config = TypeVar("Config")
Content = Literal["elements", "patches", "frame_patches", "conv", "embedding", "coordinates"]


@dataclass(frozen=True, kw_only=True)
class PositionConfig:
    """How a token, or a query, knows its place."""

    kind: Literal["none", "fourier", "learned"] = "none"
    """fourier: sines and cosines of the coordinates; learned: one row per token."""
    num_bands: int = 64
    """Fourier: frequencies per axis, evenly spaced from 1 to half of max_resolution."""
    max_resolution: tuple[int, ...] | None = None
    """Fourier: length per axis whose Nyquist frequency is the highest; the grid's when None."""
    sine_only: bool = False
    """Fourier: leave the cosines out."""
    keep_coordinates: bool = True
    """Fourier: put the coordinates themselves first."""
    dim: int = 0
    """Learned: channels of a row."""
    project: int = 0
    """Map positions to this width by a Linear; 0 does not."""
    extra_layers: int = 0
    """Residual Linears on the positions, ReLU between (n_extra_pos_mlp of the released code)."""
    combine: Literal["concat", "add"] = "concat"
    """Concatenate positions to the content, or add them."""

    def __post_init__(self) -> None:
        """Reject contradictory settings."""
        check_choices(self)
        if self.max_resolution is not None:
            object.__setattr__(self, "max_resolution", tuple(self.max_resolution))
        least = {"num_bands": 1, "dim": int(self.kind == "learned"), "project": 0}
        for name, value in {**least, "extra_layers": 0}.items():
            if getattr(self, name) < value:
                raise ConfigError(
                    f"positions {self.kind!r}: {name} is {getattr(self, name)}; it must be at "
                    f"least {value}"
                )
        waves = ("num_bands", "max_resolution", "sine_only", "keep_coordinates")
        check_unused(
            self,
            f"positions of kind {self.kind!r}",
            {
                "none": (*waves, "dim", "project", "extra_layers", "combine"),
                "fourier": ("dim",),
                "learned": waves,
            }[self.kind],
        )


@dataclass(frozen=True, kw_only=True)
class TokenConfig:
    """How one modality becomes tokens."""

    content: Content = "elements"
    """elements: one token per raw element; patches: space-to-depth; frame_patches: 3x3 windows of
    two frames at every pixel (flow); conv: 7x7 convolution and pooling of a picture, or of a pair
    of frames joined as channels; embedding: a learned row per byte; coordinates: points, whose
    first channels are their positions."""
    stride: tuple[int, ...] = ()
    """elements: keep every n-th along each axis."""
    patch: tuple[int, ...] = ()
    """patches: elements per patch along each axis."""
    dim: int = 0
    """Channels of the content: a Linear maps to it (conv, embedding: their own width); 0 leaves
    the content as it is."""
    num_convs: int = 1
    """conv: layers; each makes height and width a quarter."""
    padding: Literal["same", "hf"] = "same"
    """conv: uneven as in TensorFlow, or even before the convolution and none before the pooling, as
    in the Hugging Face port."""
    batch_norm: bool = True
    """conv: normalise over the batch."""
    contrast: int = 0
    """conv: odd side of the square around every pixel whose mean colour is subtracted from it, in
    each frame by itself, so that edges count and light does not; 0 leaves the light in."""
    positions: PositionConfig = field(default_factory=PositionConfig)
    mask_rate: float = 0.0
    """Several modalities: probability with which a token is replaced by the modality's mask token
    while training; 1 replaces all tokens, in evaluation too."""

    def __post_init__(self) -> None:
        """Reject contradictory settings."""
        check_choices(self)
        for name in ("stride", "patch"):
            value = tuple(getattr(self, name))
            object.__setattr__(self, name, value)
            if any(size < 1 for size in value):
                raise ConfigError(f"token {name} is {value}; every size must be at least 1")
        if (self.content == "patches") != bool(self.patch):
            raise ConfigError(
                f"token content {self.content!r} with patch={self.patch}; patches need a patch "
                f"size, the others take none"
            )
        if self.content in {"conv", "embedding"} and self.dim < 1:
            raise ConfigError(f"token content {self.content!r} needs dim of at least 1")
        if self.dim < 0 or self.num_convs < 1:
            raise ConfigError(
                f"token dim={self.dim} must not be negative and num_convs={self.num_convs} must be "
                f"at least 1"
            )
        if self.contrast < 0 or (self.contrast and self.contrast % 2 == 0):
            raise ConfigError(
                f"token contrast={self.contrast} must be odd, so that a pixel is in the middle of "
                f"its square, or 0"
            )
        if not 0.0 <= self.mask_rate <= 1.0:
            raise ConfigError(f"token mask_rate is {self.mask_rate}; it must be in [0, 1]")
        if self.content == "coordinates" and self.positions.kind != "fourier":
            raise ConfigError("token content 'coordinates' needs Fourier positions")
        unused = () if self.content == "elements" else ("stride",)
        if self.content != "conv":
            unused += ("num_convs", "padding", "batch_norm", "contrast")
        check_unused(self, f"token content {self.content!r}", unused)


def covered_grid(spec: ModalitySpec, config: TokenConfig) -> tuple[int, ...]:
    """Return the grid of elements over which tokens lie: a frame's, where each holds both frames.

    Args:
        spec: The modality.
        config: How it becomes tokens.
    """
    joined = spec.kind == "video" and config.content in {"frame_patches", "conv"}
    return spec.grid[1:] if joined else spec.grid


def check_choices(config: Any) -> None:
    """Check every field that is one of a few words; a file may hold any.

    Raises:
        ConfigError: Names the field, the words and the nearest.
    """
    for name, hint in get_type_hints(type(config)).items():
        value, choices = getattr(config, name), get_args(hint)
        if get_origin(hint) is Literal and value not in choices:
            raise ConfigError(
                f"{name} is {value!r}; choose from {list(choices)}" + suggest(str(value), choices)
            )


def change_fields(config: Config, changes: Mapping[str, Any]) -> Config:
    """Replace some fields of a config by plain data.

    Raises:
        ConfigError: A field is unknown or of an impossible value.
    """
    return build_nested(type(config), {**_shallow(config), **changes})


def _shallow(config: Any) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in fields(config)}


def check_unused(config: Any, what: str, names: Sequence[str]) -> None:
    """Require the default of every setting that would be ignored.

    Raises:
        ConfigError: Names the setting.
    """
    defaults = {f.name: f.default for f in fields(config)}
    for name in names:
        value = getattr(config, name)
        if value != defaults[name]:
            raise ConfigError(f"{what} does not use {name}={value!r}; leave it out")


def build_nested(kind: type[Config], data: Mapping[str, Any] | Config) -> Config:
    """Build a config dataclass from plain data whose nested configs are mappings.

    Raises:
        ConfigError: A field is unknown, missing or of an impossible value.
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
            value = build_nested(nested, value)
        values[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{kind.__name__}: a value is of the wrong type ({error})") from error
