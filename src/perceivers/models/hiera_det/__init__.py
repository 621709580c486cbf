"""HieraDet, the image encoder trunk of SAM 2 (arXiv 2408.00714): a Hiera with window attention."""

from perceivers.models.hiera_det.config import HieraDetConfig
from perceivers.models.hiera_det.model import HieraDet

__all__ = ["HieraDet", "HieraDetConfig"]
