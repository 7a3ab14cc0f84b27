"""Magnitude pruning: the smallest weights of all linear layers and convolutions together become zero, and stay zero."""

import torch
from torch import Tensor, nn

from tierfed.algorithm import Data
from tierfed.errors import InputError
from tierfed.task import Task
from tierfed.tree import Params


def weights(module: nn.Module, params: Params) -> list[str]:
    """The entries that pruning is about: weights of linear layers and convolutions; biases and norms are not."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    names = [f"{name}.weight".lstrip(".") for name, m in module.named_modules() if isinstance(m, kinds)]
    return [k for k in names if k in params]


def keep_largest(module: nn.Module, params: Params, sparsity: float) -> Params:
    """Which weights stay: bool masks by key, False for the round(sparsity * total) smallest magnitudes of all layers
    together; of equal ones the first go.

    :raises InputError: the model has neither a linear layer nor a convolution
    """
    keys = weights(module, params)
    if not keys:
        raise InputError("the model has no weights of linear layers or convolutions that could be pruned")
    size = torch.cat([params[k].detach().abs().flatten() for k in keys])
    kept = torch.ones(len(size), dtype=torch.bool, device=size.device)
    kept[torch.argsort(size, stable=True)[: round(sparsity * len(size))]] = False
    parts = kept.split([params[k].numel() for k in keys])
    return {k: part.view_as(params[k]) for k, part in zip(keys, parts, strict=True)}


def masked(params: Params, masks: Params) -> Params:
    """The same model without what the masks take out."""
    return {k: _zeroed(v, masks[k]) if k in masks else v for k, v in params.items()}


def _zeroed(weight: Tensor, kept: Tensor) -> Tensor:
    return torch.where(kept, weight, torch.zeros_like(weight))


def tuned(task: Task, params: Params, masks: Params, data: Data, lr: float) -> Params:
    """Plain SGD over all of `data` that leaves what is pruned at zero."""
    out: Params = data.fold(lambda w, batch: masked(task.step(w, batch, lr), masks), masked(params, masks))
    return out
