"""Regrouping: which latents of one level form a group of the next.

Legend: B batch, G groups before, g groups after, N tokens per group, C channels.
Paper: HiP (arXiv 2202.10890) Sec. 3, "reshape" (the paper's) and "transpose_reshape".
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from perceivers.errors import ConfigError

Regroup = Literal["reshape", "transpose_reshape"]


def regroup(
    x: Float[Tensor, "B G N C"], num_groups: int, how: Regroup = "reshape"
) -> Float[Tensor, "B g n C"]:
    """Deal the latents of all groups into ``num_groups`` groups.

    ``reshape`` merges neighbours, or splits a group into consecutive runs; ``transpose_reshape``
    gives every new group latents of all old groups.

    Raises:
        ConfigError: The latents do not divide evenly.
    """
    batch, groups, num, channels = x.shape
    if groups * num % num_groups:
        raise ConfigError(
            f"{groups} groups of {num} latents cannot be dealt into {num_groups} equal groups"
        )
    if how == "transpose_reshape":
        x = x.transpose(1, 2)  # [B, N, G, C]
    return x.reshape(batch, num_groups, groups * num // num_groups, channels)
