"""How wrong a model is about every element while that element is hidden from it.

The same masks for every sample, so that an error depends on the sample alone: not on its batch, and
not on its place.

Legend: B batch, P passes, g groups of a modality, S slots, U mask units, T patches of a unit.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool
from torch import Tensor

from perceivers.checkpoints.loading import Loaded
from perceivers.errors import CheckpointError, ConfigError
from perceivers.masking import MaskPlan, count_kept, draw_units
from perceivers.models.hiera import Hiera
from perceivers.models.hip import HiP
from perceivers.models.perceiver_io import PerceiverIO
from perceivers.tasks import AutoencodingConfig
from perceivers.tasks.base import check_answer
from perceivers.tasks.mae import OBJECTIVES, objective_of
from perceivers.tasks.masked import MaskSettings, Target, byte_errors
from perceivers.tasks.masked_patches import patch_statistics
from perceivers.training.config import TrainConfig
from perceivers.types import PAD, ModalitySpec
from perceivers.workflows.preparing import find_masking, recorded_settings

# -- Masks that together hide everything: what is hidden in turn, each unit equally often --------
#
# Legend: R rows that are drawn apart, N units of a row, P passes.


def cover(
    rows: int, units: int, *, kept: int, repeats: int, generator: torch.Generator
) -> Bool[Tensor, "P R N"]:
    """Draw masks of equal size under which every unit is hidden at least ``repeats`` times.

    Each pass hides the units that were hidden least so far, ties by lot. The counts of two units
    of a row therefore never differ by more than one, with as few passes as that takes.

    Args:
        rows: Rows R, each with a draw of its own.
        units: Units N of a row.
        kept: Units that stay visible in every pass, from 1 to N - 1.
        repeats: How often each unit is hidden, at least 1.
        generator: Source of the lots, on the CPU.

    Returns:
        True where a unit stays visible.

    Raises:
        ConfigError: A number is out of range.
    """
    if not 1 <= kept < units:
        raise ConfigError(
            f"{kept} of {units} units would stay visible; it must be at least 1, and 1 hidden"
        )
    if repeats < 1:
        raise ConfigError(f"repeats is {repeats}; every element must be hidden at least once")
    hidden = units - kept
    times = torch.zeros(rows, units)
    passes = []
    for _ in range(-(-repeats * units // hidden)):
        # Lots lie below 1, so they only decide between units that were hidden equally often.
        order = (times + torch.rand(rows, units, generator=generator)).argsort(1)
        keep = torch.ones(rows, units, dtype=torch.bool)
        keep.scatter_(1, order[:, :hidden], value=False)
        times += ~keep
        passes.append(keep)
    return torch.stack(passes)


# -- How wrong a model is about every element while that element is hidden from it ---------------

Raw = Mapping[str, Tensor]


class ErrorMaps(Protocol):
    """One system's side: which passes there are, and what an error is measured in."""

    passes: int
    unit: str

    def __call__(self, inputs: Raw, held: Raw) -> dict[str, Tensor]:
        """Return the mean error of every element where it was hidden, ``[B, *grid]``.

        NaN where a sample has no element: padding of texts, rows that are no point.

        Args:
            inputs: Raw tensors ``[B, ...]`` by name.
            held: Which samples hold a modality, bool ``[B]``; all where not given.
        """
        ...


