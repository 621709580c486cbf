"""Perceiver IO (arXiv 2107.14795): inputs encoded to latents, outputs decoded by queries."""

from perceivers.models.perceiver_io.config import DecoderConfig, Output, PerceiverIOConfig
from perceivers.models.perceiver_io.model import PerceiverIO

__all__ = ["DecoderConfig", "Output", "PerceiverIO", "PerceiverIOConfig"]
