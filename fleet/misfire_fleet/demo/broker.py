"""A broker for the demo: the `mosquitto` of this machine, or amqtt, which pip installs.

Both run as a process of their own on a free loopback port: the demo's clients talk over a real socket.
amqtt speaks MQTT 3.1.1 only and delivers nothing to shared subscriptions, hence one collector.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from misfire_runtime.errors import MisfireError

_START_TIMEOUT_S = 20.0
_SERVER_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")


@dataclass(frozen=True)
class Broker:
    """Where it listens, and which protocol its clients must speak."""

    name: str
    port: int
    protocol: Literal["5", "3.1.1"]

    @property
    def url(self) -> str:
        """As `--broker` takes it."""
        return f"mqtt://127.0.0.1:{self.port}"


def find_mosquitto() -> str | None:
    """Path of a mosquitto, on PATH or where distributions put servers."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path=os.pathsep.join(_SERVER_FOLDERS))


@contextmanager
def embedded_broker(folder: Path, *, mosquitto: str | None) -> Iterator[Broker]:
    """Runs a broker until the block ends. `mosquitto` is its program, or None for amqtt.

    Raises MisfireError with the broker's own last words where it does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    if mosquitto:
        broker = Broker("mosquitto", port, "5")
        config = folder / "mosquitto.conf"
        config.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
            "max_queued_messages 0\nmax_inflight_messages 0\nset_tcp_nodelay true\n",
            encoding="utf-8",
        )
        command = [mosquitto, "-c", str(config)]
    else:
        broker = Broker("amqtt", port, "3.1.1")
        config = folder / "amqtt.yaml"
        config.write_text(json.dumps(_amqtt_config(port)), encoding="utf-8")  # JSON is YAML
        command = [sys.executable, "-W", "ignore", "-m", "amqtt.scripts.broker_script", "-c", str(config)]
    log = folder / f"{broker.name}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL)
    try:
        _wait_until_it_listens(process, broker, log)
        yield broker
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _amqtt_config(port: int) -> dict[str, object]:
    return {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }


def _wait_until_it_listens(process: subprocess.Popen[bytes], broker: Broker, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", broker.port)) == 0:
                return
        time.sleep(0.05)
    words = log.read_text(encoding="utf-8", errors="replace")[-400:]
    raise MisfireError(f"the embedded broker {broker.name} did not start on port {broker.port}: {words}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
