"""Runs a broker for the demo: an installed `mosquitto`, or amqtt, which pip installs.

Both run in their own process on a free loopback port, so the demo's clients use real sockets. amqtt only
supports MQTT 3.1.1 and delivers nothing to shared subscriptions, so the demo runs one collector.
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
"""Packages install mosquitto here, and a user's PATH often lacks these folders."""


@dataclass(frozen=True)
class Broker:
    """Holds a running broker's name, its loopback port and the MQTT version its clients must use."""

    name: str
    port: int
    protocol: Literal["5", "3.1.1"]

    @property
    def url(self) -> str:
        """Returns the value for `--broker`."""
        return f"mqtt://127.0.0.1:{self.port}"


def find_mosquitto() -> str | None:
    """Returns the path of an installed mosquitto, None if there is none."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path=os.pathsep.join(_SERVER_FOLDERS))


@contextmanager
def embedded_broker(folder: Path, *, mosquitto: str | None) -> Iterator[Broker]:
    """Runs a broker until the block ends.

    Args:
        folder: receives the broker's configuration and log.
        mosquitto: path of the mosquitto program; None runs amqtt.

    Raises:
        MisfireError: the broker did not start; the message ends with the end of its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    if mosquitto:
        broker = Broker("mosquitto", port, "5")
        config = folder / "mosquitto.conf"
        # Without limits on queued messages: mosquitto drops messages above them, silently for the publisher.
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
