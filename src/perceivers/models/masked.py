"""Interface that a model family implements to support masked autoencoding.

Legend: B batch, V entries of the byte vocabulary; the shape of errors depends on the family.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from perceivers.draws import Draws
from perceivers.errors import ConfigError
from perceivers.finite import check_answer
from perceivers.masking import MaskKind, MaskPlan
from perceivers.types import FIRST_BYTE, PAD, ModalitySpec

Target = Literal["raw", "per-channel", "group-normalised", "patch-normalised"]
# Choices of the setting; latent means the default target plus a teacher's latents.
AskedTarget = Literal["raw", "per-channel", "group-normalised", "patch-normalised", "latent"]


# Key of the latent loss beside those of modalities; their names contain no dot, so it is unique.
LATENTS = "teacher.latents"


@dataclass(frozen=True)
class MaskSettings:
    """What is hidden, and in which space the reconstruction is scored."""

    ratio: float
    kind: MaskKind
    target: Target


# A teacher's latents of whole inputs.
Taught = tuple[Tensor, ...]


@dataclass(frozen=True)
class Scored:
    """Errors of one modality, and the weight (0 or 1) of each."""

    errors: Float[Tensor, "..."]
    weight: Tensor

    def only(self, held: Mapping[str, Tensor], name: str) -> "Scored":
        """Return a copy with weight 0 for samples that lack the modality."""
        if name not in held:
            return self
        there = held[name].reshape(-1, *[1] * (self.errors.ndim - 1))
        return Scored(self.errors, self.weight * there)


@dataclass(frozen=True)
class Imagined:
    """Original and reconstruction of a modality, in its raw layout and units.

    ``visible`` has one channel; for texts it has no channel axis. Texts are byte ids and keep their
    padding. Missing points are NaN in both. If a model reconstructs only one frame in
    ``frame_step``, clips contain only those frames.
    """

    original: Shaped[Tensor, "B ..."]
    visible: Bool[Tensor, "B ..."]
    reconstructed: Shaped[Tensor, "B ..."]
    frame_step: int = 1

    def take(self, rows: Bool[Tensor, " B"]) -> "Imagined":
        """Return the selected samples."""
        parts = (self.original[rows], self.visible[rows], self.reconstructed[rows])
        return Imagined(*parts, frame_step=self.frame_step)


@runtime_checkable
class MaskedObjective(Protocol):
    """Masked autoencoding of one model family.

    Attributes:
        kinds: Supported kinds of masks.
        targets: Supported targets.
    """

    kinds: tuple[MaskKind, ...]
    targets: tuple[Target, ...]

    @property
    def defaults(self) -> MaskSettings:
        """Default settings of the model family."""
        ...

    @property
    def predicts_latents(self) -> bool:
        """Whether the model's decoder has a ``latent_head``."""
        ...

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the latents of ``teach``, without the axes that depend on the inputs."""
        ...

    def draw(
        self,
        inputs: Mapping[str, Tensor],
        settings: MaskSettings,
        generator: Draws,
    ) -> MaskPlan:
        """Sample a mask for every sample of a batch, on the device of the inputs."""
        ...

    def score(
        self,
        inputs: Mapping[str, Tensor],
        plan: MaskPlan,
        target: Target,
        *,
        shown: Mapping[str, Tensor] | None = None,
        taught: Taught | None = None,
    ) -> dict[str, Scored]:
        """Encode the visible elements, reconstruct the hidden ones, and return their errors.

        Args:
            inputs: Raw tensors by name.
            plan: Visible and hidden elements.
            target: Space of the errors.
            shown: In which samples the encoder reads a modality, bool ``[B]``, by name.
            taught: A teacher's latents of these inputs (from ``teach``) to predict as well; their
                errors are returned under ``LATENTS``.
        """
        ...

    def teach(
        self, inputs: Mapping[str, Tensor], held: Mapping[str, Tensor] | None = None
    ) -> Taught:
        """Return the latents of whole inputs, normalised over their channels.

        Args:
            inputs: Raw tensors by name.
            held: Which samples have a modality, bool ``[B]``, by name.
        """
        ...

    def imagine(
        self,
        inputs: Mapping[str, Tensor],
        plan: MaskPlan,
        target: Target,
        *,
        shown: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Imagined]:
        """Reconstruct all elements, or only the hidden ones and copy the visible ones.

        Args:
            inputs: Raw tensors by name.
            plan: Visible and hidden elements.
            target: Space in which the model predicts.
            shown: As for ``score``.
        """
        ...


def normalise_latents(x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
    """Return latents with mean 0 and variance 1 over their channels, in float32."""
    return F.layer_norm(x.float(), x.shape[-1:])


def byte_errors(scores: Float[Tensor, "*B V"], ids: Int[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Return the cross-entropy of every byte, in nats."""
    flat = scores.float().flatten(0, -2)
    return F.cross_entropy(flat, ids.long().flatten(), reduction="none").view(ids.shape)


