"""Runs a real Label Studio on a free loopback port: the tests' other end of `misfire labels`.

    make label-studio    a venv of its own in .label-studio/, and a database that is migrated once
    label_studio(folder) a server on a copy of that database, ended by its process id

Its libraries are others than misfire's, it takes 1 GB, and the first start migrates for half a minute or
more. MISFIRE_LABEL_STUDIO names another folder than `.label-studio`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proving_ground.services import free_port, missing, stop_process

USER, PASSWORD, TOKEN = "admin@example.org", "only-for-tests", "0123456789abcdef0123456789abcdef01234567"
_DATABASE = "label_studio.sqlite3"
# It asks PyPI for newer versions and reports its use unless it is told not to.
_SETTINGS = {
    "LATEST_VERSION_CHECK": "false",
    "COLLECT_ANALYTICS": "false",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
}
_START_S = 500.0
"""Of a start, on a machine where other tests run."""


def home() -> Path:
    """Returns the folder of the venv and the migrated database."""
    named = os.environ.get("MISFIRE_LABEL_STUDIO")
    return Path(named) if named else Path(__file__).resolve().parents[2] / ".label-studio"


@dataclass
class LabelStudio:
    """Holds a running server; `kill` and `start` let a test take it away and bring it back on its port."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    _personal: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """Returns its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts and waits until it answers."""
        program = home() / "bin" / "label-studio"
        command = [str(program), "start", "--no-browser", "--internal-host", "127.0.0.1"]
        command += ["--port", str(self.port), "--data-dir", str(self.folder)]
        command += ["--username", USER, "--password", PASSWORD, "--user-token", TOKEN]
        own = {name: value for name, value in os.environ.items() if not name.startswith("LABEL_STUDIO")}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=own | _SETTINGS, cwd=self.folder
            )
        until = time.monotonic() + _START_S
        while time.monotonic() < until and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        self.stop()
        raise TimeoutError((self.folder / "server.log").read_text(errors="replace")[-2000:])

    def kill(self) -> None:
        """Sends SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> None:
        """Ends it in order."""
        if self.process is not None:
            stop_process(self.process)

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Sends a request as a person's browser would, and returns the answer's JSON."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Token {TOKEN}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def personal_token(self) -> str:
        """Returns the user's personal token, of which there is only one."""
        if not self._personal:
            self._personal = str(self.call("POST", "/api/token/", {})["token"])
        return self._personal

    def tasks(self, project: int) -> list[dict[str, Any]]:
        """Returns all tasks of a project with annotations and predictions, the oldest first."""
        path = f"/api/tasks?project={project}&fields=all&page_size=1000"
        tasks: list[dict[str, Any]] = self.call("GET", path)["tasks"]
        return sorted(tasks, key=lambda task: int(task["id"]))

    def annotate(self, task: int, result: list[dict[str, Any]], **fields: object) -> dict[str, Any]:
        """Submits an annotation, as the editor does."""
        body = {"result": result, **fields}
        annotation: dict[str, Any] = self.call("POST", f"/api/tasks/{task}/annotations/", body)
        return annotation


@contextmanager
def label_studio(folder: Path) -> Iterator[LabelStudio]:
    """Runs a real Label Studio on a copy of the migrated database, with one user and no project."""
    migrated = home() / "data" / _DATABASE
    if not migrated.is_file():
        missing("Label Studio", "make label-studio")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(migrated, folder / _DATABASE)
    server = LabelStudio(folder, free_port())
    server.start()
    try:
        yield server
    finally:
        server.stop()


def migrate() -> None:
    """Creates the database that `label_studio` copies; does nothing if it exists."""
    data = home() / "data"
    if (data / _DATABASE).is_file():
        return
    waiting = home() / "migrating"
    shutil.rmtree(waiting, ignore_errors=True)
    waiting.mkdir(parents=True)
    server = LabelStudio(waiting, free_port())
    server.start()
    server.stop()
    data.mkdir(exist_ok=True)
    # The last step: a database that is half migrated never has this name.
    (waiting / _DATABASE).rename(data / _DATABASE)
    shutil.rmtree(waiting)


if __name__ == "__main__":
    migrate()
    sys.exit(0)
