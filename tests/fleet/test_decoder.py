"""Foreign bytes meet real decoders: what is taken, what is refused, and what is this machine's trouble."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fleet.decoding_processes import costly, processes, signalled

from misfire_fleet.collector.verify import HashMismatchError, verify
from misfire_fleet.decoding.decoder import Decoder, Verified
from misfire_fleet.decoding.headers import MIB, VIDEOS, Limits
from misfire_fleet.errors import CheckFailedError
from misfire_runtime.errors import ImageError
from proving_ground.foreign_bytes import (
    PLAYLISTS,
    SDP,
    clip,
    encoded,
    many_scans,
    png,
    png_chunk,
    progressive,
)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    """Two processes with the default limits."""
    made = Decoder(workers=2)
    yield made
    made.close()


@pytest.fixture
def make_decoder() -> Iterator[type[Decoder]]:
    """Decoders with other limits."""
    made: list[Decoder] = []

    class Kept(Decoder):
        def __init__(self, **options: object) -> None:
            super().__init__(**options)  # type: ignore[arg-type]
            made.append(self)

    yield Kept
    for each in made:
        each.close()


STILLS = {
    "JPEG": (encoded(".jpg"), "image/jpeg"),
    "progressive": (progressive(), "image/jpeg"),
    "PNG": (encoded(".png"), "image/png"),
    "PNG, RGBA of 16 bits": (png(320, 240, colour=6, depth=16), "image/png"),
    "WebP": (encoded(".webp", options=(cv2.IMWRITE_WEBP_QUALITY, 80)), "image/webp"),
    "lossless WebP": (encoded(".webp", options=(cv2.IMWRITE_WEBP_QUALITY, 101)), "image/webp"),
    "padded to 4 KiB": (encoded(".jpg") + bytes(4096), "image/jpeg"),
    "two pictures in a file": (encoded(".jpg") + encoded(".jpg", width=1600), "image/jpeg"),
}
CLIPS = {
    "MP4, H.264": ("mp4", "libx264", "video/mp4"),
    "MP4, MPEG-4": ("mp4", "mpeg4", "video/mp4"),
    "MP4, AV1": ("mp4", "libsvtav1", "video/mp4"),
    "Matroska": ("matroska", "libx264", "video/x-matroska"),
    "WebM": ("webm", "libvpx-vp9", "video/webm"),
    "MPEG-TS": ("mpegts", "mpeg2video", "video/mp2t"),
}


@pytest.mark.parametrize("kind", STILLS)
def test_pictures_are_taken_and_their_size_found(decoder: Decoder, kind: str) -> None:
    data, media_type = STILLS[kind]
    assert decoder.check(data, media_type) == Verified(320, 240)
    thumbnail = cv2.imdecode(
        np.frombuffer(decoder.thumbnail(data, media_type, 64), np.uint8), cv2.IMREAD_COLOR
    )
    assert thumbnail.shape == (48, 64, 3)


@pytest.mark.parametrize("kind", CLIPS)
def test_clips_are_taken_and_their_size_found(decoder: Decoder, kind: str) -> None:
    container, codec, media_type = CLIPS[kind]
    data = clip(container, codec)
    assert decoder.check(data, media_type) == Verified(320, 240)
    assert decoder.thumbnail(data, media_type, 64)[:2] == b"\xff\xd8"


@pytest.mark.parametrize("media_type", sorted(VIDEOS))
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_text_that_names_files_or_ports_is_no_clip(decoder: Decoder, kind: str, media_type: str) -> None:
    began = time.monotonic()
    with pytest.raises(ImageError, match="of another format"):
        decoder.check(PLAYLISTS[kind] * 20, media_type)
    with pytest.raises(ImageError):
        decoder.thumbnail(PLAYLISTS[kind] * 20, media_type, 64)
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (encoded(".png"), "video/mp4"),
        (encoded(".jpg"), "video/mp2t"),
        (clip("gif", "gif"), "video/mp4"),
        (clip("flv", "flv1"), "video/mp4"),
        (clip("avi", "mpeg4"), "video/mp4"),
        (clip("matroska", "libx264"), "video/webm"),
        (clip("mp4", "libx264"), "video/x-matroska"),
        (clip("mov", "png"), "video/mp4"),
        (encoded(".bmp"), "image/png"),
        (encoded(".png"), "image/jpeg"),
    ],
)
def test_one_format_is_not_taken_for_another(decoder: Decoder, data: bytes, media_type: str) -> None:
    with pytest.raises(ImageError, match=f"the offer said {media_type}|clips of codec png are not taken"):
        decoder.check(data, media_type)


def test_the_process_that_decodes_can_open_neither_files_nor_sockets(make_decoder: type[Decoder]) -> None:
    before = set(processes())
    decoder = make_decoder()
    assert decoder.check(clip("mp4", "libx264"), "video/mp4") == Verified(320, 240)
    with pytest.raises(ImageError):
        decoder.check(SDP, "video/mp4")
    (pid,) = set(processes()) - before
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert [line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files")] == [
        ["0", "0"]
    ]
    sockets = [fd for fd in Path(f"/proc/{pid}/fd").iterdir() if "socket:" in str(fd.readlink())]
    assert len(sockets) == 1
    assert b"PASSWORD" not in Path(f"/proc/{pid}/environ").read_bytes()


def without_its_second_half(data: bytes) -> bytes:
    """Cut off, with an end marker appended."""
    return data[: len(data) // 2] + b"\xff\xd9"


@pytest.mark.parametrize(
    ("data", "media_type", "reason"),
    [
        (encoded(".jpg")[:-2], "image/jpeg", "truncated JPEG"),
        (without_its_second_half(encoded(".jpg")), "image/jpeg", "damaged JPEG .data is missing"),
        (without_its_second_half(progressive()), "image/jpeg", "damaged JPEG .data is missing"),
        (encoded(".png")[:-20] + png_chunk(b"IEND", b""), "image/png", "truncated PNG|does not decode"),
        (encoded(".png").replace(b"IDAT", b"tEXt", 1), "image/png", "does not decode"),
        (encoded(".webp")[:-50], "image/webp", "truncated WebP"),
        (encoded(".jpg") + os.urandom(1_000_000) + b"\xff\xd9", "image/jpeg", "bytes behind the end"),
        (encoded(".png") + bytes(100_000), "image/png", "100000 bytes behind the end"),
        (clip("mp4", "libx264")[:200], "video/mp4", "clip"),
    ],
)
def test_a_picture_that_is_not_whole_is_refused(
    decoder: Decoder, data: bytes, media_type: str, reason: str
) -> None:
    with pytest.raises(ImageError, match=reason):
        decoder.check(data, media_type)


def test_stray_bytes_between_segments_are_taken_as_decoders_take_them(decoder: Decoder) -> None:
    whole = encoded(".jpg")
    second = 4 + int.from_bytes(whole[4:6], "big")
    data = whole[:second] + b"\0\xff\0\xff\xff" + whole[second:]
    assert decoder.check(data, "image/jpeg") == Verified(320, 240)


def test_animations_are_refused(decoder: Decoder) -> None:
    still = encoded(".png")
    with pytest.raises(ImageError, match="animated PNG"):
        decoder.check(still[:33] + png_chunk(b"acTL", bytes(8)) + still[33:], "image/png")
    body = b"WEBPVP8X" + (10).to_bytes(4, "little") + b"\x02" + bytes(9) + bytes(20)
    with pytest.raises(ImageError, match="animated WebP"):
        decoder.check(b"RIFF" + len(body).to_bytes(4, "little") + body, "image/webp")


@pytest.mark.parametrize("scans", [101, 5_000])
def test_a_jpeg_of_many_empty_scans_is_refused_at_once(decoder: Decoder, scans: int) -> None:
    began = time.monotonic()
    with pytest.raises(ImageError, match="more than 100 scans"):
        decoder.check(many_scans(scans), "image/jpeg")
    assert time.monotonic() - began < 1.0


def test_passes_over_a_large_picture_are_limited_too(make_decoder: type[Decoder]) -> None:
    decoder = make_decoder(limits=Limits(max_pixels=1_000_000))
    assert decoder.check(many_scans(10, side=1000), "image/jpeg") == Verified(1000, 1000)
    with pytest.raises(ImageError, match=r"\d+ scans over 1000x1000 pixels are too many"):
        decoder.check(many_scans(60, side=1000), "image/jpeg")


def test_limits_are_those_of_bytes_too(make_decoder: type[Decoder]) -> None:
    deep = png(8000, 8000, colour=6, depth=16)
    with pytest.raises(ImageError, match="8000x8000 is above the limit of 40000000 pixels"):
        make_decoder().check(deep, "image/png")
    with pytest.raises(ImageError, match=r"needs 512000000 bytes to decode, .* limit of 268435456"):
        make_decoder(limits=Limits(max_pixels=64_000_000)).check(deep, "image/png")


def test_a_picture_of_an_8k_camera_is_taken_and_the_own_process_stays_small(decoder: Decoder) -> None:
    data = png(8000, 5000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decoder.check(data, "image/png") == Verified(8000, 5000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024


@pytest.mark.slow
def test_small_pictures_pass_while_costly_ones_are_decoded(decoder: Decoder) -> None:
    data, small = many_scans(20, side=4000), encoded(".jpg")
    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(decoder.check, data, "image/jpeg") for _ in range(2)]
        waits = []
        while not all(future.done() for future in running):
            began = time.monotonic()
            decoder.check(small, "image/jpeg")
            waits.append(time.monotonic() - began)
        assert [future.result() for future in running] == [Verified(4000, 4000)] * 2
    assert len(waits) > 10
    assert max(waits) < 1.0


def test_more_than_its_time_is_proof_about_the_upload(make_decoder: type[Decoder]) -> None:
    decoder = make_decoder(limits=Limits(max_seconds=0.1))
    with pytest.raises(ImageError, match=r"takes more than 0\.1 s of processor time"):
        decoder.check(costly(), "image/jpeg")
    assert decoder.check(encoded(".jpg"), "image/jpeg") == Verified(320, 240)


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGILL])
def test_a_process_that_the_machine_ends_says_nothing_about_the_upload(
    make_decoder: type[Decoder], death: signal.Signals
) -> None:
    decoder, before = make_decoder(), set(processes())
    with signalled(death, spare=before), pytest.raises(CheckFailedError, match=f"signal {int(death)}"):
        decoder.check(costly(), "image/jpeg")
    assert decoder.check(encoded(".jpg"), "image/jpeg") == Verified(320, 240)


def test_an_upload_on_which_two_processes_crash_is_at_fault(make_decoder: type[Decoder]) -> None:
    decoder, before = make_decoder(), set(processes())
    with signalled(signal.SIGSEGV, spare=before), pytest.raises(ImageError, match="in two processes"):
        decoder.check(costly(), "image/jpeg")
    assert decoder.check(encoded(".jpg"), "image/jpeg") == Verified(320, 240)


def test_a_process_that_died_at_rest_is_replaced_unnoticed(make_decoder: type[Decoder]) -> None:
    decoder, before = make_decoder(), set(processes())
    decoder.check(encoded(".jpg"), "image/jpeg")
    (pid,) = set(processes()) - before
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    assert decoder.check(encoded(".jpg"), "image/jpeg") == Verified(320, 240)


@pytest.mark.parametrize("data", [encoded(".jpg"), png(8000, 5000)], ids=["small", "large"])
def test_a_process_without_memory_says_nothing_about_the_upload(
    make_decoder: type[Decoder], data: bytes
) -> None:
    decoder, before = make_decoder(), set(processes())
    media_type = "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"
    decoder.check(encoded(".jpg"), "image/jpeg")
    (pid,) = set(processes()) - before
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    little = pages * resource.getpagesize() + 40 * MIB
    resource.prlimit(pid, resource.RLIMIT_AS, (little, little))
    with pytest.raises(CheckFailedError, match=r"there are not \d+ bytes of memory"):
        decoder.check(data, media_type)
    assert decoder.check(data, media_type)


def test_no_file_descriptor_for_a_process_is_no_verdict(make_decoder: type[Decoder]) -> None:
    decoder = make_decoder()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as last:
        resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno(), hard))
        try:
            with pytest.raises(CheckFailedError, match="Too many open files"):
                decoder.check(encoded(".jpg"), "image/jpeg")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert decoder.check(encoded(".jpg"), "image/jpeg") == Verified(320, 240)


def test_a_closed_decoder_leaves_no_process_behind() -> None:
    before = set(processes())
    decoder = Decoder()
    decoder.check(encoded(".jpg"), "image/jpeg")
    assert set(processes()) - before
    decoder.close()
    assert not set(processes()) - before


OWNER = """
import sys, time
from misfire_fleet.decoding.decoder import Decoder
decoder = Decoder()
decoder.check(sys.stdin.buffer.read(), "image/jpeg")
print(decoder._idle.get()._process.pid, flush=True)
time.sleep(60)
"""


def test_processes_end_when_their_owner_is_killed() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdin is not None and owner.stdout is not None
    owner.stdin.write(encoded(".jpg"))
    owner.stdin.close()
    decoding = Path(f"/proc/{int(owner.stdout.readline())}")
    assert decoding.exists()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    until = time.monotonic() + 10
    while decoding.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not decoding.exists()


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".jpg", "image/jpeg"), (".png", "image/png"), (".webp", "image/webp")]
)
def test_too_many_pixels_are_refused_by_the_header(
    make_decoder: type[Decoder], suffix: str, kind: str
) -> None:
    data = encoded(suffix, width=37, height=21)
    sample = hashlib.sha256(data).hexdigest()
    assert verify(data, sample=sample, media_type=kind, decoder=make_decoder()) == Verified(37, 21)
    with pytest.raises(ImageError, match="above the limit of 776"):
        verify(data, sample=sample, media_type=kind, decoder=make_decoder(limits=Limits(max_pixels=776)))


def test_other_bytes_than_offered_never_reach_a_decoder() -> None:
    decoder = Decoder()
    with pytest.raises(HashMismatchError):
        verify(b"x", sample="0" * 64, media_type="image/jpeg", decoder=decoder)
    assert decoder._idle.get_nowait() is None


@settings(max_examples=200, deadline=None)
@given(
    suffix=st.sampled_from([".jpg", ".png", ".webp"]),
    cut=st.integers(0, 2000),
    flips=st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 255)), max_size=5),
)
def test_damaged_images_are_refused_or_decode_but_are_never_put_off(
    decoder: Decoder, suffix: str, cut: int, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(encoded(suffix, width=37, height=21))
    for at, flip in flips:
        data[at % len(data)] ^= flip
    kind = {".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}[suffix]
    try:
        decoder.check(bytes(data[: max(1, len(data) - cut)]), kind)
    except ImageError as error:
        assert str(error)
