"""Thumbnails of what strangers sent: decoded elsewhere, a few at a time, and no reason for a page to wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import httpx
import numpy as np
import psutil
import pytest
from tests.fleet.conftest import eventually
from tests.fleet.consoles import add, serving

from misfire_fleet.console import thumbs as serve_thumbs
from misfire_fleet.console.thumbs import UNREADABLE, WIDTHS, DiskCache, Picture
from misfire_fleet.decoding.decoder import Decoder
from misfire_fleet.errors import CheckFailedError
from misfire_fleet.store import Store
from proving_ground.foreign_bytes import SDP, clip, encoded, many_scans, numbered, png, png_chunk

pytestmark = pytest.mark.slow

Numbered = Callable[[int], bytes]


@pytest.fixture
def console(store: Store) -> Iterator[str]:
    with serving(store) as address:
        yield address


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The widths of all decodings."""
    widths: list[int] = []
    small = Decoder.thumbnail_small

    def counting(self: Decoder, data: bytes, media_type: str, width: int) -> bytes | None:
        widths.append(width)
        return small(self, data, media_type, width)

    monkeypatch.setattr(Decoder, "thumbnail_small", counting)
    return widths


def width_of(picture: bytes) -> int:
    return int(cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR).shape[1])


def test_an_upload_has_a_thumbnail_of_a_few_widths_each_decoded_once(
    console: str, store: Store, jpeg: Numbered, decoded: list[int]
) -> None:
    sample = add(store, jpeg(1))
    for asked, given in ((1, 160), (160, 160), (161, 320), (360, 640), (640, 640), (641, 1024), (1024, 1024)):
        answer = httpx.get(f"{console}/thumbs/{sample}?width={asked}", timeout=30)
        assert answer.headers["content-type"] == "image/jpeg"
        assert width_of(answer.content) == given
    assert width_of(httpx.get(f"{console}/thumbs/{sample}").content) == 320
    assert sorted(decoded) == list(WIDTHS)
    for asked in (0, 1025, 10**30):
        assert httpx.get(f"{console}/thumbs/{sample}?width={asked}").status_code == 422


def test_many_who_ask_for_the_same_wait_for_one_decoding(
    console: str, store: Store, jpeg: Numbered, decoded: list[int]
) -> None:
    url = f"{console}/thumbs/{add(store, jpeg(1))}"
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: httpx.get(url, timeout=30), range(24)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(decoded) <= 4  # as many as look at once


def test_clips_and_small_pictures_have_one_too(console: str, store: Store) -> None:
    film = add(store, clip("mp4", "h264"), media_type="video/mp4", width=320, height=240)
    small = encoded(".png", width=64, height=48)
    icon = add(store, small, media_type="image/png", width=64, height=48)
    assert width_of(httpx.get(f"{console}/thumbs/{film}?width=160", timeout=30).content) == 160
    assert httpx.get(f"{console}/thumbs/{icon}", timeout=30).content == small


def test_an_upload_at_fault_has_a_placeholder_and_is_not_tried_again(
    console: str, store: Store, decoded: list[int]
) -> None:
    faulty = {
        "not decodable": add(store, b"no picture at all"),
        "scans": add(store, many_scans(2000)),
        "another format": add(store, encoded(".png"), media_type="image/jpeg"),
        "text that FFmpeg would open": add(store, SDP, media_type="video/mp4"),
        "no picture": add(store, b"<html>", media_type="text/html"),
    }
    for _ in range(2):
        for what, sample in faulty.items():
            answer = httpx.get(f"{console}/thumbs/{sample}", timeout=30)
            assert answer.status_code == 200 and answer.headers["content-type"].startswith("image/svg+xml"), (
                what
            )
            assert "does not decode" in answer.text and len(answer.text) > len(UNREADABLE.data), what
            assert "<html" not in answer.text and "sandbox" in answer.headers["content-security-policy"]
    assert len(decoded) == len(faulty)


