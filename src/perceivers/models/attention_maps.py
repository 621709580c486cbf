"""Maps of attention over input tokens: recorded from a model's passes, averaged, and singled out.

A map is attention that sums to 1 over all tokens of all modalities; tokens that may not be read
have 0. Levels without groups, as those of the flat systems, count as one group.

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

# Scores that may be kept at once: 1 GiB of float32; computing them takes three times as much.
MAX_SCORES = 2**28
# A share of attention outside the input that is worth a word.
WORTH_SAYING = 5e-4

Shares = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class TokenMap:
    """Attention over the tokens of all modalities.

    Attributes:
        label: What it is the attention of.
        shares: Per modality its token grid; all values add up to 1.
        tokens: Tokens that could be read.
        note: What else a reader must know; empty when nothing.
    """

    label: str
    shares: Shares
    tokens: int
    note: str = ""


@dataclass(frozen=True)
class ReadMaps:
    """One read of the input by the latents: the mean map first, then single latents."""

    title: str
    maps: tuple[TokenMap, ...]


@dataclass(frozen=True)
class Answer:
    """One answer of a model.

    Attributes:
        output: Its name; empty where the model has but one.
        values: What the model returned ``[K]``.
        map: Where it looks; None where that cannot be composed.
        modality: The modality of the element that is answered; empty for the whole sample.
        index: Flat index of the query on the output's grid.
        place: Middle of that query along each axis of the grid, 0..1.
    """

    output: str
    values: Float[Tensor, " K"]
    map: TokenMap | None
    modality: str = ""
    index: int = 0
    place: tuple[float, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """What a model reads of one sample; ``route`` says how the answers' maps came about."""

    reads: tuple[ReadMaps, ...]
    answers: tuple[Answer, ...]
    route: str


@dataclass(frozen=True)
class Field:
    """The input as the latents read it: slots in groups, and the way back to the token grids.

    Attributes:
        real: Slots that hold something readable ``[G, M]``.
        unfold: Turns values per slot ``[G, M]`` into the token grid of each modality.
    """

    real: Bool[Tensor, "G M"]
    unfold: Callable[[Float[Tensor, "G M"]], dict[str, Tensor]]

    def map(self, label: str, weights: Float[Tensor, "G M"], note: str = "") -> TokenMap:
        """Make a map of attention per slot: what lies outside the input is left out, and said.

        Raises:
            InputError: Nothing of the input was attended to.
        """
        inside = torch.where(self.real, weights.double(), 0.0)
        total, everything = float(inside.sum()), float(weights.double().sum())
        if not total > 0.0:
            raise InputError(
                f"{label}: no attention fell on the input ({int(self.real.sum())} readable "
                f"tokens); give a sample that holds something"
            )
        lost = 1.0 - total / everything
        if lost > WORTH_SAYING:
            note = f"{note} {100 * lost:.1f} % on empty slots left out".strip()
        shares = {name: grid.cpu().numpy() for name, grid in self.unfold(inside / total).items()}
        # Groups without any attention, such as those of other latents, could not be read.
        touched = self.real & (weights > 0).any(1, keepdim=True)
        return TokenMap(label, shares, int(touched.sum()), note)


@dataclass
class Recorded:
    """Attention weights ``[G, H, N, M]`` of one sample, per module in the order of its calls."""

    calls: list[tuple[nn.Module, Tensor]] = field(default_factory=list)

    def of(self, modules: Sequence[nn.Module]) -> list[Tensor]:
        """Return the weights of some modules, in the order in which they were called."""
        chosen = {id(module) for module in modules}
        return [weights for module, weights in self.calls if id(module) in chosen]


@contextmanager
def record(model: nn.Module, modules: Sequence[nn.Module]) -> Iterator[Recorded]:
    """Keep the attention weights of some modules inside the block, call by call.

    A module that is used several times, as shared reads are, is recorded each time. All other
    attention stays on its fast path. Only the first sample of a batch is recorded.
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
    """Refuse maps that would not fit into memory, before anything is computed.

    Args:
        sizes: Factors of the number of scores, by what they count.

    Raises:
        InputError: Their product is above ``MAX_SCORES``.
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
    """Refuse a head that the reads of the input do not have.

    Raises:
        ConfigError: Neither ``all``, ``mean`` nor a number below ``num_heads``.
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
    """Return the attention of the heads asked for, with words that name them.

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
    """Return the one attention with which answers are followed to the input."""
    return torch.stack([chosen for _, chosen in choose_heads(weights, head)]).mean(0)


def say_heads(head: str | int, num_heads: int) -> str:
    """Return a sentence on the heads of the reads with which answers are followed, where needed."""
    if num_heads == 1:
        return ""
    words = (
        "all are averaged" if str(head) in {"all", "mean"} else f"only number {head} is followed"
    )
    return f" Of the heads with which the input is read, {words}."


def single_out(
    weights: Float[Tensor, "G N M"], inputs: Field, latents: int
) -> tuple[TokenMap, ...]:
    """Return the mean over all latents, then the latents that differ most from their group's mean.

    The difference is the share of a latent's attention that would have to move to make it the mean:
    half the sum of absolute differences, 0..1.

    Args:
        weights: Attention of every latent; the groups weigh alike.
        inputs: The input's slots.
        latents: How many latents to single out; fewer where there are not so many.
    """
    groups, count, _ = weights.shape
    weights = torch.where(inputs.real.unsqueeze(1), weights, 0.0)
    readable = weights.sum((1, 2)) > 0
    mean = weights.mean(1)
    words = f"mean of {int(readable.sum()) * count} latents"
    maps = [inputs.map(words, mean)]
    differences = 0.5 * (weights - mean.unsqueeze(1)).abs().sum(-1)  # [G, N]
    differences[~readable] = -1.0
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
