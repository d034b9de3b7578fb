"""Uploads that a label tool is sent, and the command line that sends them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result
from tests.fleet.labels import items as given
from typer.testing import CliRunner

from misfire_fleet.commands.labelling.app import app
from misfire_fleet.store import Store
from misfire_fleet.store.records import NewSample
from misfire_runtime.errors import MisfireError
from misfire_runtime.messages import Trigger
from misfire_runtime.testing import make_offer

SIZE = (64, 48)


def percentile(number: int) -> float:
    """Of upload NUMBER, in no order; as text, 9e-05 would come after 0.9."""
    return 9e-05 if number == 0 else (number * 37 % 101) / 101


def upload(number: int, **fields: Any) -> NewSample:
    """An upload with a box that its model found."""
    data = given.drawn(number)
    boxes = [{"class": "car", "score": 0.9, "p": 0.7, "box": [1, 2, 30, 40.5]}]
    values = {
        "prediction": {"boxes": boxes, "size": list(SIZE)},
        "scores": {"msp": number / 1000},
        "percentiles": {"msp": percentile(number)},
        "trigger": Trigger(name="doubt", reason="msp is above 0.9"),
        "context": {"weather": "fog"},
    }
    offer = make_offer(data, **({"media_type": "image/png"} | values | fields))
    return NewSample(offer, data, *SIZE, "collector-1")


def sample_id(number: int) -> str:
    return hashlib.sha256(given.drawn(number)).hexdigest()


def fill(folder: Path, count: int, **fields: Any) -> list[str]:
    """Stores uploads in a fleet folder; returns their ids, the most suspicious first."""
    with Store.open_folder(folder) as store:
        store.add_many([upload(number, **fields) for number in range(count)])
    return [sample_id(number) for number in sorted(range(count), key=percentile, reverse=True)]


class Cli:
    """Runs `misfire labels` against one fleet folder and one server."""

    def __init__(self, fleet: Path, url: str, token: str, *, project: str = "misfire") -> None:
        self._fleet, self._url, self._token, self._project = fleet, url, token, project

    def _arguments(self, verb: str, *options: str) -> list[str]:
        place = ["--fleet-dir", str(self._fleet), "--url", self._url, "--project", self._project]
        return [verb, "--json", *place, *options]

    def run(self, verb: str, *options: str, code: int = 0) -> dict[str, Any]:
        """Runs a command and returns what it prints."""
        done = self._invoked(verb, *options)
        assert done.exit_code == code, done.exception or done.output
        return dict(json.loads(done.stdout)) if done.stdout else {}

    def refused(self, verb: str, *options: str) -> str:
        """Runs a command that must fail, and returns what it says."""
        done = self._invoked(verb, *options)
        assert isinstance(done.exception, MisfireError), done.exception or done.output
        return str(done.exception)

    def _invoked(self, verb: str, *options: str) -> Result:
        environment = {"LABEL_STUDIO_API_KEY": self._token, "CVAT_ACCESS_TOKEN": self._token}
        return CliRunner().invoke(app, self._arguments(verb, *options), env=environment)

    def killed(self, verb: str, *options: str, when: Callable[[], bool], timeout_s: float = 300) -> None:
        """Starts a command and sends SIGKILL as soon as a condition holds: before it ends."""
        process = subprocess.Popen(
            [sys.executable, "-m", "misfire_runtime.cli", "labels", *self._arguments(verb, *options)],
            env=os.environ | {"LABEL_STUDIO_API_KEY": self._token},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + timeout_s
        try:
            while not when():
                assert process.poll() is None, "it ended before it could be killed"
                assert time.monotonic() < until
                time.sleep(0.01)
        finally:
            process.kill()
            process.wait(10)
        assert process.returncode == -9
