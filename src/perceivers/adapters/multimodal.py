"""Joint token array of several modalities: padding to a common width, masking, missing modalities.

Legend: B batch, N tokens of a modality, M tokens of all modalities, D channels, E raw elements.
Paper: Perceiver IO (arXiv 2107.14795) App. I; Perceiver (arXiv 2103.03206) Sec. 4.2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from perceivers.adapters.config import TokenConfig
from perceivers.adapters.tokens import TokenReader
from perceivers.errors import ConfigError, InputError, suggest
from perceivers.types import ModalitySpec

# -- Missing modalities --------------------------------------------------------------------------


def check_present(present: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> None:
    """Check that presence masks fit the inputs.

    Args:
        present: Samples in which a modality is present, bool ``[B]``, by modality. Values are not
            inspected, so that graphs stay static.
        inputs: Raw tensors ``[B, ...]`` by modality.

    Raises:
        InputError: A modality is not among the inputs, or a mask has another dtype or shape.
    """
    for name, there in present.items():
        if name not in inputs:
            raise InputError(
                f"present contains {name!r}, which is not among the inputs {list(inputs)}"
                + suggest(name, inputs)
            )
        if there.dtype != torch.bool or there.ndim != 1 or there.shape[0] != inputs[name].shape[0]:
            raise InputError(
                f"present[{name!r}] is {there.dtype} of shape {tuple(there.shape)}; expected bool "
                f"[{inputs[name].shape[0]}], one entry per sample"
            )


# -- Joint token array ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """Tokens to which the latents attend.

    Attributes:
        array: Tokens of the given modalities ``[B, M, D]``, in the declared order.
        valid: Tokens that may be attended to ``[B, M]``; None for all.
        parts: All tokens of each modality before padding and masking ``[B, N, D']``.
        real: Valid raw elements ``[B, E]`` of the modalities in which elements may be missing.
    """

    array: Float[Tensor, "B M D"]
    valid: Bool[Tensor, "B M"] | None
    parts: Mapping[str, Tensor]
    real: Mapping[str, Tensor]


class TokenReaders(nn.Module):
    """Converts the raw tensors of all modalities to one array of tokens.

    The tokens of several modalities are padded to the width of the widest plus ``min_padding``,
    with a learned vector per modality, which also distinguishes them. A single modality has no
    padding.

    Args:
        inputs: Modalities by name.
        tokens: Token configs by modality.
        min_padding: Minimum number of padding channels.
        mask_tokens: Learn a mask token per modality (several modalities only).

    Raises:
        ConfigError: A modality has a ``mask_rate`` but no mask token.
    """

    def __init__(
        self,
        inputs: Mapping[str, ModalitySpec],
        tokens: Mapping[str, TokenConfig],
        *,
        min_padding: int,
        mask_tokens: bool,
    ) -> None:
        super().__init__()
        self.readers = nn.ModuleDict(
            {name: TokenReader(name, spec, tokens[name]) for name, spec in inputs.items()}
        )
        widths = {name: self.reader(name).dim for name in inputs}
        self.rates = {name: tokens[name].mask_rate for name in inputs}
        several = len(inputs) > 1
        self.dim = max(widths.values()) + (min_padding if several else 0)
        self.padding = nn.ParameterDict(
            {
                name: nn.Parameter(torch.zeros(self.dim - width))
                for name, width in widths.items()
                if width < self.dim
            }
        )
        self.mask = nn.ParameterDict(
            {n: nn.Parameter(torch.zeros(self.dim)) for n in widths}
            if several and mask_tokens
            else {}
        )
        for name, rate in self.rates.items():
            if rate and name not in self.mask:
                raise ConfigError(
                    f"input {name!r} is masked at mask_rate={rate}, but there is no mask token; "
                    f"give several modalities and mask_tokens=True, or mask_rate=0"
                )

    def reader(self, name: str) -> TokenReader:
        """Return the token reader of a modality."""
        reader = self.readers[name]
        assert isinstance(reader, TokenReader)
        return reader

    @property
    def num_tokens(self) -> dict[str, int]:
        """Number of tokens by modality."""
        return {name: self.reader(name).num_tokens for name in self.readers}

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        *,
        valid: Mapping[str, Tensor] | None = None,
        hidden: Mapping[str, Tensor] | None = None,
        kept: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tokens:
        """Return the tokens of the given modalities.

        Args:
            inputs: Raw tensors ``[B, ...]`` by modality; modalities may be left out.
            valid: Tokens that may be attended to, bool ``[B, N]``, by modality. Padding of texts
                and missing points are excluded in any case.
            hidden: Tokens to replace by the mask token, bool ``[B, N]``, by modality; sampled with
                the mask rate of the config by default.
            kept: Indices ``[B, K]`` of visible tokens, by modality; the others are dropped (masked
                autoencoding).
            present: Samples in which a modality is present, bool ``[B]``, by modality; all by
                default. Tokens of absent modalities are not attended to.
            dtype: Data type of the tokens.

        Raises:
            InputError: An input is unknown or has a wrong shape, there is no input, or a mask does
                not fit.
        """
        valid, hidden, kept, present = valid or {}, hidden or {}, kept or {}, present or {}
        self._check(inputs, valid, hidden, kept)
        check_present(present, inputs)
        parts: dict[str, Tensor] = {}
        real: dict[str, Tensor] = {}
        arrays, masks = [], []
        for name in self.readers:
            if name not in inputs:
                continue
            reader = self.reader(name)
            parts[name] = reader(inputs[name], dtype)
            array, mask = self._padded(name, parts[name], hidden), valid.get(name)
            elements = reader.real(inputs[name])
            if elements is not None:
                real[name] = elements
                tokens = reader.cover(elements)
                mask = tokens if mask is None else tokens & mask
            if name in present:
                there = present[name].unsqueeze(1).expand(-1, reader.num_tokens)
                mask = there if mask is None else mask & there
            if name in kept:
                rows = kept[name]
                array = array.gather(1, rows.unsqueeze(-1).expand(-1, -1, array.shape[-1]))
                mask = None if mask is None else mask.gather(1, rows)
            arrays.append(array)
            masks.append(mask)
        array = arrays[0] if len(arrays) == 1 else torch.cat(arrays, 1)
        return Tokens(array=array, valid=_join_masks(arrays, masks), parts=parts, real=real)

    def _padded(self, name: str, tokens: Tensor, hidden: Mapping[str, Tensor]) -> Tensor:
        """Pad tokens to the common width, and replace hidden ones by the mask token."""
        if name in self.padding:
            padding = self.padding[name].to(tokens.dtype)
            tokens = torch.cat([tokens, padding.expand(*tokens.shape[:2], -1)], -1)
        if name not in self.mask:
            return tokens
        rate = self.rates[name]
        mask = self.mask[name].to(tokens.dtype)
        if name in hidden:
            return torch.where(hidden[name].unsqueeze(-1), mask, tokens)
        if rate == 1.0:
            # Multiplied by zero, the padding vector stays in the graph, as data-parallel training
            # requires.
            return mask + 0.0 * tokens
        if self.training and rate > 0.0:
            drawn = torch.rand(tokens.shape[:2], device=tokens.device) < rate
            return torch.where(drawn.unsqueeze(-1), mask, tokens)
        return tokens

    def _check(self, inputs: Mapping[str, Tensor], *masks: Mapping[str, Tensor]) -> None:
        known = list(self.readers)
        for name, raw in inputs.items():
            if name not in self.readers:
                raise InputError(
                    f"input {name!r} is unknown; the model takes {known}" + suggest(name, known)
                )
            if not isinstance(raw, Tensor) or raw.ndim == 0:
                raise InputError(f"input {name!r} must be a tensor with a batch axis, got {raw!r}")
        if not inputs:
            raise InputError(f"no input given; the model needs at least one of {known}")
        first = next(iter(inputs.values())).shape[0]
        # Not compared as a set, which would make the batch size a constant in exported graphs.
        if any(raw.shape[0] != first for raw in inputs.values()):
            sizes = {name: raw.shape[0] for name, raw in inputs.items()}
            raise InputError(f"inputs have different batch sizes {sizes}; they must be equal")
        for what, given in zip(("valid", "hidden", "kept"), masks, strict=True):
            for name, mask in given.items():
                if name not in inputs:
                    raise InputError(f"{what} contains {name!r}, which is not among the inputs")
                tokens = self.reader(name).num_tokens
                if mask.ndim != 2 or (what != "kept" and mask.shape[1] != tokens):
                    raise InputError(
                        f"{what}[{name!r}] has shape {tuple(mask.shape)}; expected "
                        f"[B, {tokens if what != 'kept' else 'K'}], one entry per token"
                    )
                if what == "hidden" and name not in self.mask:
                    raise InputError(
                        f"hidden[{name!r}] needs a mask token; build the model with several "
                        f"modalities and mask_tokens=True"
                    )


def _join_masks(arrays: Sequence[Tensor], masks: Sequence[Tensor | None]) -> Tensor | None:
    """Concatenate masks; None if all tokens may be attended to."""
    if all(mask is None for mask in masks):
        return None
    whole = [
        array.new_ones(array.shape[:2], dtype=torch.bool) if mask is None else mask
        for array, mask in zip(arrays, masks, strict=True)
    ]
    return torch.cat(whole, 1)
