"""Record attention weights during a forward pass and turn them into maps over input tokens.

A map sums to 1 over all tokens of all modalities; masked tokens have 0. Models without groups
(Perceiver, Perceiver IO) count as one group.

Legend: B batch, G groups, H heads, N latents per group, M tokens per group.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from perceivers.errors import ConfigError, InputError
from perceivers.nn.attention import Attention, use_attention

# Scores kept in memory at once: 1 GiB of float32; computing them takes three times as much.
MAX_SCORES = 2**28
# Fraction of attention outside the input that is mentioned in a note.
WORTH_SAYING = 5e-4

Shares = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class TokenMap:
    """Attention over the tokens of all modalities.

    Attributes:
        label: Name of the latent, query or mean that attends.
        shares: Attention on the token grid of each modality; all values add up to 1.
        tokens: Number of tokens that could be read.
        note: Remark for the reader; may be empty.
    """

    label: str
    shares: Shares
    tokens: int
    note: str = ""


@dataclass(frozen=True)
class ReadMaps:
    """Maps of one cross-attention to the input: the mean map first, then single latents."""

    title: str
    maps: tuple[TokenMap, ...]


@dataclass(frozen=True)
class Answer:
    """One output of a model with its attention map.

    Attributes:
        output: Name of the output; empty if the model has only one.
        values: Values that the model returned, ``[K]``.
        map: Attention to the input; None if it cannot be composed.
        modality: Modality of the element that the query decodes; empty for the whole sample.
        index: Flat index of the query on the output's grid.
        place: Centre of that query along each axis of the grid, 0..1.
        is_choice: The values score the elements of the modality, of which ``index`` was chosen.
    """

    output: str
    values: Float[Tensor, " K"]
    map: TokenMap | None
    modality: str = ""
    index: int = 0
    place: tuple[float, ...] = ()
    is_choice: bool = False


@dataclass(frozen=True)
class Explanation:
    """Attention maps of one sample; ``route`` describes how the maps of outputs were computed."""

    reads: tuple[ReadMaps, ...]
    answers: tuple[Answer, ...]
    route: str


@dataclass(frozen=True)
class Field:
    """Layout of the input as the latents read it: slots in groups.

    Attributes:
        real: Slots that hold a valid token, ``[G, M]``.
        unfold: Maps values per slot ``[G, M]`` to the token grid of each modality.
    """

    real: Bool[Tensor, "G M"]
    unfold: Callable[[Float[Tensor, "G M"]], dict[str, Tensor]]

    def map(self, label: str, weights: Float[Tensor, "G M"], note: str = "") -> TokenMap:
        """Convert attention per slot to a map; attention outside the input is dropped and noted.

        Raises:
            InputError: No attention fell on the input.
        """
        inside = torch.where(self.real, weights.double(), 0.0)
        total, everything = float(inside.sum()), float(weights.double().sum())
        if not total > 0.0:
            raise InputError(
                f"{label}: no attention fell on the input ({int(self.real.sum())} readable "
                f"tokens); give a sample that is not empty"
            )
        lost = 1.0 - total / everything
        if lost > WORTH_SAYING:
            note = f"{note} {100 * lost:.1f} % on empty slots left out".strip()
        shares = {name: grid.cpu().numpy() for name, grid in self.unfold(inside / total).items()}
        # A group without any attention, such as the groups of other latents, was not readable.
        touched = self.real & (weights > 0).any(1, keepdim=True)
        return TokenMap(label, shares, int(touched.sum()), note)


@dataclass
class Recorded:
    """Attention weights ``[G, H, N, M]`` of one sample, in the order of the module calls."""

    calls: list[tuple[nn.Module, Tensor]] = field(default_factory=list)

    def of(self, modules: Sequence[nn.Module]) -> list[Tensor]:
        """Return the weights of some modules, in call order."""
        chosen = {id(module) for module in modules}
        return [weights for module, weights in self.calls if id(module) in chosen]


@contextmanager
def record(model: nn.Module, modules: Sequence[nn.Module]) -> Iterator[Recorded]:
    """Context manager that records the attention weights of some modules, call by call.

    A module that is called several times, such as a shared cross-attention, is recorded each time.
    All other attention uses the fast path. Only the first sample of a batch is recorded.
    """
    recorded, chosen = Recorded(), {id(module) for module in modules}

    def keep(module: nn.Module, arguments: object, result: object) -> None:
        assert isinstance(module, Attention)
        assert module.weights is not None
        recorded.calls.append((module, module.weights[0].float()))

    handles = []
    try:
        with use_attention(model, "reference", keep_weights=True) as found:
            for module in found.values():
                if id(module) in chosen:
                    handles.append(module.register_forward_hook(keep))
                else:
                    module.path, module.keep_weights = "sdpa", False
            yield recorded
    finally:
        for handle in handles:
            handle.remove()


def check_scores(sizes: Mapping[str, int]) -> None:
    """Check that the maps fit into memory, before anything is computed.

    Args:
        sizes: Factors of the number of scores, by the name of the dimension.

    Raises:
        InputError: Their product exceeds ``MAX_SCORES``.
    """
    count = prod(sizes.values())
    if count > MAX_SCORES:
        factors = " x ".join(f"{size:,} {name}" for name, size in sizes.items())
        raise InputError(
            f"the attention maps take {count:,} scores ({factors}), the limit is {MAX_SCORES:,}; "
            f"explain a model with fewer tokens: one trained on smaller inputs or patches, or this "
            f"one resized with pv.load(RUN, inputs=...) and saved with save_pretrained"
        )


def check_head(head: str | int, num_heads: int) -> None:
    """Check that a head exists.

    Raises:
        ConfigError: ``head`` is not ``all``, ``mean`` or a number below ``num_heads``.
    """
    text = str(head)
    if text in {"all", "mean"} or (text.isdecimal() and int(text) < num_heads):
        return
    raise ConfigError(
        f"head is {head!r}; use 'all', 'mean' or a number from 0 to {num_heads - 1}: this model "
        f"reads its input with {num_heads} head{'' if num_heads == 1 else 's'}"
    )


def choose_heads(
    weights: Float[Tensor, "G H N M"], head: str | int
) -> list[tuple[str, Float[Tensor, "G N M"]]]:
    """Return the attention of the chosen heads, each with a label.

    Raises:
        ConfigError: As ``check_head``.
    """
    count = weights.shape[1]
    check_head(head, count)
    if head == "mean" or count == 1:
        return [("" if count == 1 else f"mean of {count} heads", weights.mean(1))]
    wanted = range(count) if head == "all" else [int(head)]
    return [(f"head {number} of 0 to {count - 1}", weights[:, number]) for number in wanted]


def rollout_heads(weights: Float[Tensor, "G H N M"], head: str | int) -> Float[Tensor, "G N M"]:
    """Return the attention used to trace outputs back to the input: the mean of chosen heads."""
    return torch.stack([chosen for _, chosen in choose_heads(weights, head)]).mean(0)


def say_heads(head: str | int, num_heads: int) -> str:
    """Return a sentence on the heads used to trace outputs back; empty for a single head."""
    if num_heads == 1:
        return ""
    words = "all are averaged" if str(head) in {"all", "mean"} else f"only number {head} is used"
    return f" Of the heads that read the input, {words}."


def single_out(
    weights: Float[Tensor, "G N M"], inputs: Field, latents: int
) -> tuple[TokenMap, ...]:
    """Return the mean map of all latents, then the latents that differ most from their group mean.

    The difference is the total variation distance (half the sum of absolute differences, 0..1): the
    fraction of a latent's attention that would have to move to match the mean.

    Args:
        weights: Attention of every latent; all groups have equal weight.
        inputs: Layout of the input.
        latents: Maximum number of single latents.
    """
    groups, count, _ = weights.shape
    weights = torch.where(inputs.real.unsqueeze(1), weights, 0.0)
    readable = weights.sum((1, 2)) > 0
    mean = weights.mean(1)
    words = f"mean of {int(readable.sum()) * count} latents"
    maps = [inputs.map(words, mean)]
    differences = 0.5 * (weights - mean.unsqueeze(1)).abs().sum(-1)  # [G, N]
    differences[~readable] = -1.0  # empty groups come last
    order = differences.flatten().argsort(descending=True, stable=True)
    for place in order[: min(latents, int(readable.sum()) * count)].tolist():
        group, latent = divmod(place, count)
        value = float(differences[group, latent])
        alone = torch.zeros_like(mean)
        alone[group] = weights[group, latent]
        label = f"latent {latent}" if groups == 1 else f"group {group}, latent {latent}"
        whole = "the mean" if groups == 1 else "its group's mean"
        maps.append(inputs.map(label, alone, f"{100 * value:.0f} % elsewhere than {whole}"))
    return tuple(maps)
