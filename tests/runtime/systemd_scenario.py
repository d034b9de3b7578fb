"""Run by test_systemd in namespaces of its own: a real systemd and the project's unit, from start to stop.

    unshare --mount --pid --fork --cgroup --mount-proc python systemd_scenario.py FOLDER UNIT VEHICLE_TOML

Writes facts as one JSON object to FOLDER/facts.json. `/run` is private to this mount namespace; when the last
process of the PID namespace ends, everything in it ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAME = "misfire-vehicle.service"
OVERRIDE = """\
[Service]
ExecStart=
ExecStart={python} -m misfire_runtime.cli run --config {config} --json
# A user's manager can change neither users nor the kernel's mounts, and Python and the test's folder may lie
# where the unit lets nobody look. ProtectSystem=strict stays in force.
User=
Group=
SupplementaryGroups=
PrivateTmp=no
ProtectHome=no
ProtectKernelTunables=no
ReadWritePaths={folder}
WorkingDirectory={folder}
Environment=PYTHONPATH={path} PATH={programs}
StandardOutput=append:{folder}/out
StandardError=append:{folder}/log
WatchdogSec=2
RestartSec=0.2
"""


def control(*arguments: str) -> str:
    """systemctl --user; its output."""
    done = subprocess.run(
        ["systemctl", "--user", *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    return done.stdout + done.stderr


def show(*names: str) -> dict[str, str]:
    """Properties of the service."""
    lines = control("show", NAME, *(f"--property={name}" for name in names)).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def wait(holds: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    """False where it never holds."""
    until = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def main(folder: Path, unit: Path, config: Path) -> None:
    """Start, watchdog, reload, stop."""
    units = Path("/run/home/.config/systemd/user")
    _private_run(units, folder, unit, config)
    facts: dict[str, Any] = {}
    manager = subprocess.Popen(["/usr/lib/systemd/systemd", "--user"])
    facts["manager"] = wait(lambda: "running" in control("is-system-running"))
    facts["start"] = control("start", NAME)
    facts["started"] = show("ActiveState", "SubState", "MainPID", "Type")
    facts["status"] = wait(lambda: "frames" in show("StatusText").get("StatusText", ""))
    pid = int(facts["started"].get("MainPID", 0))
    if pid:
        os.kill(pid, signal.SIGSTOP)
    facts["restarted"] = wait(lambda: show("NRestarts").get("NRestarts") == "1")
    facts["again"] = wait(lambda: show("SubState").get("SubState") == "running")
    facts["after"] = show("ActiveState", "MainPID")
    config.write_text(config.read_text().replace("version = 1", "version = 2"))
    facts["reload"] = control("reload", NAME)
    facts["reloaded"] = wait(lambda: "config_taken" in (folder / "log").read_text())
    facts["stop"] = control("stop", NAME)
    facts["stopped"] = show("ActiveState", "Result", "ExecMainStatus")
    (folder / "facts.json").write_text(json.dumps(facts))
    manager.terminate()


def _private_run(units: Path, folder: Path, unit: Path, config: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    for name in ("/run/systemd/system", "/run/user/0", str(units / f"{NAME}.d")):
        Path(name).mkdir(parents=True)
    Path("/run/user/0").chmod(0o700)
    os.environ.update(HOME="/run/home", XDG_RUNTIME_DIR="/run/user/0", SYSTEMD_LOG_TARGET="console")
    (units / NAME).write_text(unit.read_text())
    text = OVERRIDE.format(
        python=sys.executable,
        config=config,
        folder=folder,
        path=os.environ.get("PYTHONPATH", ""),
        programs=os.environ["PATH"],
    )
    (units / f"{NAME}.d" / "test.conf").write_text(text)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
