"""Embeddings of a set of entities and a choice between them (arXiv 2107.14795 App. B)."""

from perceivers.models.entity_set.model import EntitySet, EntitySetConfig

__all__ = ["EntitySet", "EntitySetConfig"]
