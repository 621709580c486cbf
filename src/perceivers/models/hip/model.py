"""The Hierarchical Perceiver: encoder, optional decoder, optional head.

Legend: B batch, G groups, S slots per group, Q masked slots, N elements, C channels, K outputs.
Paper: HiP (arXiv 2202.10890); docs/hip.md maps its sections to this folder and lists deviations.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceivers.adapters import ElementAdapter
from perceivers.errors import ConfigError, InputError
from perceivers.masking import MaskPlan
from perceivers.models.base import SavedModule
from perceivers.models.hip.config import HiPConfig
from perceivers.models.hip.decoder import HiPDecoder, MeanHead, QueryHead, ReadOut
from perceivers.models.hip.elements import ElementMixing
from perceivers.models.hip.encoder import HiPEncoded, HiPEncoder, gather_slots
from perceivers.nn.blocks import PerceiverBlock, Read, SelfAttentionLayer
from perceivers.nn.grouping import GroupLayout
from perceivers.nn.linear import init_linears_, truncated_normal_
from perceivers.nn.positions import LearnedPositions, coarse_grid, fourier_rows, resize_table
from perceivers.settings import change
from perceivers.types import ModalitySpec

# Standard deviation of learned arrays: large enough to matter next to the features they meet.
BALANCED = 0.5


class HiP(SavedModule):
    """Hierarchical Perceiver for any modalities.

    Calling it returns the output of the head, in training and in evaluation: logits ``[B, K]``
    (query, mean, label), values in the raw layout of a modality (dense heads), or without a head a
    reconstruction of every input in its raw layout (for texts and labels, scores per class).

    Args:
        config: The full configuration.
    """

    family = "hip"
    # Fine-tuning transfers everything up to the processor.
    core = ("encoder.",)
    repeated = (Read, SelfAttentionLayer)
    config: HiPConfig

    def __init__(self, config: HiPConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = HiPEncoder(config)
        self.decoder = HiPDecoder(config) if config.decoder else None
        self.head = self._make_head()
        self.init_weights()

    def _make_head(self) -> nn.Module | None:
        config, head = self.config, self.config.head
        if head.kind == "query":
            return QueryHead(config)
        if head.kind == "mean":
            return MeanHead(config)
        if head.kind == "label":
            if self.decoder is not None:
                return None  # the label head of the decoder is used
            dims = {head.modality: config.inputs[head.modality].channels}
            return ReadOut(
                config,
                token_dim=config.levels[config.processor].latent_dim,
                query_dim=config.label_dim,
                outputs=dims,
            )
        if head.kind.startswith("dense"):
            level = config.processor if head.kind == "dense_bottleneck" else -1
            return ReadOut(
                config,
                token_dim=config.levels[level].latent_dim,
                query_dim=config.query_dim,
                outputs={head.modality: head.num_outputs},
            )
        return None

    def init_weights(self) -> None:
        """Initialise every parameter.

        | parameter | init |
        |---|---|
        | linear weights | truncated normal, variance 1 / fan_in; biases 0 |
        | embeddings of content | the same, times ``embed_scale`` |
        | output layers of the reconstruction | 0: the first reconstruction is exactly 0 |
        | latents, positions, bytes, head query | ``balanced``: std 0.5; ``paper``: 1 / sqrt(rows) |
        | positions with ``position_init: fourier`` | sines and cosines of the same mean square |
        | attention to elements (``query_elements``) | compares position embeddings |
        | LayerNorm | weight 1, bias 0 |

        Normal distributions are truncated at two standard deviations. Position embeddings that are
        small compared to the content to which they are added can distinguish elements only after
        long training (measured in docs/log.md).
        """
        init_linears_(self)
        arrays = [m.latents for m in self.modules() if isinstance(m, PerceiverBlock)]
        arrays += [m.table for m in self.modules() if isinstance(m, LearnedPositions)]
        arrays += [m.query for m in self.modules() if isinstance(m, QueryHead)]
        arrays += [m.weight for m in self.modules() if isinstance(m, nn.Embedding)]
        for array in arrays:
            rows = array.numel() // array.shape[-1]
            truncated_normal_(array, rows**-0.5 if self.config.init == "paper" else BALANCED)
        if self.config.position_init == "fourier" and self.config.positions == "learned":
            for name, positions in self.encoder.inputs.positions.items():
                assert isinstance(positions, LearnedPositions)
                grid = coarse_grid(self.config.inputs[name].grid, self.config.position_stride)
                dim = positions.table.shape[1]
                with torch.no_grad():
                    # Sines and cosines have a mean square of one half.
                    positions.table.copy_(fourier_rows(grid, dim) * BALANCED * 2**0.5)
        if self.config.embed_scale != 1:
            for embed in self.encoder.inputs.embed.values():
                assert isinstance(embed, nn.Linear | nn.Embedding)
                embed.weight.data.mul_(self.config.embed_scale)
        if self.encoder.elements is not None:
            self.encoder.elements.start_near()
        if self.decoder is not None:
            self.decoder.start_as_interpolation()
            for readout in (self.decoder.readout, self.decoder.label_readout):
                for linear in () if readout is None else readout.unembed.values():
                    assert isinstance(linear, nn.Linear)
                    nn.init.zeros_(linear.weight)

    # -- forward passes ----------------------------------------------------------------------

    def forward(
        self,
        inputs: Mapping[str, Tensor] | Tensor,
        *,
        present: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "B ..."] | dict[str, Tensor]:
        """Return logits, dense values or reconstructions, depending on the head.

        Args:
            inputs: Raw tensors ``[B, ...]`` by modality name; a single tensor if there is one
                modality.
            present: Samples in which a modality is present, bool ``[B]``, by modality; all by
                default. The values in ``inputs`` for other samples are ignored. With
                ``deal_over="declared"``, a sample without a modality has the same output as in a
                call without that modality.
        """
        inputs = self.as_dict(inputs)
        head = self.config.head
        if head.kind == "label":
            inputs = {name: raw for name, raw in inputs.items() if name != head.modality}
        encoded = self.encode(inputs, present=present)
        if head.kind in {"query", "mean"}:
            assert self.head is not None
            return self.head(encoded.processor)
        if head.kind == "label":
            return self._read_label(head.modality, encoded).flatten(1)
        if head.kind.startswith("dense"):
            return self._dense(encoded)
        predictions = self.reconstruct(encoded)
        return {name: self.adapter(name).restore(x) for name, x in predictions.items()}

    def forward_features(
        self,
        inputs: Mapping[str, Tensor] | Tensor,
        *,
        present: Mapping[str, Tensor] | None = None,
    ) -> HiPEncoded:
        """Return the latents of every encoder level, ``[B, G, N, C]``; arguments as ``forward``."""
        return self.encode(self.as_dict(inputs), present=present)

    def encode(
        self,
        inputs: Mapping[str, Tensor],
        plan: MaskPlan | None = None,
        *,
        present: Mapping[str, Tensor] | None = None,
    ) -> HiPEncoded:
        """Encode the elements that ``plan`` leaves visible, or all without a plan.

        Raises:
            InputError: An input or an entry of ``present`` is unknown or has a wrong shape, or
                there is no input.
        """
        return self.encoder(inputs, plan, present)

    def decode(self, encoded: HiPEncoded) -> Float[Tensor, "B G N C"]:
        """Return the latents of the last decoder level.

        Raises:
            ConfigError: The model was built without a decoder.
        """
        if self.decoder is None:
            raise ConfigError(
                "this model has no decoder; build it with decoder=True to reconstruct"
            )
        return self.decoder(encoded)

    def reconstruct(
        self,
        encoded: HiPEncoded,
        plan: MaskPlan | None = None,
        *,
        chunk_size: int | None = None,
        latents: Float[Tensor, "B G N C"] | None = None,
    ) -> dict[str, Tensor]:
        """Reconstruct every modality, as normalised values.

        With a packed plan only its masked slots are queried, ``[B, g, Q, C]``; otherwise all
        elements, ``[B, N, C]``. Bottleneck labels are always complete, ``[B, N, C]``.

        Args:
            encoded: Output of ``encode``.
            plan: The plan that ``encode`` was called with.
            chunk_size: Maximum number of queries per group in memory; ``config.decode_chunk`` by
                default.
            latents: Output of ``decode`` if it was computed already.

        Raises:
            ConfigError: The model was built without a decoder.
        """
        latents = self.decode(encoded) if latents is None else latents
        assert self.decoder is not None
        sources, mask = self.decoder.sources(encoded, latents)
        predictions = {}
        for share in encoded.layout.shares:
            queries = self.encoder.inputs.rows(encoded.layout, share)  # [1, g, S, P]
            masked = None if plan is None else plan.masked.get(share.name)
            if masked is not None:
                queries = gather_slots(queries, masked)
            own, seen = sources, mask
            if encoded.layout.axis == "groups":
                own = encoded.layout.part(sources, share.name)
                seen = None if mask is None else encoded.layout.part(mask, share.name)
            values = self.decoder.readout(share.name, queries, own, chunk_size, seen)
            predictions[share.name] = values if masked is not None else share.merge(values)
        for name in encoded.labels:
            predictions[name] = self._read_label(name, encoded)
        return predictions

    # -- helpers -----------------------------------------------------------------------------

    def layout(self) -> GroupLayout:
        """Return the assignment of groups to the declared modalities, for ``draw_mask_plan``."""
        return self.config.layout()

    def adapter(self, name: str) -> ElementAdapter:
        """Return the adapter of a modality."""
        labels = self.encoder.labels
        home = labels if labels is not None and name in self.config.labels else self.encoder.inputs
        adapter = home.adapters[name]
        assert isinstance(adapter, ElementAdapter)
        return adapter

    @property
    def encoded_inputs(self) -> Mapping[str, ModalitySpec]:
        """Modalities that the encoder reads: all but labels at the bottleneck."""
        return self.config.grouped_inputs

    @property
    def predicted_labels(self) -> tuple[str, ...]:
        """Labels at the bottleneck."""
        return tuple(self.config.labels)

    @property
    def segmented_modality(self) -> str | None:
        """Modality of a dense head."""
        head = self.config.head
        return head.modality if head.kind.startswith("dense") else None

    @property
    def result_names(self) -> tuple[str, ...]:
        """Reconstructions of all inputs, or the output of the head."""
        if self.config.head.kind != "none":
            return ("output",)
        names = (*self.encoded_inputs, *self.predicted_labels)
        return tuple(f"{name}_reconstruction" for name in names)

    def features(
        self, inputs: Mapping[str, Tensor], *, present: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the latents of the processor, ``[B, n, D]``."""
        encoded = self.forward_features(inputs, present=present)
        return {"latents": encoded.processor.flatten(1, 2)}

    def count_tokens(self) -> dict[str, tuple[int, int]]:
        """Return the number of tokens, which are elements, and of groups of every modality."""
        groups = {share.name: share.num_groups for share in self.config.layout().shares}
        specs = self.config.data_inputs
        return {name: (spec.num_tokens, groups[name]) for name, spec in specs.items()}

    def position_tables(self) -> dict[str, LearnedPositions]:
        """Return the learned positions of the inputs, by modality."""
        found = self.encoder.inputs.positions.items()
        return {name: each for name, each in found if isinstance(each, LearnedPositions)}

    def describe(self) -> tuple[str, str]:
        """Return the size of the processor's latents and the groups of every level."""
        middle = self.config.levels[self.config.processor]
        groups = "-".join(str(level.num_groups) for level in self.config.levels)
        return f"{middle.num_latents} x {middle.latent_dim}", f"groups {groups}"

    def layer_depths(self) -> dict[str, int]:
        """Return a depth per parameter, for layer-wise learning-rate decay.

        Inputs have depth 0, every cross-attention and self-attention layer adds one, and output
        layers share the last depth.
        """
        depth = 1
        depths: dict[str, int] = {}
        for i in range(self.config.element_layers):
            depths[f"encoder.elements.layers.{i}."] = depth
            depth += 1
        blocks = [(f"encoder.blocks.{i}", block) for i, block in enumerate(self.encoder.blocks)]
        if self.decoder is not None:
            blocks += [(f"decoder.blocks.{i}", b) for i, b in enumerate(self.decoder.blocks)]
        for prefix, block in blocks:
            assert isinstance(block, PerceiverBlock)
            depths[f"{prefix}.latents"] = depths[f"{prefix}.read."] = depth
            for i in range(len(block.layers)):
                depths[f"{prefix}.layers.{i}."] = depth + 1 + i
            depth += 1 + len(block.layers)
        depths |= {"decoder.": depth, "head.": depth, "encoder.inputs.": 0, "encoder.labels.": 0}
        return {
            name: next(at for prefix, at in depths.items() if name.startswith(prefix))
            for name, _ in self.named_parameters()
        }

    def set_recompute(self, on: bool = True) -> None:
        """Recompute self-attention layers in the backward pass (activation checkpointing)."""
        for module in self.modules():
            if isinstance(module, PerceiverBlock | ElementMixing):
                module.recompute = on

    def resized(self, inputs: Mapping[str, ModalitySpec]) -> "HiP":
        """Return a copy for other input sizes, with learned positions interpolated.

        Raises:
            ConfigError: The modalities, their kinds or their channels differ.
        """
        old = self.config.inputs
        if list(inputs) != list(old) or any(
            (type(inputs[n]), inputs[n].channels) != (type(old[n]), old[n].channels) for n in old
        ):
            raise ConfigError(
                f"a model of {dict(old)} cannot be resized to {dict(inputs)}: names, kinds and "
                f"channels must stay"
            )
        model = type(self)(change(self.config, inputs=inputs)).to(next(self.parameters()))
        state = dict(self.state_dict())
        for name, spec in inputs.items():
            for part in ("inputs", "labels"):
                key = f"encoder.{part}.positions.{name}.table"
                if key in state:
                    stride = self.config.position_stride if part == "inputs" else 1
                    grids = (coarse_grid(each.grid, stride) for each in (old[name], spec))
                    state[key] = resize_table(state[key], *grids)
        model.load_state_dict(state)
        return model.train(self.training)

    def _read_label(self, name: str, encoded: HiPEncoded) -> Float[Tensor, "B N K"]:
        assert self.encoder.labels is not None
        readout = self.head if self.decoder is None else self.decoder.label_readout
        assert isinstance(readout, ReadOut)
        rows = self.encoder.labels.positions[name]()
        return readout(name, rows[None, None], encoded.processor).squeeze(1)

    def _dense(self, encoded: HiPEncoded) -> Float[Tensor, "B ..."]:
        head = self.config.head
        assert isinstance(self.head, ReadOut)
        share = next((s for s in encoded.layout.shares if s.name == head.modality), None)
        if share is None:
            raise InputError(
                f"head {head.kind!r} needs the input {head.modality!r}, which is missing; pass it, "
                f"or build the model with deal_over='declared'"
            )
        queries = self.encoder.inputs.rows(encoded.layout, share)
        if head.kind == "dense_bottleneck":
            queries = share.merge(queries).unsqueeze(1)  # [1, 1, N, P]
            values = self.head(head.modality, queries, encoded.processor).squeeze(1)
        else:
            latents = self.decode(encoded)
            if encoded.layout.axis == "groups":
                latents = encoded.layout.part(latents, head.modality)
            values = share.merge(self.head(head.modality, queries, latents))
        return self.adapter(head.modality).unflatten(values)
