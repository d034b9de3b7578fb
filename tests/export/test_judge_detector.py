"""A detector's bundle judged: what uploads find of its misses, what is missed, and pictures of it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import sync_playwright

from misfire_export.measure.trigger import Shifts
from misfire_export.options import Options
from misfire_export.sources.facts import ModelFacts
from misfire_export.sources.frames import Frames
from misfire_export.sources.module import export_module_bundle
from misfire_runtime.boxes import BoxRule
from misfire_runtime.bundle import Bundle
from misfire_runtime.preprocess import InputContract
from misfire_train.boxes.losses import f1
from misfire_train.boxes.matching import match_frames
from misfire_train.boxes.parts import find_parts
from misfire_train.judge.bundle_judging import judge_bundle, open_bundle
from misfire_train.judge.evidence import Evidence
from misfire_train.judge.parts import part_report
from misfire_train.judge.report import Report
from misfire_train.judge.report.page import write_page
from misfire_train.judge.run_judging import Judging
from misfire_train.tasks import get_task

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "train")]
from bright_squares import CONTRACT, SquareFinder, boxes_of, dataset, squares  # noqa: E402

pytestmark = pytest.mark.slow
CLASSES = ("square", "disc")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    frames = Frames(
        squares(80, seed=3, name="calibration"),
        fit=squares(20, seed=1, name="train"),
        holdout=squares(120, seed=4, name="holdout"),
        classes=CLASSES,
        contract=CONTRACT,
        task="detection",
    )
    facts = ModelFacts(CONTRACT, task="detection", last_layer="head")
    options = Options("squares", "1.0.0", shifts=Shifts(()), scores=["expected_errors", "box_count"])
    out = tmp_path_factory.mktemp("bundles") / "squares"
    return export_module_bundle(SquareFinder().eval(), frames, facts, out=out, options=options)


@pytest.fixture(scope="module")
def judged(bundle: Bundle) -> tuple[Report, Evidence]:
    subject = open_bundle(bundle.path)
    try:
        return judge_bundle(subject, dataset(test=200), Judging(replicates=50))
    finally:
        subject.close()


def answers(count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    data, task = dataset(test=count), get_task("detection")
    with torch.no_grad():
        outputs = SquareFinder().eval()(data.test.batch(range(count), CONTRACT))
    return outputs, task.collate(data.test.targets)


def test_the_bundle_is_judged_as_the_network_is(judged: tuple[Report, Evidence]) -> None:
    report, evidence = judged
    task, (outputs, targets) = get_task("detection"), answers()
    counts = task.counts(outputs, targets)
    assert set(counts) == set(evidence.counts)
    for name, values in counts.items():
        assert evidence.counts[name].tolist() == values.tolist()
    assert evidence.failed.tolist() == task.failed(outputs, targets).tolist()
    assert "an object of at least 8 px is missed" in report.settings["failure"]
    found = report.condition("clean").counts
    assert found is not None and found.totals["objects"] == boxes_of(dataset(test=200).test.targets)
    assert found.scores["expected_errors"]["errors_at_10%"].value > 0.1


def test_objects_are_counted_by_class_size_and_place(judged: tuple[Report, Evidence]) -> None:
    report, evidence = judged
    (part,) = report.parts
    matches = match_frames(*answers(), BoxRule())
    assert part.summary["F1"] == pytest.approx(f1(matches))
    assert 0.3 < part.summary["AP at .5"] < 1
    missed, false = (int(evidence.counts[name].sum()) for name in ("missed", "false"))
    assert part.kinds["missed"] == missed
    assert sum(part.kinds.values()) == missed + false
    rows = {each.name: each.rows for each in part.slices}
    assert set(rows) == {"class", "size", "distance to the border", "group"}
    for each in rows.values():
        assert sum(row.missed for row in each) == missed
        assert sum(row.false for row in each) == false
        assert sum(row.objects for row in each) == evidence.counts["objects"].sum()
        assert all(row.objects == 0 or row.share.low <= row.share.value <= row.share.high for row in each)
    assert [row.value for row in rows["class"]] == ["square"]
    # Squares in the outer rows and columns touch the border; the one in the middle is 24 px away.
    assert {row.value for row in rows["distance to the border"]} == {"at the border", "inside"}


def test_the_page_draws_missed_and_false_boxes(judged: tuple[Report, Evidence], tmp_path: Path) -> None:
    from proving_ground.services import CHROMIUM_FLAGS, chromium

    report, evidence = judged
    write_page(report, evidence, tmp_path / "report.html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": 1360, "height": 900})
        page.goto((tmp_path / "report.html").as_uri())
        assert page.get_by_text("What is missed", exact=True).is_visible()
        assert page.get_by_text("with a cross: missed objects").is_visible()
        pictures = page.locator("figure img")
        assert pictures.count() >= 16
        assert pictures.evaluate_all("all => all.every(one => one.complete && one.naturalWidth >= 300)")
        # Nothing is wider than its card.
        assert page.evaluate(
            "[...document.querySelectorAll('section.card')].every(c => c.scrollWidth <= c.clientWidth + 1)"
        )
        browser.close()


def test_the_border_is_that_of_the_picture_and_not_of_its_letterbox() -> None:
    contract = InputContract(height=100, width=100, resize="letterbox")
    objects = torch.tensor([[30.0, 25.0, 50.0, 45.0, 0, 0], [30.0, 40.0, 50.0, 60.0, 0, 0]])
    found = find_parts(
        torch.zeros(1, 1, 6), [objects], BoxRule(), sizes=[(200, 100)], contract=contract, classes=["car"]
    )
    assert found.slices["distance to the border"].tolist() == ["at the border", "inside"]
    assert found.slices["size"].tolist() == ["small, below 32 px"] * 2
    assert found.wrong.all() and found.summary["recall"] == 0


def test_frames_without_objects_or_boxes_have_no_parts() -> None:
    found = find_parts(
        torch.zeros(3, 1, 6),
        [torch.zeros(0, 6)] * 3,
        BoxRule(),
        sizes=[(64, 64)] * 3,
        contract=CONTRACT,
        classes=["car"],
    )
    assert len(found.frame) == 0 and found.kinds == {"missed": 0}
    report = part_report(
        "clean",
        found,
        score=np.zeros(3),
        groups=np.arange(3),
        clusters=np.arange(3),
        replicates=10,
        seed=0,
    )
    assert all(not each.rows for each in report.slices)
