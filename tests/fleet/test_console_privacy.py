"""Who may read the console, how long what it shows is kept elsewhere, and what it says to odd addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
from tests.fleet.consoles import add, serving

from misfire_fleet.store import Store
from misfire_runtime.messages import Trigger

pytestmark = pytest.mark.slow

Numbered = Callable[[int], bytes]


@pytest.fixture
def console(store: Store) -> Iterator[str]:
    with serving(store, allowed_hosts=["console.example"]) as address:
        yield address


def test_only_names_of_the_console_and_addresses_may_be_asked_for(console: str) -> None:
    port = console.rpartition(":")[2]
    for host in ("127.0.0.1", f"localhost:{port}", "[::1]:8000", "192.0.2.7", "Console.Example:443"):
        assert httpx.get(f"{console}/api/samples", headers={"Host": host}).status_code == 200, host
    for host in ("evil.example", f"127.0.0.1.evil.example:{port}", "", "[::1", "console.example.evil"):
        for path in ("/uploads", "/api/samples", "/static/console.css", "/blobs/" + "0" * 64):
            answer = httpx.get(console + path, headers={"Host": host})
            assert answer.status_code == 400, (host, path)
    assert "--allowed-host" in answer.text


def test_pictures_are_for_one_browser_and_for_minutes(console: str, store: Store, jpeg: Numbered) -> None:
    sample = add(store, jpeg(1))
    for path in (f"/blobs/{sample}", f"/thumbs/{sample}"):
        control = httpx.get(console + path).headers["cache-control"]
        assert control == "private, max-age=300"
    for path in ("/uploads", f"/samples/{sample}", "/api/samples", "/vehicles", "/nothing"):
        assert httpx.get(console + path).headers["cache-control"] == "private, no-cache"
    store.deletion.delete(sample=sample, reason="asked for")
    for path in (f"/blobs/{sample}", f"/thumbs/{sample}", f"/thumbs/{sample}?width=640"):
        assert httpx.get(console + path).status_code == 404


def test_a_page_answers_to_head_as_to_get_without_a_body(console: str, store: Store, jpeg: Numbered) -> None:
    sample = add(store, jpeg(1))
    for path in (
        "/uploads",
        f"/samples/{sample}",
        f"/blobs/{sample}",
        "/vehicles",
        "/healthz",
        "/api/totals",
    ):
        head, get = httpx.head(console + path), httpx.get(console + path)
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["content-length"] == get.headers["content-length"]
    assert httpx.head(f"{console}/samples/{'0' * 64}").status_code == 404
    assert (httpx.post(console).status_code, httpx.post(console).headers["allow"]) == (405, "GET")


def test_a_player_gets_the_part_of_a_clip_that_it_asks_for(anywhere: Store) -> None:
    data = bytes(range(256)) * 8
    sample = add(anywhere, data, media_type="video/mp4")
    with serving(anywhere) as console:
        url = f"{console}/blobs/{sample}"
        whole = httpx.get(url)
        assert (whole.status_code, whole.content) == (200, data)
        assert whole.headers["accept-ranges"] == "bytes"
        for wanted, part in (
            ("bytes=0-", data),
            ("bytes=10-19", data[10:20]),
            ("bytes=2000-9999", data[2000:]),
            ("bytes=-5", data[-5:]),
        ):
            answer = httpx.get(url, headers={"Range": wanted})
            assert (answer.status_code, answer.content) == (206, part), wanted
            start = len(data) - 5 if wanted == "bytes=-5" else int(wanted[6:].split("-")[0])
            shown = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
            assert answer.headers["content-range"] == shown
            assert answer.headers["content-type"] == "video/mp4"
        assert httpx.get(url, headers={"Range": "bytes=9999-"}).status_code == 416


def test_bytes_of_another_kind_are_never_a_page(console: str, store: Store) -> None:
    sample = add(store, b"<script>alert(1)</script>", media_type="text/html")
    answer = httpx.get(f"{console}/blobs/{sample}")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment"


def test_addresses_that_cannot_be_read_are_named_and_never_the_stores_trouble(anywhere: Store) -> None:
    anywhere.add_many([])
    with serving(anywhere) as console:
        for field in ("vehicle", "trigger", "bundle", "stream", "since", "percentile"):
            for value in ("%00", "a%00b", "%ff", "%ed%a0%80"):
                for path in ("/uploads", "/api/samples"):
                    answer = httpx.get(f"{console}{path}?{field}={value}")
                    assert answer.status_code == 422, (path, field, value)
                    assert field in answer.text
        for path in ("/vehicle?name=%00", "/vehicles?after=%00", "/api/vehicles?cursor=%ff", "/vehicles/%00"):
            assert httpx.get(console + path).status_code == 422, path
        for path in ("/samples/%00", "/blobs/%00", "/thumbs/%00", "/api/samples/%00", "/samples/%ff"):
            assert httpx.get(console + path).status_code == 404, path


def test_people_are_told_in_pages_and_programs_in_json(console: str) -> None:
    for path, status in (("samples/nothing", 404), ("samples?limit=0", 422), ("nothing", 404)):
        answer = httpx.get(f"{console}/api/{path}")
        assert answer.status_code == status and answer.json()["detail"]
    for path, status in (("samples/nothing", 404), ("uploads?limit=0", 422), ("nothing", 404)):
        answer = httpx.get(f"{console}/{path}")
        assert answer.status_code == status and "<h1>" in answer.text


def test_a_filter_that_is_none_is_named(console: str, store: Store, jpeg: Numbered) -> None:
    add(store, jpeg(1), trigger=Trigger(name="random", random=True))
    add(store, jpeg(2))
    for stream, count in (("", 2), ("random", 1), ("chosen", 1)):
        found = httpx.get(f"{console}/api/samples?stream={stream}").json()["samples"]
        assert len(found) == count
    for path in ("/uploads", "/api/samples"):
        answer = httpx.get(f"{console}{path}?stream=bogus")
        assert answer.status_code == 422 and "stream" in answer.text and "bogus" in answer.text


def test_filters_take_times_with_a_zone_as_z(console: str, store: Store, jpeg: Numbered) -> None:
    add(store, jpeg(1))  # captured at 2023-11-14T22:13:20Z
    for since, count in (("2023-11-14T22:13:20Z", 1), ("2023-11-14T22:13:21Z", 0), ("2023-11-14", 1)):
        assert len(httpx.get(f"{console}/api/samples?since={since}").json()["samples"]) == count
    for since in ("noon", "2026-13-01", "Z"):
        answer = httpx.get(f"{console}/uploads?since={since}")
        assert answer.status_code == 422 and "since" in answer.text
