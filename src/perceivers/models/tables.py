"""The learned position tables of a model, whatever its family."""

from typing import Any

from perceivers.nn.positions import LearnedPositions


def position_tables(model: Any) -> dict[str, LearnedPositions]:
    """Return the learned positions of a model's inputs, by modality."""
    if model.family == "hip":
        found = dict(model.encoder.inputs.positions.items())
    elif model.family in {"perceiver", "perceiver_io"}:
        readers = {name: model.inputs.reader(name) for name in model.config.inputs}
        found = {n: r.positions.source for n, r in readers.items() if r.positions is not None}
    else:
        found = {}
    return {n: table for n, table in found.items() if isinstance(table, LearnedPositions)}
