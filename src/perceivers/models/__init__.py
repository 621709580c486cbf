"""The model families, and the one table that names them."""

from perceivers.models.hip import HiP, HiPConfig, HiPHead, HiPLevel
from perceivers.models.registry import create_model, list_models

__all__ = ["HiP", "HiPConfig", "HiPHead", "HiPLevel", "create_model", "list_models"]
