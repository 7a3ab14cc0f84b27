"""The body of a hypernetwork: dense layers with ReLU, from an embedding to the features that its heads read."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tierfed.tree import Params, tmap


def draw(rng: np.random.Generator, shape: tuple[int, ...], like: Params) -> Tensor:
    """Standard normal numbers in the precision and on the device of some parameters."""
    one = next(iter(like.values()), torch.zeros(()))
    return one.new_empty(shape) if one.is_meta else one.new_tensor(rng.normal(size=shape))  # meta: only its size


def first_body(rng: np.random.Generator, dim: int, width: int, hidden: int, like: Params) -> Params:
    """`hidden` layers of `width` units on an embedding [dim]: weights normal with variance 2 / inputs, biases zero."""
    out, inputs = {}, dim
    for n in range(hidden):
        out[f"weight{n}"] = draw(rng, (width, inputs), like) * (2 / inputs) ** 0.5
        out[f"bias{n}"] = torch.zeros_like(out[f"weight{n}"][:, 0])
        inputs = width
    return out


def features(body: Params, v: Tensor) -> Tensor:
    """Features [width] of an embedding v [dim]; without hidden layers v itself."""
    for n in range(len(body) // 2):
        v = torch.relu(body[f"weight{n}"] @ v + body[f"bias{n}"])
    return v


def put_rows(rows: Any, at: Tensor, new: Any) -> Any:
    """Rows [R, ...] with those at places [H] replaced."""
    return tmap(lambda old, t: old.index_copy(0, at.to(old.device), t), rows, new)
