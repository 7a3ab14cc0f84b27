"""Messages as bytes: every tree comes back as it was, payloads are counted, garbage is refused."""

import json
import struct
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load
from torch import Tensor

from tierfed.errors import InputError
from tierfed.tree import SEPARATOR
from tierfed.wire import decode, encode, framed, payload_bytes

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]


def tensor(shape: list[int], dtype: torch.dtype) -> Tensor:
    return (torch.arange(torch.Size(shape).numel()).view(shape) - 1).to(dtype)


NAMES = st.text("abc.é", min_size=1, max_size=4)
LEAVES = st.builds(tensor, st.lists(st.integers(0, 3), max_size=3), st.sampled_from(DTYPES))
TREES = st.dictionaries(
    NAMES, st.recursive(LEAVES, lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=5), max_size=4
)


def same(a: Any, b: Any) -> bool:
    """Same keys, types, shapes and numbers."""
    if isinstance(a, dict) or isinstance(b, dict):
        return isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@given(TREES)
@settings(max_examples=50, deadline=None)
def test_a_message_comes_back_as_it_was(message: dict[str, Any]) -> None:
    assert same(decode(encode(message)), message)


@given(st.dictionaries(NAMES, LEAVES, max_size=4), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_a_frame_is_what_safetensors_reads(message: dict[str, Tensor], room: int) -> None:
    """With free bytes in front or none."""
    frame = framed(message, room)
    assert frame[:room] == bytes(room)
    assert frame[room:] == encode(message)
    assert same(load(bytes(frame[room:])), message)


@given(TREES)
@settings(max_examples=25, deadline=None)
def test_keys_come_back_in_their_order(message: dict[str, Any]) -> None:
    """Sums over all leaves (`tree.dot`, `tree.vector`) go by it: in any other order a resumed run has other bits."""

    def order(t: Any) -> Any:
        return [(k, order(v)) for k, v in t.items()] if isinstance(t, dict) else None

    assert order(decode(encode(message))) == order(message)


def test_nothing_is_a_message() -> None:
    assert decode(encode({})) == {}
    assert decode(encode({"a": {}, "b": {"c": {}}})) == {"a": {}, "b": {"c": {}}}


def test_views_and_gradients_do_not_matter() -> None:
    big = torch.arange(12.0).view(3, 4)
    message = {"t": big.t(), "row": big[1], "w": torch.nn.Parameter(big), "same": big, "wide": torch.ones(1).expand(5)}
    back = decode(encode(message))
    assert all(torch.equal(back[k], v) for k, v in message.items())
    assert len(encode({"row": big[1]})) < len(encode({"row": big}))


def test_numbers_keep_their_bits() -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 5e-324], dtype=torch.float64)
    assert torch.equal(decode(encode({"x": odd}))["x"].view(torch.int64), odd.view(torch.int64))


@given(st.binary(max_size=80))
@settings(max_examples=50, deadline=None)
def test_garbage_is_refused(frame: bytes) -> None:
    with pytest.raises(InputError, match="no safetensors frame"):
        decode(frame)


def test_a_truncated_frame_is_refused_wherever_it_ends() -> None:
    frame = encode({"a": torch.ones(3), "b": {"c": torch.tensor(1)}})
    for end in range(len(frame)):
        with pytest.raises(InputError, match=f"got {end} bytes"):
            decode(frame[:end])


def crafted(**tensors: dict[str, Any]) -> bytes:
    """A frame with any header, and enough bytes after it."""
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header)) + header + bytes(max(int(t["data_offsets"][1]) for t in tensors.values()))


def test_a_path_that_is_both_tensor_and_branch_is_refused() -> None:
    """However often, and in whatever order the codec lists its entries."""
    entry = {"dtype": "U8", "shape": [1]}
    frame = crafted(**{"a": {**entry, "data_offsets": [0, 1]}, f"a{SEPARATOR}b": {**entry, "data_offsets": [1, 2]}})
    for _ in range(10):
        with pytest.raises(InputError):
            decode(frame)


@pytest.mark.parametrize(("dtype", "shape"), [("F8_E8M0", 1), ("F4", 2), ("I99", 1)])
def test_a_number_format_that_torch_does_not_read_is_refused(dtype: str, shape: int) -> None:
    with pytest.raises(InputError):
        decode(crafted(a={"dtype": dtype, "shape": [shape], "data_offsets": [0, 1]}))


class TestPayload:
    def test_by_hand(self) -> None:
        """Float32 [2, 3], float64 [4], int64 [], bool [5]: 24 + 32 + 8 + 5 bytes each."""
        message = {
            "params": {"a": torch.zeros(3, 2, 3), "b": torch.zeros(3, 4, dtype=torch.float64)},
            "n": torch.zeros(3, dtype=torch.int64),
            "say": {"deep": {"flags": torch.zeros(3, 5, dtype=torch.bool)}, "none": {}},
        }
        assert payload_bytes(message, 3).tolist() == [69, 69, 69]

    def test_an_empty_message_is_free(self) -> None:
        assert payload_bytes({}, 2).tolist() == [0, 0]
        assert payload_bytes({"params": {}}, 2).tolist() == [0, 0]

    def test_whole_entries_by_mask(self) -> None:
        """Sender 0 sends both (16 + 12 bytes), 1 only b, 2 nothing; the two mask bits are one byte."""
        message = {
            "params": {"a": torch.zeros(3, 2, 2), "b": torch.zeros(3, 3)},
            "mask": {"a": torch.tensor([True, False, False]), "b": torch.tensor([True, True, False])},
        }
        assert payload_bytes(message, 3).tolist() == [29, 13, 1]

    def test_rows_by_mask(self) -> None:
        """Rows of a [4, 3] float32 entry: 12 bytes each; 4 bits of mask are one byte; b [2] is not masked: 8 bytes."""
        rows = torch.tensor([[True, False, True, False], [False, False, False, True]])
        message = {"params": {"a": torch.zeros(2, 4, 3), "b": torch.zeros(2, 2)}, "mask": {"a": rows}}
        assert payload_bytes(message, 2).tolist() == [2 * 12 + 8 + 1, 12 + 8 + 1]

    def test_entries_of_a_tensor_by_mask(self) -> None:
        """Top-k: 3 and 1 of [3, 3] float64 entries, nine bits of mask are two bytes."""
        chosen = torch.zeros(2, 3, 3, dtype=torch.bool)
        chosen[0, 0], chosen[1, 2, 2] = True, True
        message = {"params": {"a": torch.zeros(2, 3, 3, dtype=torch.float64)}, "mask": {"a": chosen}}
        assert payload_bytes(message, 2).tolist() == [3 * 8 + 2, 8 + 2]
