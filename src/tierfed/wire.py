"""Messages as bytes: safetensors frames, and how many bytes of payload a message has. Never pickle."""

import json
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_frame

from tierfed.errors import InputError
from tierfed.tree import Tree, flatten, leaves, stack, unflatten

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNED = 8  # bytes to whose multiple a header is filled up
Layout = tuple[tuple[str, torch.dtype, tuple[int, ...], int], ...]  # path, kind, shape, bytes


def encode(message: Tree) -> bytes:
    """A tree as one safetensors frame, on the CPU. Its metadata remember the order of the keys."""
    return bytes(framed(message))


def framed(message: Tree, room: int = 0) -> bytearray:
    """The frame of `encode` after some free bytes, every tensor copied once.

    :param room: number of bytes that are left free in front
    """
    flat = {k: v.detach().cpu().contiguous() for k, v in flatten(message).items()}
    header = _header(tuple((k, v.dtype, tuple(v.shape), v.nbytes) for k, v in flat.items()))
    begin = room + len(header)
    out = bytearray(begin + sum(v.nbytes for v in flat.values()))
    out[room:begin] = header
    place = np.frombuffer(out, np.uint8)
    for v in flat.values():
        place[begin : begin + v.nbytes] = v.reshape(-1).view(torch.uint8).numpy()
        begin += v.nbytes
    return out


@lru_cache(1024)
def _header(layout: Layout) -> bytes:
    """The length and the header of a frame: what is where."""
    order = [path for path, _, _, _ in layout]
    entries: dict[str, object] = {"__metadata__": {"order": json.dumps(order)}}
    begin = 0
    for path, kind, shape, size in layout:
        entries[path] = {"dtype": _NAMES[kind], "shape": shape, "data_offsets": (begin, begin + size)}
        begin += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text


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


def payload(message: Tree) -> int:
    """Bytes of payload of one message."""
    return int(payload_bytes(stack([message]), 1)[0])
