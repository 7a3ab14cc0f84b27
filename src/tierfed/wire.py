"""Messages as bytes: safetensors frames, and how many bytes of payload a message has. Never pickle."""

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_frame
from safetensors.torch import save as save_frame

from tierfed.errors import InputError
from tierfed.tree import Tree, flatten, leaves, unflatten


def encode(message: Tree) -> bytes:
    """A tree as one safetensors frame, on the CPU."""
    return save_frame({k: v.detach().cpu().contiguous().clone() for k, v in flatten(message).items()})


def decode(frame: bytes, device: torch.device | str = "cpu") -> Tree:
    """The inverse of `encode`.

    :raises InputError: the bytes are no safetensors frame
    """
    try:
        flat = load_frame(frame)
    except SafetensorError as err:
        raise InputError(f"got {len(frame)} bytes that are no safetensors frame ({err})") from None
    return unflatten(flat if str(device) == "cpu" else {k: v.to(device) for k, v in flat.items()})


def payload_bytes(messages: Tree, n: int) -> npt.NDArray[np.int64]:
    """Bytes of payload of n stacked messages (leaves [n, ...]): [n]. Names, shapes and framing are not counted.

    An optional messages["mask"] {key: bool [n, ...]} says which leading parts of messages["params"][key] travel: the
    parts that do not travel cost nothing, the mask costs one bit per entry.
    """
    mask = messages.get("mask", {})
    out = np.zeros(n, np.int64)
    for key, part in messages.items():
        if key == "mask":
            out += -(-sum(m.numel() // n for m in part.values()) // 8)
        elif key == "params" and mask:
            for name, t in part.items():
                sent = mask[name].reshape(n, -1) if name in mask else torch.ones(n, 1)
                unit = t.numel() // n // sent.shape[1] * t.element_size()
                out += sent.sum(1).long().cpu().numpy() * unit
        else:
            out += sum(t.numel() // n * t.element_size() for t in leaves(part))
    return out
