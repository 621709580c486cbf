"""Hiera (arXiv 2306.00989): a hierarchical vision transformer for signals, images and videos."""

from perceivers.models.hiera.config import HieraConfig, HieraDecoder, HieraHead
from perceivers.models.hiera.model import Hiera, Pyramid

__all__ = ["Hiera", "HieraConfig", "HieraDecoder", "HieraHead", "Pyramid"]
