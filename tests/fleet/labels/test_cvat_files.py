"""CVAT's XML: what a person looked at is a label, what nobody did is none, and hostile files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree.ElementTree import parse as parse_xml

import pytest
from tests.fleet.labels import items as given

from misfire_fleet.labels.content import BoxesLabel, ClassesLabel, ClassLabel, MaskLabel, PointsLabel
from misfire_fleet.labels.formats.base import Answer, ImportedLabel, Known, Problem
from misfire_fleet.labels.formats.cvat import CHECKED
from misfire_fleet.labels.formats.parts.mask_pixels import pixels_of
from misfire_fleet.labels.formats.registry import format_of, recognised
from misfire_runtime.errors import ConfigError

# As CVAT 2 writes it.
EXPORTED = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <job><id>9</id><size>5</size><mode>annotation</mode><overlap>0</overlap>
      <labels><label><name>car</name><color>#aa0000</color><type>any</type><attributes></attributes></label></labels>
      <assignee><username>zoe</username><email>zoe@example.org</email></assignee></job>
    <dumped>2026-07-01 12:00:00.000000+00:00</dumped>
  </meta>
  {images}
</annotations>
"""


def image(shapes: str, *, number: int = 0, size: str = 'width="64" height="48"') -> str:
    return f'<image id="{number}" name="frames/{number:064x}.jpg" {size}>{shapes}</image>'


BOX = (
    '<box label="car" source="{}" occluded="0" xtl="1.50" ytl="2.00" xbr="3.00" ybr="4.00" z_order="0"></box>'
)


def read(tmp_path: Path, *images: str, **known: object) -> list[ImportedLabel | Problem]:
    file = tmp_path / "annotations.xml"
    file.write_text(EXPORTED.format(images="\n".join(images)), encoding="utf-8")
    form, _ = recognised(file)
    assert form.name == "cvat"
    return list(form.read(file, Known(**known)))  # type: ignore[arg-type]


def test_only_what_a_person_touched_or_checked_is_a_label(tmp_path: Path) -> None:
    checked = f'<tag label="{CHECKED}" source="manual"></tag>'
    found = read(
        tmp_path,
        image(BOX.format("manual"), number=1),
        image("", number=2),
        image(BOX.format("auto"), number=3),
        image(BOX.format("auto") + BOX.format("semi-auto"), number=4),
        image(checked, number=5),
        image(BOX.format("auto") + checked, number=6),
    )
    labels = {int(each.sample, 16): each for each in found if isinstance(each, ImportedLabel)}
    assert {n: len(each.label.boxes) for n, each in labels.items() if isinstance(each.label, BoxesLabel)} == {
        1: 1,
        4: 2,
        5: 0,
        6: 1,
    }
    assert len(found) == 4
    assert (labels[1].annotator, labels[1].size, labels[1].where) == ("zoe", (64, 48), "annotations.xml:10")
    assert labels[1].label == given.boxes(("car", 1.5, 2, 3, 4))


def test_turned_and_flagged_boxes_tags_skeletons_and_masks_are_read(tmp_path: Path) -> None:
    turned = (
        '<box label="car" source="manual" xtl="1" ytl="2" xbr="9" ybr="4" rotation="270.00">'
        '<attribute name="crowd">true</attribute><attribute name="ignore">false</attribute></box>'
    )
    (found,) = read(tmp_path, image(turned))
    assert isinstance(found, ImportedLabel) and isinstance(found.label, BoxesLabel)
    assert (found.label.boxes[0].degrees, found.label.boxes[0].crowd, found.label.boxes[0].ignore) == (
        -90,
        True,
        False,
    )
    skeleton = (
        '<skeleton label="person" source="manual" z_order="0">'
        '<points label="1" source="manual" outside="1" occluded="0" points="5.00,6.00"></points>'
        '<points label="2" source="manual" outside="0" occluded="1" points="7.00,8.00"></points></skeleton>'
    )
    (found,) = read(tmp_path, image(skeleton))
    assert isinstance(found, ImportedLabel) and isinstance(found.label, PointsLabel)
    assert [(p.x, p.visible) for p in found.label.points] == [(5, 0), (7, 1)]
    mask = (
        '<mask label="road" source="manual" rle="1, 2, 1" left="10" top="5" width="2" height="2" '
        'z_order="0"></mask>'
        '<polygon label="sky" source="manual" points="0.00,0.00;4.00,0.00;4.00,4.00;0.00,4.00" z_order="1"/>'
    )
    (found,) = read(tmp_path, image(mask))
    assert isinstance(found, ImportedLabel) and isinstance(found.label, MaskLabel)
    pixels = pixels_of(found.label)
    names = found.label.names
    assert names.get(int(pixels[5, 11])) == names.get(int(pixels[6, 10])) == "road"
    assert names.get(int(pixels[5, 10])) is None and names.get(int(pixels[1, 1])) == "sky"
    (found,) = read(tmp_path, image('<tag label="rain" source="manual"></tag>'))
    assert isinstance(found, ImportedLabel) and found.label == ClassLabel(name="rain")
    (found,) = read(tmp_path, image('<tag label="rain"/><tag label="night"/>'), kind="classes")
    assert isinstance(found, ImportedLabel) and found.label == ClassesLabel(names=("rain", "night"))


