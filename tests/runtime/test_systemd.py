"""The unit file under a real systemd: verified, started, watched, reloaded, stopped, in own namespaces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proving_ground.services import find_program, missing, need_root

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "runtime" / "systemd" / "misfire-vehicle.service"
INSTALL = "apt-get install systemd"


def test_the_unit_file_is_what_systemd_expects(tmp_path: Path) -> None:
    """Not a word of complaint where the program is there."""
    analyze = find_program("systemd-analyze", install=INSTALL)
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/local/bin/misfire", str(shutil.which("true"))))
    done = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert done.returncode == 0 and ours == [], done.stderr


@pytest.fixture(scope="module")
def facts(bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened in one life of the service."""
    for program, install in (("systemctl", INSTALL), ("unshare", "apt-get install util-linux")):
        find_program(program, install=install)
    find_program("gst-launch-1.0", install="apt-get install gstreamer1.0-tools gstreamer1.0-plugins-base")
    need_root("a namespace")
    folder = tmp_path_factory.mktemp("systemd")
    config = folder / "vehicle.toml"
    config.write_text(
        f'version = 1\nbundle = "{bundle.path}"\n[[source]]\n'
        'input = "gst:videotestsrc is-live=true ! video/x-raw,width=64,height=64,framerate=20/1"\n'
        '[spool]\npath = "spool"\n[random]\nrate = 0.01\n'
    )
    scenario = [sys.executable, str(Path(__file__).with_name("systemd_scenario.py"))]
    spaces = ["unshare", "--mount", "--pid", "--fork", "--cgroup", "--mount-proc"]
    paths = os.pathsep.join(str(ROOT / unit) for unit in ("runtime", "train", "export", "fleet"))
    done = subprocess.run(
        [*spaces, *scenario, str(folder), str(UNIT), str(config)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
        check=False,
    )
    if "Operation not permitted" in done.stderr and not (folder / "facts.json").exists():
        missing("a namespace", "run where it is allowed (CAP_SYS_ADMIN)")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    found["log"] = (folder / "log").read_text()
    found["out"] = (folder / "out").read_text()
    return found


def test_start_waits_until_the_vehicle_says_ready(facts: dict[str, Any]) -> None:
    assert facts["manager"] and facts["start"] == "", facts
    assert facts["started"]["Type"] == "notify" and facts["started"]["SubState"] == "running", facts
    assert facts["status"], "systemctl status never showed the vehicle's own words"


def test_a_vehicle_that_hangs_is_restarted_by_the_watchdog(facts: dict[str, Any]) -> None:
    assert facts["restarted"] and facts["again"], facts
    assert facts["after"]["MainPID"] not in ("0", facts["started"]["MainPID"])


def test_reload_reads_the_configuration_and_stop_ends_in_order(facts: dict[str, Any]) -> None:
    assert facts["reload"] == "" and facts["reloaded"], facts
    assert facts["stop"] == ""
    assert facts["stopped"] == {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"}
    last = json.loads(facts["out"].splitlines()[-1])
    assert last["finished"] is False and last["frames"] > 0 and last["failure"] is None
