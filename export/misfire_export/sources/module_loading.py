"""Loads a torch module by name, with its weights: `--torch module:factory --weights w.safetensors`.

factory() --state dict, without wrappers' prefixes--> module in eval mode
"""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from misfire_export.errors import ExportError
from misfire_train.runs import read_tensors


def load_module(target: str, *, weights: Path | None = None) -> nn.Module:
    """Returns the module that `package.module:factory` makes, in eval mode, with the weights of a file.

    A factory is a function or class without required arguments, or a module. The current folder is searched.
    Raises ExportError if it cannot be imported, called, or loaded into.
    """
    name, _, attribute = target.partition(":")
    if not name or not attribute:
        raise ExportError(f"--torch is {target!r}; expected module:factory")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(name), attribute)
        model = found if isinstance(found, nn.Module) else found()
    except Exception as error:
        raise ExportError(f"--torch {target}: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ExportError(f"--torch {target} gave {type(model).__name__}; expected an nn.Module")
    if weights is not None:
        load_weights(model, weights, target=target)
    return model.eval().requires_grad_(False)


def load_weights(model: nn.Module, path: Path, *, target: str) -> None:
    """Loads a safetensors file, or a state dict that torch.save wrote, into a module.

    Only tensors are unpickled. Prefixes of DataParallel and torch.compile are left out. Raises ExportError
    that names missing and unexpected weights, and those of another shape.
    """
    tensors = _read_weights(path)
    own = model.state_dict()
    # torch.compile may wrap DataParallel, or the other way round.
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):
        if tensors and all(name.startswith(prefix) for name in tensors) and not set(own) & set(tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    problems = {
        "missing": [name for name in own if name not in tensors],
        "unexpected": [name for name in tensors if name not in own],
        "of another size": [
            f"{name} {list(tensor.shape)} for {list(own[name].shape)}"
            for name, tensor in tensors.items()
            if name in own and tensor.shape != own[name].shape
        ],
    }
    said = [f"{what}: {_some(names)}" for what, names in problems.items() if names]
    if said:
        raise ExportError(f"{path} does not fit {target}: {'; '.join(said)}")
    model.load_state_dict(tensors)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        # weights_only: a pickle from elsewhere could run any code.
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        raise ExportError(
            f"{path} is neither a safetensors file nor a state dict, torch.save(model.state_dict(), ...), "
            f"that can be read without running code: {str(error).splitlines()[0][:200]}"
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ExportError(f"{path} holds {type(found).__name__}; expected a state dict: names and tensors")
    return {str(name): tensor for name, tensor in found.items()}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
