"""Provides small networks, so that nothing depends on torchvision; any nn.Module works in their place.

build_model("resnet-small", task="classification", outputs=10, channels=1) -> BuiltModel
count_flops(module, torch.zeros(1, 1, 28, 28)) -> int
"""

from misfire_train.models.building import MODELS, build_model, default_model
from misfire_train.models.built import BuiltModel
from misfire_train.models.cost import count_flops, count_parameters

__all__ = ["MODELS", "BuiltModel", "build_model", "count_flops", "count_parameters", "default_model"]
