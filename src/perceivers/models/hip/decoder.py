"""HiP's way back: descend from the processor with skip connections, then answer position queries.

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
from perceivers.models.hip.encoder import Encoded, make_block
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
    """Answer queries a chunk at a time; in training chunks are recomputed, so memory is bounded.

    Queries never see one another, so the result does not depend on ``size``. A single chunk is
    within bounds as it is and not worth computing twice.
    """
    total = queries.shape[2]
    recompute = torch.is_grad_enabled() and tokens.requires_grad and total > size
    count = max(-(-total // size), 1)
    size = -(-total // count)  # no more chunks than needed, as equal as can be
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
    """Position queries read latents; a Linear per modality turns the answer into values.

    Args:
        config: The model's.
        token_dim: Channels of the latents that are read.
        query_dim: Channels of a query, and of the answer.
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
        """Return the values of one modality at its queried positions."""
        unembed = self.unembed[name]

        def answer(part: Tensor, latents: Tensor, mask: Tensor | None) -> Tensor:
            x = self.read(part, latents, mask)
            if self.product is not None:
                x = x + x * self.product(part)
            return unembed(x)

        return in_chunks(answer, queries, tokens, mask, chunk or self.chunk)


class HiPDecoder(nn.Module):
    """The levels above the processor's way up, mirrored, and the reconstruction read-out."""

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
        # Visible elements are read beside the latents, at the latents' width.
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

    def forward(self, encoded: Encoded) -> Float[Tensor, "B G N C"]:
        """Return the latents of the last level."""
        return self.levels(encoded)[-1]

    def levels(self, encoded: Encoded) -> list[Float[Tensor, "B _ _ _"]]:
        """Return the latents of the processor, then of every level of the decoder."""
        found = [encoded.processor]
        for block, skip in zip(self.blocks, reversed(encoded.levels[:-1]), strict=True):
            x = regroup(found[-1], skip.shape[1], self.config.regroup)
            found.append(block(x, skip=skip))
        if self.latent_heads is not None:
            # Data-parallel training needs a gradient for every parameter, used or not.
            unasked = sum((weight.sum() for weight in self.latent_heads.parameters()), start=0.0)
            found[-1] = found[-1] + 0.0 * unasked
        return found

    def predict_latents(
        self, levels: Sequence[Float[Tensor, "B _ _ _"]]
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """Return what the decoder's levels make of the latents of the mirrored encoder levels.

        Args:
            levels: From ``levels``.
        """
        assert self.latent_heads is not None
        return [head(x) for head, x in zip(self.latent_heads, levels[1:], strict=True)]

    @torch.no_grad()
    def start_as_interpolation(self) -> None:
        """Let queries and visible elements be compared by position from the first step on.

        Queries and keys share their projection, so a score is high where position rows agree, and
        attention to elements starts as a kernel around the query; every head has a width of its
        own. From random weights, attention by position has to be found first: on raw audio the
        loss stays on its plateau for hundreds of steps (docs/log.md).
        """
        if self.elements is None or self.elements.in_features > self.elements.out_features:
            return
        attention, width = self.readout.read.attention, self.elements.in_features
        nn.init.eye_(self.elements.weight)  # tokens, then zeros
        queries = attention.q.weight
        # Fourier features stand behind the content; learned rows are added to it.
        places = slice(width - queries.shape[1], width)
        attention.k.weight[:, places].copy_(share_scores(queries, attention.num_heads))

    def sources(
        self, encoded: Encoded, latents: Float[Tensor, "B G N C"]
    ) -> tuple[Float[Tensor, "B G M C"], Bool[Tensor, "#B G 1 M"] | None]:
        """Return what reconstruction queries read: latents, and the visible elements if asked."""
        if self.elements is None:
            return latents, None
        assert encoded.tokens is not None
        sources = torch.cat([latents, self.elements(encoded.tokens)], dim=2)
        if encoded.mask is None:
            return sources, None
        seen = encoded.mask.new_ones(*encoded.mask.shape[:3], latents.shape[2])
        return sources, torch.cat([seen, encoded.mask], dim=3)


# -- Read-outs other than the reconstruction: classes from the processor, values per element -----
#
# Legend: B batch, N latents of the processor, C channels, K outputs. Paper: HiP (arXiv
# 2202.10890) Sec. 4 uses the encoder alone for classification but does not say how it pools; the
# query head is Perceiver IO's decoder (arXiv 2107.14795) with one learned query.


class QueryHead(nn.Module):
    """One learned query reads the processor's latents; a Linear gives the logits."""

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
    """The normalised mean of the processor's latents; a Linear gives the logits."""

    def __init__(self, config: HiPConfig) -> None:
        super().__init__()
        dim = config.levels[config.processor].latent_dim
        self.norm = nn.LayerNorm(dim)
        self.logits = Linear(dim, config.head.num_outputs)

    def forward(self, latents: Float[Tensor, "B 1 N C"]) -> Float[Tensor, "B K"]:
        """Return logits."""
        return self.logits(self.norm(latents).mean((1, 2)))
