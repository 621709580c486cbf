"""Modalities that samples lack, and modalities hidden from training at random.

Two things are told apart: what a sample *holds* (scored, labelled) and what of it is *shown* to the
model, which modality dropout makes less of.

Legend: B batch, M modalities.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from perceivers.draws import Draws, rand_rows, sample_generators
from perceivers.errors import ConfigError, suggest
from perceivers.tasks.base import Task, TaskBatch


def can_lack(model: Any) -> bool:
    """Tell whether a model reads several modalities, so that a sample may lack one."""
    return len(model.config.data_inputs) > 1


def held_modalities(model: Any, batch: TaskBatch) -> dict[str, Tensor]:
    """Return which samples hold each modality that the model reads; empty when all hold all."""
    if not can_lack(model):
        return {}
    return {name: batch.present[name] for name in model.config.data_inputs if name in batch.present}


def drop_modalities(
    held: Mapping[str, Tensor], rates: Mapping[str, float], size: int, generator: Draws
) -> dict[str, Tensor]:
    """Hide modalities from single samples at random, but never all that a sample holds.

    Args:
        held: Which samples hold a modality, bool ``[B]``; all where not given.
        rates: Probability of being hidden, 0..1, for every modality that the model reads.
        size: Samples B.
        generator: On the CPU; one for all samples, or one for each.

    Returns:
        Which samples show a modality, bool ``[B]``, for every modality of ``rates``.
    """
    everywhere = torch.ones(size, dtype=torch.bool)
    there = torch.stack([held.get(name, everywhere).cpu() for name in rates], 1)  # [B, M]
    drawn = rand_rows(size, len(rates), generator=generator)
    shown = there & (drawn >= torch.tensor(list(rates.values())))
    # Where nothing is left, the modality that came closest to staying does.
    margin = (drawn - torch.tensor(list(rates.values()))).masked_fill(~there, -torch.inf)
    spared = torch.zeros_like(there).scatter(1, margin.argmax(1, keepdim=True), value=True)
    shown = torch.where(shown.any(1, keepdim=True), shown, spared & there)
    return dict(zip(rates, shown.unbind(1), strict=True))


def dropout_rates(model: Any, setting: float | Mapping[str, float]) -> dict[str, float]:
    """Return the rate of every modality, or none when nothing is to be hidden.

    Args:
        model: Any family.
        setting: One rate for all modalities, or rates by name (0 where not given).

    Raises:
        ConfigError: A rate out of range, a modality that the model does not read, or a model of
            one modality.
    """
    names = list(model.config.data_inputs)
    rates = dict(setting) if isinstance(setting, Mapping) else dict.fromkeys(names, float(setting))
    for name, rate in rates.items():
        if name not in names:
            raise ConfigError(
                f"modality_dropout names {name!r}, but the model reads {names}"
                + suggest(name, names)
            )
        if not 0.0 <= rate <= 1.0:
            raise ConfigError(f"modality_dropout for {name!r} is {rate}; it must be in [0, 1]")
    if not any(rates.values()):
        return {}
    if not can_lack(model):
        raise ConfigError(
            f"modality_dropout is {setting}, but the model reads {names} alone, which cannot be "
            f"hidden; leave it at 0"
        )
    return {name: rates.get(name, 0.0) for name in names}


def shown_modalities(task: Task, batch: TaskBatch, generator: torch.Generator) -> dict[str, Tensor]:
    """Return what the model may look at: what samples hold, less what training hides.

    Args:
        task: In training mode it hides modalities as its ``modality_dropout`` says.
        batch: Samples, whose positions key what is hidden.
        generator: Of the step.
    """
    held = held_modalities(task.model, batch)
    if not (task.training and task.modality_dropout):
        return held
    first = next(iter(batch.inputs.values()))
    draws = sample_generators(generator, batch.position)
    shown = drop_modalities(held, task.modality_dropout, first.shape[0], draws)
    return {name: there.to(first.device) for name, there in shown.items()}


def answer(
    model: Any, inputs: Mapping[str, Tensor], shown: Mapping[str, Tensor], **options: Any
) -> Any:
    """Call a model, telling it what samples show only where some may lack a modality.

    Args:
        model: Any family; those that read one modality know no presence.
        inputs: Raw tensors ``[B, ...]`` by name.
        shown: From ``shown_modalities`` or ``held_modalities``.
        options: Other keywords of the call.
    """
    return model(inputs, present=shown, **options) if shown else model(inputs, **options)
