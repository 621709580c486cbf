"""Conversion of the raw tensors of a modality to tokens on a grid, and back."""

from perceivers.adapters.elements import ElementAdapter

__all__ = ["ElementAdapter"]
