"""Errors of the hidden tokens of a Perceiver IO autoencoder, element by element.

Legend: B batch.
"""

import torch
from torch import Tensor

from perceivers.masking import count_kept
from perceivers.models.masked import Raw, Tally, add_pass, blank_absent, cover, split_ids
from perceivers.models.perceiver_io.model import PerceiverIO


class TokenErrors:
    """Errors of a Perceiver IO that reads some tokens and reconstructs all elements.

    Args:
        model: A Perceiver IO autoencoder.
        ratio: Fraction of the tokens that is hidden.
        repeats: How often each token is hidden.
        generator: Random generator of the masks.
    """

    def __init__(
        self, model: PerceiverIO, ratio: float, repeats: int, generator: torch.Generator
    ) -> None:
        self.model = model
        self.keep: dict[str, Tensor] = {}
        for name in model.config.data_inputs:
            if name in model.config.outputs:
                units = model.inputs.reader(name).num_tokens
                kept = count_kept(units, ratio)
                drawn = cover(1, units, kept=kept, repeats=repeats, generator=generator)
                self.keep[name] = drawn.squeeze(1)
        self.passes = max(len(keep) for keep in self.keep.values())
        self.unit = "squared error, per-channel values"

    @torch.no_grad()
    def __call__(self, inputs: Raw, held: Raw) -> dict[str, Tensor]:
        """Return the mean error of every element over the passes that hide it."""
        size = len(next(iter(inputs.values())))
        tallies: dict[str, Tally] = {}
        for index in range(self.passes):
            keep = {name: part[index % len(part)] for name, part in self.keep.items()}
            kept = {name: split_ids(row[None])[0].expand(size, -1) for name, row in keep.items()}
            encoded = self.model.encode(inputs, kept=kept, present=held)
            for name, row in keep.items():
                adapter = self.model.adapter(name)
                truth = adapter.normalise(adapter.flatten(inputs[name]), torch.float32)
                made = adapter.flatten(self.model.decode(encoded, name).float())
                hidden = ~self._spread(name, row).flatten()
                # Missing points are NaN and must not be counted.
                errors = (made - truth).square().mean(-1)
                counts = hidden & ~truth.isnan().any(-1)
                add_pass(tallies, name, torch.where(counts, errors, 0.0), counts.to(errors.dtype))
        specs = self.model.config.inputs
        return {
            name: blank_absent(tally.mean().unflatten(1, specs[name].grid), held.get(name))
            for name, tally in tallies.items()
        }

    def _spread(self, name: str, keep: Tensor) -> Tensor:
        """Return which elements of the raw grid the visible tokens cover."""
        reader, spec = self.model.inputs.reader(name), self.model.config.inputs[name]
        grid = keep.unflatten(0, reader.grid)
        for axis, (tokens, length) in enumerate(zip(reader.grid, spec.grid, strict=True)):
            grid = grid.repeat_interleave(-(-length // tokens), dim=axis).narrow(axis, 0, length)
        return grid