def error_maps(
    loaded: Loaded,
    config: TrainConfig | None,
    *,
    repeats: int,
    ratio: float | None,
    seed: int,
) -> ErrorMaps:
    """Prepare the masks of a model that was trained to fill in what it does not see.

    Args:
        loaded: A HiP or Hiera with a decoder, or a Perceiver IO that was trained with a mask ratio.
        config: Its run's settings, if there are any.
        repeats: How often each element is hidden, at least 1.
        ratio: Share hidden in each pass, between 0 and 1; as in training when not given.
        seed: Of the masks.

    Raises:
        CheckpointError: The model was not trained to fill in.
        ConfigError: A number is out of range.
    """
    if ratio is not None and not 0.0 < ratio < 1.0:
        raise ConfigError(f"mask ratio is {ratio}; it must lie strictly between 0 and 1")
    model, generator = loaded.model.eval(), torch.Generator().manual_seed(seed)
    if model.family == "perceiver_io" and loaded.info.task in {"", "autoencode"}:
        known = recorded_settings(AutoencodingConfig, loaded, config)
        if known is None and ratio is None:
            raise CheckpointError(
                f"{loaded.folder} does not record which fraction of its tokens was hidden in "
                f"training; state it with --ratio, or give the run folder"
            )
        if known is not None and not known.mask_ratio:
            raise CheckpointError(
                f"{loaded.folder} was trained to give back what it sees (autoencode.mask_ratio is "
                f"0), so nothing can be hidden from it; pre-train with --autoencode.mask_ratio 0.75"
            )
        hidden = ratio or (known.mask_ratio if known is not None else 0.0)
        return TokenErrors(model, hidden, repeats, generator)
    if loaded.info.task == "mlm":
        raise CheckpointError(
            f"{loaded.folder} ({model.family}, task mlm) hides no parts of a signal, but bytes "
            f"of texts by their ids; {advise(loaded)}"
        )
    if model.family not in OBJECTIVES or model.decoder is None:
        raise CheckpointError(
            f"{loaded.folder} ({model.family}, task {loaded.info.task or 'not recorded'}) does not "
            f"fill in what is hidden; {advise(loaded)}"
        )
    settings = find_masking(loaded, config)
    if ratio is not None:
        settings = MaskSettings(ratio, settings.kind, settings.target)
    kind = ElementErrors if model.family == "hip" else PatchErrors
    return kind(model, settings, repeats, generator)


def advise(loaded: Loaded) -> str:
    """Say which model can score the anomalies of what a model reads.

    Args:
        loaded: A model that cannot.
    """
    kinds = {spec.kind for spec in loaded.model.config.data_inputs.values()}
    # A HiP knows hidden points by their place in the file alone, which says little of them.
    if "points" in kinds and "bytes" not in kinds:
        return (
            "give an autoencoder with hidden tokens: perceivers pretrain --task autoencode --model "
            "perceiver_io_nano --autoencode.mask_ratio 0.75 --data ... --out ..."
        )
    return "give a masked autoencoder: perceivers pretrain --model hip_tiny --data ... --out ..."


def error_unit(specs: Collection[ModalitySpec], target: Target, note: str = "") -> str:
    """Say what errors are measured in.

    Args:
        specs: Modalities that are scored.
        target: Space of the values.
        note: What a reader must know of values.
    """
    texts = sum(spec.kind == "bytes" for spec in specs)
    values = f"squared error, {target} values{note}"
    if not texts:
        return values
    return "nats per byte" if texts == len(specs) else f"{values}; nats per byte"


@dataclass
class Tally:
    """Errors summed over passes, and how often each element was counted."""

    errors: Tensor
    times: Tensor

    def mean(self) -> Tensor:
        """Mean error; NaN where an element never counted."""
        return self.errors / torch.where(self.times > 0, self.times, torch.nan)


class ElementErrors:
    """Errors of a HiP, element by element.

    Args:
        model: With a decoder.
        settings: How it was masked.
        repeats: How often each element is hidden.
        generator: Of the masks.
    """

    def __init__(
        self, model: HiP, settings: MaskSettings, repeats: int, generator: torch.Generator
    ) -> None:
        self.model = model
        self.target: Target = settings.target
        self.objective = objective_of(model)
        self.plans = cover_slots(model, settings, repeats, generator)
        specs = model.config.grouped_inputs.values()
        self.passes, self.unit = len(self.plans), error_unit(specs, settings.target)

    @torch.no_grad()
    def __call__(self, inputs: Raw, held: Raw) -> dict[str, Tensor]:
        """Return the mean error of every element where it was hidden."""
        size = len(next(iter(inputs.values())))
        shares = {share.name: share for share in self.model.layout().shares}
        tallies: dict[str, Tally] = {}
        for plan in self.plans:
            wide = _widen(plan, size)
            scored = self.objective.score(inputs, wide, self.target, shown=held)
            for name, share in shares.items():
                each = scored[name]
                weight = each.weight.to(each.errors.dtype).expand_as(each.errors)
                parts = [each.errors * weight, weight]
                if wide.is_packed:
                    ids = wide.masked[name].expand(-1, share.num_groups, -1)
                    blank = parts[0].new_zeros(size, share.num_groups, share.slots)
                    parts = [blank.scatter(2, ids, part).unsqueeze(-1) for part in parts]
                    parts = [share.merge(part).squeeze(-1) for part in parts]
                _add(tallies, name, *parts)
        specs = self.model.config.inputs
        return {
            name: _blank_absent(tally.mean().unflatten(1, specs[name].grid), held.get(name))
            for name, tally in tallies.items()
        }


