"""HiP, the Hierarchical Perceiver (arXiv 2202.10890), and its flat Perceiver IO baseline."""

from perceivers.models.hip.config import HiPConfig, HiPHead, HiPLevel
from perceivers.models.hip.model import HiP

__all__ = ["HiP", "HiPConfig", "HiPHead", "HiPLevel"]
