"""HiP's encoder: embeds raw elements with positions, divides them into groups, encodes them.

Legend: B batch, G groups, g groups of one modality, S slots per group, K visible slots, U groups of
a plan, N elements, C channels, E channels of a token, P channels of a position.
Paper: HiP (arXiv 2202.10890) Sec. 3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from perceivers.adapters import ElementAdapter
from perceivers.adapters.elements import is_point
from perceivers.adapters.multimodal import check_present
from perceivers.errors import InputError, suggest
from perceivers.masking import MaskPlan
from perceivers.models.hip.config import HiPConfig
from perceivers.models.hip.elements import ElementMixing
from perceivers.nn.blocks import PerceiverBlock, Read, SelfAttentionLayer
from perceivers.nn.chunking import map_chunks, may_chunk
from perceivers.nn.grouping import GroupLayout, Share, regroup
from perceivers.nn.linear import Linear
from perceivers.nn.positions import FourierPositions, InterpolatedPositions, LearnedPositions
from perceivers.types import ModalitySpec

# Number of slots in a batch above which the first cross-attention is computed in chunks, and number
# of slots in a chunk.
CHUNKED_FROM = 1 << 18
CHUNK_SLOTS = 1 << 17


@dataclass(frozen=True)
class HiPEncoded:
    """Output of the encoder.

    Attributes:
        levels: Latents of every level up to the processor.
        layout: Assignment of groups to modalities.
        labels: Bottleneck labels that have tokens at the processor.
        tokens: Input tokens; only with ``query_elements``.
        mask: Mask of these tokens; None if all are valid.
    """

    levels: tuple[Tensor, ...]
    layout: GroupLayout
    labels: tuple[str, ...] = ()
    tokens: Tensor | None = None
    mask: Tensor | None = None

    @property
    def processor(self) -> Float[Tensor, "B 1 N C"]:
        """Latents of the processor."""
        return self.levels[-1]


def gather_slots(
    x: Shaped[Tensor, "#B G S *C"], ids: Int[Tensor, "B U K"]
) -> Shaped[Tensor, "B G K *C"]:
    """Gather slots of every group by index; the indices are per group, or shared (U = 1)."""
    batch, groups = ids.shape[0], x.shape[1]
    ids = ids.expand(batch, groups, -1)
    x = x.expand(batch, *x.shape[1:])
    return x.gather(2, ids[(...,) + (None,) * (x.ndim - 3)].expand(-1, -1, -1, *x.shape[3:]))


def make_block(config: HiPConfig, index: int) -> PerceiverBlock:
    """Build level ``index``; the model initialises its weights."""
    level = config.levels[index]
    below = config.levels[index - 1].latent_dim if index else config.input_dim
    mirror = config.levels[len(config.levels) - 1 - index]
    rates = drop_path_rates(config)
    first = sum(each.depth for each in config.levels[:index])
    return PerceiverBlock(
        read=Read(
            query_dim=level.latent_dim,
            token_dim=below,
            num_heads=level.num_cross_heads,
            mlp_ratio=level.cross_mlp_ratio,
            activation=config.activation,
            qk_dim=level.cross_dim,
            skip_dim=mirror.latent_dim if index > config.processor else 0,
        ),
        layers=[
            SelfAttentionLayer(
                dim=level.latent_dim,
                num_heads=level.num_heads,
                mlp_ratio=level.mlp_ratio,
                activation=config.activation,
                dropout_rate=config.dropout_rate,
                drop_path_rate=rates[first + i],
                drop_path_rescale=config.drop_path_rescale,
            )
            for i in range(level.depth)
        ],
        latents=torch.zeros(level.num_groups, level.num_latents, level.latent_dim),
        train_latents=level.train_latents,
    )


def drop_path_rates(config: HiPConfig) -> list[float]:
    """Return the rate of stochastic depth of every self-attention layer of the model."""
    total = sum(level.depth for level in config.levels)
    if config.drop_path_schedule == "constant":
        return [config.drop_path_rate] * total
    return [config.drop_path_rate * i / max(total - 1, 1) for i in range(total)]


def make_positions(config: HiPConfig, spec: ModalitySpec) -> LearnedPositions | FourierPositions:
    """Build the position embeddings of a modality; the model initialises learned ones."""
    if config.positions == "fourier":
        return FourierPositions(grid=spec.grid, num_bands=config.num_bands, dim=config.fourier_dim)
    if config.position_stride > 1:
        return InterpolatedPositions(
            grid=spec.grid, dim=config.position_dim, stride=config.position_stride
        )
    return LearnedPositions(num_tokens=spec.num_tokens, dim=config.position_dim)


class InputEmbedding(nn.Module):
    """Converts raw tensors to grouped tokens, and position embeddings to grouped queries.

    With a packed plan, masked elements are dropped before anything is computed from them. Padding
    of texts and missing points are never attended to.
    """

    def __init__(self, config: HiPConfig) -> None:
        super().__init__()
        self.config = config
        specs = config.grouped_inputs
        self.adapters = nn.ModuleDict({n: ElementAdapter(n, s) for n, s in specs.items()})
        self.embed = nn.ModuleDict(
            {
                name: nn.Embedding(spec.channels, config.token_dim)
                if spec.kind == "bytes"
                else Linear(spec.channels, config.token_dim)
                for name, spec in specs.items()
            }
        )
        self.positions = nn.ModuleDict(
            {name: make_positions(config, spec) for name, spec in specs.items()}
        )
        # By modality or, as in released parameters, by the index of the modality in a call.
        keys = {
            "none": [],
            "modality": list(specs),
            "slot": [str(place) for place in range(config.position_slots)],
        }[config.project_positions]
        self.project = nn.ModuleDict(
            {key: Linear(config.position_dim, config.token_dim, bias=False) for key in keys}
        )
        self.product = (
            Linear(config.token_dim, config.token_dim, bias=False)
            if config.multiplies_positions
            else None
        )

    def rows(self, layout: GroupLayout, share: Share) -> Float[Tensor, "1 g S P"]:
        """Return projected, grouped position embeddings of one modality, shared by all samples."""
        rows = self._project(self.positions[share.name](), layout, share)
        return share.split(rows.unsqueeze(0))

    def rows_of_groups(
        self, layout: GroupLayout, share: Share, groups: range
    ) -> Float[Tensor, "1 g S P"]:
        """Return ``rows`` of some groups without computing the others; raster order only."""
        positions = self.positions[share.name]
        assert isinstance(positions, InterpolatedPositions)
        start, stop = (
            min(group * share.size, share.length) for group in (groups[0], groups[-1] + 1)
        )
        rows = self._project(positions.part(start, stop), layout, share)
        return replace(share, length=stop - start, num_groups=len(groups)).split(rows.unsqueeze(0))

    def _project(self, rows: Tensor, layout: GroupLayout, share: Share) -> Float[Tensor, "N E"]:
        if self.config.project_positions != "none":
            place = layout.shares.index(share)
            key = share.name if self.config.project_positions == "modality" else str(place)
            rows = self.project[key](rows)
        return rows

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        layout: GroupLayout,
        plan: MaskPlan | None,
        present: Mapping[str, Tensor],
    ) -> tuple[Float[Tensor, "B G K E"], Bool[Tensor, "#B G 1 K"] | None]:
        """Return the visible tokens and their attention mask, which is None if all are valid."""
        batch = next(iter(inputs.values())).shape[0]
        # Without a mask attention is faster, so one is built only where a slot may be invalid.
        hidden = plan is not None and not plan.is_packed
        hidden |= any(share.name not in inputs for share in layout.shares)
        hidden |= layout.is_padded and self.config.mask_padding
        hidden |= bool(present)
        tokens, valid = [], []
        for share in layout.shares:
            kept = None if plan is None else plan.kept.get(share.name)
            rows = self.rows(layout, share)
            raw = inputs.get(share.name)
            lacks = raw is not None and self.may_lack(share.name)
            real = self.real(raw, share, rows.device)
            if kept is not None:
                rows, real = gather_slots(rows, kept), gather_slots(real, kept)
            x = self._tokens(raw, share, rows, kept, batch)
            if share.is_padded or lacks:
                x = torch.where(real.unsqueeze(-1), x, 0.0)
            hidden |= lacks
            seen = real if self.config.mask_padding or lacks else torch.ones_like(real)
            if raw is None:
                seen = torch.zeros_like(seen)
            elif plan is not None and share.name in plan.keep:
                seen = seen & plan.keep[share.name]
            if share.name in present:
                seen = seen & present[share.name][:, None, None]
            tokens.append(x)
            valid.append(seen)
        mask = None
        if hidden:
            size = max(seen.shape[0] for seen in valid)
            mask = layout.join([seen.expand(size, -1, -1) for seen in valid]).unsqueeze(2)
        return layout.join(tokens), mask

    def _tokens(
        self, raw: Tensor | None, share: Share, rows: Tensor, kept: Tensor | None, batch: int
    ) -> Tensor:
        if raw is None:
            return rows.new_zeros(batch, rows.shape[1], rows.shape[2], self.config.input_dim)
        values = self.slots(raw, share)
        return self.embed_slots(
            share.name, values if kept is None else gather_slots(values, kept), rows
        )

    def may_lack(self, name: str) -> bool:
        """Return whether elements of a modality may be missing: texts and ragged points."""
        return self._adapter(name).may_lack

    def real(
        self, raw: Tensor | None, share: Share, device: torch.device
    ) -> Bool[Tensor, "#B g S"]:
        """Return which slots hold an element of a modality.

        Without ``raw``, or if no elements can be missing, the result is the same for all samples.
        """
        own = None if raw is None else self._adapter(share.name).real(raw)
        if own is None:
            return share.valid(device).unsqueeze(0)
        # Exported graphs cannot pad booleans.
        return share.split(own.to(torch.uint8).unsqueeze(-1)).squeeze(-1).bool()

    def slots(self, raw: Tensor, share: Share) -> Shaped[Tensor, "B g S c"]:
        """Return the grouped raw values of one modality; a view if nothing is padded."""
        values = self._adapter(share.name).flatten(raw)
        return share.split(values if values.ndim == 3 else values.unsqueeze(-1))

    def embed_slots(
        self, name: str, values: Shaped[Tensor, "B g K c"], rows: Float[Tensor, "#B g K P"]
    ) -> Float[Tensor, "B g K E"]:
        """Embed raw values of one modality, and add or append their position embeddings."""
        x = self._content(name, values)
        if self.product is not None:
            return x + rows + x * self.product(rows)
        if self.config.positions == "learned":
            return x + rows
        return torch.cat([x, rows.to(x.dtype).expand(x.shape[0], -1, -1, -1)], -1)

    def _content(self, name: str, values: Shaped[Tensor, "B g K c"]) -> Float[Tensor, "B g K E"]:
        """Embed raw values of one modality; results for missing elements are finite but invalid."""
        adapter, embed = self._adapter(name), self.embed[name]
        if adapter.spec.indexed:
            values = values.squeeze(-1)
        if isinstance(embed, nn.Embedding):
            return embed(values.long())
        assert isinstance(embed, nn.Linear)
        elements = adapter.normalise(values, embed.weight.dtype)
        if adapter.may_lack:
            # Even under a mask, NaN would reach the gradient of the weights.
            elements = torch.where(is_point(elements).unsqueeze(-1), elements, 0.0)
        return embed(elements)

    def _adapter(self, name: str) -> ElementAdapter:
        adapter = self.adapters[name]
        assert isinstance(adapter, ElementAdapter)
        return adapter


class LabelEmbedding(nn.Module):
    """Tokens of the labels that enter at the processor (class-bottleneck template, released code).

    A label that is not given is to be predicted: its token is the position embedding alone.
    """

    def __init__(self, config: HiPConfig) -> None:
        super().__init__()
        specs = {name: config.inputs[name] for name in config.labels}
        self.adapters = nn.ModuleDict({n: ElementAdapter(n, s) for n, s in specs.items()})
        self.embed = nn.ModuleDict(
            {n: Linear(s.channels, config.label_dim) for n, s in specs.items()}
        )
        self.positions = nn.ModuleDict(
            {
                n: LearnedPositions(num_tokens=s.num_tokens, dim=config.label_dim)
                for n, s in specs.items()
            }
        )

    def forward(
        self, inputs: Mapping[str, Tensor], names: Sequence[str], batch: int
    ) -> list[Float[Tensor, "B 1 N C"]]:
        """Return one array of tokens per label modality in ``names``."""
        tokens = []
        for name in names:
            adapter, rows = self.adapters[name], self.positions[name]()
            if name in inputs:
                assert isinstance(adapter, ElementAdapter)
                embed = self.embed[name]
                assert isinstance(embed, nn.Linear)
                values = adapter.normalise(adapter.flatten(inputs[name]), embed.weight.dtype)
                tokens.append((embed(values) + rows).unsqueeze(1))
            else:
                tokens.append(rows.expand(batch, 1, -1, -1))
        return tokens


class HiPEncoder(nn.Module):
    """Encodes raw inputs to the latents of every level up to the processor.

    Args:
        config: Configuration of the model.
    """

    def __init__(self, config: HiPConfig) -> None:
        super().__init__()
        self.config = config
        self.inputs = InputEmbedding(config)
        self.elements = ElementMixing(config) if config.element_layers else None
        self.labels = LabelEmbedding(config) if config.labels else None
        self.blocks = nn.ModuleList(make_block(config, i) for i in range(config.processor + 1))

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        plan: MaskPlan | None = None,
        present: Mapping[str, Tensor] | None = None,
    ) -> HiPEncoded:
        """Encode a batch; with a ``plan``, only its visible elements.

        Raises:
            InputError: An input or an entry of ``present`` is unknown or has a wrong shape, or
                there is no input.
        """
        grouped = self._check(inputs)
        check_present(present or {}, inputs)
        layout = self.config.layout(tuple(grouped))
        labels = self._labels(inputs)
        first, *rest = self.blocks
        assert isinstance(first, PerceiverBlock)
        tokens = mask = None
        if plan is None and not present and self._reads_in_chunks(grouped, layout):
            x = first.transform(self._read_in_chunks(grouped, layout))
        else:
            tokens, mask = self.inputs(grouped, layout, plan, present or {})
            if self.elements is not None:
                tokens = self.elements(tokens, mask, self._angles(layout, plan))
            x = first(tokens, mask)
        levels: list[Tensor] = [x]
        for index, block in enumerate(rest, start=1):
            x = regroup(x, self.config.levels[index].num_groups, self.config.regroup)
            if index == self.config.processor and self.labels is not None:
                x = torch.cat([x, *self.labels(inputs, labels, x.shape[0])], dim=2)
            x = block(x)
            levels.append(x)
        if not self.config.carries_elements:
            tokens = mask = None
        return HiPEncoded(tuple(levels), layout, labels, tokens, mask)

    def _angles(
        self, layout: GroupLayout, plan: MaskPlan | None
    ) -> Float[Tensor, "b G K P"] | None:
        kept = {} if plan is None else plan.kept

        def pick(angles: Tensor, share: Share) -> Tensor:
            return gather_slots(angles, kept[share.name]) if share.name in kept else angles

        assert self.elements is not None
        return self.elements.angles(layout, pick)

    def _reads_in_chunks(self, inputs: Mapping[str, Tensor], layout: GroupLayout) -> bool:
        """Return whether the first cross-attention is large, and its intermediates are not needed.

        They are needed for attention weights, hooks, ``query_elements`` and element layers.
        """
        # Checked first: an exported graph must not depend on the batch size.
        if not may_chunk():
            return False
        first = self.blocks[0]
        assert isinstance(first, PerceiverBlock)
        batch = next(iter(inputs.values())).shape[0]
        slots = sum(share.num_groups * share.slots for share in layout.shares)
        return (
            batch * slots >= CHUNKED_FROM
            and not self.config.carries_elements
            and self.elements is None
            and layout.axis == "groups"
            and all(share.name in inputs for share in layout.shares)
            and first.read.attention.path == "sdpa"
            and first.runs_as_it_is
        )

    def _read_in_chunks(
        self, inputs: Mapping[str, Tensor], layout: GroupLayout
    ) -> Float[Tensor, "B G N C"]:
        """Compute the first cross-attention for a few groups at a time to bound memory.

        Only raw inputs and latents are stored for the backward pass.
        """
        first, embedding = self.blocks[0], self.inputs
        assert isinstance(first, PerceiverBlock)
        raw = next(iter(inputs.values()))
        queries, found, start = first.queries(raw.shape[0], raw.device), [], 0
        for share in layout.shares:
            name, groups = share.name, share.num_groups
            # Interpolated positions are computed per chunk too: all of them would take gigabytes.
            inside = self.config.position_stride > 1 and not share.is_reordered
            lacks = embedding.may_lack(name)

            def read(
                values: Tensor,
                rows: Tensor,
                asked: Tensor,
                real: Tensor,
                share: Share = share,
                inside: bool = inside,
                lacks: bool = lacks,
            ) -> Tensor:
                if inside:
                    some = range(int(rows[0, 0]), int(rows[0, -1]) + 1)
                    rows = embedding.rows_of_groups(layout, share, some)
                tokens = embedding.embed_slots(share.name, values, rows)
                mask = None
                if layout.is_padded or lacks:
                    tokens = torch.where(real.unsqueeze(-1), tokens, 0.0)
                    mask = real.unsqueeze(2) if self.config.mask_padding or lacks else None
                return first.read(asked, tokens, mask)

            pieces = (
                embedding.slots(inputs[name], share),
                torch.arange(groups)[None] if inside else embedding.rows(layout, share),
                queries[:, start : start + groups],
                embedding.real(inputs[name], share, raw.device),
            )
            modules = [embedding.embed[name], first.read]
            if embedding.product is not None:
                modules.append(embedding.product)
            if inside:
                modules += [embedding.positions[name], *embedding.project.values()]
            length = max(1, CHUNK_SLOTS // (raw.shape[0] * share.slots))
            found.append(map_chunks(read, pieces, modules, length=length))
            start += groups
        return torch.cat(found, dim=1) if len(found) > 1 else found[0]

    def _labels(self, inputs: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Return the bottleneck labels that get tokens: all, or (as released) those given."""
        if self.config.deal_over == "declared":
            return self.config.labels
        return tuple(name for name in inputs if name in self.config.labels)

    def _check(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Check the inputs and return those that pass through the hierarchy."""
        declared = self.config.inputs
        for name, raw in inputs.items():
            if name not in declared:
                raise InputError(
                    f"input {name!r} is unknown; the model takes {list(declared)}"
                    + suggest(name, declared)
                )
            if not isinstance(raw, Tensor) or raw.ndim == 0:
                raise InputError(f"input {name!r} must be a tensor with a batch axis, got {raw!r}")
        # Declared order; with deal_over="present" the order of the call, as in the released code.
        order = inputs if self.config.deal_over == "present" else declared
        grouped = {n: inputs[n] for n in order if n in inputs and n not in self.config.labels}
        if not grouped:
            raise InputError(f"no input given; the model needs at least one of {list(declared)}")
        sizes = {name: raw.shape[0] for name, raw in inputs.items()}
        first = next(iter(sizes.values()))
        # Not compared as a set, which would make the batch size a constant in exported graphs.
        if any(size != first for size in sizes.values()):
            raise InputError(f"inputs have different batch sizes {sizes}; they must be equal")
        return grouped