def likeliest_bytes(scores: Float[Tensor, "*B V"], ids: Int[Tensor, "*B"]) -> Int[Tensor, "*B"]:
    """Return the ids of the most likely bytes, never a special id; padding is kept."""
    best = scores[..., FIRST_BYTE:].argmax(-1) + FIRST_BYTE
    return torch.where(ids == PAD, PAD, best)


# -- Errors of hidden elements: masks that together hide everything, and sums over passes --------
#
# Each element is hidden in some forward pass and its error recorded there. All samples use the same
# masks, so an error depends only on the sample itself.
#
# Legend: B batch, P passes, R rows masked independently, N units per row.


Raw = Mapping[str, Tensor]


class ErrorMaps(Protocol):
    """Errors of hidden elements for one model family.

    Attributes:
        passes: Number of forward passes per batch.
        unit: Description of what the errors are measured in.
    """

    passes: int
    unit: str

    def __call__(self, inputs: Raw, held: Raw) -> dict[str, Tensor]:
        """Return the mean error of every element over the passes that hide it, ``[B, *grid]``.

        Missing elements, such as padding of texts and missing points, are NaN.

        Args:
            inputs: Raw tensors ``[B, ...]`` by name.
            held: Which samples have a modality, bool ``[B]``, by name; default all.
        """
        ...


def cover(
    rows: int, units: int, *, kept: int, repeats: int, generator: torch.Generator
) -> Bool[Tensor, "P R N"]:
    """Sample masks of equal size that together hide every unit at least ``repeats`` times.

    Each pass hides the units that were hidden least often so far; ties are broken at random. The
    counts of two units of a row therefore differ by at most one, and as few passes as possible are
    used.

    Args:
        rows: Rows R, sampled independently.
        units: Units N per row.
        kept: Visible units per pass, from 1 to N - 1.
        repeats: How often each unit is hidden, at least 1.
        generator: Random generator on the CPU.

    Returns:
        True where a unit is visible.

    Raises:
        ConfigError: ``kept`` or ``repeats`` is out of range.
    """
    if not 1 <= kept < units:
        raise ConfigError(
            f"{kept} of {units} units would be visible; at least 1 must be visible and 1 hidden"
        )
    if repeats < 1:
        raise ConfigError(f"repeats is {repeats}; every element must be hidden at least once")
    hidden = units - kept
    times = torch.zeros(rows, units)
    passes = []
    for _ in range(-(-repeats * units // hidden)):
        # Random numbers are below 1, so they only break ties between equally frequent units.
        order = (times + torch.rand(rows, units, generator=generator)).argsort(1)
        keep = torch.ones(rows, units, dtype=torch.bool)
        keep.scatter_(1, order[:, :hidden], value=False)
        times += ~keep
        passes.append(keep)
    return torch.stack(passes)


def error_unit(specs: Collection[ModalitySpec], target: Target, note: str = "") -> str:
    """Describe what errors are measured in.

    Args:
        specs: Scored modalities.
        target: Target space of numeric values.
        note: Remark on numeric values, appended to their description.
    """
    texts = sum(spec.kind == "bytes" for spec in specs)
    values = f"squared error, {target} values{note}"
    if not texts:
        return values
    return "nats per byte" if texts == len(specs) else f"{values}; nats per byte"


@dataclass
class Tally:
    """Errors summed over passes, and how often each element was counted."""

    errors: Tensor
    times: Tensor

    def mean(self) -> Tensor:
        """Return the mean error; NaN for elements that were never counted."""
        return self.errors / torch.where(self.times > 0, self.times, torch.nan)


def split_ids(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Return sorted indices of the visible and of the hidden entries along the last axis."""
    order = (~keep).to(torch.uint8).argsort(dim=-1, stable=True)
    # All rows have the same number of visible entries.
    kept = int(keep.flatten(0, -2)[0].sum())
    return order[..., :kept], order[..., kept:]


def add_pass(tallies: dict[str, Tally], name: str, errors: Tensor, times: Tensor) -> None:
    """Add the errors of one pass, after checking that those that count are finite."""
    check_answer(errors * times, f"the error of {name}")
    if name not in tallies:
        tallies[name] = Tally(torch.zeros_like(errors), torch.zeros_like(times))
    tallies[name].errors += errors
    tallies[name].times += times


def blank_absent(errors: Tensor, held: Tensor | None) -> Tensor:
    """Set the errors of samples without the modality to NaN."""
    if held is None:
        return errors
    absent = ~held.to(errors.device)
    return errors.masked_fill(absent.view(-1, *[1] * (errors.ndim - 1)), torch.nan)
