"""Settings whose effect depends on the data and the model: those given in vain are refused.

Conditions on other settings are declared beside the fields (``perceivers.settings.UsedIf``); here
are the conditions that nobody knows before the data are open and the model is built.
"""

from collections.abc import Callable, Mapping
from typing import Any

from perceivers.nn.positions import LearnedPositions
from perceivers.settings import default_of, refuse_unused
from perceivers.tasks import Autoencoding
from perceivers.training.config import TrainConfig
from perceivers.types import Image
from perceivers.workflows.preparing import Prepared


def own_validation(config: TrainConfig, prepared: Prepared) -> str:
    """Why ``val_share`` has no effect: the data bring a split."""
    return "" if prepared.dataset.carved else f"on {config.data}, which has a val split of its own"


def alone(config: TrainConfig, prepared: Prepared) -> str:
    """Why nothing can be waited for: there is one process."""
    single = config.devices * config.nodes == 1 and config.strategy == "auto"
    return "where one process trains (devices and nodes are 1)" if single else ""


def without_tables(config: TrainConfig, prepared: Prepared) -> str:
    """Why there is no learning rate of positions: they are not learned."""
    learned = any(isinstance(m, LearnedPositions) for m in prepared.task.model.modules())
    return "" if learned else f"on {config.model}, which has no learned positions"


def without_label(config: TrainConfig, prepared: Prepared) -> str:
    """Why no label can be hidden: none is auto-encoded."""
    labels = prepared.task.labels if isinstance(prepared.task, Autoencoding) else []
    return "" if labels else f"on {config.data}, which has no label to auto-encode"


def never_patient(config: TrainConfig, prepared: Prepared) -> str:
    """Why a run never stops early: it ends before it has evaluated often enough."""
    count = -(-config.steps // config.eval_every)
    if count > config.patience or config.limit:
        return ""
    return f"in {config.steps} steps, which are evaluated {count} times (eval_every)"


def other_size(config: TrainConfig, prepared: Prepared) -> str:
    """Why a side is not that of the images: another setting gives their size."""
    side = config.size
    read = {n: s.grid for n, s in prepared.specs.items() if isinstance(s, Image)}
    if not read or any(grid == (side, side) for grid in read.values()):
        return ""
    return f"beside inputs, which give images the size {read}"


def other_channels(config: TrainConfig, prepared: Prepared) -> str:
    """Why the number of channels is another: it is that of the trained model."""
    read = {n: s.channels for n, s in prepared.specs.items() if isinstance(s, Image)}
    if not read or config.channels in read.values():
        return ""
    return f"on {config.model}, which reads {read} channels"


# Why a setting has no effect in a run, by its name; an empty reason where it has one.
REASONS: Mapping[str, Callable[[Any, Prepared], str]] = {
    "val_share": own_validation,
    "timeout_minutes": alone,
    "optimizer.position_lr": without_tables,
    "autoencode.label_mask": without_label,
    "patience": never_patient,
    "size": other_size,
    "channels": other_channels,
}


def check_effects(config: TrainConfig, prepared: Prepared) -> None:
    """Refuse settings that the run would ignore.

    Args:
        config: The run's settings.
        prepared: Its data and model.

    Raises:
        ConfigError: Names the setting, its value and why it has no effect.
    """
    for name, explain in REASONS.items():
        group, _, key = name.rpartition(".")
        part = getattr(config, group, None) if group else config
        if part is None:
            continue
        value = getattr(part, key)
        if value == default_of(type(part).__dataclass_fields__[key]):
            continue
        if reason := explain(config, prepared):
            refuse_unused(name, f"{name}={value!r} has no effect {reason}; leave it out")
