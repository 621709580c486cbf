"""The decoder of Perceiver IO as a graph, to encode once and query as often as needed.

Legend: B batch, N latents, D channels of a latent, O queries, K values.
Paper: Perceiver IO (arXiv 2107.14795) Sec. 3.2.
"""

import torch
from torch import Tensor, nn

from perceivers.adapters.multimodal import Tokens
from perceivers.errors import ConfigError, suggest
from perceivers.models.flat.trunk import TrunkEncoded
from perceivers.models.graphs import BATCH, Graph, draw_raw
from perceivers.models.perceiver_io.model import PerceiverIO

QUERIES = "queries"


class DecoderOnly(nn.Module):
    """Decoder: takes latents ``[B, N, D]`` and flat query indices ``[O]``, returns ``[B, O, K]``.

    A raw tensor comes between the two if the queries are built from its tokens, and ``keep``
    ``[B, O]`` comes last if some queries may belong to padding.

    Args:
        model: A Perceiver IO.
        output: Name of the output to compute.
        keep: Whether ``keep`` is among the inputs.
    """

    def __init__(self, model: PerceiverIO, output: str, *, keep: bool) -> None:
        super().__init__()
        self.model = model
        self.output = output
        self.keep = keep

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the decoder output of the queries."""
        latents, *raw, ids = tensors[:-1] if self.keep else tensors
        modality = self.model.config.outputs[self.output].modality
        parts = {}
        if raw:
            parts[modality] = self.model.inputs.reader(modality)(raw[0], latents.dtype)
        # A placeholder for the input tokens: of these, decoding uses only ``parts``.
        tokens = Tokens(array=latents, valid=None, parts=parts, real={})
        encoded = TrunkEncoded(latents=latents, tokens=tokens)
        keep = tensors[-1] if self.keep else None
        return (self.model.decode(encoded, self.output, ids=ids, keep=keep),)


def decoder_graph(model: PerceiverIO, output: str | None) -> Graph:
    """Return the graph of a decoder, for at most as many queries as the model decodes in a chunk.

    Args:
        model: A Perceiver IO.
        output: Output to compute; may be omitted if the model has only one.

    Raises:
        ConfigError: The model is not a Perceiver IO or has no such output.
    """
    names = list(model.config.outputs)
    name = names[0] if output is None and len(names) == 1 else output
    if name not in names:
        raise ConfigError(
            f"output {output!r} is unknown; choose one of {names} for the decoder"
            + suggest(str(output), names)
        )
    config = model.config.outputs[name]
    spec = model.config.inputs.get(config.modality)
    raw = {config.modality: spec} if spec is not None and config.queries == "tokens" else {}
    absent = spec is not None and spec.may_lack
    keep = absent and config.mask_padding
    total, trunk = model.num_queries(name), model.config.trunk

    def sample(batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        latents = torch.randn(batch, trunk.num_latents, trunk.latent_dim, generator=generator)
        asked = min(batch + 2, model.config.decoder.chunk)  # differs between batch sizes
        ids = torch.randint(total, (asked,), generator=generator)
        kept = torch.rand(batch, asked, generator=generator) < 0.7
        return (latents, *draw_raw(raw, batch, generator), ids, *([kept] if keep else []))

    return Graph(
        module=DecoderOnly(model, name, keep=keep),
        inputs=("latents", *raw, "ids", *(["keep"] if keep else [])),
        outputs=("output",),
        raw=raw,
        sample=sample,
        free=(
            *({0: BATCH} for _ in ("latents", *raw)),
            {0: QUERIES},
            *([{0: BATCH, 1: QUERIES}] if keep else []),
        ),
        largest={QUERIES: model.config.decoder.chunk},
    )
