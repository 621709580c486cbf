"""Decoder of Perceiver IO: queries, their cross-attention to the latents, and output heads.

Legend: B batch, O queries, E channels of a query, N latents, D channels of a latent, K values.
Paper: Perceiver IO (arXiv 2107.14795) Sec. 3.2, Fig. 3, App. E.1.
"""

from collections.abc import Mapping
from math import prod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from perceivers.adapters.multimodal import Tokens
from perceivers.adapters.tokens import Positions
from perceivers.adapters.upsampling import GridUpsample
from perceivers.errors import InputError
from perceivers.models.perceiver_io.config import Output, PerceiverIOConfig
from perceivers.nn.blocks import Read
from perceivers.nn.linear import Linear, linear

# Number of queries up to which the Fourier features of a grid are cached.
CACHED_QUERIES = 2**16


class LearnedQueries(nn.Module):
    """An array of learned queries.

    Args:
        length: Number of queries O.
        dim: Channels E of a query.
    """

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(length, dim))

    def forward(
        self, ids: Tensor | None, dtype: torch.dtype, device: torch.device
    ) -> Float[Tensor, "#B O E"]:
        """Return all queries, or those at ``ids`` ``[O]`` or ``[B, O]``."""
        table = self.table.to(dtype)
        return table.unsqueeze(0) if ids is None else at_least_3d(table[ids])


class PositionQueries(nn.Module):
    """One query per cell of a grid, made of its position.

    Fourier features of large grids are computed when they are needed: a video has 800,000 queries,
    whose features would be larger than the model.

    Args:
        grid: Shape of the grid of queries.
        output: Kind of positions, and coordinates of the cells.
    """

    def __init__(self, grid: tuple[int, ...], output: Output) -> None:
        super().__init__()
        self.grid, self.sampled = grid, output.sampled
        few = prod(grid) <= CACHED_QUERIES
        self.positions = Positions(grid, output.positions, cached=few and self.sampled == "grid")

    def forward(
        self, ids: Tensor | None, dtype: torch.dtype, device: torch.device
    ) -> Float[Tensor, "#B O E"]:
        """Return all queries, or those at the flat indices ``ids``."""
        if self.positions.is_cached:
            rows = self.positions(dtype)
            return rows if ids is None else at_least_3d(rows.squeeze(0)[ids])
        if ids is None:
            ids = torch.arange(prod(self.grid), device=device)
        cells = torch.unravel_index(ids, self.grid)
        if self.sampled == "grid":
            axes = [torch.linspace(-1.0, 1.0, size, device=ids.device) for size in self.grid]
            places = torch.stack([a[cell] for a, cell in zip(axes, cells, strict=True)], -1)
        else:
            places = -1 + 2 * torch.stack(cells, -1) / torch.tensor(self.grid, device=ids.device)
        return at_least_3d(self.positions.at_points(places, dtype))


def at_least_3d(x: Tensor) -> Float[Tensor, "#B O E"]:
    """Add a batch axis of size one to queries that all samples share."""
    return x if x.ndim == 3 else x.unsqueeze(0)


class TanhMlp(nn.Module):
    """Two linear layers with a tanh between them (App. F.4).

    Args:
        dim: Input and hidden channels.
        outputs: Output values K.
    """

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.hidden = Linear(dim, dim)
        self.out = Linear(dim, outputs)

    def forward(self, x: Float[Tensor, "*B E"]) -> Float[Tensor, "*B K"]:
        """Return ``outputs`` values per query."""
        return self.out(self.hidden(x).tanh())


class TiedHead(nn.Module):
    """Scores by the transposed byte embedding, with a separate bias.

    Args:
        outputs: Size K of the vocabulary.
        dim: Channels E of the decoder output.
        rows_dim: Channels R of the embedding. If ``dim`` differs, as with several outputs, a linear
            layer projects to it.
    """

    def __init__(self, outputs: int, dim: int, rows_dim: int) -> None:
        super().__init__()
        self.project = Linear(dim, rows_dim) if dim != rows_dim else None
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(
        self, x: Float[Tensor, "*B E"], rows: Float[Tensor, "K R"]
    ) -> Float[Tensor, "*B K"]:
        """Return a score per vocabulary entry."""
        if self.project is not None:
            x = self.project(x)
        return linear(x, rows.to(x.dtype), self.bias.to(x.dtype))


