"""Eight bits: static quantization of an ONNX graph after training, by ONNX Runtime."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from tierfed.errors import InputError
from tierfed.export.onnx import INPUT, quiet, reason

MOST_SAMPLES = 1024  # that the ranges of activations are measured on
_ROWS_AT_ONCE = 64
# the preprocessing and what follows the last layer stay in float
_LAYERS = ("Conv", "Gemm", "MatMul", "Relu", "MaxPool")


class _Samples:
    """Raw samples in the order of their rows, as the quantizer asks for them."""

    def __init__(self, raw: Tensor) -> None:
        self._parts: Iterator[Tensor] = iter(raw[:MOST_SAMPLES].split(_ROWS_AT_ONCE))

    def get_next(self) -> dict[str, Any] | None:
        part = next(self._parts, None)
        return None if part is None else {INPUT: part.numpy()}


def quantized(content: bytes, raw: Tensor) -> bytes:
    """The same graph with 8-bit weights, one scale per channel, and 8-bit activations (QDQ format).

    :param raw: what the ranges of activations are measured on, raw samples [n, *shape]; the first 1024
    :raises InputError: there is nothing to quantize, or ONNX Runtime cannot
    """
    import onnx  # noqa: PLC0415
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder, quiet():
        file = Path(folder) / "int8.onnx"
        try:
            quantize_static(
                onnx.load_from_string(content),
                file,
                _Samples(raw),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_LAYERS),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as err:  # whatever the quantizer raises for a graph that it does not know
            raise InputError(f"ONNX Runtime cannot quantize the model: {reason(err)}; leave int8 out") from None
        out = file.read_bytes()
    if not any(t.data_type == onnx.TensorProto.INT8 and t.dims for t in onnx.load_from_string(out).graph.initializer):
        raise InputError("the model has no convolution or linear layer whose weights int8 could hold; leave int8 out")
    return out
