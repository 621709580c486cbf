"""One modality to tokens: content, positions, and which tokens are real.

Legend: B batch, N tokens, C channels of content, P of positions, D of tokens, E elements.
Papers: Perceiver (arXiv 2103.03206) Sec. 3.2; Perceiver IO (arXiv 2107.14795) App. G.
"""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.adapters.config import PositionConfig, TokenConfig
from perceivers.adapters.contents import (
    Coordinates,
    Elements,
    Patches,
    make_content,
)
from perceivers.adapters.elements import ElementAdapter, is_point
from perceivers.errors import ConfigError
from perceivers.nn.linear import Linear
from perceivers.nn.positions import (
    FourierPositions,
    LearnedPositions,
    fourier_dim,
    fourier_features,
)
from perceivers.types import ModalitySpec


class Positions(nn.Module):
    """Positions of the cells of a grid, or of points given by their coordinates.

    Args:
        grid: Shape of the grid.
        config: Their kind; not ``none``.
        num_axes: Coordinates per point, for positions that every sample brings itself; 0 for a
            grid.
        cached: Keep the Fourier features of the grid; else they come from ``at_points`` alone.

    Attributes:
        dim: Channels of the result.
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
        """Return the positions of the grid, one copy for every batch."""
        assert self.source is not None, "these positions are computed where they are asked for"
        return self._refine(self.source().to(dtype)).unsqueeze(0)

    @property
    def is_cached(self) -> bool:
        """Whether the positions of the grid are kept."""
        return self.source is not None

    def at_points(self, places: Float[Tensor, "*B A"], dtype: torch.dtype) -> Float[Tensor, "*B P"]:
        """Return Fourier positions of coordinates, computed in float32 at least."""
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
    """Raw tensor of one modality to tokens.

    Args:
        name: The modality's name, for messages.
        spec: The declared modality.
        config: How it becomes tokens.

    Attributes:
        grid: Shape of the token grid.
        dim: Channels D of a token.
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
                    f"input {name!r}: dim={config.dim} maps what a point holds besides its "
                    f"coordinates, which is nothing here; map its positions with project"
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
        """Tokens per sample."""
        return prod(self.grid)

    def forward(self, raw: Tensor, dtype: torch.dtype) -> Float[Tensor, "B N D"]:
        """Return the tokens; those that are not real hold finite values without meaning."""
        values = self.adapter.flatten(raw)
        if self.adapter.spec.kind == "bytes":
            x = self.content(values)
        else:
            # Coordinates stay wide: the highest waves make thousands of radians of them.
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
        """Return which elements are real, or None when all are: no padding, no absent points."""
        return self.adapter.real(raw)

    def cover(self, real: Bool[Tensor, "B E"]) -> Bool[Tensor, "B N"]:
        """Return which tokens are real; a patch is when one of its elements is."""
        if not isinstance(self.content, Elements | Patches):
            return real
        return self.content(real.unsqueeze(-1).float()).amax(-1) > 0


def default_tokens(spec: ModalitySpec) -> TokenConfig:
    """Return how a modality is read when nothing is said: raw elements with Fourier positions.

    Long signals are cut into patches, as the papers do: 16 samples of audio, 4x4 pixels of a frame.
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
