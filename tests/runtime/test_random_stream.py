"""Every frame is drawn once for the random stream, whatever is killed, repeated, moved or added to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vehicle_support import NONE, make, run, scored_frame

from misfire_runtime.preprocess import encode_jpeg, encode_png
from misfire_runtime.samples.clips import mux_mjpeg
from misfire_runtime.samples.encoding import Encoded
from misfire_runtime.sources import open_source
from misfire_runtime.spool import Spool
from misfire_runtime.testing import ListSource
from misfire_runtime.triggers.random_stream import RandomStream, kept_seed, recorded_identity

pytestmark = pytest.mark.slow

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def stream_at(rate: float, *, seed: str = "") -> str:
    return NONE.replace("rate = 0.0", f"rate = {rate}\n{seed}")


def pictures(folder: Path, numbers: range) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        image = np.random.default_rng(number).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        (folder / f"{number:05}.png").write_bytes(encode_png(image))
    return folder


def drawn(folder: Path, seed_file: Path, *, rate: float) -> int:
    """How many frames of a recording the stream takes with the seed that the vehicle keeps."""
    stream = RandomStream(rate=rate, seed=int(json.loads(seed_file.read_text())["seed"]))
    frames = open_source(str(folder)).frames(threading.Event())
    return sum(stream.takes(recorded_identity(frame)) for frame in frames)


def test_a_recording_that_is_read_three_times_is_sampled_once(
    bundle: Any, new_store: Any, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "in", range(1000))
    store = new_store()
    for _ in range(3):
        assert run(make(bundle, store, tmp_path, folder, stream_at(0.1))).frames == 1000
    # 1,000 Bernoulli trials at 0.1, within five standard deviations; three independent draws would give 271.
    assert len(store.samples) == pytest.approx(100, abs=5 * np.sqrt(90))
    assert len(store.samples) == drawn(folder, tmp_path / "state" / "seed.json", rate=0.1)
    weights = sum(1 / offer.trigger.rate for offer in store.offers)
    assert weights == pytest.approx(1000, rel=0.5)


def test_a_recording_that_was_moved_or_grew_is_not_sampled_again(
    bundle: Any, store: Any, tmp_path: Path
) -> None:
    seed_file = tmp_path / "state" / "seed.json"
    run(make(bundle, store, tmp_path, pictures(tmp_path / "day", range(100, 300)), stream_at(0.2)))
    first = set(store.samples)
    assert len(first) == drawn(tmp_path / "day", seed_file, rate=0.2) > 0
    moved = shutil.move(tmp_path / "day", tmp_path / "archive")
    for file in Path(moved).iterdir():
        os.utime(file, (1, 1))
    run(make(bundle, store, tmp_path, Path(moved), stream_at(0.2)))
    assert set(store.samples) == first
    pictures(Path(moved), range(50))
    run(make(bundle, store, tmp_path, Path(moved), stream_at(0.2)))
    assert set(store.samples) > first
    assert len(store.samples) == drawn(Path(moved), seed_file, rate=0.2)


def test_frames_of_a_video_are_drawn_once_by_picture_and_time(
    bundle: Any, store: Any, tmp_path: Path
) -> None:
    """Equal pictures at different times are different frames: a standing vehicle is sampled at the rate."""
    image = np.full((32, 32, 3), 90, np.uint8)
    frames = [
        Encoded(encode_jpeg(image), "image/jpeg", [], scored_frame(None, image=image, time_s=i / 10))
        for i in range(200)
    ]
    (tmp_path / "v.mp4").write_bytes(mux_mjpeg(frames))
    read = list(open_source(str(tmp_path / "v.mp4")).frames(threading.Event()))
    assert len(read) == 200
    stream = RandomStream(rate=0.3, seed=5)
    taken = [stream.takes(recorded_identity(frame)) for frame in read]
    assert 30 < sum(taken) < 90
    again = open_source(str(tmp_path / "v.mp4")).frames(threading.Event(), start=80)
    assert [stream.takes(recorded_identity(frame)) for frame in again] == taken[80:]


def test_kill_9_in_the_middle_draws_no_frame_twice(bundle: Any, tmp_path: Path) -> None:
    folder, spool = pictures(tmp_path / "in", range(1500)), tmp_path / "spool"
    command = [sys.executable, "-m", "misfire_runtime.cli", "run", "--bundle", str(bundle.path), "--json"]
    command += ["--source", str(folder), "--spool", str(spool), "--random-rate", "0.5", "--rate", "0"]
    command += ["--provider", "cpu"]
    samples, kills, least = spool / "samples", 0, 0
    for _ in range(2):
        process = subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        least += 60
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if samples.is_dir() and len(list(samples.iterdir())) >= least:
                break
            time.sleep(0.01)
        kills += process.poll() is None
        process.kill()
        process.wait()
        least = len(list(samples.iterdir()))
    assert kills == 2
    # Read again from the start: what was captured before the kills must not be drawn a second time.
    done = subprocess.run(
        [*command, "--no-resume"], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["frames"] == 1500 and result["duplicates"] > 0
    opened = Spool(spool)
    captured = opened.counters().captured
    opened.close()
    assert captured == drawn(folder, spool / "vehicle" / "seed.json", rate=0.5)


def test_a_restarted_camera_is_not_sampled_at_the_same_indices(
    bundle: Any, new_store: Any, tmp_path: Path
) -> None:
    """Every run counts from 0: an index would otherwise be drawn always or never."""
    runs = []
    for _ in range(3):
        store = new_store()
        pictures = [np.full((8, 8, 3), number, np.uint8) for number in range(60)]
        source = ListSource(pictures, live=True, period_s=0.004)
        run(make(bundle, store, tmp_path, [source], stream_at(0.5) + "[degrade]\nenabled = false\n"))
        runs.append([offer.frame for offer in store.offers])
    assert runs[0] and runs[0] != runs[1] != runs[2]


def test_a_configured_seed_is_used_as_it_is(bundle: Any, new_store: Any, tmp_path: Path) -> None:
    folder, chosen = pictures(tmp_path / "in", range(100)), []
    for state, seed in (("a", 3), ("b", 3), ("c", 4)):
        store = new_store()
        run(make(bundle, store, tmp_path / state, folder, stream_at(0.3, seed=f"seed = {seed}\n")))
        chosen.append([offer.frame for offer in store.offers])
    assert chosen[0] == chosen[1] != chosen[2]


def test_two_vehicles_draw_different_seeds_and_keep_them(tmp_path: Path) -> None:
    first, second = kept_seed(tmp_path / "a.json"), kept_seed(tmp_path / "b.json")
    assert first != second
    assert (kept_seed(tmp_path / "a.json"), kept_seed(tmp_path / "b.json")) == (first, second)


@pytest.mark.parametrize("damage", ["", "{}", '{"seed": "x"}', '{"seed": -1}', '{"seed": 1e30}'])
def test_a_damaged_seed_is_set_aside_and_said(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "seed.json"
    file.write_text(damage)
    seed = kept_seed(file)
    assert "sampled a second time" in caplog.records[0].__dict__["fields"]["assume"]
    assert (tmp_path / "seed.damaged").read_text() == damage
    assert kept_seed(file) == seed


def test_a_seed_that_cannot_be_written_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert kept_seed(tmp_path / "gone" / "seed.json") >= 0
    assert caplog.records[0].message == "seed_unwritable"
