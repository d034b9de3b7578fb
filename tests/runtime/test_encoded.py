"""Encoded pictures: where they end, whatever stands behind them, and how they are to be turned."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from drawn_files import exif, jpeg_with_exif, png_with_exif, scene
from hypothesis import given
from hypothesis import strategies as st

from misfire_runtime.encoded import exif_block, picture_format, stated_size, without_trailer
from misfire_runtime.errors import ImageError
from misfire_runtime.preprocess import decode_image, encode_jpeg

_FLAGS = {
    "baseline.jpg": [],
    "progressive.jpg": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    "restart.jpg": [cv2.IMWRITE_JPEG_RST_INTERVAL, 2],
    "lossless.png": [],
    "lossy.webp": [cv2.IMWRITE_WEBP_QUALITY, 80],
    "lossless.webp": [cv2.IMWRITE_WEBP_QUALITY, 101],
}


def encoded(name: str) -> bytes:
    ok, data = cv2.imencode("." + name.rpartition(".")[2], scene(0), _FLAGS[name])
    assert ok
    return bytes(data)


THUMBNAIL = encode_jpeg(scene(1)[:32, :32])
WITH_PREVIEW = jpeg_with_exif(scene(0), exif() + THUMBNAIL)


@pytest.mark.parametrize("name", _FLAGS)
@pytest.mark.parametrize(
    "trailer",
    [bytes(512), b"\xff" * 300, THUMBNAIL, b"\0" * 4096 + encode_jpeg(scene(2)), b"x"],
    ids=["zeros", "ones", "a second picture", "padding and a preview", "one byte"],
)
def test_bytes_behind_the_end_of_a_picture_are_ignored(name: str, trailer: bytes) -> None:
    data = encoded(name)
    assert without_trailer(data + trailer) == data
    assert np.array_equal(decode_image(data + trailer), decode_image(data))


@pytest.mark.parametrize("name", _FLAGS)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_picture_is_refused(name: str, share: float) -> None:
    data = encoded(name)
    with pytest.raises(ImageError, match="truncated"):
        decode_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("name", [name for name in _FLAGS if not name.endswith(".webp")])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_padding_does_not_hide_that_a_picture_is_truncated(name: str, share: float) -> None:
    data = encoded(name)
    with pytest.raises(ImageError, match="truncated"):
        decode_image(data[: int(len(data) * share)] + bytes(600))


def test_the_end_of_a_preview_is_not_the_end_of_the_picture() -> None:
    assert without_trailer(WITH_PREVIEW + bytes(100)) == WITH_PREVIEW
    behind_preview = WITH_PREVIEW.index(THUMBNAIL) + len(THUMBNAIL)
    for cut in (behind_preview, behind_preview + 40, len(WITH_PREVIEW) - 2):
        with pytest.raises(ImageError, match="truncated JPEG"):
            decode_image(WITH_PREVIEW[:cut])


@pytest.mark.parametrize("write", [jpeg_with_exif, png_with_exif])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_picture_is_turned_upright_by_its_exif_orientation(
    write: Callable[[np.ndarray, bytes], bytes], order: str
) -> None:
    image = scene(0)
    quarter_turn = write(np.ascontiguousarray(np.rot90(image)), exif(orientation=6, order=order))
    mirrored = write(np.ascontiguousarray(image[:, ::-1]), exif(orientation=2, order=order))
    for data in (quarter_turn, mirrored):
        assert decode_image(data).shape == image.shape
        assert np.abs(decode_image(data).astype(int) - image).mean() < 8


def test_formats_are_known_by_their_first_bytes() -> None:
    kinds = {"jpg": "jpeg", "png": "png", "webp": "webp", "bmp": "bmp", "tiff": "tiff"}
    kinds.update({"ppm": "x-portable-anymap", "gif": "gif"})
    for suffix, kind in kinds.items():
        ok, data = cv2.imencode("." + suffix, scene(0))
        assert ok and picture_format(bytes(data)) == f"image/{kind}"
    assert (
        picture_format(b"")
        == picture_format(b"RIFF\0\0\0\0AVI ")
        == picture_format(b"BMX notes of a day")
        == ""
    )


@given(
    st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"RIFF"])
)
def test_no_bytes_break_the_walk(data: bytes, head: bytes) -> None:
    exif_block(head + data)
    try:
        assert (head + data).startswith(without_trailer(head + data))
    except ImageError as error:
        assert "truncated" in str(error)


@pytest.mark.parametrize("progressive", [False, True])
def test_the_size_is_read_from_the_header(progressive: bool) -> None:
    picture = np.zeros((7, 300, 3), np.uint8)
    ways = [cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    for ending, options in ((".jpg", ways), (".png", [])):
        data = cv2.imencode(ending, picture, options)[1].tobytes()
        assert stated_size(data) == (300, 7)
        # Never an exception, wherever the file ends.
        assert all(stated_size(data[:end]) in (None, (300, 7)) for end in range(len(data)))
    assert stated_size(cv2.imencode(".bmp", picture)[1].tobytes()) is None


def test_a_large_jpeg_is_refused_before_it_is_decoded() -> None:
    data = bytearray(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = (20_000).to_bytes(2, "big") * 2
    with pytest.raises(ImageError, match=r"x.jpg: 20000x20000 is above the limit of 64000000 pixels"):
        decode_image(bytes(data), name="x.jpg")
