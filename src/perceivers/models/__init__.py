"""Model families and the registry of named variants."""

from perceivers.models.entity_set import EntitySet, EntitySetConfig
from perceivers.models.hiera import Hiera, HieraConfig, HieraDecoder, HieraHead
from perceivers.models.hiera_det import HieraDet, HieraDetConfig
from perceivers.models.hip import HiP, HiPConfig, HiPHead, HiPLevel
from perceivers.models.perceiver import Perceiver, PerceiverConfig
from perceivers.models.perceiver_io import DecoderConfig, Output, PerceiverIO, PerceiverIOConfig
from perceivers.models.registry import create_model, list_models

__all__ = [
    "DecoderConfig",
    "EntitySet",
    "EntitySetConfig",
    "HiP",
    "HiPConfig",
    "HiPHead",
    "HiPLevel",
    "Hiera",
    "HieraConfig",
    "HieraDecoder",
    "HieraDet",
    "HieraDetConfig",
    "HieraHead",
    "Output",
    "Perceiver",
    "PerceiverConfig",
    "PerceiverIO",
    "PerceiverIOConfig",
    "create_model",
    "list_models",
]
