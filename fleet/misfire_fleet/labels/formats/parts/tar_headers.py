"""Bounds the headers of tar files of strangers."""

from __future__ import annotations

import tarfile

_MAX_BYTES = 1024 * 1024


class BoundedHeader(tarfile.TarInfo):
    """Refuses headers that would fill the memory: the library reads what belongs to a header whole."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> BoundedHeader:
        """Parses a block of 512 bytes. Raises tarfile.ReadError if more than a megabyte belongs to it."""
        header = super().frombuf(buf, encoding, errors)
        if header.type not in tarfile.REGULAR_TYPES and header.size > _MAX_BYTES:
            raise tarfile.ReadError(f"a header of type {header.type!r} has {header.size:,} bytes")
        return header
