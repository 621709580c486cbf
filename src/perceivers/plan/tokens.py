"""How many tokens a model makes of each modality, and into how many groups they go."""

from math import prod
from typing import Any, NamedTuple

from perceivers.adapters.multimodal import TokenReaders


class ModalityTokens(NamedTuple):
    """One modality as a model reads it.

    Args:
        name: The modality.
        elements: Raw elements of a sample, such as pixels, samples, bytes or points.
        tokens: What the model's first layer reads; those of a HiP are the elements.
        groups: Groups that share the tokens; 1 where there are none.
    """

    name: str
    elements: int
    tokens: int
    groups: int


def count_tokens(model: Any) -> list[ModalityTokens]:
    """Count the tokens of every modality that data must bring.

    Args:
        model: Of any family.
    """
    specs = model.config.data_inputs
    if model.family == "hip":
        shares = {share.name: share for share in model.config.layout().shares}
        return [
            ModalityTokens(name, spec.num_tokens, spec.num_tokens, shares[name].num_groups)
            for name, spec in specs.items()
        ]
    adapters = [m for m in model.modules() if isinstance(m, TokenReaders)]
    if adapters:
        made = adapters[0].num_tokens
        return [ModalityTokens(name, specs[name].num_tokens, made[name], 1) for name in specs]
    found = []
    for name, spec in specs.items():
        stride = (
            model.config.stride(0) if hasattr(model.config, "stride") else (1,) * len(spec.grid)
        )
        sides = [-(-size // step) for size, step in zip(spec.grid, stride, strict=True)]
        found.append(ModalityTokens(name, spec.num_tokens, prod(sides), 1))
    return found
