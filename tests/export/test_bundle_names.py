"""A bundle without a stated name is called after its data, never after an option of its reader."""

from __future__ import annotations

import pytest

from misfire_export.command import bundle_name


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        (r"image-folder:/data/signs?size=48x48&group=/(\d+)_", "signs"),
        ("masks:/data/road/?group=(?:a|b)/(.*)", "road"),
        ("masks:/data/road?group=([^?:]+)/x", "road"),
        ("yolo:street?classes=/lists/five.txt", "street"),
        ("fashion-mnist", "fashion-mnist"),
        ("my.module:factory", "factory"),
    ],
)
def test_the_name_is_that_of_the_data(dataset: str, name: str) -> None:
    assert bundle_name(dataset) == name
