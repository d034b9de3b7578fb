"""An upload's bytes as its vehicle wrote them, whole or a range of them, which players of videos ask for."""

from __future__ import annotations

import os
import re

from fastapi import Response
from fastapi.responses import FileResponse

from misfire_fleet.decoding.headers import IMAGES, VIDEOS
from misfire_fleet.errors import SampleGoneError, StoreUnavailableError
from misfire_fleet.store import Store
from misfire_fleet.store.blobs import FolderBlobs
from misfire_fleet.store.records import StoredSample

PRIVATE_MINUTES = {"Cache-Control": "private, max-age=300"}
"""Pictures show people: no shared cache keeps them, and a browser's own soon forgets what was deleted."""
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def blob_response(store: Store, sample: StoredSample, wanted: str | None) -> Response:
    """Returns the whole blob, or what the Range header `wanted` asks for. Raises SampleGoneError."""
    headers = PRIVATE_MINUTES | {"Accept-Ranges": "bytes"}
    media_type = sample.media_type
    if media_type not in IMAGES | VIDEOS:  # a browser must not take it for a page
        media_type = "application/octet-stream"
        headers |= {"Content-Disposition": "attachment"}
    if isinstance(store.blobs, FolderBlobs):
        path = store.blobs.root / sample.id
        try:
            state = path.stat()
        except FileNotFoundError as error:
            raise SampleGoneError(f"sample {sample.id}: its bytes are not here") from error
        except OSError as error:
            raise StoreUnavailableError(f"blob {path}: {error.strerror}") from error
        if not os.access(path, os.R_OK):  # the answer would have begun before the file is opened
            raise StoreUnavailableError(f"blob {path}: the console may not read it")
        return FileResponse(path, media_type=media_type, headers=headers, stat_result=state)
    return _part(store.read_blob(sample.id), wanted, media_type, headers)


def _part(data: bytes, wanted: str | None, media_type: str, headers: dict[str, str]) -> Response:
    """One range; several, or what cannot be read, is answered with the whole, as HTTP allows."""
    found = _RANGE.fullmatch(wanted or "")
    if found is None or found.groups() == ("", ""):
        return Response(data, media_type=media_type, headers=headers)
    first, last = found.groups()
    start = int(first) if first else max(0, len(data) - int(last))
    end = min(int(last) + 1, len(data)) if first and last else len(data)
    if start >= end:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{len(data)}"})
    headers = headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
    return Response(data[start:end], 206, media_type=media_type, headers=headers)
