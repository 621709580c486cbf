"""Perceiver IO: encodes any inputs to latents, and decodes any outputs from them with queries.

Legend: B batch, M tokens, N latents, D channels of a latent, O queries, E channels of a query, K
values.
Paper: Perceiver IO (arXiv 2107.14795); docs/perceiver-io.md maps its sections to this folder.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perceivers.adapters.multimodal import TokenReaders
from perceivers.errors import ConfigError, InputError, suggest
from perceivers.models.flat.trunk import (
    FlatModel,
    Trunk,
    TrunkEncoded,
    carry_tables,
    check_resizable,
    initialise,
    pin_tokens,
    pin_waves,
    token_tables,
)
from perceivers.models.perceiver_io.config import Output, PerceiverIOConfig
from perceivers.models.perceiver_io.decoder import Decoder, LearnedQueries, TiedHead, pick_rows
from perceivers.nn.blocks import Read, SelfAttentionLayer
from perceivers.nn.patches import depth_to_space, space_to_depth
from perceivers.settings import change
from perceivers.types import ModalitySpec


class PerceiverIO(FlatModel):
    """Perceiver IO for any modalities and outputs.

    Calling it returns a tensor if there is one output, else a dict of output name -> tensor:
    ``[B, K]`` for one learned query, ``[B, O, K]`` for several, and the raw layout
    ``[B, K, *grid]`` (channels last for arrays, points and bytes) for queries of a modality.

    Args:
        config: The full configuration.
    """

    family = "perceiver_io"
    # Fine-tuning transfers everything up to the latents.
    core = ("inputs.", "trunk.")
    repeated = (Read, SelfAttentionLayer)
    config: PerceiverIOConfig

    def __init__(self, config: PerceiverIOConfig) -> None:
        super().__init__()
        self.config = config
        self.inputs = TokenReaders(
            config.inputs,
            config.tokens,
            min_padding=config.min_padding,
            mask_tokens=config.mask_tokens,
        )
        self.trunk = Trunk(config.trunk, self.inputs.dim)
        self._check_patches()
        widths = {name: self.inputs.reader(name).dim for name in config.inputs}
        self.decoder = Decoder(config, widths)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise every parameter as listed in ``models/flat/trunk.py``.

        Biases of tied heads are zero, and so are linear heads of outputs with ``tokens`` queries,
        as in the released flow model.
        """
        queries = [m.table for m in self.decoder.queries.values() if isinstance(m, LearnedQueries)]
        arrays = [*queries, *self.decoder.padding.values()]
        initialise(self, self.config.init, arrays=arrays)
        for name, head in self.decoder.heads.items():
            tokens = self.config.outputs[name].queries == "tokens"
            if tokens and isinstance(head, nn.Linear):
                nn.init.zeros_(head.weight)
            elif isinstance(head, TiedHead):
                nn.init.zeros_(head.bias)

    # -- forward passes ----------------------------------------------------------------------

    def forward(
        self,
        inputs: Mapping[str, Tensor] | Tensor,
        *,
        valid: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
        outputs: list[str] | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Return one or several outputs.

        Args:
            inputs: Raw tensors by modality name; a single tensor if there is one modality.
            valid: Tokens that may be attended to, bool ``[B, N]``, by modality.
            present: Samples in which a modality is present, bool ``[B]``, by modality; all by
                default. The values in ``inputs`` for other samples are ignored.
            outputs: Names of outputs to compute; all by default. For a single output the tensor is
                returned instead of a dict.
        """
        encoded = self.encode(self.as_dict(inputs), valid=valid, present=present)
        names = list(self.config.outputs) if outputs is None else outputs
        answers = {name: self.decode(encoded, name) for name in names}
        return next(iter(answers.values())) if len(answers) == 1 else answers

    def forward_features(
        self,
        inputs: Mapping[str, Tensor] | Tensor,
        *,
        valid: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
    ) -> TrunkEncoded:
        """Return the latents and the tokens that they attended to; arguments as in ``forward``."""
        return self.encode(self.as_dict(inputs), valid=valid, present=present)

    def encode(
        self,
        inputs: Mapping[str, Tensor],
        *,
        valid: Mapping[str, Tensor] | None = None,
        hidden: Mapping[str, Tensor] | None = None,
        kept: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
    ) -> TrunkEncoded:
        """Encode a batch; arguments as in ``TokenReaders``.

        Raises:
            InputError: An input or a mask is unknown or has a wrong shape, or there is no input.
        """
        dtype = self.trunk.latents.dtype
        tokens = self.inputs(
            inputs, valid=valid, hidden=hidden, kept=kept, present=present, dtype=dtype
        )
        return TrunkEncoded(latents=self.trunk(tokens.array, tokens.valid), tokens=tokens)

    def decode(
        self,
        encoded: TrunkEncoded,
        output: str | None = None,
        *,
        ids: Tensor | None = None,
        keep: Tensor | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """Decode one output, in chunks of queries.

        Queries do not interact, so neither ``ids`` nor ``chunk_size`` changes their outputs. In
        training, chunks are recomputed in the backward pass to bound memory. A conv head mixes
        neighbouring outputs: then all queries are decoded, even if only some are returned.

        Args:
            encoded: Output of ``encode``.
            output: Name of the output; optional if there is only one.
            ids: Flat indices in the grid of the output, ``[O]`` or per sample ``[B, O]``: decode
                only these queries and return ``[B, O, K]``.
            keep: Valid queries, bool ``[B, O]``; others attend to nothing. By default queries of
                padding are invalid.
            chunk_size: Maximum number of queries in memory; ``config.decoder.chunk`` by default.

        Raises:
            InputError: The output is unknown, its modality was not given, or ``ids`` and ``keep``
                are both given for a conv head.
        """
        name = self._output_name(output)
        config = self.config.outputs[name]
        if config.head == "conv" and ids is not None:
            return self._upsampled_patches(name, encoded, ids, keep, chunk_size)
        if keep is None and config.mask_padding and config.modality in encoded.tokens.real:
            keep = self._real_queries(config, encoded.tokens.real[config.modality])
            keep = keep if ids is None else torch.take_along_dim(keep, _per_sample(ids, keep), 1)
        total = self.num_queries(name) if ids is None else ids.shape[-1]
        size = chunk_size or self.config.decoder.chunk
        values = self._in_chunks(name, encoded, ids, keep, total, size)
        return values if ids is not None else self._laid_out(name, values)

    def query_grid(self, output: str) -> tuple[int, ...]:
        """Return the grid of the queries of an output, which must have a modality."""
        config = self.config.outputs[output]
        if config.queries == "tokens":
            return self.inputs.reader(config.modality).grid
        if config.queries == "positions":
            return self.config.grid(config)
        return self.config.inputs[config.modality].grid

    def num_queries(self, output: str) -> int:
        """Return the total number of queries O of an output."""
        config = self.config.outputs[output]
        if config.queries == "tokens":
            return self.inputs.reader(config.modality).num_tokens
        return self.config.num_queries[output]

    # -- helpers -----------------------------------------------------------------------------

    @property
    def segmented_modality(self) -> str | None:
        """Modality whose elements the only output answers."""
        if len(self.config.outputs) != 1:
            return None
        (output,) = self.config.outputs.values()
        return output.modality or None if output.queries != "learned" else None

    @property
    def result_names(self) -> tuple[str, ...]:
        """The only output, or all outputs by name."""
        if len(self.config.outputs) < 2:
            return ("output",)
        return tuple(f"{name}_output" for name in self.config.outputs)

    def resized(self, inputs: Mapping[str, ModalitySpec]) -> "PerceiverIO":
        """Return a copy for other input sizes, with learned positions interpolated.

        Raises:
            ConfigError: The modalities, their kinds or their channels differ.
        """
        old = self.config
        check_resizable(old.inputs, inputs)
        tokens = pin_tokens(old.tokens, self.inputs)
        outputs = {}
        for name, output in old.outputs.items():
            changes: dict[str, Any] = {}
            if output.queries == "positions":
                changes["positions"] = pin_waves(output.positions, old.grid(output))
            elif output.queries == "learned" and output.modality:
                changes["length"] = inputs[output.modality].num_tokens
            outputs[name] = change(output, (), **changes)
        model = type(self)(change(old, (), inputs=inputs, tokens=tokens, outputs=outputs)).to(
            next(self.parameters())
        )
        grids = token_tables(inputs, self.inputs, model.inputs)
        for name, output in outputs.items():
            if output.queries == "positions":
                table = f"decoder.queries.{name}.positions.source.table"
                grids[table] = (old.grid(output), model.config.grid(output), False)
            elif output.queries == "learned" and output.modality:
                length, cut = (old.outputs[name].length,), inputs[output.modality].kind == "bytes"
                grids[f"decoder.queries.{name}.table"] = (length, (output.length,), cut)
        model.load_state_dict(carry_tables(self.state_dict(), grids))
        return model.train(self.training)

    def _check_patches(self) -> None:
        """Require the same grid of tokens and patches where the queries are tokens."""
        for name, output in self.config.outputs.items():
            if output.queries != "tokens" or not output.patch:
                continue
            tokens, patches = self.query_grid(name), self.config.grid(output)
            if tokens != patches:
                raise ConfigError(
                    f"output {name!r}: the tokens of {output.modality!r} lie on a grid {tokens}, "
                    f"but patch {output.patch} needs {patches}; use another patch, or "
                    f"queries='positions'"
                )

    def _output_name(self, output: str | None) -> str:
        names = list(self.config.outputs)
        if output is None and len(names) == 1:
            return names[0]
        if output is None or output not in names:
            raise InputError(
                f"output {output!r} is unknown; the model has the outputs {names}"
                + suggest(str(output), names)
            )
        return output

    def _real_queries(self, output: Output, real: Tensor) -> Bool[Tensor, "B O"]:
        """Return which queries are for real elements, not for padding."""
        if output.queries == "tokens":
            return self.inputs.reader(output.modality).cover(real)
        if not output.patch:
            return real
        grid = self.config.inputs[output.modality].grid
        return space_to_depth(real.unsqueeze(1).unflatten(2, grid), output.patch).any(-1)

    def _in_chunks(
        self,
        name: str,
        encoded: TrunkEncoded,
        ids: Tensor | None,
        keep: Tensor | None,
        total: int,
        size: int,
    ) -> Float[Tensor, "B O K"]:
        device, tied = encoded.latents.device, self._tied_rows(name)

        def answer(
            part: Tensor | None, latents: Tensor, kept: Tensor | None
        ) -> Float[Tensor, "B O K"]:
            queries = self.decoder.make_queries(name, encoded.tokens, part, latents.dtype)
            return self.decoder.answer(name, queries, latents, kept, tied)

        if total <= size:
            return answer(ids, encoded.latents, keep)
        count = -(-total // size)
        size = -(-total // count)  # as few chunks as possible, of almost equal size
        parts = []
        for first in range(0, total, size):
            last = min(first + size, total)
            part = torch.arange(first, last, device=device) if ids is None else ids[..., first:last]
            kept = None if keep is None else keep[:, first:last]
            if torch.is_grad_enabled():
                done = checkpoint(answer, part, encoded.latents, kept, use_reentrant=False)
                assert isinstance(done, Tensor)
                parts.append(done)
            else:
                parts.append(answer(part, encoded.latents, kept))
        return torch.cat(parts, 1)

    def _upsampled_patches(
        self,
        name: str,
        encoded: TrunkEncoded,
        ids: Int[Tensor, "*#B O"],
        keep: Tensor | None,
        chunk_size: int | None,
    ) -> Float[Tensor, "B O K"]:
        """Decode all queries of an output with a conv head, and return the patches of some."""
        if keep is not None:
            raise InputError(
                f"output {name!r} has a conv head, which needs all queries; give ids or keep, not "
                f"both"
            )
        output = self.config.outputs[name]
        laid = self.decode(encoded, name, chunk_size=chunk_size)
        if not self.config.inputs[output.modality].channels_first:
            laid = laid.movedim(-1, 1)
        return pick_rows(space_to_depth(laid, output.patch), ids)

    def _tied_rows(self, name: str) -> Tensor | None:
        """Return the byte embedding for a tied head, else None."""
        output = self.config.outputs[name]
        if output.head != "tied":
            return None
        content = self.inputs.reader(output.modality).content
        return content.get_parameter("rows.weight")

    def _laid_out(self, name: str, values: Float[Tensor, "B O K"]) -> Tensor:
        """Arrange the outputs of all queries in the raw layout of their modality."""
        output = self.config.outputs[name]
        if output.queries == "learned":
            return values.squeeze(1) if output.length == 1 else values
        spec, grid = self.config.inputs[output.modality], self.query_grid(name)
        if output.patch and prod(output.patch) > 1:
            laid = (
                self.decoder.upsample(name, values, grid)
                if output.head == "conv"
                else depth_to_space(values, self.config.answered_grid(output), output.patch)
            )  # [B, K, *raw grid]
            return laid if spec.channels_first else laid.movedim(1, -1)
        if spec.channels_first:
            return values.transpose(1, 2).unflatten(2, grid)
        return values.unflatten(1, grid)


def _per_sample(ids: Tensor, like: Tensor) -> Tensor:
    """Expand shared indices to one row per sample."""
    return ids if ids.ndim == 2 else ids.expand(like.shape[0], -1)
