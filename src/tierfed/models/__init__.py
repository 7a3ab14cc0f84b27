"""Models by name, or any `nn.Module` of the user by "package.module:Class"."""

from tierfed.models.build import build_model, check_fit, default_model
from tierfed.models.networks import MODELS, ModelInfo, Shape, fitting

__all__ = ["MODELS", "ModelInfo", "Shape", "build_model", "check_fit", "default_model", "fitting"]
