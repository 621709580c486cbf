"""General perception in PyTorch: models that read raw elements of any signal.

Names are imported when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from perceivers.version import __version__

if TYPE_CHECKING:
    from perceivers.checkpoints.loading import load as load
    from perceivers.data import AugmentConfig as AugmentConfig
    from perceivers.data import Views as Views
    from perceivers.data import open_data as open_data
    from perceivers.errors import UserError as UserError
    from perceivers.masking import MaskPlan as MaskPlan
    from perceivers.masking import draw_mask_plan as draw_mask_plan
    from perceivers.masking import draw_unit_plan as draw_unit_plan
    from perceivers.models import HiP as HiP
    from perceivers.models import HiPConfig as HiPConfig
    from perceivers.models import HiPHead as HiPHead
    from perceivers.models import HiPLevel as HiPLevel
    from perceivers.models import create_model as create_model
    from perceivers.models import list_models as list_models
    from perceivers.tasks import ClassificationConfig as ClassificationConfig
    from perceivers.tasks import MaskedAutoencodingConfig as MaskedAutoencodingConfig
    from perceivers.tasks import mae_losses as mae_losses
    from perceivers.training.config import ClassifyConfig as ClassifyConfig
    from perceivers.training.config import OptimizerConfig as OptimizerConfig
    from perceivers.training.config import PretrainConfig as PretrainConfig
    from perceivers.training.config import ScheduleConfig as ScheduleConfig
    from perceivers.types import Array as Array
    from perceivers.types import Audio as Audio
    from perceivers.types import Bytes as Bytes
    from perceivers.types import Image as Image
    from perceivers.types import Labels as Labels
    from perceivers.types import Points as Points
    from perceivers.types import Video as Video
    from perceivers.workflows.anomaly import AnomalySettings as AnomalySettings
    from perceivers.workflows.anomaly import find_anomalies as find_anomalies
    from perceivers.workflows.bakeoff import bakeoff as bakeoff
    from perceivers.workflows.checking import check_data as check_data
    from perceivers.workflows.comparing import compare_runs as compare_runs
    from perceivers.workflows.conversion import convert as convert
    from perceivers.workflows.embedding import embed as embed
    from perceivers.workflows.evaluation import evaluate as evaluate
    from perceivers.workflows.evaluation import evaluate_subsets as evaluate_subsets
    from perceivers.workflows.explaining import explain as explain
    from perceivers.workflows.exporting import export as export
    from perceivers.workflows.planning import plan_training as plan_training
    from perceivers.workflows.prediction import predict as predict
    from perceivers.workflows.probing import probe as probe
    from perceivers.workflows.reconstructing import reconstruct as reconstruct
    from perceivers.workflows.run import Run as Run
    from perceivers.workflows.shuffling import shuffle as shuffle
    from perceivers.workflows.training import finetune as finetune
    from perceivers.workflows.training import pretrain as pretrain
    from perceivers.workflows.training import resume as resume
    from perceivers.workflows.training import train as train

_HOMES = {
    "checkpoints.loading": ("load",),
    "data": ("AugmentConfig", "Views", "open_data"),
    "errors": ("UserError",),
    "masking": ("MaskPlan", "draw_mask_plan", "draw_unit_plan"),
    "models": ("HiP", "HiPConfig", "HiPHead", "HiPLevel", "create_model", "list_models"),
    "tasks": ("ClassificationConfig", "MaskedAutoencodingConfig", "mae_losses"),
    "training.config": ("ClassifyConfig", "OptimizerConfig", "PretrainConfig", "ScheduleConfig"),
    "types": ("Array", "Audio", "Bytes", "Image", "Labels", "Points", "Video"),
    "workflows.anomaly": ("AnomalySettings", "find_anomalies"),
    "workflows.bakeoff": ("bakeoff",),
    "workflows.checking": ("check_data",),
    "workflows.comparing": ("compare_runs",),
    "workflows.conversion": ("convert",),
    "workflows.embedding": ("embed",),
    "workflows.evaluation": ("evaluate", "evaluate_subsets"),
    "workflows.explaining": ("explain",),
    "workflows.exporting": ("export",),
    "workflows.planning": ("plan_training",),
    "workflows.prediction": ("predict",),
    "workflows.probing": ("probe",),
    "workflows.reconstructing": ("reconstruct",),
    "workflows.run": ("Run",),
    "workflows.shuffling": ("shuffle",),
    "workflows.training": ("finetune", "pretrain", "resume", "train"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*sorted(_HOME_OF), "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'perceivers' has no attribute {name!r}")
    value = getattr(import_module(f"perceivers.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
