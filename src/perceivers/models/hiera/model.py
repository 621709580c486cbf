"""Hiera: a hierarchical vision transformer made of attention only, for signals, images and videos.

Checks and normalises inputs, and converts between images and patches; the layers are in
``encoder.py`` and ``decoder.py``.

Legend: B batch, C channels, U mask units, K visible and Q masked units, T tokens of a unit, N
classes, P values of a patch, L length of a text, V size of the byte vocabulary, n bytes of a patch.
Paper: Hiera (arXiv 2306.00989).
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.adapters import ElementAdapter
from perceivers.adapters.elements import INTEGER_SCALE
from perceivers.errors import ConfigError, InputError
from perceivers.masking import MaskPlan, draw_units
from perceivers.models.base import SavedModule
from perceivers.models.hiera.config import HieraConfig, check_size
from perceivers.models.hiera.decoder import HieraPatchDecoder, SegmentationHead
from perceivers.models.hiera.encoder import (
    NORM_EPSILON,
    HieraBlock,
    HieraEncoded,
    HieraEncoder,
    initialise,
)
from perceivers.models.hiera.positions import carry_positions, split_window
from perceivers.nn.linear import Linear
from perceivers.nn.mask_units import gather_units
from perceivers.settings import change
from perceivers.types import PAD, ModalitySpec

# -- Shared by Hiera and HieraDet: inputs, depths of parameters, feature pyramid -----------------
#
# Legend: B batch, C channels.


@dataclass(frozen=True)
class Pyramid:
    """Feature maps of all stages of a backbone, for detection and segmentation.

    Attributes:
        maps: ``[B, C, *grid]`` per stage, from fine to coarse.
        strides: Input elements per cell along each axis, per stage.
        channels: Channels C per stage.
    """

    maps: tuple[Tensor, ...]
    strides: tuple[tuple[int, ...], ...]
    channels: tuple[int, ...]


class Backbone(SavedModule):
    """Base class of models with an encoder of blocks over one modality of any size.

    Attributes:
        input: Adapter of the modality.
        encoder: Module with attributes ``blocks`` and ``recompute``.
    """

    input: ElementAdapter
    encoder: Any

    @abstractmethod
    def forward_features(self, inputs: Mapping[str, Tensor] | Tensor) -> Pyramid:
        """Return the feature maps of all stages."""

    def adapter(self, name: str) -> ElementAdapter:
        """Return the adapter of the modality.

        Raises:
            InputError: The model reads another modality.
        """
        if name != self.config.name:
            raise InputError(f"this model reads {self.config.name!r}, not {name!r}")
        return self.input

    @property
    def feature_names(self) -> tuple[str, ...]:
        """A map per stage."""
        return tuple(f"stage_{stage}" for stage in range(len(self.config.depths)))

    def features(
        self, inputs: Mapping[str, Tensor], *, present: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the feature map of every stage, ``[B, C, *grid]``, from fine to coarse."""
        assert not present  # one modality, which no sample may lack
        return dict(zip(self.feature_names, self.forward_features(inputs).maps, strict=True))

    def feature_tokens(
        self, inputs: Mapping[str, Tensor], *, present: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "B n D"]:
        """Return the cells of the last map, row by row."""
        last = self.features(inputs, present=present)[self.feature_names[-1]]
        return last.flatten(2).transpose(1, 2)

    def count_tokens(self) -> dict[str, tuple[int, int]]:
        """Return the number of tokens of the first stage; there is one group."""
        return {self.config.name: (self._count_cells(0), 1)}

    def describe(self) -> tuple[str, str]:
        """Return the number and width of the tokens of the last stage, and the blocks."""
        config, last = self.config, len(self.config.depths) - 1
        depths = "-".join(map(str, config.depths))
        tokens = f"{self._count_cells(last)} x {config.dim * 2**last}"
        return tokens, f"blocks {depths}, width {config.dim}, {self._describe_attention()}"

    @abstractmethod
    def _describe_attention(self) -> str: ...

    def _count_cells(self, stage: int) -> int:
        pairs = zip(self.config.spec.grid, self.config.stride(stage), strict=True)
        return prod(-(-size // stride) for size, stride in pairs)

    def layer_depths(self) -> dict[str, int]:
        """Return a depth per parameter, for layer-wise learning-rate decay.

        Stem and positions have depth 0, each block adds one, everything else has the last depth.
        """
        blocks = {f"encoder.blocks.{i}.": i + 1 for i in range(len(self.encoder.blocks))}
        last = len(blocks) + 1
        depths = {**blocks, "encoder.": 0}
        return {
            name: next((at for prefix, at in depths.items() if name.startswith(prefix)), last)
            for name, _ in self.named_parameters()
        }

    def set_recompute(self, on: bool = True) -> None:
        """Recompute blocks in the backward pass (activation checkpointing) to save memory."""
        self.encoder.recompute = on

    def channels_last(self, inputs: Mapping[str, Tensor] | Tensor) -> Shaped[Tensor, "B *size C"]:
        """Check the raw input except for its size, and return it with channels last.

        Texts become one-hot vectors of their bytes; padding becomes zeros.

        Raises:
            InputError: The modality, number of axes, number of channels or dtype is wrong.
        """
        given, name, spec = self.as_dict(inputs), self.config.name, self.config.spec
        if list(given) != [name]:
            raise InputError(f"this model reads {[name]}, but was given {list(given)}")
        raw = given[name]
        if not isinstance(raw, Tensor) or raw.ndim != len(spec.raw_shape) + 1:
            found = tuple(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
            raise InputError(f"input {name!r} is {found}; expected a batch of {spec.raw_shape}")
        if spec.kind == "bytes":
            if raw.is_floating_point() or raw.dtype == torch.bool:
                raise InputError(f"input {name!r} has dtype {raw.dtype}; byte ids are integers")
            # Padding is not a byte. Multiplying by the mask makes its one-hot vector zero.
            return F.one_hot(raw.long(), spec.channels).float() * (raw != PAD).unsqueeze(-1)
        raw = raw.movedim(1, -1) if spec.channels_first else raw
        if raw.shape[-1] != spec.channels:
            raise InputError(
                f"input {name!r} has {raw.shape[-1]} channels; this model reads {spec.channels}"
            )
        if not (raw.is_floating_point() or raw.dtype in INTEGER_SCALE):
            raise InputError(
                f"input {name!r} has dtype {raw.dtype}; use float32, or uint8 (0..255) or int16"
            )
        return raw

    def check_resizable(self, inputs: Mapping[str, ModalitySpec]) -> None:
        """Require the same modality with the same channels.

        Raises:
            ConfigError: They differ.
        """
        old, new = self.config.spec, next(iter(inputs.values()), None)
        if list(inputs) != [self.config.name] or new is None or type(new) is not type(old):
            raise ConfigError(f"a model of {self.config.inputs} cannot be resized to {inputs}")
        if new.channels != old.channels:
            raise ConfigError(f"a model of {old} cannot be resized to {new}: channels must stay")


# -- Hiera ---------------------------------------------------------------------------------------


class Hiera(Backbone):
    """Hierarchical vision transformer over one modality with 1, 2 or 3 axes.

    Calling it returns logits, without a softmax, in training and in evaluation; the released code
    returns probabilities in evaluation. Input sizes must be multiples of the mask unit, unless
    ``pad`` is set.

    Args:
        config: The full configuration.
    """

    family = "hiera"
    # Fine-tuning transfers these. The norm of an autoencoder's tokens becomes that of their mean.
    core = ("encoder.", "norm.")
    repeated = (HieraBlock,)
    config: HieraConfig

    def __init__(self, config: HieraConfig) -> None:
        super().__init__()
        self.config = config
        self.input = ElementAdapter(config.name, config.spec)
        self.encoder = HieraEncoder(config)
        self.feature_norms = nn.ModuleDict(
            {str(stage): nn.LayerNorm(config.dims[stage]) for stage in config.feature_norms}
        )
        segments = config.head.kind == "segmentation"
        self.norm = None if segments else nn.LayerNorm(config.dims[-1], eps=NORM_EPSILON)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.head = self._make_head()
        self.decoder = None if config.decoder is None else HieraPatchDecoder(config)
        self.init_weights()

    def _make_head(self) -> nn.Module | None:
        config = self.config
        if config.head.kind == "mean":
            return Linear(config.dims[-1], config.head.num_outputs)
        if config.head.kind == "segmentation":
            return SegmentationHead(config)
        return None

    def init_weights(self) -> None:
        """Initialise every parameter as listed in ``models/hiera/encoder.py``."""
        initialise(self)

    # -- forward passes ----------------------------------------------------------------------

    def forward(
        self, inputs: Mapping[str, Tensor] | Tensor, *, pad: bool | None = None
    ) -> Float[Tensor, "B ..."] | dict[str, Tensor]:
        """Return logits ``[B, N]`` or ``[B, N, *size]``, the mean token, or a reconstruction.

        The reconstruction of a text is a score per entry of the byte vocabulary, ``[B, L, V]``.

        Args:
            inputs: Raw tensor, or dict of modality name -> raw tensor.
            pad: Pad the input to whole mask units; the setting of the config by default.

        Raises:
            InputError: The input has a wrong shape, or needs padding and ``pad`` is off.
        """
        raw = self._raw(inputs)
        x = self._normalise(raw, pad)
        if self.decoder is not None:
            encoded = self.encoder(x)
            whole = self.unpatch(self.reconstruct(encoded), encoded.units)
            whole = crop(whole, self._reconstructed(raw.shape[2:]))
            # Raw texts have no channel axis; their scores go last.
            return {self.config.name: whole.movedim(1, -1) if self.config.reads_text else whole}
        if isinstance(self.head, SegmentationHead):
            return crop(self.head(self._maps(self.encoder(x))), raw.shape[2:])
        encoded = self.encoder(x, self._drop_units(x))
        assert self.norm is not None
        pooled = self.norm(encoded.stages[-1].mean((1, 2)))
        return pooled if self.head is None else self.head(self.dropout(pooled))

    @property
    def segmented_modality(self) -> str | None:
        """Its modality, with a segmentation head."""
        return self.config.name if self.config.head.kind == "segmentation" else None

    @property
    def result_names(self) -> tuple[str, ...]:
        """The reconstruction, or the output of the head."""
        return ("output",) if self.decoder is None else (f"{self.config.name}_reconstruction",)

    def _describe_attention(self) -> str:
        return f"units {'x'.join(map(str, self.config.unit_size))}"

    def forward_features(
        self, inputs: Mapping[str, Tensor] | Tensor, *, pad: bool | None = None
    ) -> Pyramid:
        """Return the feature maps of all stages, with padding removed.

        Args:
            inputs: Raw tensor, or dict of modality name -> raw tensor.
            pad: Pad the input to whole mask units; the setting of the config by default.

        Raises:
            InputError: The input has a wrong shape, or needs padding and ``pad`` is off.
        """
        raw = self._raw(inputs)
        maps = self._maps(self.encoder(self._normalise(raw, pad)))
        strides = tuple(self.config.stride(stage) for stage in range(len(maps)))
        cropped = []
        for x, stride in zip(maps, strides, strict=True):
            cells = [-(-size // s) for size, s in zip(raw.shape[2:], stride, strict=True)]
            cropped.append(crop(x, cells))
        return Pyramid(maps=tuple(cropped), strides=strides, channels=self.config.dims)

    def _maps(self, encoded: HieraEncoded) -> list[Float[Tensor, "B _ ..."]]:
        maps = []
        for stage, tokens in enumerate(encoded.stages):
            if str(stage) in self.feature_norms:
                tokens = self.feature_norms[str(stage)](tokens)
            pools = self.config.stage_pools(stage)
            maps.append(self.config.layout.merge(tokens, encoded.units, pools).movedim(-1, 1))
        return maps

    def encode(
        self,
        inputs: Mapping[str, Tensor],
        plan: MaskPlan | None = None,
        *,
        pad: bool | None = None,
    ) -> HieraEncoded:
        """Encode the mask units that ``plan`` leaves visible, or all without a plan.

        Args:
            inputs: Raw tensor by modality name.
            plan: Mask over units, for this batch and input size.
            pad: Pad the input to whole mask units; the setting of the config by default.

        Raises:
            ConfigError: The plan does not mask whole units.
            InputError: As in ``forward``, or the plan is for another batch or input size.
        """
        x = self._normalise(self._raw(inputs), pad)
        if plan is None:
            return self.encoder(x)
        self._check_plan(plan, x.shape[0], self.num_units(tuple(x.shape[2:])))
        return self.encoder(x, plan.kept[self.config.name])

    def reconstruct(
        self, encoded: HieraEncoded, plan: MaskPlan | None = None
    ) -> Float[Tensor, "B Q T P"]:
        """Reconstruct the patches of the masked units, or of all units without a plan.

        Values are in the space that the model was trained in: normalised per channel or per patch.
        For texts they are scores; ``byte_scores`` arranges them by byte.

        Raises:
            ConfigError: The model was built without a decoder, or the plan does not mask whole
                units.
            InputError: The plan is for another batch or input size.
        """
        tokens = self.fuse(encoded)
        assert self.decoder is not None
        return self.decoder(tokens, encoded, self._masked(encoded, plan))

    def fuse(self, encoded: HieraEncoded) -> Float[Tensor, "B K T C"]:
        """Fuse and normalise the stages of an autoencoder.

        Raises:
            ConfigError: The model was built without a decoder.
        """
        if self.decoder is None:
            raise ConfigError(
                "this model has no decoder; build it with decoder=True to reconstruct"
            )
        assert self.norm is not None
        return self.norm(self.decoder.fusion(encoded.stages))

    def reconstruct_latents(
        self, encoded: HieraEncoded, plan: MaskPlan | None = None
    ) -> tuple[Float[Tensor, "B Q T P"], Float[Tensor, "B Q T C"]]:
        """Return values as in ``reconstruct``, and predicted latent tokens of the same units.

        Raises:
            ConfigError: As in ``reconstruct``, or the decoder has no ``latent_head``.
        """
        tokens = self.fuse(encoded)
        assert self.decoder is not None
        if self.decoder.latent_head is None:
            raise ConfigError("this model predicts no latents; build it with latent_head=True")
        x = self.decoder.decode(tokens, encoded, self._masked(encoded, plan))
        return self.decoder.predict(x), self.decoder.latent_head(x)

    def _masked(self, encoded: HieraEncoded, plan: MaskPlan | None) -> Int[Tensor, "B Q"] | None:
        if plan is None:
            return None
        self._check_plan(plan, encoded.stages[-1].shape[0], prod(encoded.units))
        return plan.masked[self.config.name]

    # -- patches -----------------------------------------------------------------------------

    def patches(
        self, raw: Tensor, masked: Tensor | None = None, *, pad: bool | None = None
    ) -> Float[Tensor, "B Q T P"]:
        """Return the reconstruction target: normalised patches of the masked units.

        Args:
            raw: Raw tensor as in ``forward``.
            masked: Indices of the units ``[B, Q]``; all by default.
            pad: Pad the input to whole mask units; the setting of the config by default.

        Raises:
            InputError: As in ``forward``.
        """
        return self._cut(self._normalise(self._raw(raw), pad), masked)

    def patch_ids(
        self, raw: Int[Tensor, "B L"], masked: Tensor | None = None, *, pad: bool | None = None
    ) -> Int[Tensor, "B Q T n"]:
        """Return the byte ids of the patches of a text, the counterpart of ``patches``.

        Args:
            raw: Raw tensor as in ``forward``.
            masked: Indices of the units ``[B, Q]``; all by default.
            pad: Pad the input to whole mask units; the setting of the config by default.
        """
        return self._cut(self._whole(raw.long().unsqueeze(1), pad), masked)

    def byte_scores(self, values: Float[Tensor, "B Q T P"]) -> Float[Tensor, "B Q T n V"]:
        """Arrange the output of ``reconstruct`` for a text as scores per byte."""
        entries = self.config.spec.channels
        if self._order() == "channels_first":
            return values.unflatten(-1, (entries, -1)).transpose(-1, -2)
        return values.unflatten(-1, (-1, entries))

    def _cut(
        self, x: Shaped[Tensor, "B C *size"], masked: Tensor | None
    ) -> Shaped[Tensor, "B Q T P"]:
        """Cut an input of whole mask units into patches, in unit order."""
        config, rank = self.config, len(self.config.patch)
        grid = [size // patch for size, patch in zip(x.shape[2:], config.patch, strict=True)]
        cells = [n for pair in zip(grid, config.patch, strict=True) for n in pair]
        split = x.reshape(*x.shape[:2], *cells)
        split = split.permute(0, *range(2, 2 + 2 * rank, 2), *range(3, 3 + 2 * rank, 2), 1)
        for axis, size in enumerate(config.target_patch):
            split = split.narrow(1 + rank + axis, 0, size)
        if self._order() == "channels_first":
            split = split.movedim(-1, 1 + rank)
        units = config.layout.split(split.reshape(x.shape[0], *grid, -1), config.pools)
        return units if masked is None else gather_units(units, masked)

    def unpatch(
        self,
        values: Shaped[Tensor, "B U T P"],
        units: tuple[int, ...],
        channels: int | None = None,
    ) -> Shaped[Tensor, "B C *size"]:
        """Assemble the patches of all units: the inverse of ``patches``.

        If only the first frame of a video patch is reconstructed, the result has these frames only.

        Args:
            values: Patches of all units.
            units: Mask units along each axis.
            channels: Values per element; those of the input by default, 1 for ``patch_ids``.
        """
        config = self.config
        rank, patch = len(units), config.target_patch
        channels = config.spec.channels if channels is None else channels
        grid = config.layout.merge(values, units, config.pools)
        first = self._order() == "channels_first"
        split = grid.unflatten(-1, (channels, *patch) if first else (*patch, channels))
        if first:
            split = split.movedim(1 + rank, -1)
        order = [axis for i in range(rank) for axis in (1 + i, 1 + rank + i)]
        split = split.permute(0, 1 + 2 * rank, *order)
        sizes = [g * p for g, p in zip(grid.shape[1:-1], patch, strict=True)]
        return split.reshape(values.shape[0], channels, *sizes)

    def _order(self) -> str:
        return "channels_first" if self.config.decoder is None else self.config.decoder.order

    # -- helpers -----------------------------------------------------------------------------

    def num_units(self, size: tuple[int, ...] | None = None) -> int:
        """Return the number of mask units of an input of ``size``, by default the native size.

        Raises:
            InputError: The size has a wrong number of axes, or is not positive.
        """
        size, unit = self.config.spec.grid if size is None else size, self.config.unit_size
        if len(size) != len(unit) or min(size) < 1:
            raise InputError(
                f"size {tuple(size)}: this model reads {len(unit)} axes of at least one element"
            )
        return prod([-(-n // u) for n, u in zip(size, unit, strict=True)])

    def resized(self, inputs: Mapping[str, ModalitySpec]) -> "Hiera":
        """Return a copy with another native size, for which position embeddings are resized.

        Raises:
            ConfigError: The modality, its kind or its channels differ.
        """
        self.check_resizable(inputs)
        model = type(self)(change(self.config, inputs=inputs)).to(next(self.parameters()))
        model.load_state_dict(carry_positions(self.config, model.config, self.state_dict()))
        return model.train(self.training)

    def with_window_positions(self) -> "Hiera":
        """Return a copy with absolute positions split into an interpolated and a tiled table.

        Outputs are equal up to rounding; at other sizes too if ``position_resize`` was ``window``.
        Unlike a single table, the copy keeps the two parts separate while it is trained at another
        size (arXiv 2311.05613).

        Raises:
            ConfigError: The positions are not absolute.
        """
        if self.config.positions != "absolute":
            raise ConfigError(
                f"positions are {self.config.positions!r}; only absolute positions can be split"
            )
        config = change(
            self.config,
            (),
            positions="window",
            position_grid=self.config.native_grid,
            position_resize="window",
            position_antialias=False,  # absolute tables are resized without antialiasing
        )
        model = type(self)(config).to(next(self.parameters()))
        state = self.state_dict()
        name = "encoder.positions."
        state[f"{name}table"], state[f"{name}window"] = split_window(
            state[f"{name}table"], config.native_grid, config.mask_unit
        )
        model.load_state_dict(state)
        return model.train(self.training)

    def _raw(self, inputs: Mapping[str, Tensor] | Tensor) -> Shaped[Tensor, "B C *size"]:
        return self.channels_last(inputs).movedim(-1, 1)

    def _normalise(self, raw: Tensor, pad: bool | None) -> Float[Tensor, "B C *size"]:
        x = self.input.normalise(raw.movedim(1, -1), self.encoder.stem.weight.dtype).movedim(-1, 1)
        return self._whole(x, pad)

    def _whole(self, x: Shaped[Tensor, "B C *size"], pad: bool | None) -> Shaped[Tensor, "B C ..."]:
        """Pad with zeros (the mean, after normalisation) to whole mask units, or check the size."""
        size, unit = tuple(x.shape[2:]), self.config.unit_size
        if 0 in size or not (self.config.pad if pad is None else pad):
            check_size(size, unit)
            return x
        missing = [-s % u for s, u in zip(size, unit, strict=True)]
        return nn.functional.pad(x, [n for amount in reversed(missing) for n in (0, amount)])

    def _reconstructed(self, size: Sequence[int]) -> list[int]:
        """Return the size of the reconstruction of an input of ``size``."""
        # Video: fewer frames than the input where only the first frame of a patch is predicted.
        pairs = zip(size, self.config.patch, self.config.target_patch, strict=True)
        return [n if whole == part else -(-n // whole) * part for n, whole, part in pairs]

    def _check_plan(self, plan: MaskPlan, batch: int, total: int) -> None:
        name = self.config.name
        if plan.axis != "unit" or not plan.is_packed or plan.names != [name]:
            raise ConfigError(
                f"a Hiera hides whole mask units of {name!r}; draw its plan with draw_unit_plan "
                f"(kind 'units')"
            )
        kept, masked = plan.kept[name].shape, plan.masked[name].shape
        if kept[0] != batch or masked[0] != batch or kept[1] + masked[1] != total:
            raise InputError(
                f"the plan keeps {tuple(kept)} and hides {tuple(masked)} units, but the input is a "
                f"batch of {batch} with {total} units; draw a plan for it"
            )

    def _drop_units(self, x: Tensor) -> Tensor | None:
        """Sample the units to train on if ``unit_drop_rate`` drops some."""
        if not self.training or self.config.unit_drop_rate == 0.0:
            return None
        total = self.num_units(tuple(x.shape[2:]))
        noise = torch.rand(x.shape[0], total, device=x.device)
        return draw_units(noise, self.config.unit_drop_rate)[0]


def crop(x: Shaped[Tensor, "B C *grid"], size: Sequence[int]) -> Shaped[Tensor, "B C *size"]:
    """Remove padding at the ends of the axes."""
    return x[(..., *(slice(n) for n in size))]
