"""Frames: what one process sends another. A header of plain JSON values, and a tree of tensors as a safetensors frame.

    TFD1 | length of the header, 4 bytes | CRC-32 of all that follows, 4 bytes | header | tree

Nothing of a frame is believed before its checksum was compared, and nothing in it can run.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from tierfed.errors import InputError
from tierfed.tree import Tree
from tierfed.wire import decode, encode

PROTOCOL = 1
MAGIC = b"TFD1"
_HEAD = struct.Struct("<4sII")
MOST_HEADER_BYTES = 1 << 26

Header = dict[str, Any]


class Frame(NamedTuple):
    """One message between two processes."""

    header: Header
    body: bytes = b""

    @property
    def kind(self) -> str:
        return str(self.header.get("kind", ""))

    @property
    def tree(self) -> Tree:
        """The tensors.

        :raises InputError: they are none
        """
        return decode(self.body) if self.body else {}


def pack(header: Mapping[str, Any], body: bytes | Tree = b"") -> bytes:
    """A frame as bytes. :param body: a tree, or one that is encoded already"""
    text = json.dumps(header, separators=(",", ":")).encode()
    content = encode(body) if isinstance(body, dict) else body
    crc = zlib.crc32(content, zlib.crc32(text))
    return b"".join((_HEAD.pack(MAGIC, len(text), crc), text, content))


def peek(data: bytes) -> Header:
    """The header of a frame; its checksum is not compared yet.

    :raises InputError: these bytes are no frame of this protocol
    """
    if len(data) < _HEAD.size:
        raise InputError(f"got {len(data)} bytes, a frame has at least {_HEAD.size}")
    magic, length, _ = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise InputError(f"got a frame that begins with {magic!r}, wanted {MAGIC!r}: another protocol or version")
    if length > min(MOST_HEADER_BYTES, len(data) - _HEAD.size):
        raise InputError(f"the header should have {length} bytes, but the frame has {len(data)}: it was cut off")
    try:
        header = json.loads(data[_HEAD.size : _HEAD.size + length])
    except (ValueError, RecursionError):
        raise InputError("the header of the frame is no JSON") from None
    if not isinstance(header, dict):
        raise InputError("the header of the frame is no JSON object")
    return header


def unpack(data: bytes) -> Frame:
    """The inverse of `pack`.

    :raises InputError: these bytes are no whole frame
    """
    header = peek(data)
    _, length, crc = _HEAD.unpack_from(data)
    if zlib.crc32(memoryview(data)[_HEAD.size :]) != crc:
        raise InputError("the checksum of the frame is wrong: it was cut off or changed on its way")
    return Frame(header, bytes(data[_HEAD.size + length :]))
