"""Perceiver IO: encode any inputs into latents once, decode any outputs from them with queries.

Legend: B batch, M tokens, N latents, D their channels, O queries, E their channels, K values.
Paper: Perceiver IO (arXiv 2107.14795); docs/perceiver-io.md maps its sections to this folder.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perceivers.adapters import ElementAdapter
from perceivers.adapters.multimodal import TokenReaders
from perceivers.errors import ConfigError, InputError, suggest
from perceivers.models.base import SavedModule
from perceivers.models.flat.trunk import (
    Encoded,
    Trunk,
    carry_tables,
    check_resizable,
    flat_layer_depths,
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


class PerceiverIO(SavedModule):
    """Perceiver IO for any modalities and outputs.

    Calling it returns the one output bare, or all of them by name: ``[B, K]`` for one learned
    query, ``[B, O, K]`` for several, the raw layout ``[B, K, *grid]`` (channels last for arrays,
    points and bytes) for queries that belong to a modality. One bare tensor is accepted when there
    is one modality.

    Args:
        config: The complete description.
    """

    family = "perceiver_io"
    # What fine-tuning carries over: everything up to the latents.
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
        """Initialise every parameter; ``models/flat/trunk.py`` lists how.

        The bias of tied heads is zero, and so are heads of outputs that are read with the tokens,
        as in the released flow.
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

    # -- whole passes ------------------------------------------------------------------------

    def forward(
        self,
        inputs: Mapping[str, Tensor] | Tensor,
        *,
        valid: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
        outputs: list[str] | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Return the answers to all outputs, or to those named.

        Args:
            inputs: Raw tensors by name, or one bare tensor.
            valid: Which tokens may be attended to ``[B, N]``, by modality.
            present: Which samples hold a modality, bool ``[B]``, by name; all where not given. What
                stands in ``inputs`` where a sample has none is not looked at.
            outputs: Names; one name still gives a bare answer.
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
    ) -> Encoded:
        """Return the latents and the tokens they read."""
        return self.encode(self.as_dict(inputs), valid=valid, present=present)

    def encode(
        self,
        inputs: Mapping[str, Tensor],
        *,
        valid: Mapping[str, Tensor] | None = None,
        hidden: Mapping[str, Tensor] | None = None,
        kept: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
    ) -> Encoded:
        """Encode a batch; the arguments are those of ``TokenReaders``.

        Raises:
            InputError: An input or a mask is unknown or misshapen, or nothing was given.
        """
        dtype = self.trunk.latents.dtype
        tokens = self.inputs(
            inputs, valid=valid, hidden=hidden, kept=kept, present=present, dtype=dtype
        )
        return Encoded(latents=self.trunk(tokens.array, tokens.valid), tokens=tokens)

    def decode(
        self,
        encoded: Encoded,
        output: str | None = None,
        *,
        ids: Tensor | None = None,
        keep: Tensor | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """Answer the queries of one output, a chunk at a time.

        Queries never see one another, so neither ``ids`` nor ``chunk_size`` changes an answer. In
        training the chunks are computed again in the backward pass, so that memory stays bounded.
        A conv head mixes neighbouring answers: all queries are asked then, whatever is picked.

        Args:
            encoded: From ``encode``.
            output: Name; may be left out when there is one.
            ids: Answer only these, flat indices of the output's grid ``[O]``, or ``[B, O]`` for
                each sample its own; returns ``[B, O, K]``.
            keep: Queries that mean something ``[B, O]``; others attend to nothing. The padding of
                the output's modality when not given.
            chunk_size: Queries alive at once; the config's when not given.

        Raises:
            InputError: The output is unknown, its modality was not given, or ``keep`` is combined
                with ``ids`` of an output with a conv head.
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
        """Return the grid on which an output's queries lie, of those that speak of a modality."""
        config = self.config.outputs[output]
        if config.queries == "tokens":
            return self.inputs.reader(config.modality).grid
        if config.queries == "positions":
            return self.config.grid(config)
        return self.config.inputs[config.modality].grid

    def num_queries(self, output: str) -> int:
        """Queries O of an output when all are asked."""
        config = self.config.outputs[output]
        if config.queries == "tokens":
            return self.inputs.reader(config.modality).num_tokens
        return self.config.num_queries[output]

    # -- helpers -----------------------------------------------------------------------------

    def adapter(self, name: str) -> ElementAdapter:
        """Return the adapter of a modality."""
        return self.inputs.reader(name).adapter

    def layer_depths(self) -> dict[str, int]:
        """Return a depth per parameter, for layer-wise learning rates: inputs 0, outputs last."""
        return flat_layer_depths(self, self.trunk)

    def set_recompute(self, on: bool = True) -> None:
        """Recompute the trunk's layers in the backward pass: less memory, more time."""
        self.trunk.recompute = on

    def resized(self, inputs: Mapping[str, ModalitySpec]) -> "PerceiverIO":
        """Return a copy for other input sizes: learned positions are interpolated on their grid.

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
        """Require as many tokens as patches, where the queries are tokens."""
        for name, output in self.config.outputs.items():
            if output.queries != "tokens" or not output.patch:
                continue
            tokens, patches = self.query_grid(name), self.config.grid(output)
            if tokens != patches:
                raise ConfigError(
                    f"output {name!r}: the tokens of {output.modality!r} lie on a grid {tokens}, "
                    f"but patch {output.patch} needs {patches}; take another patch, or ask with "
                    f"positions"
                )

    def _output_name(self, output: str | None) -> str:
        names = list(self.config.outputs)
        if output is None and len(names) == 1:
            return names[0]
        if output is None or output not in names:
            raise InputError(
                f"output {output!r} is unknown; the model answers {names}"
                + suggest(str(output), names)
            )
        return output

    def _real_queries(self, output: Output, real: Tensor) -> Bool[Tensor, "B O"]:
        """Return which queries ask for a real element of the output's modality."""
        if output.queries == "tokens":
            return self.inputs.reader(output.modality).cover(real)
        if not output.patch:
            return real
        grid = self.config.inputs[output.modality].grid
        return space_to_depth(real.unsqueeze(1).unflatten(2, grid), output.patch).any(-1)

    def _in_chunks(
        self,
        name: str,
        encoded: Encoded,
        ids: Tensor | None,
        keep: Tensor | None,
        total: int,
        size: int,
    ) -> Float[Tensor, "B O K"]:
        """Answer queries, making no more of them at once than ``size``."""
        device, tied = encoded.latents.device, self._tied_rows(name)

        def answer(
            part: Tensor | None, latents: Tensor, kept: Tensor | None
        ) -> Float[Tensor, "B O K"]:
            queries = self.decoder.make_queries(name, encoded.tokens, part, latents.dtype)
            return self.decoder.answer(name, queries, latents, kept, tied)

        if total <= size:
            return answer(ids, encoded.latents, keep)
        count = -(-total // size)
        size = -(-total // count)  # no more chunks than needed, as equal as can be
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
        encoded: Encoded,
        ids: Int[Tensor, "*#B O"],
        keep: Tensor | None,
        chunk_size: int | None,
    ) -> Float[Tensor, "B O K"]:
        """Answer all of a conv head's queries, and return the patches of some."""
        if keep is not None:
            raise InputError(
                f"output {name!r} has a conv head, for which every query is asked; give ids or "
                f"keep, not both"
            )
        output = self.config.outputs[name]
        laid = self.decode(encoded, name, chunk_size=chunk_size)
        if not self.config.inputs[output.modality].channels_first:
            laid = laid.movedim(-1, 1)
        return pick_rows(space_to_depth(laid, output.patch), ids)

    def _tied_rows(self, name: str) -> Tensor | None:
        """The byte embedding, for an output that is tied to it."""
        output = self.config.outputs[name]
        if output.head != "tied":
            return None
        content = self.inputs.reader(output.modality).content
        return content.get_parameter("rows.weight")

    def _laid_out(self, name: str, values: Float[Tensor, "B O K"]) -> Tensor:
        """Put answers where their elements are in the raw tensor."""
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
    """Give indices that all samples share a row per sample."""
    return ids if ids.ndim == 2 else ids.expand(like.shape[0], -1)
