"""Parameter initialisers, named as the papers use them.

Legend: fan_in is the number of inputs of a Linear, or the number of rows of a learned array.
"""

import torch
from torch import Tensor, nn

# A normal cut at two standard deviations has this standard deviation; dividing restores one.
TRUNCATED_STD = 0.87962566103423978
PART = 1 << 26


def truncated_normal_(weight: Tensor, deviation: float) -> Tensor:
    """Fill with a normal cut at two deviations, scaled so that ``deviation`` is what remains."""
    std = deviation / TRUNCATED_STD
    # Drawing takes three times the memory of what is drawn, so a table of gigabytes is drawn in
    # parts.
    parts = weight.detach().view(-1).split(PART) if weight.numel() > PART else (weight,)
    for part in parts:
        nn.init.trunc_normal_(part, std=std, a=-2 * std, b=2 * std)
    return weight


@torch.no_grad()
def init_linears_(model: nn.Module) -> None:
    """Initialise every Linear by fan-in with zero bias, and every LayerNorm to the identity."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            truncated_normal_(module.weight, module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
