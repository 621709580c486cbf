"""How a fresh Hiera starts.

| parameter | paper | autoencoder |
|---|---|---|
| Linear weights | truncated normal, deviation 0.02 | Xavier uniform |
| Linear biases | 0.02 | 0 |
| stem | truncated normal, deviation 0.02; bias 0.02 | Xavier uniform, flattened; bias as PyTorch |
| positions, mask token | truncated normal, deviation 0.02 | the same |
| LayerNorm | scale 1, offset 0.02 | scale 1, offset 0 |
| fusion of the stages | - | as PyTorch's convolutions |
| layer scales | as configured | as configured |
| logits | weights and biases times 0.001 | - |

Paper: Hiera (arXiv 2306.00989) App. A; the numbers are those of the released code.
"""

from typing import Any

import torch
from torch import nn

from perceivers.models.hiera.block import LayerScale

DEVIATION = 0.02
HEAD_SCALE = 0.001


@torch.no_grad()
def initialise(model: Any) -> None:
    """Initialise every parameter of a Hiera as its config asks for."""
    classifier = model.config.init == "paper"
    bias = DEVIATION if classifier else 0.0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            if classifier:
                nn.init.trunc_normal_(module.weight, std=DEVIATION)
            else:
                nn.init.xavier_uniform_(module.weight)
            nn.init.constant_(module.bias, bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.constant_(module.bias, bias)
        elif isinstance(module, LayerScale):
            nn.init.constant_(module.scale, module.value)
    tables = [*model.encoder.positions.parameters()]
    if model.decoder is not None:
        tables += [model.decoder.mask_token, model.decoder.positions]
        for merge in model.decoder.fusion.merges:
            merge.reset_parameters()  # a Linear of as many values is drawn as a convolution is
    for table in tables:
        nn.init.trunc_normal_(table, std=DEVIATION)
    stem = model.encoder.stem
    stem.reset_parameters()
    if classifier:
        nn.init.trunc_normal_(stem.weight, std=DEVIATION)
        nn.init.constant_(stem.bias, bias)
    else:
        nn.init.xavier_uniform_(stem.weight.view(len(stem.weight), -1))
    if model.config.head.kind == "mean":
        model.head.weight.mul_(HEAD_SCALE)
        model.head.bias.mul_(HEAD_SCALE)
