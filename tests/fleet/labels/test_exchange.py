"""Labels leave the store and come back: whole or not at all, with everything that is wrong in full."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fleet.labels import items as given
from typer.testing import CliRunner, Result

from misfire_fleet.commands.app import app
from misfire_fleet.labels.content import ClassLabel, Label
from misfire_fleet.labels.exchange.importing import scaled
from misfire_fleet.labels.exchange.manifest import MANIFEST, PARTIAL
from misfire_fleet.labels.formats.registry import NAMES, format_of
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.store import Store
from misfire_fleet.store.records import NewSample
from misfire_runtime.messages import Trigger
from misfire_runtime.testing import make_offer

PEOPLE = given.boxes(("Fußgänger", 1, 2, 30, 40), ("Auto", 0, 0, 64, 48))


class Fleet:
    """A fleet folder with pictures, and the commands on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ids: list[str] = []
        Store.open_folder(folder).close()

    def add(self, count: int, *, start: int = 0, size: tuple[int, int] = (64, 48), **offer: Any) -> list[str]:
        made = []
        for number in range(start, start + count):
            data = given.drawn(number, width=size[0], height=size[1])
            values: dict[str, Any] = {
                "media_type": "image/png",
                "prediction": {
                    "boxes": [{"class": "Auto", "score": 0.9, "p": 0.2, "box": [1, 2, 30, 40]}],
                    "size": list(size),
                },
                "trigger": Trigger(name="doubt", reason="msp 0.3 is above 0.2"),
            }
            made.append(NewSample(make_offer(data, **(values | offer)), data, *size, "collector-1"))
        with self.open() as store:
            store.add_many(made)
        self.ids += [each.offer.id for each in made]
        return [each.offer.id for each in made]

    def open(self) -> Store:
        return Store.open_folder(self.folder)

    def label(self, labels: dict[str, Label], *, annotator: str = "Zoë") -> None:
        with self.open() as store:
            new = [NewLabel(key, label, "person", annotator, given.NOON) for key, label in labels.items()]
            assert LabelLedger(store).add(new, add_classes=True).written

    def labels(self) -> dict[str, Label]:
        with self.open() as store:
            return {record.sample: record.label for record in LabelLedger(store).current()}

    def run(self, command: str, *arguments: str | Path) -> Result:
        place = ["--fleet-dir", str(self.folder)]
        return CliRunner().invoke(app, [command, *map(str, arguments), *place], catch_exceptions=True)

    def ok(self, command: str, *arguments: str | Path) -> dict[str, Any]:
        result = self.run(command, *arguments, "--json")
        assert result.exit_code == 0, f"{result.output} {result.exception!r}"
        return dict(json.loads(result.stdout))

    def refused(self, command: str, *arguments: str | Path) -> str:
        result = self.run(command, *arguments)
        assert result.exit_code != 0
        return f"{result.output}\n{result.exception}"


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path / "fleet")


def table(
    path: Path, rows: list[list[str]], *, separator: str = ",", bom: bool = False, ends: str = "\n"
) -> Path:
    text = ends.join(separator.join(row) for row in rows) + ends
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.encode())
    return path


def labels_for(kind: str, ids: list[str]) -> dict[str, Label]:
    made = [label for label, size in given.labels_of(kind) if size == (64, 48)]
    return {key: made[at % len(made)] for at, key in enumerate(ids)}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_labels_of_one_store_can_be_recorded_in_another_with_the_same_samples(
    name: str, fleet: Fleet, tmp_path: Path
) -> None:
    kind = next(k for k in ("boxes", "mask", "class", "points", "values") if k in format_of(name).kinds)
    fleet.label(labels_for(kind, fleet.add(6)[:5]))
    done = fleet.ok("export", tmp_path / "out", "--to", name)
    assert (done["samples"], done["labelled"]) == (6, 5)
    other = Fleet(tmp_path / "other")
    other.add(6)
    found = other.ok("import", tmp_path / "out", "--add-classes", "--kind", kind)
    assert (found["format"], found["recorded"], found["ok"]) == (name, 5, True)
    labels = fleet.labels()
    assert other.labels().keys() == labels.keys()
    for key, label in other.labels().items():
        assert given.same(labels[key], label)
    again = other.ok("import", tmp_path / "out", "--kind", kind)
    assert (again["recorded"], again["unchanged"]) == (0, 5)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz", ".tgz"])
