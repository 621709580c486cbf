"""Training tasks: each combines a model with its loss and metrics.

Models return raw outputs; tasks apply activations such as softmax.
"""

from perceivers.tasks.autoencoding import Autoencoding, AutoencodingConfig
from perceivers.tasks.base import Losses, Task
from perceivers.tasks.classification import Classification, ClassificationConfig
from perceivers.tasks.flow import FlowConfig, OpticalFlow
from perceivers.tasks.mae import MaskedAutoencoding, MaskedAutoencodingConfig, mae_losses
from perceivers.tasks.mlm import MaskedLanguage, MaskedLanguageConfig
from perceivers.tasks.multilabel import Multilabel, MultilabelConfig
from perceivers.tasks.multitask import Multitask
from perceivers.tasks.regression import Regression, RegressionConfig
from perceivers.tasks.segmentation import Segmentation, SegmentationConfig

__all__ = [
    "Autoencoding",
    "AutoencodingConfig",
    "Classification",
    "ClassificationConfig",
    "FlowConfig",
    "Losses",
    "MaskedAutoencoding",
    "MaskedAutoencodingConfig",
    "MaskedLanguage",
    "MaskedLanguageConfig",
    "Multilabel",
    "MultilabelConfig",
    "Multitask",
    "OpticalFlow",
    "Regression",
    "RegressionConfig",
    "Segmentation",
    "SegmentationConfig",
    "Task",
    "mae_losses",
]
