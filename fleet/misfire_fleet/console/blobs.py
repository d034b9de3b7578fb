"""Serves an upload's bytes as the vehicle wrote them, whole or as a range; video players request ranges."""

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

PRIVATE_MINUTES = {
    "Cache-Control": "private, max-age=300",
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; media-src 'self'; "
    "style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox",
}
"""Pictures show people: shared caches must not keep them, and browsers keep a deleted one for 5 minutes. What
a vehicle sent runs nothing, also if a browser opens it as a page."""
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
"""18 digits fit into 64 bits; a longer number is treated as an unreadable header."""


def blob_response(store: Store, sample: StoredSample, wanted: str | None) -> Response:
    """Returns the whole blob or the requested range of it.

    Args:
        store: the store that has the blob.
        sample: the row of the sample.
        wanted: the value of the request's Range header, None if it has none.

    Raises:
        SampleGoneError: the blob is not in the store.
        StoreUnavailableError: the blob cannot be read now.
    """
    headers = PRIVATE_MINUTES | {"Accept-Ranges": "bytes"}
    media_type = sample.media_type
    # The vehicle chose the media type: as text/html, browsers would run the upload as a page of the console.
    if media_type not in IMAGES | VIDEOS:
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
        # FileResponse sends the status line before it opens the file: too late for an error page.
        if not os.access(path, os.R_OK):
            raise StoreUnavailableError(f"blob {path}: the console may not read it")
        return FileResponse(path, media_type=media_type, headers=headers, stat_result=state)
    return _part(store.read_blob(sample.id), wanted, media_type, headers)


def _part(data: bytes, wanted: str | None, media_type: str, headers: dict[str, str]) -> Response:
    """Returns one range of `data`.

    Several ranges, and a header that cannot be read, get the whole: HTTP allows a server to ignore Range.
    """
    found = _RANGE.fullmatch(wanted or "")
    if found is None or found.groups() == ("", ""):
        return Response(data, media_type=media_type, headers=headers)
    first, last = found.groups()
    # "bytes=-500" requests the last 500 bytes.
    start = int(first) if first else max(0, len(data) - int(last))
    end = min(int(last) + 1, len(data)) if first and last else len(data)
    if start >= end:
        # HTTP wants the real size with 416, so that a player can ask again.
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{len(data)}"})
    headers = headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
    return Response(data[start:end], 206, media_type=media_type, headers=headers)
