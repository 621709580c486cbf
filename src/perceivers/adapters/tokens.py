"""Conversion of one modality to tokens: content, position embeddings, and valid tokens.

Legend: B batch, N tokens, C channels of content, P channels of positions, D channels of tokens, E
elements, A coordinates per point.
Papers: Perceiver (arXiv 2103.03206) Sec. 3.2; Perceiver IO (arXiv 2107.14795) App. G.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.adapters.config import PositionConfig, TokenConfig
from perceivers.adapters.elements import ElementAdapter, is_point
from perceivers.errors import ConfigError
from perceivers.nn.linear import Linear
from perceivers.nn.patches import FRAMES, extract_flow_patches, space_to_depth
from perceivers.nn.positions import (
    FourierPositions,
    LearnedPositions,
    fourier_dim,
    fourier_features,
)
from perceivers.types import BYTE_VOCABULARY, ModalitySpec

# -- Token features before position encoding -----------------------------------------------------
#
# Every content maps normalised elements ``[B, N, C]`` of a spec to ``[B, M, D]`` on a token grid.
#
# Legend: B batch, N elements, M tokens, C channels of an element, D channels of a token. Paper:
# Perceiver IO (arXiv 2107.14795) App. G to I; the released preprocessing blocks.

CONV_KERNEL, CONV_STRIDE, POOL_KERNEL = 7, 2, 3


class Content(nn.Module):
    """Base class of token contents.

    Attributes:
        grid: Shape of the token grid.
        dim: Channels of a token.
    """

    def __init__(self, grid: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.dim = dim


class Elements(Content):
    """One token per element, or per n-th element along each axis."""

    def __init__(self, spec: ModalitySpec, stride: tuple[int, ...]) -> None:
        stride = stride or (1,) * len(spec.grid)
        _check_axes("stride", stride, spec)
        super().__init__(
            tuple(-(-n // s) for n, s in zip(spec.grid, stride, strict=True)), spec.channels
        )
        self.full, self.stride = spec.grid, stride

    def forward(self, values: Float[Tensor, "B N C"]) -> Float[Tensor, "B M C"]:
        """Return every n-th element along each axis."""
        if max(self.stride) == 1:
            return values
        kept = tuple(slice(None, None, step) for step in self.stride)
        return values.unflatten(1, self.full)[(slice(None), *kept)].flatten(1, -2)


class Patches(Content):
    """One token per patch (space-to-depth); in a token, channels vary fastest."""

    def __init__(self, spec: ModalitySpec, patch: tuple[int, ...]) -> None:
        _check_axes("patch", patch, spec)
        wrong = [(n, p) for n, p in zip(spec.grid, patch, strict=True) if n % p]
        if wrong:
            raise ConfigError(
                f"a {spec.kind} of {spec.grid} cannot be cut into patches of {patch}: "
                f"{wrong[0][0]} is not a multiple of {wrong[0][1]}; choose sizes that divide"
            )
        super().__init__(
            tuple(n // p for n, p in zip(spec.grid, patch, strict=True)),
            prod(patch) * spec.channels,
        )
        self.full, self.patch = spec.grid, patch

    def forward(self, values: Float[Tensor, "B N C"]) -> Float[Tensor, "B M D"]:
        """Return the patches."""
        return space_to_depth(values.transpose(1, 2).unflatten(2, self.full), self.patch)


class FramePatches(Content):
    """One token per pixel: 3x3 windows around it in both frames, zero-padded (flow)."""

    def __init__(self, spec: ModalitySpec) -> None:
        _check_pair("content 'frame_patches'", spec)
        super().__init__(spec.grid[1:], 2 * 9 * spec.channels)
        self.full = spec.grid

    def forward(self, values: Float[Tensor, "B N C"]) -> Float[Tensor, "B M D"]:
        """Return the windows of every pixel, first frame first."""
        return extract_flow_patches(values.transpose(1, 2).unflatten(2, self.full))


class ConvStem(Content):
    """7x7 convolution with stride 2, batch norm, ReLU and 3x3 max pooling with stride 2, repeated.

    Padding ``same`` is that of TensorFlow, asymmetric for even sizes: 224 becomes 56. ``hf`` is
    that of the Hugging Face port: 3 on every side before the convolution, none before pooling; 224
    becomes 55.

    The two frames of a video are concatenated as channels (flow, App. H). With ``contrast``, the
    mean of the square around every pixel is subtracted first.
    """

    def __init__(self, spec: ModalitySpec, config: TokenConfig) -> None:
        if spec.kind == "video":
            _check_pair("content 'conv'", spec)
        elif spec.kind != "image":
            raise ConfigError(
                f"a convolutional stem reads images and videos of 2 frames, not {spec.kind}"
            )
        grid = picture = spec.grid[-2:]
        for _ in range(config.num_convs):
            if config.padding == "same":
                grid = tuple(((n + 1) // 2 + 1) // 2 for n in grid)
            else:
                grid = tuple(((n - 1) // 2 + 1 - POOL_KERNEL) // 2 + 1 for n in grid)
        if min(grid) < 1:
            raise ConfigError(f"an image of {spec.grid} is too small for {config.num_convs} convs")
        super().__init__(grid, config.dim)
        frames = spec.num_tokens // prod(picture)
        self.full, self.padding, self.contrast = picture, config.padding, config.contrast
        widths = [frames * spec.channels, *[config.dim] * config.num_convs]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, CONV_KERNEL, CONV_STRIDE, bias=False) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(config.dim) if config.batch_norm else nn.Identity() for _ in self.convs
        )

    def forward(self, values: Float[Tensor, "B N C"]) -> Float[Tensor, "B M D"]:
        """Return the output of the last layer, one token per cell."""
        # [B, C T, H, W]: the frames of a channel are adjacent
        x = values.transpose(1, 2).flatten(1).unflatten(1, (-1, *self.full))
        if self.contrast:
            around = self.contrast // 2
            x = x - F.avg_pool2d(x, self.contrast, 1, around, count_include_pad=False)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            same = self.padding == "same"
            x = pad_same(x, CONV_KERNEL, 0.0) if same else F.pad(x, (CONV_KERNEL // 2,) * 4)
            x = F.relu(norm(conv(x)))
            x = pad_same(x, POOL_KERNEL, float("-inf")) if same else x
            x = F.max_pool2d(x, POOL_KERNEL, CONV_STRIDE)
        return x.flatten(2).transpose(1, 2)


def pad_same(x: Float[Tensor, "B C H W"], kernel: int, value: float) -> Float[Tensor, "B C Hp Wp"]:
    """Pad so that stride 2 halves the size, rounded up; an odd cell of padding goes to the end."""
    sides = []
    for size in (x.shape[3], x.shape[2]):  # the last axis first, as F.pad expects
        total = max((-(-size // CONV_STRIDE) - 1) * CONV_STRIDE + kernel - size, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides, value=value)


class ByteEmbedding(Content):
    """Learned embeddings of byte ids."""

    def __init__(self, spec: ModalitySpec, dim: int) -> None:
        if spec.kind != "bytes":
            raise ConfigError(f"an embedding reads bytes, not {spec.kind}")
        super().__init__(spec.grid, dim)
        self.rows = nn.Embedding(BYTE_VOCABULARY, dim)

    def forward(self, ids: Integer[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """Return the embeddings; ids may have any integer type."""
        return self.rows(ids.long())


class Coordinates(Content):
    """Channels of points that remain besides their coordinates, which become positions.

    Often there are none.
    """

    def __init__(self, spec: ModalitySpec, num_axes: int) -> None:
        if spec.kind != "points" or num_axes > spec.channels:
            raise ConfigError(
                f"coordinates need points with at least {num_axes} channels, not {spec}; give "
                f"max_resolution one length per coordinate"
            )
        super().__init__(spec.grid, spec.channels - num_axes)
        self.num_axes = num_axes

    def forward(self, values: Float[Tensor, "B N C"]) -> Float[Tensor, "B N D"]:
        """Return the channels after the coordinates."""
        return values[..., self.num_axes :]


def make_content(spec: ModalitySpec, config: TokenConfig) -> Content:
    """Build the content specified in a token config.

    Raises:
        ConfigError: The content does not fit the modality.
    """
    if config.content == "patches":
        return Patches(spec, config.patch)
    if config.content == "frame_patches":
        return FramePatches(spec)
    if config.content == "conv":
        return ConvStem(spec, config)
    if config.content == "embedding":
        return ByteEmbedding(spec, config.dim)
    if spec.kind == "bytes":
        raise ConfigError("bytes are embedded; use token content 'embedding'")
    if config.content == "coordinates":
        return Coordinates(spec, len(config.positions.max_resolution or (0,) * spec.channels))
    return Elements(spec, config.stride)


def _check_pair(what: str, spec: ModalitySpec) -> None:
    if spec.kind != "video" or spec.grid[0] != FRAMES:
        raise ConfigError(
            f"{what} needs a video of 2 frames, not {spec}; optical flow compares two"
        )


def _check_axes(what: str, sizes: tuple[int, ...], spec: ModalitySpec) -> None:
    if len(sizes) != len(spec.grid):
        raise ConfigError(
            f"token {what}={sizes} has {len(sizes)} sizes for a {spec.kind} of {spec.grid}; give "
            f"one per axis"
        )


# -- Position embeddings and tokens --------------------------------------------------------------


class Positions(nn.Module):
    """Position embeddings of the cells of a grid, or of points with given coordinates.

    Args:
        grid: Shape of the grid.
        config: Kind and size of the embeddings; the kind is not ``none``.
        num_axes: Coordinates per point, for points with coordinates in each sample; 0 for a grid.
        cached: Store the Fourier features of the grid; otherwise only ``at_points`` is available.

    Attributes:
        dim: Channels P of an embedding.

    Raises:
        ConfigError: Fourier positions do not have one ``max_resolution`` per axis.
    """

    def __init__(
        self,
        grid: Sequence[int],
        config: PositionConfig,
        num_axes: int = 0,
        *,
        cached: bool = True,
    ) -> None:
        super().__init__()
        self.grid, self.config = tuple(grid), config
        axes = num_axes or len(self.grid)
        resolution = config.max_resolution or (self.grid if not num_axes else None)
        if config.kind == "fourier" and (resolution is None or len(resolution) != axes):
            raise ConfigError(
                f"max_resolution={config.max_resolution} for {axes} axes; Fourier positions need "
                f"one length per axis, and points have no grid to take it from"
            )
        self.resolution = resolution or ()
        width = config.dim
        self.source: LearnedPositions | FourierPositions | None = None
        if config.kind == "learned":
            self.source = LearnedPositions(num_tokens=prod(self.grid), dim=config.dim)
        else:
            shape = {"sine_only": config.sine_only, "keep_coordinates": config.keep_coordinates}
            width = fourier_dim(axes, config.num_bands, **shape)
            if not num_axes and cached:
                self.source = FourierPositions(
                    grid=self.grid,
                    num_bands=config.num_bands,
                    max_resolution=self.resolution,
                    **shape,
                )
        self.dim = config.project or width
        self.project = Linear(width, config.project) if config.project else None
        self.extra = nn.ModuleList(Linear(self.dim, self.dim) for _ in range(config.extra_layers))

    def forward(self, dtype: torch.dtype) -> Float[Tensor, "1 N P"]:
        """Return the position embeddings of the grid, shared by all samples."""
        assert self.source is not None, "these positions are not cached; use at_points"
        return self._refine(self.source().to(dtype)).unsqueeze(0)

    @property
    def is_cached(self) -> bool:
        """Whether ``forward`` is available."""
        return self.source is not None

    def at_points(self, places: Float[Tensor, "*B A"], dtype: torch.dtype) -> Float[Tensor, "*B P"]:
        """Return Fourier positions of coordinates, computed in at least float32."""
        wide = torch.promote_types(places.dtype, torch.float32)
        with torch.autocast(places.device.type, enabled=False):
            features = fourier_features(
                places.to(wide),
                self.config.num_bands,
                self.resolution,
                sine_only=self.config.sine_only,
                keep_coordinates=self.config.keep_coordinates,
            )
        return self._refine(features.to(dtype))

    def _refine(self, x: Tensor) -> Tensor:
        if self.project is not None:
            x = self.project(x)
        for index, layer in enumerate(self.extra):
            x = F.relu(x) if index else x
            x = x + layer(x)
        return x


class TokenReader(nn.Module):
    """Converts the raw tensor of one modality to tokens.

    Args:
        name: Name of the modality, for messages.
        spec: Specification of the modality.
        config: Content and positions of the tokens.

    Attributes:
        grid: Shape of the token grid.
        dim: Channels D of a token.

    Raises:
        ConfigError: The config does not fit the modality.
    """

    def __init__(self, name: str, spec: ModalitySpec, config: TokenConfig) -> None:
        super().__init__()
        self.config = config
        self.adapter = ElementAdapter(name, spec)
        self.content = make_content(spec, config)
        embedded = config.content in {"conv", "embedding"}
        self.linear = None
        if config.dim and not embedded:
            if not self.content.dim:
                raise ConfigError(
                    f"input {name!r}: dim={config.dim} projects the channels of a point besides "
                    f"its coordinates, but there are none; use positions.project instead"
                )
            self.linear = Linear(self.content.dim, config.dim)
        width = self.content.dim if self.linear is None else config.dim
        own = self.content.num_axes if isinstance(self.content, Coordinates) else 0
        self.positions = None
        if config.positions.kind != "none":
            self.positions = Positions(self.content.grid, config.positions, own)
        places = 0 if self.positions is None else self.positions.dim
        if config.positions.combine == "add" and places not in {0, width}:
            raise ConfigError(
                f"input {name!r}: positions of {places} channels cannot be added to content of "
                f"{width}; project them, or concatenate"
            )
        self.grid = self.content.grid
        self.dim = width if config.positions.combine == "add" else width + places
        if self.dim < 1:
            raise ConfigError(f"input {name!r} has tokens without channels; give it positions")

    @property
    def num_tokens(self) -> int:
        """Number of tokens N per sample."""
        return prod(self.grid)

    def forward(self, raw: Tensor, dtype: torch.dtype) -> Float[Tensor, "B N D"]:
        """Return the tokens; invalid ones have finite but meaningless values."""
        values = self.adapter.flatten(raw)
        if self.adapter.spec.kind == "bytes":
            x = self.content(values)
        else:
            # Coordinates stay in float32: at the highest frequencies angles reach thousands of
            # radians.
            placed = isinstance(self.content, Coordinates)
            wide = torch.promote_types(dtype, torch.float32) if placed else dtype
            values = self.adapter.normalise(values, wide)
            if self.adapter.may_lack:
                values = torch.where(is_point(values).unsqueeze(-1), values, 0.0)
            x = self.content(values).to(dtype)
        if self.linear is not None:
            x = self.linear(x)
        if self.positions is None:
            return x
        if isinstance(self.content, Coordinates):
            places = self.positions.at_points(values[..., : self.content.num_axes], dtype)
        else:
            places = self.positions(dtype)
        if self.config.positions.combine == "add":
            return x + places
        return torch.cat([x, places.expand(x.shape[0], -1, -1)], -1)

    def real(self, raw: Tensor) -> Bool[Tensor, "B E"] | None:
        """Return which elements are valid (not padding or missing points); None if all are."""
        return self.adapter.real(raw)

    def cover(self, real: Bool[Tensor, "B E"]) -> Bool[Tensor, "B N"]:
        """Return which tokens are valid; a patch is valid if one of its elements is."""
        if not isinstance(self.content, Elements | Patches):
            return real
        return self.content(real.unsqueeze(-1).float()).amax(-1) > 0


def default_tokens(spec: ModalitySpec) -> TokenConfig:
    """Return the default token config of a modality: raw elements with Fourier positions.

    Audio and videos are divided into patches as in the papers (16 samples, 4x4 pixels of a frame)
    if these divide their size. Bytes have learned embeddings and positions.
    """
    if spec.kind == "bytes":
        positions = PositionConfig(kind="learned", dim=128, combine="add")
        return TokenConfig(content="embedding", dim=128, positions=positions)
    if spec.kind == "labels":
        return TokenConfig()
    if spec.kind == "points":
        axes = min(spec.channels, 3)
        positions = PositionConfig(kind="fourier", num_bands=16, max_resolution=(64,) * axes)
        return TokenConfig(content="coordinates", positions=positions)
    positions = PositionConfig(kind="fourier", num_bands=16)
    patches = {"audio": (16,), "video": (1, 4, 4)}
    patch = patches.get(spec.kind)
    if patch and not any(n % p for n, p in zip(spec.grid, patch, strict=True)):
        return TokenConfig(content="patches", patch=patch, positions=positions)
    return TokenConfig(positions=positions)