def test_an_archive_is_as_good_as_a_folder(ending: str, fleet: Fleet, tmp_path: Path) -> None:
    fleet.label(dict.fromkeys(fleet.add(3), PEOPLE))
    fleet.ok("export", tmp_path / f"out{ending}", "--to", "coco")
    other = Fleet(tmp_path / "other")
    other.add(3)
    assert other.ok("import", tmp_path / f"out{ending}", "--add-classes")["recorded"] == 3
    # Archives of a folder, as people make them.
    fleet.ok("export", tmp_path / "street", "--to", "voc")
    shutil.make_archive(str(tmp_path / "street"), "zip", tmp_path, "street")
    third = Fleet(tmp_path / "third")
    third.add(3)
    assert third.ok("import", tmp_path / "street.zip", "--add-classes")["recorded"] == 3


def test_a_document_alone_has_labels_without_pictures(fleet: Fleet, tmp_path: Path) -> None:
    fleet.label(dict.fromkeys(fleet.add(2), PEOPLE))
    done = fleet.ok("export", tmp_path / "street.json", "--to", "coco")
    assert done["pictures"] is False
    assert len(json.loads((tmp_path / "street.json").read_text())["images"]) == 2
    fleet.ok("export", tmp_path / "street.csv", "--to", "csv")
    with (tmp_path / "street.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["reason"] for row in rows] == ["msp 0.3 is above 0.2"] * 2
    assert sorted(tmp_path.glob(".*")) == []


def test_conditions_select_what_leaves(fleet: Fleet, tmp_path: Path) -> None:
    near, far = fleet.add(2), fleet.add(3, start=10, vehicle="car-9")
    fleet.label({near[0]: PEOPLE, far[0]: given.boxes()})
    for number, (conditions, count) in enumerate(
        [
            (["vehicle=car-9"], 3),
            (["labelled=yes"], 2),
            (["labelled=no", "vehicle=car-9"], 2),
            (["class=Auto"], 1),
        ]
    ):
        options = [word for condition in conditions for word in ("--where", condition)]
        done = fleet.ok("export", tmp_path / f"out{number}", "--to", "voc", *options)
        assert done["samples"] == count
        manifest = json.loads((tmp_path / f"out{number}" / MANIFEST).read_text())
        assert sorted(manifest["where"]) == sorted(conditions)
    assert "no sample of the store matches" in fleet.refused(
        "export", tmp_path / "none", "--to", "voc", "--where", "vehicle=car-8"
    )
    assert not (tmp_path / "none").exists()


def test_clips_and_deleted_blobs_are_left_out_and_counted(fleet: Fleet, tmp_path: Path) -> None:
    ids = fleet.add(3)
    fleet.add(2, start=20, media_type="video/mp4")
    with fleet.open() as store:
        store.blobs.delete_many([ids[0]])
    done = fleet.ok("export", tmp_path / "out", "--to", "yolo")
    assert done["samples"] == 2
    assert done["left_out"] == {
        "clips and other uploads that are no picture (video/mp4)": 2,
        "samples that were deleted meanwhile": 1,
    }


def test_an_export_never_replaces_anything(fleet: Fleet, tmp_path: Path) -> None:
    fleet.add(1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "is not empty" in fleet.refused("export", tmp_path / "full", "--to", "csv")
    (tmp_path / "mine.csv").write_text("mine")
    assert "exists already" in fleet.refused("export", tmp_path / "mine.csv", "--to", "csv")
    assert (tmp_path / "mine.csv").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    fleet.ok("export", tmp_path / "empty", "--to", "csv")
    assert "'coca' is no label format; expected one of coco, csv" in fleet.refused(
        "export", tmp_path / "x", "--to", "coca"
    )


@pytest.mark.slow
def test_an_export_that_is_killed_leaves_nothing_that_looks_whole(fleet: Fleet, tmp_path: Path) -> None:
    fleet.add(40)
    script = (
        "import sys, time\n"
        "from misfire_fleet.labels import items\n"
        "real = items.export_item\n"
        "made = []\n"
        "def slowly(*a, **k):\n"
        "    made.append(1)\n"
        "    time.sleep(600 if len(made) > 20 else 0)\n"
        "    return real(*a, **k)\n"
        "items.export_item = slowly\n"
        "from misfire_runtime.cli import main\n"
        f"sys.argv = ['misfire', 'fleet', 'export', {str(tmp_path / 'out')!r}, '--to', 'yolo', "
        f"'--fleet-dir', {str(fleet.folder)!r}]\n"
        "main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 200
        while not list(tmp_path.glob(".out.partial-*/unlabelled/*.png")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out").exists()
    (left,) = tmp_path.glob(".out.partial-*")
    assert (left / PARTIAL).exists() and not (left / MANIFEST).exists()
    assert "is half of an export" in fleet.refused("import", left)
    # A day later the next export to the same place takes it away.
    os.utime(left, (time.time() - 90_000,) * 2)
    assert fleet.ok("export", tmp_path / "out", "--to", "yolo")["samples"] == 40
    assert not left.exists()


def test_a_copy_that_was_interrupted_is_noticed(fleet: Fleet, tmp_path: Path) -> None:
    fleet.label(dict.fromkeys(fleet.add(4), PEOPLE))
    fleet.ok("export", tmp_path / "out", "--to", "voc")
    next((tmp_path / "out" / "Annotations").iterdir()).unlink()
    text = fleet.refused("import", tmp_path / "out")
    assert "has 3 labels, and had 4 when it was exported" in text
    assert fleet.ok("import", tmp_path / "out", "--skip-bad", "--annotator", "Bo")["labels"] == 3


def test_spreadsheets_come_back_in_every_dress(fleet: Fleet, tmp_path: Path) -> None:
    ids = fleet.add(4)
    rows = [["id", "label"], [f"{ids[0]}.jpg", "Auto"], [f"images\\{ids[1]}.png", "Fußgänger"], ["", ""]]
    file = table(tmp_path / "excel.csv", rows, separator=";", bom=True, ends="\r\n")
    found = fleet.ok("import", file, "--add-classes")
    assert (found["recorded"], found["format"]) == (2, "csv")
    tabs = table(tmp_path / "tabs.tsv", [["Label ", " Sample_ID"], ["Auto", ids[2].upper()]], separator="\t")
    assert fleet.ok("import", tabs)["recorded"] == 1
    assert fleet.labels() == {
        ids[0]: ClassLabel(name="Auto"),
        ids[1]: ClassLabel(name="Fußgänger"),
        ids[2]: ClassLabel(name="Auto"),
    }


def test_the_grammar_of_todays_labels_is_read(fleet: Fleet, tmp_path: Path) -> None:
    ids = fleet.add(3)
    rows = [["id", "label"], [ids[0], '"Auto,1,2,30,40 Fußgänger,0,0,64,48"'], [ids[1], ""]]
    fleet.ok("import", table(tmp_path / "boxes.csv", rows), "--kind", "boxes", "--add-classes")
    assert fleet.labels() == {
        ids[0]: given.boxes(("Auto", 1, 2, 30, 40), ("Fußgänger", 0, 0, 64, 48)),
        ids[1]: given.boxes(),
    }


def test_everything_wrong_is_listed_and_nothing_is_recorded(fleet: Fleet, tmp_path: Path) -> None:
    ids = fleet.add(3)
    fleet.label({ids[0]: ClassLabel(name="Auto")})
    rows = [
        ["id", "label", "annotator"],
        [ids[1], "Auto", "Ann"],
        [ids[1], "Bus", "Ann"],
        ["f" * 64, "Auto", "Ann"],
        ["frame_0001.jpg", "Auto", "Ann"],
        [ids[2]],
    ]
    file = table(tmp_path / "bad.csv", rows)
    text = fleet.refused("import", file)
    assert "bad.csv:6: a row needs both an id and a label" in text
    assert f"bad.csv:4: sample {'f' * 64} is not in the store" in text
    assert "'frame_0001.jpg' is no sample id" in text
    assert "class 'Bus' is not one of the fleet's classes (1 labels name it)" in text
    assert "nothing was recorded" in text
    assert len(fleet.labels()) == 1
    text = fleet.refused("import", file, "--add-classes")
    assert f"bad.csv:3: Ann labelled {ids[1][:16]} twice, with different contents" in text
    found = fleet.ok("import", file, "--skip-bad")
    assert (found["recorded"], found["written"]) == (1, True)
    assert fleet.labels()[ids[1]] == ClassLabel(name="Auto")


def test_a_long_list_goes_to_a_file_in_full(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (known,) = fleet.add(1)
    fleet.label({known: ClassLabel(name="Auto")})
    rows = [["id", "label"], [known, "Auto"], *([f"{number:064x}", "Auto"] for number in range(500))]
    file = table(tmp_path / "many.csv", rows)
    text = fleet.refused("import", file)
    assert "wrong: 500 in all; see many.csv.problems.txt" in text
    assert text.count("is not in the store") == 20
    listed = (tmp_path / "many.csv.problems.txt").read_text().splitlines()
    assert len(listed) == 500 and all("is not in the store" in line for line in listed)


def test_a_dry_run_tells_and_records_nothing(fleet: Fleet, tmp_path: Path) -> None:
    ids = fleet.add(2)
    file = table(tmp_path / "labels.csv", [["id", "label"], *([key, "Auto"] for key in ids)])
    found = fleet.ok("import", file, "--dry-run", "--add-classes")
    assert (found["recorded"], found["written"], found["new_classes"]) == (2, False, ["Auto"])
    assert fleet.labels() == {}


@pytest.mark.slow
def test_files_of_another_project_are_refused_with_a_sentence(fleet: Fleet, tmp_path: Path) -> None:
    fleet.add(2)
    other = Fleet(tmp_path / "elsewhere")
    other.label(dict.fromkeys(other.add(3, start=50), PEOPLE))
    for name in ("coco", "voc", "yolo", "csv", "webdataset", "parquet", "fiftyone"):
        other.ok("export", tmp_path / name, "--to", name)
        text = fleet.refused("import", tmp_path / name, "--add-classes")
        assert "none of its 3 labels is of a sample of this store" in text
        assert "of the project 'elsewhere'" in text
        assert fleet.labels() == {}


@pytest.mark.slow
def test_a_picture_of_another_size_has_its_boxes_scaled_and_one_of_another_shape_is_refused(
    fleet: Fleet, tmp_path: Path
) -> None:
    (wide,) = fleet.add(1, size=(640, 480))
    label = given.boxes(("Auto", 10, 20, 110, 220))
    half = given.item(
        given.drawn(0, width=640, height=480), given.boxes(("Auto", 5, 10, 55, 110)), size=(320, 240)
    )
    assert half.sample == wide
    for name in ("coco", "voc", "webdataset", "parquet", "fiftyone"):
        fresh = Fleet(tmp_path / f"store-{name}")
        fresh.add(1, size=(640, 480))
        (tmp_path / name).mkdir()
        format_of(name).write(iter([half]), tmp_path / name, given.plan())
        found = fresh.ok("import", tmp_path / name, "--add-classes")
        assert found["scaled"] == 1
        assert given.same(fresh.labels()[wide], label)
        cropped = given.item(half.read(), half.label, size=(320, 320))
        shutil.rmtree(tmp_path / name)
        (tmp_path / name).mkdir()
        format_of(name).write(iter([cropped]), tmp_path / name, given.plan())
        text = fresh.refused("import", tmp_path / name, "--add-classes")
        assert "its picture is 320x320, the stored one 640x480, which has another shape" in text
    mask = given.item(half.read(), given.labels_of("mask")[0][0], size=(33, 7))
    (tmp_path / "masks").mkdir()
    format_of("masks").write(iter([mask]), tmp_path / "masks", given.plan())
    assert "mask is 33x7, the stored picture 640x480" in fleet.refused(
        "import", tmp_path / "masks", "--add-classes"
    )


def test_a_label_of_another_picture_size_is_fitted_or_says_how_to_mend_it() -> None:
    boxes = given.boxes(("Auto", 5, 10, 55, 110))
    assert given.same(scaled(boxes, (320, 240), (640, 480)), given.boxes(("Auto", 10, 20, 110, 220)))
    # What has no place is of the whole picture, however it was shown.
    assert scaled(ClassLabel(name="Auto"), (480, 640), (640, 480)) == ClassLabel(name="Auto")
    with pytest.raises(ValueError, match=r"shows it turned, as its file says \(EXIF\).*upload upright"):
        scaled(boxes, (480, 640), (640, 480))
    with pytest.raises(ValueError, match="cropped, so its places mean nothing here; label the picture as it"):
        scaled(boxes, (320, 320), (640, 480))


def test_a_box_that_is_not_in_its_picture_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    (key,) = fleet.add(1)
    file = table(tmp_path / "l.csv", [["id", "label"], [key, '"Auto,100,0,120,9"']])
    text = fleet.refused("import", file, "--add-classes")
    assert "box 1 (Auto: 100, 0, 120, 9) is outside of its 64x48 picture" in text


def test_names_of_a_mac_are_the_same_names(fleet: Fleet, tmp_path: Path) -> None:
    ids = fleet.add(2)
    fleet.label({ids[0]: ClassLabel(name="Fußgänger")})
    file = table(tmp_path / "mac.csv", [["id", "label"], [ids[1], "Fußga\u0308nger"]])
    assert fleet.ok("import", file)["recorded"] == 1
    assert fleet.labels()[ids[1]] == ClassLabel(name="Fußgänger")


def test_what_is_no_label_file_says_what_was_expected(fleet: Fleet, tmp_path: Path) -> None:
    fleet.add(1)
    (tmp_path / "notes.md").write_text("# notes")
    assert "its format was not recognised; name it with --from (coco, csv" in fleet.refused(
        "import", tmp_path / "notes.md"
    )
    fleet.ok("export", tmp_path / "voc", "--to", "voc")
    text = fleet.refused("import", tmp_path / "voc", "--from", "coco")
    assert "is not coco (COCO instances" in text
    assert "there is no such file or folder" in fleet.refused("import", tmp_path / "absent")
    fleet.ok("export", tmp_path / "csv", "--to", "csv")
    assert "has no labels (csv:" in fleet.refused("import", tmp_path / "csv")


def _links(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("labels.csv")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)


def _zip_with(**entries: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in entries.items():
                archive.writestr(name, data)

    return write


def _zip_link(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        member = zipfile.ZipInfo("labels.csv")
        member.external_attr = 0o120777 << 16
        archive.writestr(member, "/etc/passwd")


def _bomb_tar(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("labels.csv")
        member.size = 120 * 1024 * 1024

        class _Zeros:
            def read(self, size: int = -1) -> bytes:
                return bytes(size)

        archive.addfile(member, _Zeros())  # type: ignore[arg-type]


def _long_header(path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 64 * 1024 * 1024
    path.write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + bytes(1024 * 1024))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write", "why"),
    [
        ("up.zip", _zip_with(**{"../labels.csv": b"id,label\n"}), "leads out of the archive"),
        ("up2.zip", _zip_with(**{"a\\..\\..\\labels.csv": b"id,label\n"}), "leads out of the archive"),
        ("root.zip", _zip_with(**{"/etc/labels.csv": b"id,label\n"}), "leads out of the archive"),
        ("drive.zip", _zip_with(**{"C:/labels.csv": b"id,label\n"}), "leads out of the archive"),
        ("link.tar", _links, "is a link, a device or sparse"),
        ("link.zip", _zip_link, "is a link or a device"),
        ("bomb.zip", _zip_with(**{"labels.csv": bytes(120 * 1024 * 1024)}), "grows more than 200 times"),
        ("bomb.tar.gz", _bomb_tar, "grows more than 200 times"),
        ("header.tar", _long_header, "is damaged or was cut off"),
        ("text.zip", lambda path: path.write_text("id,label\n"), "has the ending of an archive, but is none"),
        ("half.zip", lambda path: path.write_bytes(b"PK\x03\x04" + bytes(400)), "is damaged or was cut off"),
    ],
)
def test_hostile_archives_are_refused_and_leave_nothing(
    name: str, write: Callable[[Path], None], why: str, fleet: Fleet, tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    write(tmp_path / name)
    before = {file.name for file in tmp_path.iterdir()}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
        assert why in fleet.refused("import", tmp_path / name)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert {file.name for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz"])
def test_an_archive_that_was_cut_off_anywhere_is_refused(ending: str, fleet: Fleet, tmp_path: Path) -> None:
    fleet.label(dict.fromkeys(fleet.add(3), PEOPLE))
    whole = tmp_path / f"out{ending}"
    fleet.ok("export", whole, "--to", "voc")
    data = whole.read_bytes()
    # Zeros fill a tar up; without all of them it still has every member, and no end.
    last = len(data.rstrip(b"\0")) // 512 * 512 + 512 if ending == ".tar" else len(data) - 3
    for length in (len(data) // 10, len(data) // 2, last - 700, last):
        cut = tmp_path / f"cut{ending}"
        cut.write_bytes(data[:length])
        text = fleet.refused("import", cut)
        assert "cut off" in text or "has the ending of an archive" in text, text


def test_an_archive_has_a_limit_of_members(fleet: Fleet, tmp_path: Path) -> None:
    from misfire_fleet.labels.exchange.archives import Limits, unpacked
    from misfire_runtime.errors import ConfigError

    _zip_with(**{f"{number}.txt": b"" for number in range(30)})(tmp_path / "many.zip")
    with (
        pytest.raises(ConfigError, match="more than 20 members"),
        unpacked(tmp_path / "many.zip", Limits(max_members=20)),
    ):
        pass
    _zip_with(**{"a.txt": os.urandom(3000)})(tmp_path / "large.zip")
    with (
        pytest.raises(ConfigError, match="too many bytes"),
        unpacked(tmp_path / "large.zip", Limits(max_bytes=2000)),
    ):
        pass


def test_the_kinds_that_a_format_has_no_place_for_are_counted(fleet: Fleet, tmp_path: Path) -> None:
    ids = fleet.add(2)
    fleet.label({ids[0]: ClassLabel(name="Auto")})
    done = fleet.ok("export", tmp_path / "out", "--to", "voc")
    assert (done["samples"], done["labelled"]) == (2, 0)
    assert done["left_out"] == {"labels of kind class": 1}


def test_the_formats_are_listed(fleet: Fleet) -> None:
    result = CliRunner().invoke(app, ["formats", "--json"])
    assert {row["name"] for row in json.loads(result.stdout)["formats"]} == set(NAMES)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300, "..", "'; DROP TABLE labels"])
def test_names_that_no_database_takes_are_listed(name: str, fleet: Fleet, tmp_path: Path) -> None:
    (known,) = fleet.add(1)
    fleet.label({known: ClassLabel(name="Auto")})
    picture = {"id": 1, "file_name": f"{name}.jpg", "width": 64, "height": 48}
    mine = {"id": 2, "file_name": f"{known}.jpg", "width": 64, "height": 48}
    document = {"images": [picture, mine], "annotations": [], "categories": []}
    (tmp_path / "x.json").write_text(json.dumps(document))
    text = fleet.refused("import", tmp_path / "x.json")
    assert "is no sample id" in text or "images: entry 1: file_name" in text


def test_annotators_who_differ_are_both_kept_and_named(fleet: Fleet, tmp_path: Path) -> None:
    ids = fleet.add(30)
    fleet.label(dict.fromkeys(ids, ClassLabel(name="Auto")))
    file = table(tmp_path / "bo.csv", [["id", "label"], *([key, "no"] for key in ids[:3]), [ids[4], "Auto"]])
    result = fleet.run("import", file, "--add-classes", "--annotator", "Bo")
    assert result.exit_code == 0
    for key in ids[:3]:
        assert f"differs: sample {key}: Bo says 'no', Zoë says 'Auto'" in result.output
    assert result.output.count("differs:") == 3
    found = fleet.ok("import", file, "--annotator", "Cy")
    assert len(found["conflicts"]) == 3 and found["ok"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_export_that_nobody_changed_says_nothing_new(name: str, fleet: Fleet, tmp_path: Path) -> None:
    kind = next(k for k in ("boxes", "mask", "class", "points", "values") if k in format_of(name).kinds)
    labels = labels_for(kind, fleet.add(6))
    if kind == "boxes":
        # Thirds of a pixel: shares of the picture are rounded.
        labels[fleet.ids[0]] = given.boxes(
            ("Auto", 1 / 3, 2 / 7, 30.1, 40 + 2 / 3), ("no", 7 / 9, 3, 50, 45.7)
        )
    fleet.label(labels)
    before = fleet.labels()
    fleet.ok("export", tmp_path / "out", "--to", name)
    found = fleet.ok("import", tmp_path / "out", "--kind", kind)
    assert (found["recorded"], found["unchanged"], found["conflicts"]) == (0, 6, [])
    assert fleet.labels() == before
    # Who agrees is recorded, with exactly the same content.
    if name in ("yolo", "masks", "folder"):
        found = fleet.ok("import", tmp_path / "out", "--kind", kind, "--annotator", "Bo")
        assert (found["recorded"], found["conflicts"]) == (6, [])
