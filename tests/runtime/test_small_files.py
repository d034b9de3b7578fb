"""Small files survive a power cut, are bounded when read, and are set aside when they make no sense."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from misfire_runtime import files
from misfire_runtime.files import read_bounded, remove_durably, write_durably
from misfire_runtime.state.progress import Progress
from misfire_runtime.state.small_files import read_state
from misfire_runtime.triggers.budget import Budget, Limits
from misfire_runtime.triggers.memory import TriggerMemory
from misfire_runtime.triggers.random_stream import kept_seed


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was made durable and renamed, in order: a power cut cannot be had on demand."""
    done: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        done.append("sync " + Path(f"/proc/self/fd/{handle}").readlink().name)
        real_sync(handle)

    def replace(self: Path, target: Any) -> Path:
        done.append(f"rename {self.name}")
        return real_replace(self, target)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    return done


@pytest.mark.parametrize("name", ["budget", "progress", "triggers", "seed"])
def test_every_state_file_is_synced_before_and_after_it_gets_its_name(
    tmp_path: Path, order: list[str], name: str
) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    file = folder / f"{name}.json"
    if name == "budget":
        Budget(file, limits=Limits(samples_per_day=9)).spend("s", 1)
    elif name == "progress":
        Progress(file).save({"drive": 7})
    elif name == "triggers":
        TriggerMemory(file).save("b@1", {"t": {"x": 1}})
    else:
        kept_seed(file)
    assert order == [f"sync {name}.tmp", f"rename {name}.tmp", "sync state"]
    assert file.is_file() and not (folder / f"{name}.tmp").exists()


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    write_durably(file, b"old")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_durably(file, b"new")
    assert file.read_bytes() == b"old"


def test_a_removed_file_is_gone_and_one_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    write_durably(tmp_path / "a", b"x")
    remove_durably(tmp_path / "a")
    remove_durably(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_reading_is_bounded_and_never_waits(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    assert read_bounded(tmp_path / "f", max_bytes=5) == b"12345"
    with pytest.raises(ValueError, match="larger than 4 bytes"):
        read_bounded(tmp_path / "f", max_bytes=4)
    os.mkfifo(tmp_path / "pipe")
    for odd in (Path("/dev/zero"), tmp_path / "pipe", tmp_path):
        began = time.monotonic()
        with pytest.raises(ValueError, match="not a regular file"):
            read_bounded(odd, max_bytes=100)
        assert time.monotonic() - began < 1
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(OSError):
            read_bounded(tmp_path / "s", max_bytes=100)
    assert read_bounded(Path("/proc/self/statm"), max_bytes=200).count(b" ") == 6


def test_state_that_makes_no_sense_is_set_aside_with_a_log_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "x.json"
    arguments: Any = {"missing": "none", "damaged": "bad", "assume": "it begins anew"}
    assert read_state(file, lambda _value: "read", **arguments) == "none"
    assert not caplog.records
    file.write_text("7")
    assert read_state(file, str, **arguments) == "7"
    for content in (b"", b"\xff", b"[" * 200_000):
        file.write_bytes(content)
        assert read_state(file, lambda _value: "read", **arguments) == "bad"
        assert (tmp_path / "x.damaged").read_bytes() == content and not file.exists()
    assert [record.message for record in caplog.records] == ["state_damaged"] * 3
    fields = caplog.records[0].__dict__["fields"]
    assert fields["assume"] == "it begins anew" and fields["kept_as"] == str(tmp_path / "x.damaged")


def test_damaged_positions_and_triggers_are_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("progress", "triggers"):
        (tmp_path / f"{name}.json").write_text('{"a": [}')
    assert Progress(tmp_path / "progress.json").start("a") == 0
    assert TriggerMemory(tmp_path / "triggers.json").load("b@1") == {}
    assert {path.name for path in tmp_path.iterdir()} == {"progress.damaged", "triggers.damaged"}
    assert len(caplog.records) == 2