def test_a_failure_of_ours_is_503_and_passes(
    console: str, store: Store, jpeg: Numbered, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = add(store, jpeg(1))

    def fails(*_: object) -> bytes:
        raise CheckFailedError("no process for decoding can be started")

    with monkeypatch.context() as broken:
        broken.setattr(Decoder, "thumbnail_small", fails)
        answer = httpx.get(f"{console}/thumbs/{sample}")
        assert answer.status_code == 503 and "decoding" in answer.text
        assert answer.headers["cache-control"] != "private, max-age=300"
    assert httpx.get(f"{console}/thumbs/{sample}", timeout=30).status_code == 200


def test_costly_pictures_stall_neither_pages_nor_small_pictures_nor_take_the_consoles_memory(
    console: str, store: Store, jpeg: Numbered
) -> None:
    scans, black = many_scans(95), png(6000, 6000)
    bombs = [add(store, numbered(scans, n), width=2000, height=2000) for n in range(12)]
    for number in range(6):
        other = black[:-12] + png_chunk(b"tEXt", b"number\0%d" % number) + black[-12:]
        bombs.append(add(store, other, media_type="image/png", width=6000, height=6000))
    honest = [add(store, jpeg(number)) for number in range(4)]
    before = psutil.Process().memory_info().rss
    waiting = [
        threading.Thread(target=lambda key=key: httpx.get(f"{console}/thumbs/{key}", timeout=60), daemon=True)
        for key in bombs
    ]
    for thread in waiting:
        thread.start()
    time.sleep(1.0)
    began = time.monotonic()
    for path in ("/uploads?limit=1", "/healthz", "/fragments/totals"):
        assert httpx.get(console + path, timeout=20).status_code == 200
    for sample in honest:
        assert width_of(httpx.get(f"{console}/thumbs/{sample}", timeout=20).content) == 320
    assert any(thread.is_alive() for thread in waiting)
    assert time.monotonic() - began < 15  # on a loaded machine; each costly picture takes seconds
    assert psutil.Process().memory_info().rss - before < 150_000_000
    for thread in waiting:
        thread.join(60)


def test_what_is_kept_is_bounded_in_bytes(
    store: Store, jpeg: Numbered, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    monkeypatch.setattr(serve_thumbs, "_MAX_BYTES", 1)
    monkeypatch.setattr(serve_thumbs, "_DISK_BYTES", 1)
    with serving(store) as console:
        one, two = add(store, jpeg(1)), add(store, jpeg(2))
        for sample in (one, one, two, one):
            assert httpx.get(f"{console}/thumbs/{sample}", timeout=30).status_code == 200
    assert len(decoded) == 3


def test_thumbnails_outlive_the_console_on_the_disk_but_not_their_sample(
    store: Store, jpeg: Numbered, decoded: list[int]
) -> None:
    one, two = add(store, jpeg(1)), add(store, jpeg(2))
    for _ in range(2):
        with serving(store) as console:
            for sample in (one, two):
                assert width_of(httpx.get(f"{console}/thumbs/{sample}", timeout=30).content) == 320
    assert len(decoded) == 2
    folder = store.blobs.root.parent / "console" / "thumbs"  # type: ignore[attr-defined]
    assert len(list(folder.glob("??/*.jpg"))) == 2
    with serving(store) as console:
        httpx.get(f"{console}/api/samples")
        store.deletion.delete(sample=one, reason="people")
        httpx.get(f"{console}/api/samples")
        assert eventually(lambda: [path.name[:64] for path in folder.glob("??/*")] == [two])
        assert httpx.get(f"{console}/thumbs/{one}").status_code == 404


def test_a_file_cut_short_on_the_disk_is_made_again(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, max_bytes=100)
    key = ("ab" * 32, 320, 0)
    assert cache.get(key) is None
    cache.add(key, Picture(b"x" * 60 + b"\xff\xd9", "image/jpeg", made=True))
    assert cache.get(key) is not None
    other = ("cd" * 32, 320, 1)
    cache.add(other, Picture(b"y" * 60 + b"\xff\xd9", "image/jpeg", made=True))
    assert cache.get(key) is None and cache.get(other) is not None  # the one used longest ago went
    (file,) = tmp_path.glob("??/*.jpg")
    file.write_bytes(b"y" * 10)
    assert DiskCache(tmp_path, max_bytes=100).get(other) is None


def test_a_crop_shows_its_box_and_nothing_else(console: str, store: Store) -> None:
    image = np.zeros((400, 800, 3), np.uint8)
    image[100:200, 500:700] = (0, 0, 255)
    done, data = cv2.imencode(".png", image)
    box = {"class": "car", "score": 0.9, "p": 0.5, "box": [500, 100, 700, 200]}
    outside = {"class": "car", "score": 0.9, "p": 0.5, "box": [5000, 100, 7000, 200]}
    prediction = {"boxes": [box, outside], "size": [800, 400]}
    sample = add(store, bytes(data), media_type="image/png", width=800, height=400, prediction=prediction)
    assert done
    answer = httpx.get(f"{console}/crops/{sample}/1?width=1024", timeout=30)
    crop = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
    assert 240 <= crop.shape[1] <= 270 and (crop[:, :, 2] > 128).mean() > 0.45
    for number, status in ((2, 404), (3, 404), (0, 422), (65, 422)):
        assert httpx.get(f"{console}/crops/{sample}/{number}").status_code == status
