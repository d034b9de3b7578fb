"""Calls the few functions of NVIDIA's CUDA runtime that an engine needs: memory, copies, a stream.

They are called through ctypes: libcudart comes with CUDA and JetPack; a package for six calls would be one
more thing to match. Each call that fails raises EngineError with CUDA's own words.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.errors import EngineError

# Values of cudaMemcpyKind.
_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2
# The plain name exists only with the developer package; JetPack 5 has 11, JetPack 6 has 12.
_NAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")


class Cuda:
    """Holds a device with one stream. Raises EngineError if there is no CUDA runtime or no such device."""

    def __init__(self, *, device: int = 0) -> None:
        self._library = _load()
        # Without it, ctypes would take the pointer for an int and cut it to 32 bits.
        self._library.cudaGetErrorString.restype = ctypes.c_char_p
        self._call("cudaSetDevice", ctypes.c_int(device))
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(stream))
        self.stream = int(stream.value or 0)

    def allocate(self, size: int) -> int:
        """Reserves `size` bytes on the device, at least one, and returns their address."""
        pointer = ctypes.c_void_p()
        # At least one byte: cudaMalloc gives no address for none.
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return int(pointer.value or 0)

    def free(self, pointer: int) -> None:
        """Frees memory of the device."""
        self._call("cudaFree", ctypes.c_void_p(pointer))

    def upload(self, pointer: int, array: NDArray[Any]) -> None:
        """Copies a contiguous array to the device, in order with the stream."""
        self._copy(pointer, array.ctypes.data, array.nbytes, _HOST_TO_DEVICE)

    def download(self, array: NDArray[Any], pointer: int) -> None:
        """Copies from the device into a contiguous array; complete after `wait`."""
        self._copy(array.ctypes.data, pointer, array.nbytes, _DEVICE_TO_HOST)

    def wait(self) -> None:
        """Returns when the stream has done everything."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(self.stream))

    def close(self) -> None:
        """Ends the stream."""
        if self.stream:
            self._call("cudaStreamDestroy", ctypes.c_void_p(self.stream))
            self.stream = 0

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        self._call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(target),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
            ctypes.c_int(kind),
            ctypes.c_void_p(self.stream),
        )

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            text = self._library.cudaGetErrorString(ctypes.c_int(status)) or b"unknown error"
            raise EngineError(f"{name} failed: {text.decode(errors='replace')}")


def host_buffer(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Returns a contiguous array to copy into."""
    return np.empty(shape, dtype)


def _load() -> Any:
    # The system's choice first; the names are for machines without ldconfig's cache.
    found = ctypes.util.find_library("cudart")
    for name in (*([found] if found else []), *_NAMES):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise EngineError("the CUDA runtime (libcudart) is not installed; native TensorRT needs it")
