"""Tensors that are spread over processes: their own part, the whole, and the way back."""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from perceivers.models.hiera.encoder import HieraBlock
from perceivers.nn.blocks import PerceiverBlock, SelfAttentionLayer
from perceivers.tasks import Task

# What is gathered, computed and freed at a time. All their parameters are used in ``forward``
# alone; adapters, positions and read-outs are used from outside, so the whole task keeps those.
UNITS = (PerceiverBlock, SelfAttentionLayer, HieraBlock)


def shard_task(task: Task, mesh: DeviceMesh) -> Task:
    """Spread the parameters of every block, and of what lies outside them, over the processes."""
    for tensor in [*task.parameters(), *task.buffers()]:
        torch.distributed.broadcast(tensor.detach(), src=0)
    for module in reversed(list(task.modules())):
        if isinstance(module, UNITS):
            fully_shard(module, mesh=mesh)
    fully_shard(task, mesh=mesh)
    # Evaluation calls the model, or parts of it, and not the task.
    register_fsdp_forward_method(task, "evaluate")
    return task


def free_gathered(task: nn.Module) -> None:
    """Drop the whole parameters that an evaluation has gathered: they may be about to change."""
    if isinstance(task, FSDPModule):
        task.reshard()


def own_part(tensor: Tensor) -> Tensor:
    """Return this process's part, which shares its memory with ``tensor``."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor; all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor with the placement of another of its shape; no process waits for another."""
    if isinstance(tensor, DTensor) or not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
