"""Fetches published files from their official addresses: whole and verified, or not at all.

A download goes to NAME.part, continues where a broken one stopped (HTTP range), and gets its final name only
if its SHA-256 is the published one. Only addresses of the catalogue are contacted.
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

# Bounds what a wrong or hostile server can write to the disk; the catalogue's files are all below 32 MB.
MAX_FILE_BYTES = 512 * 1024 * 1024
# Bytes between two progress reports.
_BLOCK = 1 << 16
# Of one socket operation, not of a download: a slow link may take as long as it needs.
_TIMEOUT_S = 30.0
Progress = Callable[[str, int], None]


def fetch(
    entry: Entry, *, target: Path, progress: Progress | None = None, attempts: int = 3, pause_s: float = 1.0
) -> list[Path]:
    """Downloads the missing or changed files of an entry into `target` and returns the new ones.

    Args:
        entry: the data set.
        target: folder for its files.
        progress: called with (file, bytes so far).
        attempts: for each file; each attempt continues the previous one.
        pause_s: seconds before the second attempt, doubled for each further one.

    Returns:
        The paths of the files that were downloaded.

    Raises:
        DatasetError: a file has no address, the network fails, or the content differs from the published one.
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
            # A 4xx answer is final: the same request would get it again.
            if attempt + 1 == attempts or (isinstance(error, urllib.error.HTTPError) and error.code < 500):
                raise DatasetError(
                    f"{file.url} cannot be fetched ({reason}); without a network, copy {file.path} "
                    f"from elsewhere and name its folder with --data or MISFIRE_DATA"
                ) from error
            time.sleep(pause_s * 2**attempt)
        except OSError as error:
            raise DatasetError(f"{part} cannot be written ({error.strerror or error})") from error
    if sha256_file(part) != file.sha256:
        # A wrong part that stayed would be continued by the next call, and never match.
        part.unlink()
        raise DatasetError(
            f"{file.url} gave something else than the published file (sha256 differs); removed it"
        )
    replace_durably(part, path)
    return path


def _download(url: str, part: Path, progress: Callable[[int], None]) -> None:
    """Appends the missing bytes of `url` to `part`; starts again if the server does not continue."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send: the part is as long as the file, or longer
            error.close()
            return
        raise
    # A server that ignores Range answers 200 with the whole file.
    with answer, part.open("ab" if answer.status == 206 else "wb") as stream:
        expected = int(answer.headers.get("Content-Length") or 0)
        before = done = stream.tell()
        while block := answer.read(_BLOCK):
            done += len(block)
            if done > MAX_FILE_BYTES:
                raise DatasetError(f"{url} sends more than {MAX_FILE_BYTES >> 20} MiB; stopped")
            stream.write(block)
            progress(done)
        # read(size) does not raise if the server closes the connection early.
        if expected and done - before < expected:
            raise http.client.IncompleteRead(b"", expected - (done - before))
