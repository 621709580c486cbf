"""The original Perceiver (arXiv 2103.03206): latents read the inputs again and again."""

from perceivers.models.perceiver.model import Perceiver, PerceiverConfig

__all__ = ["Perceiver", "PerceiverConfig"]
