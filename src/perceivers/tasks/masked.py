"""What masked auto-encoding asks of a system: how it hides, what it is scored on, how it looks.

Legend: B batch, V entries of the byte vocabulary; the shape of errors is the system's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from perceivers.draws import Draws
from perceivers.masking import MaskKind, MaskPlan
from perceivers.types import FIRST_BYTE, PAD

Target = Literal["raw", "per-channel", "group-normalised", "patch-normalised"]
# What may be asked for: one of them, or the usual one and a teacher's latents.
AskedTarget = Literal["raw", "per-channel", "group-normalised", "patch-normalised", "latent"]


# Among the losses of modalities, whose names hold no dot: the error of predicted latents.
LATENTS = "teacher.latents"


@dataclass(frozen=True)
class MaskSettings:
    """What is hidden, and in which space the reconstruction is scored."""

    ratio: float
    kind: MaskKind
    target: Target


# Latents of a whole input, as a teacher sees it.
Taught = tuple[Tensor, ...]


@dataclass(frozen=True)
class Scored:
    """Errors of one modality, and the weight (0 or 1) of each."""

    errors: Float[Tensor, "..."]
    weight: Tensor

    def only(self, held: Mapping[str, Tensor], name: str) -> "Scored":
        """Return the same with weight 0 for samples that do not hold the modality."""
        if name not in held:
            return self
        there = held[name].reshape(-1, *[1] * (self.errors.ndim - 1))
        return Scored(self.errors, self.weight * there)


@dataclass(frozen=True)
class Imagined:
    """A modality before and after, in its raw layout and units.

    ``visible`` has one channel, of texts none. Texts are ids of bytes, and their padding stays
    padding; what is no point is NaN before and after. Clips of which a model reconstructs one frame
    in ``frame_step`` hold those frames only.
    """

    original: Shaped[Tensor, "B ..."]
    visible: Bool[Tensor, "B ..."]
    reconstructed: Shaped[Tensor, "B ..."]
    frame_step: int = 1

    def take(self, rows: Bool[Tensor, " B"]) -> "Imagined":
        """Return some of the samples."""
        parts = (self.original[rows], self.visible[rows], self.reconstructed[rows])
        return Imagined(*parts, frame_step=self.frame_step)


@runtime_checkable
class MaskedObjective(Protocol):
    """One system's side of masked auto-encoding, made for one model."""

    kinds: tuple[MaskKind, ...]
    targets: tuple[Target, ...]

    @property
    def defaults(self) -> MaskSettings:
        """The system's own settings."""
        ...

    @property
    def predicts_latents(self) -> bool:
        """Whether the model's decoder has a ``latent_head``."""
        ...

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of what ``teach`` returns, without the axes that depend on the inputs."""
        ...

    def draw(
        self,
        inputs: Mapping[str, Tensor],
        settings: MaskSettings,
        generator: Draws,
    ) -> MaskPlan:
        """Draw what every sample of a batch hides, on the inputs' device."""
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
        """Encode what the plan keeps, reconstruct what it hides, and compare.

        Args:
            inputs: Raw tensors by name.
            plan: What is kept.
            target: Space of the errors.
            shown: Which samples show a modality to the encoder, bool ``[B]``, by name.
            taught: A teacher's latents of these inputs (``teach``), to be predicted, too; their
                errors come back as ``LATENTS``.
        """
        ...

    def teach(
        self, inputs: Mapping[str, Tensor], held: Mapping[str, Tensor] | None = None
    ) -> Taught:
        """Return the latents of whole inputs, normalised over their channels.

        Args:
            inputs: Raw tensors by name.
            held: Which samples hold a modality, bool ``[B]``, by name.
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
        """Reconstruct everything, or what was hidden with the shown parts as they are.

        Args:
            inputs: Raw tensors by name.
            plan: What is kept.
            target: Space that the model predicts in.
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
    """Return the ids of the likeliest bytes; special ids are no answers, and padding stays."""
    best = scores[..., FIRST_BYTE:].argmax(-1) + FIRST_BYTE
    return torch.where(ids == PAD, PAD, best)
