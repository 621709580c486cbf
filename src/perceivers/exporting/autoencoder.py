"""The masked auto-encoder of a HiP as a graph: raw tensors and a mask plan in, predictions out.

Legend: B batch, U units, K kept and Q masked slots, S slots.
"""

from typing import Any

import torch
from torch import Tensor, nn

from perceivers.errors import ConfigError
from perceivers.exporting.tensors import BATCH, Graph, draw_raw
from perceivers.masking import MaskPlan, draw_mask_plan
from perceivers.models.hip import HiP
from perceivers.tasks import MaskedAutoencodingConfig


class Autoencoder(nn.Module):
    """The whole masked auto-encoder: raw inputs and a plan in, normalised predictions out.

    Args:
        model: With a decoder.
        packed: The plan comes as kept and masked slots; else as what is kept.
    """

    def __init__(self, model: HiP, *, packed: bool) -> None:
        super().__init__()
        self.model = model
        self.packed = packed

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the prediction of every modality, as ``HiP.reconstruct`` does."""
        names = list(self.model.config.grouped_inputs)
        count = len(names)
        inputs = dict(zip(names, tensors[:count], strict=True))
        second = dict(zip(names, tensors[count : 2 * count], strict=True))
        if self.packed:
            masked = dict(zip(names, tensors[2 * count :], strict=True))
            plan = MaskPlan(kept=second, masked=masked)
        else:
            plan = MaskPlan(keep=second)
        encoded = self.model.encode(inputs, plan)
        return tuple(self.model.reconstruct(encoded, plan).values())


def autoencoder_graph(model: Any, mask: MaskedAutoencodingConfig) -> Graph:
    """Wrap the masked auto-encoder.

    Args:
        model: A HiP with a decoder.
        mask: The share and kind of what is hidden; the graph takes plans of this form.

    Raises:
        ConfigError: The model has no masked auto-encoder.
    """
    if not isinstance(model, HiP):
        raise ConfigError(
            f"part 'autoencoder' belongs to the family hip, this model is a {model.family}; export "
            f"part 'model'"
        )
    if model.decoder is None:
        raise ConfigError("this model has no decoder; export part 'model' or 'encoder'")
    raw = model.config.grouped_inputs
    packed = mask.kind in {"groupwise", "independent"}
    plans = [f"{n}_{form}" for form in (("kept", "masked") if packed else ("keep",)) for n in raw]

    def sample(batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        tensors = draw_raw(raw, batch, generator)
        plan = draw_mask_plan(
            model.layout(), batch, ratio=mask.ratio, kind=mask.kind, generator=generator
        )
        if plan.is_packed:
            return (*tensors, *(plan.kept[n] for n in raw), *(plan.masked[n] for n in raw))
        return (*tensors, *(plan.keep[n].contiguous() for n in raw))

    return Graph(
        module=Autoencoder(model, packed=packed),
        inputs=(*raw, *plans),
        outputs=tuple(f"{n}_prediction" for n in (*raw, *model.config.labels)),
        raw=raw,
        sample=sample,
        free=tuple({0: BATCH} for _ in (*raw, *plans)),
    )
