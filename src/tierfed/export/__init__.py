"""A trained model as one file for a device: safetensors for PyTorch, ONNX for everything else, pruned or in 8 bits."""

from tierfed.export.card import ModelCard
from tierfed.export.check import Variant
from tierfed.export.deploy import FORMATS, KINDS, Export, export
from tierfed.export.tensors import load_model

__all__ = ["FORMATS", "KINDS", "Export", "ModelCard", "Variant", "export", "load_model"]
