"""Adapters turn raw tensors of a modality into tokens on their grid, and back."""

from perceivers.adapters.elements import ElementAdapter

__all__ = ["ElementAdapter"]
