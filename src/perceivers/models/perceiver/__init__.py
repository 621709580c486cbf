"""The original Perceiver (arXiv 2103.03206): latents with repeated cross-attention to inputs."""

from perceivers.models.perceiver.model import Perceiver, PerceiverConfig

__all__ = ["Perceiver", "PerceiverConfig"]
