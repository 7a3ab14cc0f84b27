"""Models as ONNX: raw samples in; logits, probabilities and label out. Written and run by the extra `export`."""

import importlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tierfed.errors import InputError
from tierfed.export.card import ModelCard

OPSET = 18
INPUT, OUTPUTS = "sample", ("logits", "probabilities", "label")  # of a regression the output is "prediction" alone
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_ROWS_AT_ONCE = 1024
Array = npt.NDArray[Any]


def require_packages() -> None:
    """:raises InputError: the extra `export` is not installed"""
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            raise InputError(
                f"ONNX needs the package {name!r}, which is not installed; pip install 'tierfed[export]', or use the "
                "format safetensors"
            ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Exporter and quantizer tell what is no concern of the user's: their own deprecations, a missing torchvision,
    whole graphs when one fails. What they raise is not touched.
    """
    before, sink = logging.root.manager.disable, io.StringIO()
    logging.disable(max(before, logging.ERROR))
    try:
        with warnings.catch_warnings(), redirect_stdout(sink), redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class Deployed(nn.Module):
    """Raw samples [B, *shape] -> logits [B, C], probabilities [B, C], labels [B]; of a regression outputs [B, k].

    In float32, whatever the model was trained in. The mean is subtracted in two parts, for a difference of two large
    numbers needs more digits of the mean than one float32 has.
    """

    high: Tensor
    low: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, card: ModelCard) -> None:
        super().__init__()
        scaling = card.scaling
        self.module, self.divisor, self.classes = module, scaling.divisor, bool(card.classes)
        self.standardized = scaling.mean is not None
        if scaling.mean is not None and scaling.std is not None:
            high = scaling.mean.float()
            self.register_buffer("high", high)
            self.register_buffer("low", (scaling.mean - high.double()).float())
            self.register_buffer("std", scaling.std.float())

    def forward(self, raw: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        x = raw.to(torch.float32)
        if self.divisor != 1:
            x = x / self.divisor
        if self.standardized:
            x = (x - self.high - self.low) / self.std
        out: Tensor = self.module(x)
        return (out, out.softmax(1), out.argmax(1)) if self.classes else out


def to_bytes(module: nn.Module, card: ModelCard) -> bytes:
    """The graph of a module on raw samples with any batch size, without a card; the batch norms that follow a linear
    layer or a convolution are folded into it.

    :param module: in evaluation mode, on the CPU; it is converted to float32 in place
    :raises InputError: ONNX cannot express the module
    """
    import onnx  # noqa: PLC0415

    raw = torch.zeros(2, *card.shape, dtype=getattr(torch, card.raw_dtype))
    whole = Deployed(module.float(), card).eval()
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                whole,
                (raw,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(OUTPUTS) if card.classes else ["prediction"],
                external_data=False,
                verbose=False,
            )
            assert program is not None
            proto = program.model_proto
            _strip(proto)
            onnx.checker.check_model(proto)
    except Exception as err:  # whatever the tracer, the converter or the user's own code raises
        raise InputError(
            f"the model {card.model} cannot be expressed as ONNX: {reason(err)}; use layers and operations that "
            "torch.onnx.export knows, without Python control flow on values and for any batch size, or the format "
            "safetensors"
        ) from None
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _strip(proto: Any) -> None:
    """Takes out where in the source each node comes from: a fifth of a small file, with the paths of this machine."""
    graph = proto.graph
    del graph.value_info[:], proto.metadata_props[:], graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def reason(err: BaseException) -> str:
    """The first line of what went wrong first."""
    while err.__cause__ is not None:
        err = err.__cause__
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return f"{type(err).__name__}: {lines[0] if lines else 'no message'}"


def with_card(content: bytes, card: ModelCard) -> bytes:
    """A graph with its card and the names of its labels in the metadata."""
    import onnx  # noqa: PLC0415

    proto = onnx.load_from_string(content)
    proto.producer_name, proto.producer_version = "tierfed", card.tierfed
    onnx.helper.set_model_props(proto, {"tierfed": card.to_json(), "labels": json.dumps(card.classes)})
    out: bytes = proto.SerializeToString(deterministic=True)
    return out


def outputs(content: bytes, raw: Tensor) -> Array:
    """Logits, or predictions of a regression, [n, C] of raw samples [n, *shape] by ONNX Runtime on the CPU."""
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    first = session.get_outputs()[0].name
    parts = [session.run([first], {INPUT: part.numpy()})[0] for part in raw.split(_ROWS_AT_ONCE)]
    return np.concatenate(parts)
