"""How a fresh Hiera starts.

| parameter | paper | autoencoder |
|---|---|---|
| Linear weights | truncated normal, deviation 0.02 | Xavier uniform |
| Linear biases | 0.02 | 0 |
| stem | truncated normal, deviation 0.02; bias 0.02 | Xavier uniform, flattened; bias as PyTorch |
| positions, mask token | truncated normal, deviation 0.02 | the same |
| LayerNorm | scale 1, offset 0.02 | scale 1, offset 0 |
| fusion of the stages | - | as PyTorch's convolutions |
| logits | weights and biases times 0.001 | - |

Paper: Hiera (arXiv 2306.00989) App. A; the numbers are those of the released code.
"""

from typing import Any

import torch
from torch import nn

from perceivers.models.hiera.decoder import HieraPatchDecoder, StageFusion
from perceivers.models.hiera.positions import HieraPositions

DEVIATION = 0.02
HEAD_SCALE = 0.001


@torch.no_grad()
def initialise(model: Any) -> None:
    """Initialise every parameter of a Hiera as its config asks for."""
    classifier = model.config.init == "paper"
    bias = DEVIATION if classifier else 0.0
    fused = {
        id(m)
        for fusion in model.modules()
        if isinstance(fusion, StageFusion)
        for m in fusion.modules()
    }
    for module in model.modules():
        if id(module) in fused:
            continue
        if isinstance(module, nn.Linear):
            if classifier:
                nn.init.trunc_normal_(module.weight, std=DEVIATION)
            else:
                nn.init.xavier_uniform_(module.weight)
            nn.init.constant_(module.bias, bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.constant_(module.bias, bias)
        elif isinstance(module, HieraPositions):
            for table in module.parameters():
                nn.init.trunc_normal_(table, std=DEVIATION)
        elif isinstance(module, HieraPatchDecoder):
            nn.init.trunc_normal_(module.mask_token, std=DEVIATION)
            nn.init.trunc_normal_(module.positions, std=DEVIATION)
    stem = model.encoder.stem
    if classifier:
        nn.init.trunc_normal_(stem.weight, std=DEVIATION)
        nn.init.constant_(stem.bias, bias)
    else:
        nn.init.xavier_uniform_(stem.weight.view(len(stem.weight), -1))
    if model.config.head.kind == "mean":
        model.head.weight.mul_(HEAD_SCALE)
        model.head.bias.mul_(HEAD_SCALE)
