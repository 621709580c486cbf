"""Queries, and the one cross-attend with which they read the latents.

Legend: B batch, O queries, E channels of a query, N latents, D their channels, K values.
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

# Queries of a grid up to which their Fourier features are kept.
CACHED_QUERIES = 2**16


class LearnedQueries(nn.Module):
    """An array of learned queries.

    Args:
        length: Queries O.
        dim: Channels E.
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
    """A query per place of an output's grid.

    Fourier queries of long grids are computed when they are asked for: a clip has 800,000, whose
    table would be larger than the model.

    Args:
        grid: Shape of the grid.
        output: Which positions, and where a cell lies.
    """

    def __init__(self, grid: tuple[int, ...], output: Output) -> None:
        super().__init__()
        self.grid, self.sampled = grid, output.sampled
        few = prod(grid) <= CACHED_QUERIES
        self.positions = Positions(grid, output.positions, cached=few and self.sampled == "grid")

    def forward(
        self, ids: Tensor | None, dtype: torch.dtype, device: torch.device
    ) -> Float[Tensor, "#B O E"]:
        """Return the queries of all places, or of the flat indices ``ids``."""
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
    """Give queries that all samples share a batch axis of one."""
    return x if x.ndim == 3 else x.unsqueeze(0)


class TanhMlp(nn.Module):
    """Two layers with a tanh between (App. F.4).

    Args:
        dim: Channels in and hidden.
        outputs: Values out.
    """

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.hidden = Linear(dim, dim)
        self.out = Linear(dim, outputs)

    def forward(self, x: Float[Tensor, "*B E"]) -> Float[Tensor, "*B K"]:
        """Return the values."""
        return self.out(self.hidden(x).tanh())


class TiedHead(nn.Module):
    """The transposed byte embedding, with a bias of its own.

    Args:
        outputs: Entries K of the vocabulary.
        dim: Channels E of an answer.
        rows_dim: Channels R of the embedding; a Linear maps answers of another width to it, as
            those of several outputs are.
    """

    def __init__(self, outputs: int, dim: int, rows_dim: int) -> None:
        super().__init__()
        self.project = Linear(dim, rows_dim) if dim != rows_dim else None
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(
        self, x: Float[Tensor, "*B E"], rows: Float[Tensor, "K R"]
    ) -> Float[Tensor, "*B K"]:
        """Return a score per entry."""
        if self.project is not None:
            x = self.project(x)
        return linear(x, rows.to(x.dtype), self.bias.to(x.dtype))


class Decoder(nn.Module):
    """All queries of a model, and what their answers become.

    Several outputs share one cross-attend: their queries are padded to the widest, each output's
    with a learned vector of its own.

    Args:
        config: The model's.
        token_dims: Channels of the tokens, by modality, for queries made of them.
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
            name: The output.
            tokens: What the encoder read; queries of kind ``tokens`` are made of it.
            ids: Flat indices of the queries wanted, ``[O]`` or ``[B, O]``; None wants all.
            dtype: Of the queries.

        Raises:
            InputError: The output speaks of a modality that was not given.
        """
        output = self.config.outputs[name]
        if output.queries == "tokens":
            if output.modality not in tokens.parts:
                raise InputError(
                    f"output {name!r} is read with the tokens of {output.modality!r}, which this "
                    f"call lacks"
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
        """Read the latents and return the values of every query.

        Outputs with a conv head give what ``upsample`` makes values of.
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
        """Return the values of an output with a conv head, made of all its answers.

        Args:
            name: The output.
            answers: From ``answer``, for every query.
            grid: The grid on which the queries lie.
        """
        output = self.config.outputs[name]
        values = self.heads[name](answers.transpose(1, 2).unflatten(2, grid))
        return values if output.divide_by == 1.0 else values / output.divide_by


def pick_rows(
    x: Float[Tensor, "B N C"], ids: Int[Tensor, "*#B O"] | None
) -> Float[Tensor, "B O C"]:
    """Return the rows at flat indices, the same for all samples or each its own."""
    if ids is None:
        return x
    if ids.ndim == 1:
        return x[:, ids]
    return x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