BAD = {
    "tracks": '<track id="0" label="car"><box frame="0" xtl="1" ytl="1" xbr="2" ybr="2"/></track>',
    "no area": image('<box label="car" xtl="3" ytl="2" xbr="3" ybr="4"/>'),
    "no number": image('<box label="car" xtl="nan" ytl="2" xbr="3" ybr="4"/>'),
    "huge": image('<box label="car" xtl="1" ytl="2" xbr="1e300" ybr="4"/>'),
    "no label": image('<box xtl="1" ytl="2" xbr="3" ybr="4"/>'),
    "cuboid": image(BOX.format("manual") + '<cuboid label="car"/>'),
    "no size": image(BOX.format("manual"), size=""),
    "a bomb": image(BOX.format("manual"), size='width="99999999" height="99999999"'),
    "rle": image('<mask label="car" rle="1, 2" left="0" top="0" width="2" height="2"/>'),
    "negative rle": image('<mask label="car" rle="-1, 5" left="0" top="0" width="2" height="2"/>'),
    "outside": image('<mask label="car" rle="4" left="63" top="0" width="2" height="2"/>'),
    "points": image('<points label="car" points="1,2;x"/>'),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_picture_that_is_wrong_is_a_problem_with_its_line(bad: str, tmp_path: Path) -> None:
    found = read(tmp_path, image(BOX.format("manual"), number=1), BAD[bad], kind=None)
    if "<mask" in BAD[bad] or "<points" in BAD[bad]:
        found = read(tmp_path, BAD[bad])
    (problem,) = (each for each in found if isinstance(each, Problem))
    assert problem.where.startswith("annotations.xml:1") and problem.sentence


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotations>&b;</annotations>',
        "<annotations><image>",
        "<annotations>" + "<a>" * 100 + "</a>" * 100 + "</annotations>",
        "<annotation/>",
        "",
    ],
)
def test_a_file_that_is_no_plain_xml_of_cvat_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text(text)
    with pytest.raises(ConfigError, match=r"annotations\.xml: "):
        list(format_of("cvat").read(tmp_path, Known()))


def test_an_export_has_automatic_shapes_for_what_is_not_labelled(tmp_path: Path) -> None:
    answer = Answer(given.boxes(("car", 1, 2, 33, 44)), confidence=(0.9,))
    labelled = given.item(given.drawn(1), given.boxes(("bus", 5, 6, 7, 8)), answer=answer)
    waiting = given.item(given.drawn(2), answer=answer)
    written = format_of("cvat").write(iter([labelled, waiting]), tmp_path, given.plan(classes=("car",)))
    assert (written.samples, written.labelled, written.answered) == (2, 1, 1)
    first, second = parse_xml(tmp_path / "annotations.xml").getroot().iter("image")
    assert [(each.get("label"), each.get("source")) for each in first] == [
        (CHECKED, "manual"),
        ("bus", "manual"),
    ]
    assert [(each.get("label"), each.get("source")) for each in second] == [("car", "auto")]
    assert [each["name"] for each in json.loads((tmp_path / "labels.json").read_text())] == [
        "car",
        "bus",
        CHECKED,
    ]
    assert "percentile" in (tmp_path / "samples.csv").read_text().splitlines()[0]
    (found,) = format_of("cvat").read(tmp_path, Known())
    assert isinstance(found, ImportedLabel) and found.sample == labelled.sample
