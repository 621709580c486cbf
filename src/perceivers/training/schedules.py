"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore."""

from math import cos, pi

from perceivers.training.config import ScheduleConfig


def schedule_scale(config: ScheduleConfig, step: int, total: int) -> float:
    """Return the share of the peak learning rate at ``step`` (0 .. total - 1).

    Linear warm-up from 1 / warm-up steps, an optional plateau, then half a cosine to ``final``.
    """
    warmup = round(config.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    plateau = round(config.constant * total) if config.name == "constant-cosine" else 0
    start = max(warmup, plateau)
    if step < start:
        return 1.0
    progress = (step - start) / max(total - 1 - start, 1)
    return config.final + (1.0 - config.final) * 0.5 * (1.0 + cos(pi * min(progress, 1.0)))
