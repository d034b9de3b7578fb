"""What the fleet's benchmarks share: a broker, a collector as its own process, pictures, and the record."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from misfire_fleet.demo.broker import Broker, embedded_broker, find_mosquitto
from misfire_fleet.simulate.samples import Picture
from misfire_runtime.preprocess import encode_jpeg

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("paho-mqtt", "sqlalchemy", "opencv-python-headless", "pydantic", "numpy")


def data_folder() -> Path:
    """MISFIRE_DATA, else ../shared/data beside the checkout."""
    named = os.environ.get("MISFIRE_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"


def clip_pictures(*, width: int, height: int, quality: int, count: int = 32) -> list[Picture]:
    """Frames of the dash-cam clip as JPEG, evenly spread over it."""
    with av.open(str(data_folder() / "dashcam" / "solidWhiteRight.mp4")) as clip:
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
        sys.exit("mosquitto is not installed")
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


def record(name: str, result: dict[str, Any], *, seed: int, argv: Sequence[str]) -> dict[str, Any]:
    """The result with what is needed to repeat it."""
    return {
        "benchmark": name,
        "command": " ".join(["python", "-m", f"benchmarks.{name}", *argv]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seed": seed,
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.system()},
        "versions": {package: version(package) for package in _PACKAGES},
        **result,
    }


def publish(result: dict[str, Any], *, as_json: bool, out: Path | None) -> None:
    """Prints the result and writes it where asked."""
    text = json.dumps(result, indent=2)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        print(text)
    else:
        print(
            "\n".join(
                f"{key:>22}  {value}" for key, value in result.items() if not isinstance(value, (dict, list))
            )
        )