def cover_slots(
    model: HiP, settings: MaskSettings, repeats: int, generator: torch.Generator
) -> list[MaskPlan]:
    """Return plans for one sample under which every element of a HiP is hidden often enough."""
    layout, ratio = model.layout(), settings.ratio

    def draw(rows: int, units: int) -> Tensor:
        kept = count_kept(units, ratio)
        return cover(rows, units, kept=kept, repeats=repeats, generator=generator)

    if settings.kind == "groups":
        # [P, 1, G]: whole groups, over those of all modalities.
        keep = draw(1, layout.num_groups).split([s.num_groups for s in layout.shares], 2)
        wide = {
            share.name: part.movedim(1, 2).expand(-1, -1, share.slots)
            for share, part in zip(layout.shares, keep, strict=True)
        }
        return _plans(wide, packed=False)
    if settings.kind == "uniform":
        dense = {
            share.name: share.split(draw(1, share.length).movedim(1, 2).to(torch.uint8))
            for share in layout.shares
        }
        return _plans({name: part.squeeze(-1).bool() for name, part in dense.items()}, packed=False)
    common = settings.kind == "groupwise"
    drawn: dict[str, Tensor] = {}
    for share in layout.shares:
        if common and layout.axis == "groups" and drawn:
            drawn[share.name] = next(iter(drawn.values()))
        else:
            drawn[share.name] = draw(1 if common else share.num_groups, share.slots)
    return _plans(drawn, packed=True)


def _plans(keep: Mapping[str, Tensor], *, packed: bool) -> list[MaskPlan]:
    """Return a plan per pass of booleans ``[P, U, S]``; the fewest passes are those of all."""
    total = max(len(part) for part in keep.values())
    plans = []
    for index in range(total):
        # A modality with fewer passes starts again.
        rows = {name: part[index % len(part)].unsqueeze(0) for name, part in keep.items()}
        if packed:
            pairs = {name: _ids(row) for name, row in rows.items()}
            kept = {name: pair[0] for name, pair in pairs.items()}
            masked = {name: pair[1] for name, pair in pairs.items()}
            plans.append(MaskPlan(kept=kept, masked=masked))
        else:
            plans.append(MaskPlan(keep=rows))
    return plans


