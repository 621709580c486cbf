"""Perceiver IO (arXiv 2107.14795): any inputs to latents, any outputs by queries."""

from perceivers.models.perceiver_io.config import DecoderConfig, Output, PerceiverIOConfig
from perceivers.models.perceiver_io.model import PerceiverIO

__all__ = ["DecoderConfig", "Output", "PerceiverIO", "PerceiverIOConfig"]
