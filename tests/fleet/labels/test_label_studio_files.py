"""Label Studio's tasks, configurations and masks as files: what is written, and what hostile ones do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as having
from hypothesis import strategies as st
from tests.fleet.labels import items as given

from misfire_fleet.labels.content import Box, BoxesLabel, ClassesLabel, ClassLabel, PointsLabel
from misfire_fleet.labels.formats.base import Answer, ImportedLabel, Known, Problem
from misfire_fleet.labels.formats.label_studio.brush_rle import BrushError, pack, unpack
from misfire_fleet.labels.formats.label_studio.config import LabellingConfig, difference, read_config
from misfire_fleet.labels.formats.label_studio.results import label_of, results_of
from misfire_fleet.labels.formats.registry import format_of, recognised
from misfire_runtime.errors import ConfigError

BOXES = LabellingConfig("boxes", ("car", "bus"))


@having(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_masks_come_back_from_their_stream(width: int, height: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    assert (unpack(pack(mask), width=width, height=height) == mask).all()


def test_a_stream_that_lists_values_is_read_as_the_editor_writes_it() -> None:
    # 8 values of 8 bits, lengths of 3, 4, 8 and 16 bits; one run of 8 listed values: alpha 0, then alpha 9.
    bits = f"{8:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}" + "0" + "00" + f"{7:03b}"
    bits += "".join(f"{value:08b}" for value in (1, 2, 3, 0, 4, 5, 6, 9))
    bits = bits.ljust(-(-len(bits) // 8) * 8, "0")
    stream = [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]
    assert unpack(stream, width=2, height=1).tolist() == [[False, True]]


@pytest.mark.parametrize(
    "stream",
    [[], [0] * 6, [255] * 40, "AAAA", [1.5], [300], [-1], None, pack(np.ones((3, 3), bool))],
)
def test_streams_that_are_no_mask_of_the_picture_are_refused(stream: Any) -> None:
    with pytest.raises(BrushError):
        unpack(stream, width=2, height=2)
    with pytest.raises(BrushError):
        unpack(stream, width=10**6, height=10**6)


SIDES = st.tuples(st.floats(0, 600), st.floats(0, 400), st.floats(1, 30), st.floats(1, 30))


@having(SIDES, st.floats(-180, 180), st.booleans(), st.booleans())
def test_boxes_come_back_from_per_cent(
    sides: tuple[float, ...], degrees: float, crowd: bool, ignore: bool
) -> None:
    x, y, width, height = sides
    box = Box(
        name="car", x0=x, y0=y, x1=x + width, y1=y + height, degrees=degrees, crowd=crowd, ignore=ignore
    )
    label = BoxesLabel(boxes=(box,))
    results = results_of(label, BOXES, size=(640, 480))
    assert given.same(label, label_of(results, kind="boxes"), within=1e-3)
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_what_is_sent_is_inside_the_picture_and_has_the_projects_names() -> None:
    outside = given.boxes(("car", -10, -10, 20, 20), ("car", 100, 100, 120, 120), ("bus", 60, 40, 70, 50))
    results = results_of(outside, BOXES, size=(64, 48))
    values = [each["value"] for each in results]
    assert [(v["x"], v["y"]) for v in values] == [(0.0, 0.0), (93.75, pytest.approx(83.3333, abs=1e-3))]
    assert all(v["x"] + v["width"] <= 100.0001 and v["y"] + v["height"] <= 100.0001 for v in values)
    with pytest.raises(ValueError, match="the project lacks the class 'tram'"):
        results_of(given.boxes(("tram", 1, 1, 2, 2)), BOXES, size=(64, 48))
    with pytest.raises(ValueError, match="a label of class, for a project of boxes"):
        results_of(ClassLabel(name="car"), BOXES, size=(64, 48))


@pytest.mark.parametrize("kind", ["boxes", "class", "classes", "mask", "points", "values"])
def test_a_configuration_is_read_back_and_differs_from_others(kind: Any) -> None:
    config = LabellingConfig(kind, given.CLASSES)
    assert read_config(config.xml()) == config
    assert difference(config.xml(), config).problems == ()
    for other in {"boxes", "class", "mask"} - {kind}:
        assert difference(LabellingConfig(other, given.CLASSES).xml(), config).problems


def test_a_difference_names_what_lacks_and_what_is_more() -> None:
    found = difference(LabellingConfig("boxes", ("tram", "car")).xml(), BOXES)
    assert (found.problems, found.missing, found.extra) == ((), ("bus",), ("tram",))
    xml = BOXES.xml().replace('name="box"', 'name="bbox"').replace('value="$image"', 'value="$picture"')
    found = difference(xml, BOXES)
    assert found.problems == (
        "expected <Image name='image' value='$image'>, found <Image name='image' value='$picture'>",
        "expected <RectangleLabels name='box' toName='image'>, found nothing",
        "has <RectangleLabels name='bbox' toName='image'>, which misfire does not read",
    )
    assert read_config(xml) is None


@pytest.mark.parametrize(
    "xml",
    ["<View>", "no xml", '<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>', "<a>" * 40 + "</a>" * 40],
)
def test_a_configuration_that_is_no_plain_xml_is_refused(xml: str) -> None:
    with pytest.raises(ConfigError, match="no plain XML"):
        read_config(xml)


def test_an_export_has_fields_to_sort_by_and_answers_to_correct(tmp_path: Path) -> None:
    answer = Answer(given.boxes(("car", 1, 2, 33, 44)), confidence=(0.9,), p_correct=(0.4,))
    labelled = given.item(given.drawn(1), given.boxes(("bus", 5, 6, 7, 8)), answer=answer)
    written = format_of("label-studio").write(iter([labelled]), tmp_path, given.plan(classes=("car", "bus")))
    assert (written.samples, written.labelled, written.answered) == (1, 1, 1)
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    assert task["data"]["percentile"] == 0.93 and task["data"]["reason"] == "score 0.93 is above 0.9"
    assert (task["data"]["score_name"], task["data"]["score"]) == ("learning_loss_pp", 1.5)
    assert task["data"]["sample_id"] == labelled.sample
    assert task["predictions"][0]["model_version"] == "lights@1.0.0"
    assert task["predictions"][0]["score"] == 0.4
    assert (tmp_path / "images" / f"{labelled.sample}.png").read_bytes() == labelled.read()
    assert read_config((tmp_path / "label_config.xml").read_text()) == LabellingConfig(
        "boxes", ("car", "bus")
    )
    (found,) = format_of("label-studio").read(tmp_path, Known())
    assert isinstance(found, ImportedLabel)
    assert (found.annotator, found.at, found.size) == ("Zoë", given.NOON, (64, 48))


def task(*annotations: Any, **data: Any) -> dict[str, Any]:
    return {"id": 7, "data": {"sample_id": "a" * 64, **data}, "annotations": list(annotations)}


def box(**value: Any) -> dict[str, Any]:
    sides = {"x": 10, "y": 10, "width": 10, "height": 10, "rectanglelabels": ["car"]}
    place = {"original_width": 100, "original_height": 50, "from_name": "mine", "to_name": "img"}
    return {"id": "r", "type": "rectanglelabels", "value": sides | value, **place}


def read(tmp_path: Path, document: Any, **known: Any) -> list[ImportedLabel | Problem]:
    file = tmp_path / "project-1-at-2026-07-01.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    form, _ = recognised(file)
    assert form.name == "label-studio"
    return list(form.read(file, Known(**known)))


def test_an_export_of_a_project_with_other_names_is_read_by_type(tmp_path: Path) -> None:
    done = {"completed_by": {"email": "zoe@example.org"}, "updated_at": "2026-07-01T12:00:00.5Z"}
    skipped, draft = {"result": [box()], "was_cancelled": True}, {"result": []}
    document = [task({"result": [box()], **done}, skipped, draft), task(), {"id": 8, "data": {}}]
    found = read(tmp_path, document)
    labels = [each for each in found if isinstance(each, ImportedLabel)]
    assert [each.label for each in labels] == [given.boxes(("car", 10, 5, 20, 10)), BoxesLabel(boxes=())]
    assert (labels[0].annotator, str(labels[0].at)) == ("zoe@example.org", "2026-07-01 12:00:00.500000+00:00")
    assert len(found) == 2
    # An uploaded picture keeps the sample's id in its name.
    document = [task({"result": [box()]}, sample_id=None, image=f"/data/upload/1/3f9a-{'b' * 64}.jpg")]
    (named,) = read(tmp_path, document)
    assert isinstance(named, ImportedLabel) and named.sample == "b" * 64


BAD = {
    "not a list": {"result": {"a": 1}},
    "not objects": {"result": [1]},
    "no number": {"result": [box(x="10")]},
    "not finite": {"result": [box(x=1e300)]},
    "no area": {"result": [box(width=0)]},
    "two names": {"result": [box(rectanglelabels=["car", "bus"])]},
    "no names": {"result": [box(rectanglelabels=[])]},
    "no width": {"result": [{"type": "rectanglelabels", "value": box()["value"]}]},
    "polygon": {"result": [box(), {"type": "polygonlabels", "value": {}}]},
    "no value": {"result": [{"type": "rectanglelabels"}]},
    "a bad time": {"result": [box()], "updated_at": "yesterday"},
    "no zone": {"result": [box()], "updated_at": "2026-07-01T12:00:00"},
    "too many": {"result": [{}] * 50_000},
}


@pytest.mark.parametrize("bad", BAD)
def test_an_annotation_that_is_no_label_is_a_problem_and_the_rest_is_read(bad: str, tmp_path: Path) -> None:
    found = read(tmp_path, [task({"result": [box()]}, BAD[bad] | {"id": 3}), 5], kind="boxes")
    assert [type(each) for each in found] == [ImportedLabel, Problem, Problem]
    assert "task 7, annotation 3" in str(found[1])


def test_points_have_an_order_only_by_numbers_or_a_configuration(tmp_path: Path) -> None:
    def point(name: str, x: float) -> dict[str, Any]:
        place = {"original_width": 100, "original_height": 50, "from_name": "kp"}
        return {
            "id": name,
            "type": "keypointlabels",
            "value": {"x": x, "y": 4, "keypointlabels": [name]},
            **place,
        }

    (numbers,) = read(tmp_path, [task({"result": [point("3", 9), point("1", 7)]})])
    assert isinstance(numbers, ImportedLabel) and isinstance(numbers.label, PointsLabel)
    assert [(p.x, p.visible) for p in numbers.label.points] == [(7, 2), (0, 0), (9, 2)]
    named = [task({"result": [point("nose", 9), point("ear", 7)]})]
    assert isinstance(read(tmp_path, named)[0], Problem)
    (tmp_path / "label_config.xml").write_text(LabellingConfig("points", ("ear", "nose")).xml())
    (found,) = read(tmp_path, named)
    assert isinstance(found, ImportedLabel) and isinstance(found.label, PointsLabel)
    assert [p.x for p in found.label.points] == [7, 9]


def test_choices_are_one_class_or_several(tmp_path: Path) -> None:
    def chosen(*names: str) -> dict[str, Any]:
        return {"result": [{"type": "choices", "from_name": "c", "value": {"choices": list(names)}}]}

    (one,) = read(tmp_path, [task(chosen("rain"))])
    assert isinstance(one, ImportedLabel) and one.label == ClassLabel(name="rain")
    (two,) = read(tmp_path, [task(chosen("rain", "night"))])
    assert isinstance(two, ImportedLabel) and two.label == ClassesLabel(names=("rain", "night"))
    assert isinstance(read(tmp_path, [task(chosen("rain", "night"))], kind="class")[0], Problem)
