"""Initial weights of the flat systems.

| parameter | init |
|---|---|
| Linears of attention and MLPs | normal, deviation 1 / sqrt(fan_in), cut at two sigma |
| other Linears and convolutions | the same without making up for the cut |
| biases | 0 |
| norms | the identity |
| latents, queries, positions, padding and mask vectors | ``paper``: sigma 0.02; ``balanced``: 0.5 |
| byte embedding | sigma 1 |

All draws are normal and cut at two sigma. The released code makes the outputs of flow and the
classic mean-pool head start at zero; the models do that themselves.
Papers: Perceiver (arXiv 2103.03206) App. C; the released initialisers.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from perceivers.adapters.multimodal import TokenReaders
from perceivers.models.flat.trunk import Trunk
from perceivers.nn.attention import Attention
from perceivers.nn.blocks import Mlp
from perceivers.nn.linear import TRUNCATED_STD, truncated_normal_
from perceivers.nn.positions import LearnedPositions

PAPER_SIGMA = 0.02
# Large enough to matter beside the content they meet, whatever the paper's long runs do.
BALANCED = 0.5
TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)


def cut_normal_(weight: Tensor, sigma: float) -> Tensor:
    """Fill with a normal of ``sigma`` cut at two sigma, without making up for the cut."""
    return truncated_normal_(weight, sigma * TRUNCATED_STD)


@torch.no_grad()
def initialise(
    model: nn.Module,
    init: Literal["balanced", "paper"],
    *,
    arrays: list[nn.Parameter] | None = None,
    position_sigma: float = PAPER_SIGMA,
) -> None:
    """Initialise every parameter of a flat model.

    Args:
        model: With its modules built.
        init: Scale of learned arrays.
        arrays: Learned arrays of the model itself, such as queries.
        position_sigma: Sigma of learned input positions under ``paper``.
    """
    inner = {
        id(linear)
        for module in model.modules()
        if isinstance(module, Attention | Mlp)
        for linear in module.modules()
        if isinstance(linear, nn.Linear)
    }
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, *TRANSPOSED)):
            # Those of a transposed convolution are [in, out, ...].
            fan_in = module.weight.select(int(isinstance(module, TRANSPOSED)), 0).numel()
            sigma = fan_in**-0.5
            draw = truncated_normal_ if id(module) in inner else cut_normal_
            draw(module.weight, sigma)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            cut_normal_(module.weight, 1.0)
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            module.reset_parameters()
    learned = list(arrays or [])
    for module in model.modules():
        if isinstance(module, Trunk):
            learned.append(module.latents)
        elif isinstance(module, TokenReaders):
            learned += [*module.padding.values(), *module.mask.values()]
        elif isinstance(module, LearnedPositions):
            cut_normal_(module.table, position_sigma if init == "paper" else BALANCED)
    for array in learned:
        cut_normal_(array, PAPER_SIGMA if init == "paper" else BALANCED)
