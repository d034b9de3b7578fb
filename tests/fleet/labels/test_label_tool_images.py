"""How a label tool gets pictures without an upload, and in which order samples are sent."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright
from tests.fleet import consoles, stores
from tests.fleet.labels import items as given
from tests.fleet.labels.label_tools import fill, sample_id, upload

from misfire_fleet.commands.serve import checked_origin
from misfire_fleet.errors import SampleGoneError, StoreError
from misfire_fleet.labels.tools.label_studio.images import MAX_EMBEDDED, EmbeddedImages, LinkedImages
from misfire_fleet.labels.tools.selection import count_among, most_suspicious
from misfire_fleet.store import Store
from misfire_fleet.store.records import ANY, SampleFilter
from misfire_runtime.errors import ConfigError
from proving_ground.services import CHROMIUM_FLAGS, ObjectStore, Postgres, chromium


def test_links_name_the_sample_at_the_console() -> None:
    item = given.item(given.drawn(1))
    images = LinkedImages.at_console("https://console.example.org/", insecure=False, sign="link={}".format)
    link = f"https://console.example.org/blobs/{item.sample}?link={item.sample}"
    assert images.addresses([item]).found == {item.sample: link}
    # A signed link ends, so that a push renews it in old tasks.
    assert images.expires
    with pytest.raises(ConfigError, match="plain http"):
        LinkedImages.at_console("http://console.example.org", insecure=False, sign=str)


@contextmanager
def label_tool() -> Iterator[str]:
    """A site of its own with one blank page."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _BlankPage)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _BlankPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "15")
        self.end_headers()
        self.wfile.write(b"<!doctype html>")

    def log_message(self, *_: object) -> None:
        pass


# As Label Studio shows a picture: with the rights to read its pixels, for masks.
_SHOWN = """([address, readable]) => new Promise(done => {
  const image = new Image();
  if (readable) image.crossOrigin = "anonymous";
  image.onload = () => done(image.naturalWidth);
  image.onerror = () => done(0);
  image.src = address;
})"""


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [True, False])
def test_only_pages_of_the_label_tool_may_show_the_consoles_uploads(
    allowed: bool, store: Store, tmp_path: Path
) -> None:
    store.add_many([upload(1)])
    with label_tool() as tool, consoles.serving(store, label_tool=tool if allowed else "") as console:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
            page = browser.new_page()
            page.goto(tool)
            address = f"{console}/blobs/{sample_id(1)}"
            widths = [page.evaluate(_SHOWN, [address, readable]) for readable in (False, True)]
            browser.close()
        assert widths == ([64, 64] if allowed else [0, 0])
        # Everything else of the console stays its own.
        with urllib.request.urlopen(f"{console}/", timeout=20) as answer:
            assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert answer.headers["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize("url", ["labels", "ftp://labels", "https://labels/path", "https://me@labels"])
def test_an_origin_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="expected http://HOST"):
        checked_origin(url)
    assert checked_origin("HTTPS://Labels:8443/") == "https://labels:8443"


def test_signed_links_can_be_read_by_anybody(database: Postgres, bucket: ObjectStore) -> None:
    stores.without_tables(database)
    with stores.open_postgres(database, bucket) as store:
        store.add_many([upload(1)])
        images = LinkedImages(store.blobs.signed_url, expires=True)
        (item,) = most_suspicious(store, ANY)
        (address,) = images.addresses([item]).found.values()
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert answer.read() == store.read_blob(sample_id(1))
        assert "604800" in address


def test_a_folder_has_no_signed_links(tmp_path: Path) -> None:
    with Store.open_folder(tmp_path) as store, pytest.raises(StoreError, match="has no signed links"):
        store.blobs.signed_url("a" * 64)


def test_only_small_pictures_that_are_stored_go_into_tasks() -> None:
    def gone() -> bytes:
        raise SampleGoneError("deleted")

    small = given.item(given.drawn(1))
    large = replace(given.item(given.drawn(2)), read=lambda: b"0" * (MAX_EMBEDDED + 1))
    deleted = replace(given.item(given.drawn(3)), read=gone)
    addresses = EmbeddedImages().addresses([small, large, deleted])
    assert addresses.found[small.sample].startswith("data:image/png;base64,")
    assert addresses.missing == {
        large.sample: "its picture has more than 4,194,304 bytes; use --images upload",
        deleted.sample: "its picture is no longer stored",
    }


def test_the_most_suspicious_come_first_page_by_page(
    anywhere: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("misfire_fleet.labels.tools.selection._PAGE", 7)
    uploads = [upload(number) for number in range(20)]
    # Two without a percentile, two with the same one, and a clip, which no label tool shows.
    uploads += [upload(number, percentiles={}) for number in (20, 21)]
    uploads += [upload(number, percentiles={"msp": 0.5}) for number in (22, 23)]
    uploads += [upload(24, media_type="video/mp4")]
    for each in uploads:
        anywhere.add_many([each])
    found = [(item.sample, item.percentile) for item in most_suspicious(anywhere, ANY)]
    percentiles = [percentile for _, percentile in found if percentile is not None]
    assert percentiles == sorted(percentiles, reverse=True)
    assert found[-2:] == [(sample_id(20), None), (sample_id(21), None)]
    names = [sample for sample, _ in found]
    assert len(names) == len(set(names)) == 24
    assert names.index(sample_id(23)) == names.index(sample_id(22)) + 1
    assert [item.sample for item in most_suspicious(anywhere, ANY, limit=9)] == names[:9]
    assert [item.sample for item in most_suspicious(anywhere, ANY, by_id=True)] == sorted(names)
    some = SampleFilter(min_percentile=0.9)
    wanted = [sample for sample, percentile in found if (percentile or 0) >= 0.9]
    assert count_among(anywhere, names[:10], some) == len(set(names[:10]) & set(wanted))
    assert [item.sample for item in most_suspicious(anywhere, some)] == wanted


def test_uploads_of_a_folder_are_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    order = fill(tmp_path, 3)
    with Store.open_folder(tmp_path) as store:
        assert [item.sample for item in most_suspicious(store, ANY)] == order
