"""The decoder of a Perceiver IO as a graph of its own: encode once, then ask as often as you like.

Legend: B batch, N latents, D their channels, O queries.
Paper: Perceiver IO (arXiv 2107.14795) Sec. 3.2.
"""

from typing import Any

import torch
from torch import Tensor, nn

from perceivers.adapters.multimodal import Tokens
from perceivers.errors import ConfigError, suggest
from perceivers.exporting.tensors import BATCH, Graph, draw_raw
from perceivers.models.flat.encoded import Encoded
from perceivers.models.perceiver_io import PerceiverIO
from perceivers.types import Points

QUERIES = "queries"


class DecoderOnly(nn.Module):
    """Latents ``[B, N, D]`` and flat indices of queries ``[O]`` in, values ``[B, O, K]`` out.

    A raw tensor comes between them when the queries are made of its tokens, and ``keep``
    ``[B, O]`` after them when some queries may ask for what is padded.

    Args:
        model: A Perceiver IO.
        output: The output it answers.
        keep: Whether ``keep`` is among the tensors.
    """

    def __init__(self, model: PerceiverIO, output: str, *, keep: bool) -> None:
        super().__init__()
        self.model = model
        self.output = output
        self.keep = keep

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the values of the queries."""
        latents, *raw, ids = tensors[:-1] if self.keep else tensors
        modality = self.model.config.outputs[self.output].modality
        parts = {}
        if raw:
            parts[modality] = self.model.inputs.reader(modality)(raw[0], latents.dtype)
        # The latents stand for what was read: decoding looks at nothing but the parts.
        tokens = Tokens(array=latents, valid=None, parts=parts, real={})
        encoded = Encoded(latents=latents, tokens=tokens)
        keep = tensors[-1] if self.keep else None
        return (self.model.decode(encoded, self.output, ids=ids, keep=keep),)


def decoder_graph(model: Any, output: str | None) -> Graph:
    """Wrap the decoder; as many queries may be asked for at once as the model decodes in a chunk.

    Args:
        model: A Perceiver IO.
        output: What is asked; may be left out when there is one output.

    Raises:
        ConfigError: The model has no queries, or not this output.
    """
    if not isinstance(model, PerceiverIO):
        raise ConfigError(
            f"part 'decoder' belongs to the family perceiver_io, this model is a {model.family}; "
            f"export part 'model' or 'encoder'"
        )
    names = list(model.config.outputs)
    name = names[0] if output is None and len(names) == 1 else output
    if name not in names:
        raise ConfigError(
            f"output {output!r} is unknown; say which of {names} the decoder is to answer"
            + suggest(str(output), names)
        )
    config = model.config.outputs[name]
    spec = model.config.inputs.get(config.modality)
    raw = {config.modality: spec} if spec is not None and config.queries == "tokens" else {}
    absent = spec is not None and (
        spec.kind == "bytes" or (isinstance(spec, Points) and spec.ragged)
    )
    keep = absent and config.mask_padding
    total, trunk = model.num_queries(name), model.config.trunk

    def sample(batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        latents = torch.randn(batch, trunk.num_latents, trunk.latent_dim, generator=generator)
        asked = min(batch + 2, model.config.decoder.chunk)  # another number for every batch size
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