def _ids(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of what is kept and of what is hidden along the last axis, in order."""
    order = (~keep).to(torch.uint8).argsort(dim=-1, stable=True)
    kept = int(keep.flatten(0, -2)[0].sum())
    return order[..., :kept], order[..., kept:]


def _widen(plan: MaskPlan, size: int) -> MaskPlan:
    """Use one sample's plan for a batch."""

    def wide(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: part.expand(size, *part.shape[1:]) for name, part in parts.items()}

    return MaskPlan(
        kept=wide(plan.kept), masked=wide(plan.masked), keep=wide(plan.keep), axis=plan.axis
    )


class PatchErrors:
    """Errors of a Hiera, pixel by pixel of the patches it predicts.

    Args:
        model: With a decoder.
        settings: How it was masked.
        repeats: How often each unit is hidden.
        generator: Of the masks.
    """

    def __init__(
        self, model: Hiera, settings: MaskSettings, repeats: int, generator: torch.Generator
    ) -> None:
        self.model, self.borrows = model, settings.target == "patch-normalised"
        self.texts = model.config.reads_text
        units = model.num_units()
        kept = len(draw_units(torch.zeros(1, units), settings.ratio)[0][0]) if units > 1 else 0
        self.keep = cover(1, units, kept=kept, repeats=repeats, generator=generator)
        note = ", mean and deviation of every patch borrowed" if self.borrows else ""
        self.passes, self.unit = (
            len(self.keep),
            error_unit([model.config.spec], "per-channel", note),
        )

    @torch.no_grad()
    def __call__(self, inputs: Raw, held: Raw) -> dict[str, Tensor]:
        """Return the mean error of every element where it was hidden; one modality is held.

        In units of a patch's own deviation a smooth patch would count as much as a rich one, so
        patch-normalised predictions are brought back to per-channel values first.
        """
        model, name = self.model, self.model.config.name
        raw = inputs[name]
        # Patches of all units, [B, U, T, P].
        truth = model.patch_ids(raw) if self.texts else model.patches(raw).float()
        size, units = len(truth), ()
        errors = torch.zeros(truth.shape, device=truth.device)
        times = torch.zeros(truth.shape[1])
        for keep in self.keep:
            kept, masked = (ids.expand(size, -1) for ids in _ids(keep))
            plan = MaskPlan(kept={name: kept}, masked={name: masked}, axis="unit")
            encoded = model.encode({name: raw}, plan)
            made, hidden = model.reconstruct(encoded, plan).float(), masked[0]
            errors[:, hidden] += self._compare(made, truth[:, hidden])
            times[hidden] += 1
            units = encoded.units
        laid = model.unpatch(errors / times[:, None, None], units, 1 if self.texts else None)
        whole = tuple(slice(n) for n in model.config.spec.grid)
        found = laid.mean(1)[(slice(None), *whole)]  # [B, *size]
        return {name: found.masked_fill(raw == PAD, torch.nan) if self.texts else found}

    def _compare(self, made: Tensor, truth: Tensor) -> Tensor:
        """Return the error of every value of some patches, of texts of every byte."""
        check_answer(made, f"reconstruction of {self.model.config.name}")
        if self.texts:
            return byte_errors(self.model.byte_scores(made), truth)
        if self.borrows:
            mean, deviation = patch_statistics(truth)
            made = made * deviation + mean
        return (made - truth).square()


class TokenErrors:
    """Errors of a Perceiver IO that reads some tokens and gives all elements back.

    Args:
        model: An auto-encoder.
        ratio: Share of the tokens that is not read.
        repeats: How often each token is hidden.
        generator: Of the masks.
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
        """Return the mean error of every element where it was hidden."""
        size = len(next(iter(inputs.values())))
        tallies: dict[str, Tally] = {}
        for index in range(self.passes):
            keep = {name: part[index % len(part)] for name, part in self.keep.items()}
            kept = {name: _ids(row[None])[0].expand(size, -1) for name, row in keep.items()}
            encoded = self.model.encode(inputs, kept=kept, present=held)
            for name, row in keep.items():
                adapter = self.model.adapter(name)
                truth = adapter.normalise(adapter.flatten(inputs[name]), torch.float32)
                made = adapter.flatten(self.model.decode(encoded, name).float())
                hidden = ~self._spread(name, row).flatten()
                # A point that is not there is NaN, and its error is nobody's.
                errors = (made - truth).square().mean(-1)
                counts = hidden & ~truth.isnan().any(-1)
                _add(tallies, name, torch.where(counts, errors, 0.0), counts.to(errors.dtype))
        specs = self.model.config.inputs
        return {
            name: _blank_absent(tally.mean().unflatten(1, specs[name].grid), held.get(name))
            for name, tally in tallies.items()
        }

    def _spread(self, name: str, keep: Tensor) -> Tensor:
        """Which elements the visible tokens cover, on the raw grid."""
        reader, spec = self.model.inputs.reader(name), self.model.config.inputs[name]
        grid = keep.unflatten(0, reader.grid)
        for axis, (tokens, length) in enumerate(zip(reader.grid, spec.grid, strict=True)):
            grid = grid.repeat_interleave(-(-length // tokens), dim=axis).narrow(axis, 0, length)
        return grid


def _add(tallies: dict[str, Tally], name: str, errors: Tensor, times: Tensor) -> None:
    """Add one pass to a modality's sums.

    Raises:
        DataError: An error that counts is not finite.
    """
    check_answer(errors * times, f"the error of {name}")
    if name not in tallies:
        tallies[name] = Tally(torch.zeros_like(errors), torch.zeros_like(times))
    tallies[name].errors += errors
    tallies[name].times += times


def _blank_absent(errors: Tensor, held: Tensor | None) -> Tensor:
    """Put NaN where a sample lacks the modality."""
    if held is None:
        return errors
    absent = ~held.to(errors.device)
    return errors.masked_fill(absent.view(-1, *[1] * (errors.ndim - 1)), torch.nan)
