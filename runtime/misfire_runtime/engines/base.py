"""Defines the protocol of inference engines, their options, and the folder for what they compile."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray
from pydantic import Field

from misfire_runtime.bundle import ENGINE_CACHE, Bundle
from misfire_runtime.choices import Provider
from misfire_runtime.errors import EngineError
from misfire_runtime.preprocess import InputContract, size_inputs
from misfire_runtime.tables import Table


class Engine(Protocol):
    """Runs a bundle's graph.

    name: what calibration is keyed by, such as "onnxruntime-cpu".
    provider: what it verifiably runs on, in the engine's own words.
    """

    name: str
    provider: str

    def infer(
        self, image: NDArray[Any], *, inputs: Mapping[str, NDArray[Any]] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Runs the graph.

        Args:
            image: [N,C,H,W] as the input contract says.
            inputs: the further inputs that the contract names, by name. One that is not given is filled as
                for pictures of the network's own size.

        Returns:
            Every output of the manifest, by its name.

        Raises:
            EngineError: the engine failed.
        """
        ...

    def close(self) -> None:
        """Frees the engine's memory; it cannot be used afterwards."""
        ...


class EngineTable(Table):
    """What runs the graph."""

    provider: Provider = "auto"
    threads: int = Field(default=1, ge=1, le=64)
    device: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class EngineOptions:
    """Chooses what runs the graph: "auto" takes the fastest that works; `threads` are those of the CPU."""

    provider: Provider = "auto"
    threads: int = 1
    device: int = 0


def all_inputs(
    contract: InputContract, image: NDArray[Any], inputs: Mapping[str, NDArray[Any]] | None
) -> dict[str, NDArray[Any]]:
    """Returns every input of the graph by name; see `Engine.infer` for the arguments."""
    whole = {contract.name: image}
    if contract.inputs:
        for name, size in size_inputs(contract.width, contract.height, contract).items():
            whole[name] = size.repeat(len(image), axis=0)
        whole.update({name: value for name, value in (inputs or {}).items() if name in contract.inputs})
    return whole


def engine_cache(bundle: Bundle, *, runtime: str, device: str) -> Path:
    """Returns the folder for engines compiled from this very graph, and makes it.

    Another graph, runtime, GPU or precision has another folder: a stale engine can never serve a new graph.

    Args:
        bundle: whose graph is compiled.
        runtime: what compiles it, with its version.
        device: what tells GPUs apart.

    Raises:
        EngineError: the folder cannot be made.
    """
    manifest = bundle.manifest
    parts = (manifest.files[bundle.model_path.name].sha256, runtime, device, manifest.precision)
    folder = bundle.path / ENGINE_CACHE / hashlib.sha256("|".join(parts).encode()).hexdigest()[:24]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(f"{folder}: {error.strerror}; the engine cache must be writable") from error
    return folder
