"""Several modalities in one array of tokens: padded to one width by learned vectors, or masked.

Legend: B batch, N tokens of a modality, M tokens of all, D channels.
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

# -- Which samples of a batch hold which modality ------------------------------------------------
#
# Legend: B batch.


def check_present(present: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> None:
    """Reject presences that do not belong to what is given.

    Args:
        present: Bool ``[B]`` by modality; values are not looked at, so that graphs stay static.
        inputs: Raw tensors ``[B, ...]`` by name.

    Raises:
        InputError: A modality that is not among the inputs, another type, or another shape.
    """
    for name, there in present.items():
        if name not in inputs:
            raise InputError(
                f"present speaks of {name!r}, which is not among the inputs {list(inputs)}"
                + suggest(name, inputs)
            )
        if there.dtype != torch.bool or there.ndim != 1 or there.shape[0] != inputs[name].shape[0]:
            raise InputError(
                f"present[{name!r}] is {there.dtype} of shape {tuple(there.shape)}; expected bool "
                f"[{inputs[name].shape[0]}], one entry per sample"
            )


# -- Several modalities in one array of tokens ---------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """What the latents read.

    Attributes:
        array: Tokens of the modalities that were given, in the declared order ``[B, M, D]``.
        valid: Which of them are real ``[B, M]``; None when all are.
        parts: The tokens of each modality before padding ``[B, N, D']``, whole.
        real: Which of a modality's raw elements are real ``[B, E]``; only where some may not be.
    """

    array: Float[Tensor, "B M D"]
    valid: Bool[Tensor, "B M"] | None
    parts: Mapping[str, Tensor]
    real: Mapping[str, Tensor]


class TokenReaders(nn.Module):
    """Raw tensors of all modalities to one array of tokens.

    A single modality is read as it is. Several are padded to the widest plus ``min_padding``, each
    with a learned vector of its own, which also tells them apart.

    Args:
        inputs: Modalities by name.
        tokens: How each becomes tokens.
        min_padding: Channels of the smallest padding vector.
        mask_tokens: Make a mask token per modality (several modalities only).
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
        """Return the reader of a modality."""
        reader = self.readers[name]
        assert isinstance(reader, TokenReader)
        return reader

    @property
    def num_tokens(self) -> dict[str, int]:
        """Tokens per modality."""
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
        """Read what is given.

        Args:
            inputs: Raw tensors ``[B, ...]`` by name; some may be missing.
            valid: Tokens that may be attended to ``[B, N]``, by name, on top of what the raw tensor
                says itself (padding of bytes, NaN rows of points).
            hidden: Tokens to replace by the mask token ``[B, N]``; by the config's rates where not
                given.
            kept: Indices ``[B, K]`` of the only tokens to read, by name (masked auto-encoding).
            present: Which samples hold a modality, bool ``[B]``, by name; all where not given. The
                tokens of one that is not there are never attended to.
            dtype: Of the tokens.

        Raises:
            InputError: An input is unknown or misshapen, none was given, or a mask does not fit.
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
        """Tokens at the common width, some replaced by the mask token."""
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
            # A multiple of zero keeps the padding vector in the graph of distributed training.
            return mask + 0.0 * tokens
        if self.training and rate > 0.0:
            drawn = torch.rand(tokens.shape[:2], device=tokens.device) < rate
            return torch.where(drawn.unsqueeze(-1), mask, tokens)
        return tokens

    def _check(self, inputs: Mapping[str, Tensor], *masks: Mapping[str, Tensor]) -> None:
        """Reject unknown names, tensors without a batch, and masks of another shape."""
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
        # Compared one by one: a set would fix the batch size of an exported graph.
        if any(raw.shape[0] != first for raw in inputs.values()):
            sizes = {name: raw.shape[0] for name, raw in inputs.items()}
            raise InputError(f"inputs have different batch sizes {sizes}; they must be equal")
        for what, given in zip(("valid", "hidden", "kept"), masks, strict=True):
            for name, mask in given.items():
                if name not in inputs:
                    raise InputError(f"{what} speaks of {name!r}, which is not among the inputs")
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
    """Return which tokens of all modalities may be attended to; None when all may."""
    if all(mask is None for mask in masks):
        return None
    whole = [
        array.new_ones(array.shape[:2], dtype=torch.bool) if mask is None else mask
        for array, mask in zip(arrays, masks, strict=True)
    ]
    return torch.cat(whole, 1)
