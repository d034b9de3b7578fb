"""Replaces the failure head of a bundle by a delta of kilobytes, without torch and without onnx."""

from misfire_runtime.delta.delta import Delta, is_delta
from misfire_runtime.delta.writing import Refitted, write_delta

__all__ = ["Delta", "Refitted", "is_delta", "write_delta"]
