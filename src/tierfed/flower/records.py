"""What crosses Flower's links: trees as arrays that hold a frame of `tierfed.wire`, numbers and names as a config."""

from collections.abc import Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from tierfed.errors import InputError
from tierfed.tree import Tree
from tierfed.wire import decode, encode

_SAID, _NUMBERS, _FRAME, _KIND = "said", "numbers", "frame", "safetensors"


def packed(
    said: Mapping[str, Any], trees: Mapping[str, ArrayRecord], numbers: Mapping[str, float] | None = None
) -> RecordDict:
    """One message.

    :param said: numbers, texts and lists of them, by name
    :param trees: by name, as `framed` makes them: one that goes to many is made and sent once
    :param numbers: of metrics
    """
    records = {_SAID: ConfigRecord(dict(said)), **trees}
    return RecordDict(records if numbers is None else {**records, _NUMBERS: MetricRecord(dict(numbers))})


def framed(tree: Tree) -> ArrayRecord:
    """A tree as a record. An array, and not bytes of a config, since Flower sends large arrays in parts."""
    frame = encode(tree)
    return ArrayRecord({_FRAME: Array(dtype="uint8", shape=(len(frame),), stype=_KIND, data=frame)})


def tree_of(records: RecordDict, name: str, device: Any = "cpu") -> Tree:
    """The tree of a message.

    :raises InputError: it has none of this name, or the bytes are no frame
    """
    try:
        array = records.array_records[name][_FRAME]
    except KeyError:
        raise InputError(f"the message has no {name!r}; both apps have to be tierfed's, of one version") from None
    if array.stype != _KIND:
        raise InputError(f"{name!r} came as {array.stype!r}, wanted a frame of tierfed; leave mods out that change it")
    return decode(array.data, device)


def said_by(records: RecordDict) -> dict[str, Any]:
    """The numbers and texts of a message.

    :raises InputError: it is none of tierfed's
    """
    if _SAID not in records.config_records:
        raise InputError("the message has no config of tierfed; both apps have to be tierfed's, of one version")
    return dict(records.config_records[_SAID])


def numbers_of(records: RecordDict) -> dict[str, float]:
    """The metrics of a message."""
    found = records.metric_records.get(_NUMBERS, {})
    return {k: float(v) for k, v in found.items()}
