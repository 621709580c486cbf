"""The masked auto-encoder as a graph: raw tensors and a mask plan in, predictions out.

The plan is what the system makes of it: kept and masked slots of groups (HiP) or mask units
(Hiera), or what is kept as booleans.

Legend: B batch.
"""

from typing import Any

import torch
from torch import Tensor, nn

from perceivers.errors import ConfigError
from perceivers.exporting.tensors import BATCH, Graph, draw_raw, inputs_of
from perceivers.masking import MaskAxis, MaskPlan
from perceivers.models.hip import HiP
from perceivers.tasks import MaskedAutoencodingConfig
from perceivers.tasks.mae import OBJECTIVES, objective_of


class Autoencoder(nn.Module):
    """The whole masked auto-encoder: raw inputs and a plan in, normalised predictions out.

    Args:
        model: With a decoder.
        names: The modalities that it is given.
        like: A plan of the form that the graph takes.
    """

    def __init__(self, model: Any, names: tuple[str, ...], like: MaskPlan) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.axis: MaskAxis = like.axis
        self.forms = ("kept", "masked") if like.is_packed else ("keep",)

    def tensors_of(self, plan: MaskPlan) -> tuple[Tensor, ...]:
        """Return a plan as the graph takes it: form by form, every modality."""
        return tuple(getattr(plan, form)[n].contiguous() for form in self.forms for n in self.names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the prediction of every modality, as the model's ``reconstruct`` does."""
        count = len(self.names)
        parts = (tensors[at : at + count] for at in range(0, len(tensors), count))
        raw, *forms = (dict(zip(self.names, part, strict=True)) for part in parts)
        plan = MaskPlan(**dict(zip(self.forms, forms, strict=True)), axis=self.axis)
        values = self.model.reconstruct(self.model.encode(raw, plan), plan)
        return tuple(values.values()) if isinstance(values, dict) else (values,)


def autoencoder_graph(model: Any, mask: MaskedAutoencodingConfig) -> Graph:
    """Wrap the masked auto-encoder.

    Args:
        model: With a decoder, of a system that masks.
        mask: The share and kind of what is hidden; the graph takes plans of this form.

    Raises:
        ConfigError: The model has no masked auto-encoder, or does not mask in this way.
    """
    if model.family not in OBJECTIVES:
        raise ConfigError(
            f"part 'autoencoder' belongs to the families {' and '.join(OBJECTIVES)}, this model is "
            f"a {model.family}; export part 'model'"
        )
    if model.decoder is None:
        raise ConfigError("this model has no decoder; export part 'model' or 'encoder'")
    raw, settings, objective = inputs_of(model), mask.settings(model), objective_of(model)
    names = tuple(raw)

    def draw(batch: int, generator: torch.Generator) -> tuple[tuple[Tensor, ...], MaskPlan]:
        tensors = draw_raw(raw, batch, generator)
        given = dict(zip(names, tensors, strict=True))
        return tensors, objective.draw(given, settings, generator)

    _, like = draw(1, torch.Generator().manual_seed(0))
    module = Autoencoder(model, names, like)

    def sample(batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        tensors, plan = draw(batch, generator)
        return (*tensors, *module.tensors_of(plan))

    plans = tuple(f"{n}_{form}" for form in module.forms for n in names)
    predicted = (*names, *model.config.labels) if isinstance(model, HiP) else names
    return Graph(
        module=module,
        inputs=(*names, *plans),
        outputs=tuple(f"{n}_prediction" for n in predicted),
        raw=raw,
        sample=sample,
        free=tuple({0: BATCH} for _ in (*names, *plans)),
    )
