"""Fetches published files from their official addresses: whole and verified, or not at all.

A download goes to NAME.part, continues where a broken one stopped (HTTP range), and takes its name only when
its SHA-256 is the published one. Nothing but the addresses of the catalogue is ever asked.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from misfire_runtime.bundle import sha256_file
from misfire_runtime.files import replace_durably
from misfire_train.data.catalogue import DataFile, Entry, locate
from misfire_train.errors import DatasetError

MAX_FILE_BYTES = 512 * 1024 * 1024
_BLOCK = 1 << 16
_TIMEOUT_S = 30.0
Progress = Callable[[str, int], None]


def fetch(
    entry: Entry, *, target: Path, progress: Progress | None = None, attempts: int = 3, pause_s: float = 1.0
) -> list[Path]:
    """Downloads what is missing or changed of an entry into `target` and returns the new files.

    progress: called with (file, bytes so far).  attempts: per file; each continues the last one.
    Raises DatasetError where a file has no address, the network fails, or the content is another one.
    """
    if not entry.files:
        return []
    needed = [file for file in entry.files if not _is_whole(file, target)]
    unreachable = [file.path for file in needed if not file.url]
    if unreachable:
        raise DatasetError(
            f"{entry.name}: {unreachable[0]} has no public address; copy it to {target} "
            f"(sha256 {next(file.sha256 for file in needed if file.path == unreachable[0])})"
        )
    return [_fetch_file(file, target / file.path, progress, attempts, pause_s) for file in needed]


def _is_whole(file: DataFile, target: Path) -> bool:
    path = locate(file, root=target)
    return path is not None and sha256_file(path) == file.sha256


def _fetch_file(file: DataFile, path: Path, progress: Progress | None, attempts: int, pause_s: float) -> Path:
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(
            f"{path.parent} cannot be made ({error.strerror}); choose a folder with --data"
        ) from error
    for attempt in range(attempts):
        try:
            _download(file.url, part, lambda done: progress(file.path, done) if progress else None)
            break
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", None) or error
            if attempt + 1 == attempts or (isinstance(error, urllib.error.HTTPError) and error.code < 500):
                raise DatasetError(
                    f"{file.url} cannot be fetched ({reason}); without a network, copy {file.path} "
                    f"from elsewhere and name its folder with --data or MISFIRE_DATA"
                ) from error
            time.sleep(pause_s * 2**attempt)
        except OSError as error:
            raise DatasetError(f"{part} cannot be written ({error.strerror or error})") from error
    if sha256_file(part) != file.sha256:
        part.unlink()
        raise DatasetError(
            f"{file.url} gave something else than the published file (sha256 differs); removed it"
        )
    replace_durably(part, path)
    return path


def _download(url: str, part: Path, progress: Callable[[int], None]) -> None:
    """Appends what is missing of `url` to `part`; starts again where the server does not continue."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send: the part is as long as the file, or longer
            error.close()
            return
        raise
    with answer, part.open("ab" if answer.status == 206 else "wb") as stream:
        expected = int(answer.headers.get("Content-Length") or 0)
        before = done = stream.tell()
        while block := answer.read(_BLOCK):
            done += len(block)
            if done > MAX_FILE_BYTES:
                raise DatasetError(f"{url} sends more than {MAX_FILE_BYTES >> 20} MiB; stopped")
            stream.write(block)
            progress(done)
        if expected and done - before < expected:
            raise http.client.IncompleteRead(b"", expected - (done - before))
