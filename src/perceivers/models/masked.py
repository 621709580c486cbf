"""Interface that a model family implements to support masked autoencoding.

Legend: B batch, V entries of the byte vocabulary; the shape of errors depends on the family.
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
