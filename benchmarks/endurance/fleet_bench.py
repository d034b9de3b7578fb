"""Starts what the fleet's benchmarks share: a broker and a collector as processes, and pictures to send."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import cv2
import numpy as np

from misfire_fleet.demo.broker import Broker, embedded_broker, find_mosquitto
from misfire_fleet.simulate.samples import Picture
from misfire_runtime.preprocess import encode_jpeg
from proving_ground.services import data_root, missing


def clip_pictures(*, width: int, height: int, quality: int, count: int = 32) -> list[Picture]:
    """Frames of the dash-cam clip as JPEG, evenly spread over it."""
    with av.open(str(data_root() / "dashcam" / "solidWhiteRight.mp4")) as clip:
        frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
    chosen = [frames[round(i)] for i in np.linspace(0, len(frames) - 1, count)]
    resized = [
        np.asarray(cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA), np.uint8) for f in chosen
    ]
    return [Picture(encode_jpeg(frame, quality=quality), "image/jpeg") for frame in resized]


@contextmanager
def broker(folder: Path) -> Iterator[Broker]:
    """A real Mosquitto; there is nothing to measure without one."""
    program = find_mosquitto()
    if program is None:
        missing("mosquitto", "apt-get install mosquitto")
    with embedded_broker(folder / "broker", mosquitto=program) as running:
        yield running


@contextmanager
def collector(
    running: Broker, folder: Path, *, fleet: str, settings: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """`misfire fleet collect` on SQLite and a folder, once it says that it is ready."""
    config = folder / "collector.toml"
    config.write_text(settings, encoding="utf-8")
    command = [sys.executable, "-m", "misfire_runtime.cli", "fleet", "collect", "--broker", running.url]
    command += ["--fleet", fleet, "--fleet-dir", str(folder / "fleet"), "--config", str(config)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "collector.log").open("wb") as log:
        process = subprocess.Popen([*command, "--metrics-port", str(port)], stdout=log, stderr=log)
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/healthz")
        yield process
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_healthy(url: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    sys.exit("the collector did not become ready in two minutes")