class Decoder(nn.Module):
    """Queries, cross-attention and heads of all outputs.

    Outputs share the cross-attention layer: their queries are padded to a common width, with a
    learned vector per output.

    Args:
        config: Configuration of the model.
        token_dims: Channels of the input tokens by modality, for queries of kind ``tokens``.
    """

    def __init__(self, config: PerceiverIOConfig, token_dims: Mapping[str, int]) -> None:
        super().__init__()
        self.config, decoder = config, config.decoder
        self.queries = nn.ModuleDict()
        widths = {}
        for name, output in config.outputs.items():
            if output.queries == "learned":
                self.queries[name] = LearnedQueries(output.length, output.dim)
                widths[name] = output.dim
            elif output.queries == "positions":
                made = PositionQueries(config.grid(output), output)
                self.queries[name] = made
                widths[name] = made.positions.dim
            else:
                widths[name] = token_dims[output.modality]
        several = len(widths) > 1
        self.dim = max(widths.values()) + (decoder.min_padding if several else 0)
        self.padding = nn.ParameterDict(
            {
                name: nn.Parameter(torch.zeros(self.dim - width))
                for name, width in widths.items()
                if width < self.dim
            }
        )
        self.read = Read(
            query_dim=self.dim,
            token_dim=config.trunk.latent_dim,
            num_heads=decoder.num_heads,
            mlp_ratio=decoder.mlp_ratio,
            activation=config.trunk.activation,
            residual=decoder.residual,
            qk_dim=decoder.qk_dim,
            v_dim=decoder.v_dim,
        )
        self.project = Linear(self.dim, decoder.project) if decoder.project else None
        width = decoder.project or self.dim
        self.heads = nn.ModuleDict()
        for name, output in config.outputs.items():
            values = output.channels * prod(output.patch or (1,))
            if output.head == "tied":
                self.heads[name] = TiedHead(
                    config.inputs[output.modality].channels,
                    width,
                    config.tokens[output.modality].dim,
                )
            elif output.head == "conv":
                self.heads[name] = GridUpsample(width, output.channels, output.patch)
            elif output.head == "tanh_mlp":
                self.heads[name] = TanhMlp(width, values)
            elif output.head == "linear" and values:
                self.heads[name] = Linear(width, values)

    def make_queries(
        self, name: str, tokens: Tokens, ids: Tensor | None, dtype: torch.dtype
    ) -> Float[Tensor, "#B O E"]:
        """Return the queries of one output, padded to the common width.

        Args:
            name: Name of the output.
            tokens: Input tokens, which are the queries of kind ``tokens``.
            ids: Flat indices of the queries, ``[O]`` or ``[B, O]``; all if None.
            dtype: Data type of the queries.

        Raises:
            InputError: The modality of an output with ``tokens`` queries was not given.
        """
        output = self.config.outputs[name]
        if output.queries == "tokens":
            if output.modality not in tokens.parts:
                raise InputError(
                    f"output {name!r} is queried with the tokens of {output.modality!r}, which is "
                    f"missing in this call; pass it as an input"
                )
            queries = pick_rows(tokens.parts[output.modality], ids)
        else:
            queries = self.queries[name](ids, dtype, tokens.array.device)
        if name not in self.padding:
            return queries
        padding = self.padding[name].to(queries.dtype)
        return torch.cat([queries, padding.expand(*queries.shape[:2], -1)], -1)

    def answer(
        self,
        name: str,
        queries: Float[Tensor, "#B O E"],
        latents: Float[Tensor, "B N D"],
        keep: Bool[Tensor, "B O"] | None,
        tied: Tensor | None,
    ) -> Float[Tensor, "B O K"]:
        """Cross-attend to the latents, apply the head and return the values of every query.

        For a conv head, the result is the input of ``upsample`` instead.
        """
        kept = None if keep is None else keep.unsqueeze(1)
        x = self.read(queries.unsqueeze(1), latents.unsqueeze(1), keep=kept).squeeze(1)
        if self.project is not None:
            x = self.project(x)
        output = self.config.outputs[name]
        if output.head == "tied":
            return self.heads[name](x, tied)
        if output.head == "conv":
            return x
        if name in self.heads:
            x = self.heads[name](x)
        return x if output.divide_by == 1.0 else x / output.divide_by

    def upsample(
        self, name: str, answers: Float[Tensor, "B O E"], grid: tuple[int, ...]
    ) -> Float[Tensor, "B K *fine"]:
        """Apply the conv head of an output to the decoder outputs of all its queries.

        Args:
            name: Name of the output.
            answers: Result of ``answer`` for all queries.
            grid: Grid of the queries.
        """
        output = self.config.outputs[name]
        values = self.heads[name](answers.transpose(1, 2).unflatten(2, grid))
        return values if output.divide_by == 1.0 else values / output.divide_by


def pick_rows(
    x: Float[Tensor, "B N C"], ids: Int[Tensor, "*#B O"] | None
) -> Float[Tensor, "B O C"]:
    """Return the rows at flat indices, which are shared by all samples or given per sample."""
    if ids is None:
        return x
    if ids.ndim == 1:
        return x[:, ids]
    return x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
