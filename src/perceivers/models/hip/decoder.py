"""HiP's decoder, which reconstructs inputs from the processor, and its heads.

Levels with skip connections lead from the processor to the last level, which position queries
attend to.

Legend: B batch, G groups, S slots per group, Q queries per group, N elements, C channels.
Paper: HiP (arXiv 2202.10890) Sec. 3.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perceivers.models.hip.config import HiPConfig
from perceivers.models.hip.elements import share_scores
from perceivers.models.hip.encoder import HiPEncoded, make_block
from perceivers.nn.blocks import Read
from perceivers.nn.grouping import regroup
from perceivers.nn.linear import Linear


def in_chunks(
    answer: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    queries: Float[Tensor, "#B G Q P"],
    tokens: Float[Tensor, "B G M C"],
    mask: Bool[Tensor, "#B G 1 M"] | None,
    size: int,
) -> Float[Tensor, "B G Q K"]:
    """Evaluate ``answer`` for chunks of at most ``size`` queries, which bounds memory.

    Queries do not interact, so the result does not depend on ``size``. In training, chunks are
    recomputed in the backward pass, except for a single chunk, which fits into memory anyway.
    """
    total = queries.shape[2]
    recompute = torch.is_grad_enabled() and tokens.requires_grad and total > size
    count = max(-(-total // size), 1)
    size = -(-total // count)  # as few chunks as possible, of almost equal size
    parts = []
    for chunk in queries.split(size, dim=2):
        if recompute:
            part = checkpoint(answer, chunk, tokens, mask, use_reentrant=False)
            assert isinstance(part, Tensor)
            parts.append(part)
        else:
            parts.append(answer(chunk, tokens, mask))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


class ReadOut(nn.Module):
    """Cross-attention from position queries to latents, then a linear layer per modality.

    Args:
        config: Configuration of the model.
        token_dim: Channels of the latents.
        query_dim: Channels of a query, before and after cross-attention.
        outputs: Values per element, by modality.
    """

    def __init__(
        self, config: HiPConfig, *, token_dim: int, query_dim: int, outputs: dict[str, int]
    ) -> None:
        super().__init__()
        self.chunk = config.decode_chunk
        self.read = Read(
            query_dim=query_dim,
            token_dim=token_dim,
            num_heads=config.query_heads,
            activation=config.activation,
            residual=config.query_residual,
        )
        self.product = Linear(query_dim, query_dim, bias=False) if config.query_product else None
        self.unembed = nn.ModuleDict({n: Linear(query_dim, c) for n, c in outputs.items()})

    def forward(
        self,
        name: str,
        queries: Float[Tensor, "#B G Q P"],
        tokens: Float[Tensor, "B G M C"],
        chunk: int | None = None,
        mask: Bool[Tensor, "#B G 1 M"] | None = None,
    ) -> Float[Tensor, "B G Q K"]:
        """Return the values of one modality at the queried positions."""
        unembed = self.unembed[name]

        def answer(part: Tensor, latents: Tensor, mask: Tensor | None) -> Tensor:
            x = self.read(part, latents, mask)
            if self.product is not None:
                x = x + x * self.product(part)
            return unembed(x)

        return in_chunks(answer, queries, tokens, mask, chunk or self.chunk)


class HiPDecoder(nn.Module):
    """Decoder levels, and the output layers of the reconstruction.

    Args:
        config: Configuration of the model.
    """

    def __init__(self, config: HiPConfig) -> None:
        super().__init__()
        self.config = config
        indices = range(config.processor + 1, len(config.levels))
        self.blocks = nn.ModuleList(make_block(config, index) for index in indices)
        self.readout = ReadOut(
            config,
            token_dim=config.levels[-1].latent_dim,
            query_dim=config.query_dim,
            outputs={name: spec.channels for name, spec in config.grouped_inputs.items()},
        )
        # Queries attend to visible elements together with the latents, so widths must be equal.
        self.elements = (
            Linear(config.input_dim, config.levels[-1].latent_dim)
            if config.query_elements
            else None
        )
        self.latent_heads = (
            nn.ModuleList(
                Linear(config.levels[i].latent_dim, config.levels[-1 - i].latent_dim)
                for i in indices
            )
            if config.latent_head
            else None
        )
        self.label_readout = (
            ReadOut(
                config,
                token_dim=config.levels[config.processor].latent_dim,
                query_dim=config.label_dim,
                outputs={name: config.inputs[name].channels for name in config.labels},
            )
            if config.labels
            else None
        )

    def forward(self, encoded: HiPEncoded) -> Float[Tensor, "B G N C"]:
        """Return the latents of the last level."""
        return self.levels(encoded)[-1]

    def levels(self, encoded: HiPEncoded) -> list[Float[Tensor, "B _ _ _"]]:
        """Return the latents of the processor, then of every level of the decoder."""
        found = [encoded.processor]
        for block, skip in zip(self.blocks, reversed(encoded.levels[:-1]), strict=True):
            x = regroup(found[-1], skip.shape[1], self.config.regroup)
            found.append(block(x, skip=skip))
        if self.latent_heads is not None:
            # Data-parallel training requires a gradient for every parameter, used or not.
            unasked = sum((weight.sum() for weight in self.latent_heads.parameters()), start=0.0)
            found[-1] = found[-1] + 0.0 * unasked
        return found

    def predict_latents(
        self, levels: Sequence[Float[Tensor, "B _ _ _"]]
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """Predict the latents of the mirrored encoder levels.

        Args:
            levels: Output of ``levels``.
        """
        assert self.latent_heads is not None
        return [head(x) for head, x in zip(self.latent_heads, levels[1:], strict=True)]

    @torch.no_grad()
    def start_as_interpolation(self) -> None:
        """Initialise attention from queries to visible elements so that it compares positions.

        Queries and keys get the same projection. Scores are high where position embeddings are
        similar, so that attention starts as a kernel around the query, with a different width for
        each head. With random weights, training has to discover attention by position first: on raw
        audio the loss stays on a plateau for hundreds of steps (docs/log.md).
        """
        if self.elements is None or self.elements.in_features > self.elements.out_features:
            return
        attention, width = self.readout.read.attention, self.elements.in_features
        nn.init.eye_(self.elements.weight)  # tokens, padded with zeros
        queries = attention.q.weight
        # Fourier features follow the content; learned positions are added to it.
        places = slice(width - queries.shape[1], width)
        attention.k.weight[:, places].copy_(share_scores(queries, attention.num_heads))

    def sources(
        self, encoded: HiPEncoded, latents: Float[Tensor, "B G N C"]
    ) -> tuple[Float[Tensor, "B G M C"], Bool[Tensor, "#B G 1 M"] | None]:
        """Return the tokens that reconstruction queries attend to, and their mask.

        These are the latents and, with ``query_elements``, the visible elements.
        """
        if self.elements is None:
            return latents, None
        assert encoded.tokens is not None
        sources = torch.cat([latents, self.elements(encoded.tokens)], dim=2)
        if encoded.mask is None:
            return sources, None
        seen = encoded.mask.new_ones(*encoded.mask.shape[:3], latents.shape[2])
        return sources, torch.cat([seen, encoded.mask], dim=3)


# -- Classification heads ------------------------------------------------------------------------
#
# Legend: B batch, N latents of the processor, C channels, K outputs. Paper: HiP (arXiv
# 2202.10890) Sec. 4 classifies with the encoder alone but does not specify the pooling; the query
# head is the decoder of Perceiver IO (arXiv 2107.14795) with one learned query.


class QueryHead(nn.Module):
    """Logits from one learned query that attends to the latents of the processor."""

    def __init__(self, config: HiPConfig) -> None:
        super().__init__()
        dim = config.levels[config.processor].latent_dim
        self.query = nn.Parameter(torch.zeros(1, dim))
        self.read = Read(query_dim=dim, token_dim=dim, activation=config.activation, residual=False)
        self.logits = Linear(dim, config.head.num_outputs)

    def forward(self, latents: Float[Tensor, "B 1 N C"]) -> Float[Tensor, "B K"]:
        """Return logits."""
        return self.logits(self.read(self.query[None, None], latents)).flatten(1)


class MeanHead(nn.Module):
    """Logits from the mean of the normalised latents of the processor."""

    def __init__(self, config: HiPConfig) -> None:
        super().__init__()
        dim = config.levels[config.processor].latent_dim
        self.norm = nn.LayerNorm(dim)
        self.logits = Linear(dim, config.head.num_outputs)

    def forward(self, latents: Float[Tensor, "B 1 N C"]) -> Float[Tensor, "B K"]:
        """Return logits."""
        return self.logits(self.norm(latents).mean((1, 2)))
