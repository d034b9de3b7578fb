"""Downloads against a real HTTP server: whole and verified, continued where they broke, or a clear error."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from misfire_train.data.catalogue import DataFile, Entry
from misfire_train.data.download import fetch
from misfire_train.errors import DatasetError
from proving_ground.services import free_port

CONTENT = bytes(range(256)) * 1000


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at /file; can break off, refuse ranges, or answer with an error first."""

    asked: list[str | None]
    break_after: int | None = None
    ranges = True
    errors = 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        if server.errors:
            server.errors -= 1
            self.send_error(503)
            return
        if self.path != "/file":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        stop = len(CONTENT) if server.break_after is None else start + server.break_after
        self.wfile.write(CONTENT[start:stop])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def entry(server: Server, *, sha256: str = "", path: str = "/file") -> Entry:
    url = f"http://127.0.0.1:{server.server_address[1]}{path}"
    file = DataFile("set/file.gz", sha256 or hashlib.sha256(CONTENT).hexdigest(), url)
    return Entry("set", "classification", "free", "test", (file,))


def test_a_file_is_fetched_once_and_verified(server: Server, tmp_path: Path) -> None:
    seen: list[int] = []
    fetched = fetch(entry(server), target=tmp_path, progress=lambda _name, done: seen.append(done))
    assert [path.read_bytes() for path in fetched] == [CONTENT]
    assert seen[-1] == len(CONTENT)
    assert list(tmp_path.rglob("*.part")) == []
    assert fetch(entry(server), target=tmp_path) == []
    assert server.asked == [None]


def test_a_broken_download_continues_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.break_after = 100_000
    fetch(entry(server), target=tmp_path, pause_s=0.001)
    assert (tmp_path / "set/file.gz").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=200000-"]


def test_attempts_end_and_a_later_call_goes_on(server: Server, tmp_path: Path) -> None:
    server.break_after = 150_000
    with pytest.raises(DatasetError, match="cannot be fetched"):
        fetch(entry(server), target=tmp_path, attempts=1)
    assert not (tmp_path / "set/file.gz").exists()
    assert (tmp_path / "set/file.gz.part").stat().st_size == 150_000
    fetch(entry(server), target=tmp_path, attempts=1)
    assert (tmp_path / "set/file.gz").read_bytes() == CONTENT


def test_a_server_without_ranges_is_asked_for_all_of_it(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "set").mkdir()
    (tmp_path / "set/file.gz.part").write_bytes(CONTENT[:5000])
    fetch(entry(server), target=tmp_path)
    assert (tmp_path / "set/file.gz").read_bytes() == CONTENT


def test_a_complete_part_needs_no_more_bytes(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/file.gz.part").write_bytes(CONTENT)
    fetch(entry(server), target=tmp_path)
    assert (tmp_path / "set/file.gz").read_bytes() == CONTENT


def test_other_content_is_removed_and_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="sha256 differs"):
        fetch(entry(server, sha256="0" * 64), target=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_overloaded_server_is_asked_again_a_missing_page_is_not(server: Server, tmp_path: Path) -> None:
    server.errors = 2
    fetch(entry(server), target=tmp_path, pause_s=0.001)
    assert len(server.asked) == 3
    with pytest.raises(DatasetError, match="Not Found"):
        fetch(entry(server, path="/nothing"), target=tmp_path / "other", pause_s=0.001)
    assert len(server.asked) == 4


def test_without_a_network_the_error_says_what_else_to_do(tmp_path: Path) -> None:
    file = DataFile("set/file.gz", "0" * 64, f"http://127.0.0.1:{free_port()}/file")
    with pytest.raises(DatasetError, match=r"copy set/file.gz from elsewhere.*--data or MISFIRE_DATA"):
        fetch(Entry("set", "x", "x", "x", (file,)), target=tmp_path, attempts=2, pause_s=0.001)


def test_a_file_without_an_address_is_asked_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no public address"):
        fetch(Entry("set", "x", "x", "x", (DataFile("a.npz", "0" * 64),)), target=tmp_path)


def test_a_folder_that_cannot_be_made_is_said(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set").write_text("a file where a folder should be")
    with pytest.raises(DatasetError, match="cannot be made"):
        fetch(entry(server), target=tmp_path)
