"""A set of entities in, an embedding per entity and a choice among them out (2107.14795 App. B)."""

from perceivers.models.entity_set.model import EntitySet, EntitySetConfig

__all__ = ["EntitySet", "EntitySetConfig"]
