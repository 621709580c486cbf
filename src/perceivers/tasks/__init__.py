"""Tasks: a model with its loss and its metrics. Activations of heads belong here, not in models."""

from perceivers.tasks.base import Losses, Task
from perceivers.tasks.classification import Classification, ClassificationConfig
from perceivers.tasks.mae import MaskedAutoencoding, MaskedAutoencodingConfig, mae_losses

__all__ = [
    "Classification",
    "ClassificationConfig",
    "Losses",
    "MaskedAutoencoding",
    "MaskedAutoencodingConfig",
    "Task",
    "mae_losses",
]
