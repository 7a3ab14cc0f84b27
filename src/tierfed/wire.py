"""Messages as bytes: safetensors frames, and how many bytes of payload a message has. Never pickle."""

import json

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_frame
from safetensors.torch import save as save_frame

from tierfed.errors import InputError
from tierfed.tree import Tree, flatten, leaves, unflatten


def encode(message: Tree) -> bytes:
    """A tree as one safetensors frame, on the CPU. Its metadata remember the order of the keys."""
    flat = {k: v.detach().cpu().contiguous().clone() for k, v in flatten(message).items()}
    return save_frame(flat, {"order": json.dumps(list(flat))})


def decode(frame: bytes, device: torch.device | str = "cpu") -> Tree:
    """The inverse of `encode`.

    :raises InputError: the bytes are no safetensors frame, or not of a tree
    """
    try:
        flat = load_frame(frame)
        header = json.loads(frame[8 : 8 + int.from_bytes(frame[:8], "little")])
        order = json.loads(header.get("__metadata__", {}).get("order", "null")) or sorted(flat)
        if sorted(order) != sorted(flat):
            raise ValueError("its metadata name other tensors than it holds")
        return unflatten({k: flat[k].to(device) for k in order})
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as err:
        raise InputError(f"got {len(frame)} bytes that are no safetensors frame of a tree ({err})") from None


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
