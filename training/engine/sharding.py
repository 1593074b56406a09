"""FSDP: each process holds a share of every weight of the base, and gathers a layer to compute it.

For bases that no single device holds. The base's weights are sharded by decoder layer with torch's
``fully_shard``: before a layer is computed, forwards or backwards, its weights are gathered, and
freed afterwards. With full weights their gradients and the optimizer's state are shares as well. An
adapter and a score head are small: every process holds them whole, and their gradients are added up
as without shards. Files hold whole weights, the same that one process writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


class Entrance(nn.Module):
    """The one way to a sharded model's weights: its hooks gather those outside of the layers.

    The decoder and the head are called apart, and may share a weight, so neither of them can be
    the outermost module that ``fully_shard`` wants.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Tensor]) -> Tensor:
        """Return what `work` computes with the model."""
        return work()


def shard(model: Any, device: torch.device, processes: int) -> Entrance:
    """Leave this process its share of a whole model's weights, on its device.

    Gradients are added up over the processes, not averaged. Everything but a decoder layer's
    weights is one group, gathered while the entrance is open.
    """
    mesh = init_device_mesh(device.type, (processes,))
    layers = [
        module for module in model.modules() if type(module).__name__ in model._no_split_modules
    ]
    small = set(model.score.to(device).parameters()) if hasattr(model, "score") else set()
    entrance = Entrance(model)
    for module in (*layers, entrance):
        # Without reshard the outermost weights would stay whole between two passes.
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=small)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    return entrance


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor from its shares; all processes have to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's share of a whole tensor that every process has."""
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def whole_weights(model: nn.Module) -> Mapping[str, Any]:
    """Gather all weights in the first process's memory; all processes have to ask for them.

    A weight that two modules share is there once: gathered twice, nobody would see that it is one.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found = get_model_state_dict(model, options=options)
    names = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return {name: value for name, value in found.items() if name in names}


def alike(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Part shares from whole tensors: torch takes no list of both."""
    every = list(tensors)
    shares: list[Tensor] = [one for one in every if isinstance(one, DTensor)]
    rest = [one for one in every if not isinstance(one, DTensor)]
    return [part for part in (shares, rest) if part]


def gradient_norm(parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """Return the norm of all gradients, of shares and of whole ones; all processes have to ask."""
    gradients = [one.grad for one in parameters.values() if one.grad is not None]
    norms = [whole(torch.nn.utils.get_total_norm(part)) for part in alike(gradients)]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total
