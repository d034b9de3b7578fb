"""What is written durably is whole or not there, whoever else writes it, and wherever the writer fails."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from misfire_runtime import files
from misfire_runtime.files import replace_durably, whole_folder, write_durably, write_through


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    file = tmp_path / "engine.plan"
    contents = [bytes([letter]) * 200_000 for letter in b"abcd"]
    failures: list[Exception] = []

    def write(data: bytes) -> None:
        try:
            for _ in range(10):
                write_durably(file, data)
        except Exception as error:  # noqa: BLE001  (it belongs to the test, not to its thread)
            failures.append(error)

    threads = [threading.Thread(target=write, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert file.read_bytes() in contents and names_in(tmp_path) == ["engine.plan"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_durably(tmp_path / "run.json", b"{}")
    assert not names_in(tmp_path)


def test_a_named_temporary_of_a_killed_process_is_reused(tmp_path: Path) -> None:
    (tmp_path / "x.tmp").write_bytes(b"half")
    write_durably(tmp_path / "x.json", b"whole", mode=0o600, temporary=tmp_path / "x.tmp")
    assert names_in(tmp_path) == ["x.json"] and (tmp_path / "x.json").read_bytes() == b"whole"
    assert stat.S_IMODE((tmp_path / "x.json").stat().st_mode) == 0o600


def test_parts_are_written_behind_each_other_and_never_over_a_file(tmp_path: Path) -> None:
    write_through(tmp_path / "part", b"pay", b"load")
    with pytest.raises(FileExistsError):
        write_through(tmp_path / "part", b"other")
    replace_durably(tmp_path / "part", tmp_path / "sample")
    assert names_in(tmp_path) == ["sample"] and (tmp_path / "sample").read_bytes() == b"payload"


def test_a_folder_takes_its_place_when_it_is_finished(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with whole_folder(tmp_path / "deep" / "bundle") as work:
            (work / "inner").mkdir()
            (work / "inner" / "file").write_text(text)
            assert work != tmp_path / "deep" / "bundle"
        assert (tmp_path / "deep" / "bundle" / "inner" / "file").read_text() == text
    assert names_in(tmp_path / "deep") == ["bundle"]


@pytest.mark.parametrize("fault", ["block", "rename"])
def test_a_folder_that_is_not_finished_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "file").write_text("old")
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return real(self, target)

    def build() -> None:
        with whole_folder(tmp_path / "bundle") as work:
            (work / "file").write_text("new")
            if fault == "block":
                raise OSError("cut short")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match=r"cut short|Input/output"):
        build()
    assert (tmp_path / "bundle" / "file").read_text() == "old" and names_in(tmp_path) == ["bundle"]
