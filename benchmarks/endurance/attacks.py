"""A hostile vehicle against the shipped configuration: what does an honest one notice, and what is let in?

    python benchmarks/endurance/attacks.py --json [--only NAME ...] [--seconds 12] [--out FILE]

Each attack gets a fresh fleet: mosquitto with TLS, two collectors and the console as processes, SQLite. An
honest vehicle uploads a picture every 0.2 s; another process attacks with stolen certificates. The exit
status is 1 if a goal is missed: the honest p99 during the attack, memory of each part, nothing let in.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.endurance.attacks_hostile import ATTACKS
from benchmarks.endurance.attacks_stage import FLEET, HONEST, STOLEN, Honest, Stage, Watch, stage
from benchmarks.record import command_line, finish, run
from misfire_runtime.mqtt.client import make_client

MAX_P99_S = 5.0
DECODING_MIB = 384
"""docs/fleet.md: all large pictures together, 1.5 times max_decoded_bytes."""
BOUND_MIB = {
    # docs/fleet.md: max_transfer_bytes, and the decoders.
    "collector": 256 + DECODING_MIB,
    "console": DECODING_MIB,
    # memory_limit of mosquitto.conf.
    "broker": 1024,
}
SETTINGS = {"near_duplicates": "\n[near_duplicates]\nsimilarity = 0.98\ncopies = 3\n"}
QUICK = ("near_duplicates", "forged_replies")
"""What --quick plays: one attack on the policy, one on the protocol."""
_BEFORE_S = _AFTER_S = 5.0
_SETTLE_S = 20.0


def main() -> int:
    """Runs the attacks one after the other; 1 if a goal is missed."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=sorted(ATTACKS), metavar="NAME", help="only these attacks"
    )
    parser.add_argument("--seconds", type=float, help="length of each attack; default 12, 3 with --quick")
    options = parser.parse_args()
    seconds = options.seconds or (3.0 if options.quick else 12.0)
    found = {}
    for name in options.only or (QUICK if options.quick else ATTACKS):
        with tempfile.TemporaryDirectory(prefix="misfire-attacks-") as folder:
            found[name] = play(name, Path(folder), seconds=seconds)
        print(f"{name}: {_line(found[name])}", file=sys.stderr, flush=True)
    missed = {name: result["missed"] for name, result in found.items() if result["missed"]}
    result = {
        "seconds": seconds,
        "goals": {"p99_s": MAX_P99_S, "memory_mib": "2 x idle + bound", "bound_mib": BOUND_MIB, "let_in": 0},
        "let_in": sum(each["let_in"] for each in found.values()),
        "missed": missed,
        "attacks": found,
    }
    return finish(__file__, result, options, met=not missed)


def play(name: str, folder: Path, *, seconds: float) -> dict[str, Any]:
    """One attack on a fresh fleet."""
    with stage(folder, settings=SETTINGS.get(name, "")) as at, Honest(at) as honest:
        time.sleep(1.0)  # the first upload starts decoders
        start = time.monotonic()
        with Watch(at) as before:
            time.sleep(_BEFORE_S)
        begun = time.monotonic()
        with Watch(at) as during:
            got, did = _attack(name, at, seconds)
        over = time.monotonic()
        with Watch(at) as after:
            time.sleep(_AFTER_S)
        done = time.monotonic()
        health = at.health()
        got |= _let_in(at, honest)
        times = {"before": (start, begun), "during": (begun, over), "after": (over, done)}
        found: dict[str, Any] = {
            "honest_s": {phase: _seconds(honest.since(*span)) for phase, span in times.items()},
            "memory_mib": {
                part: {
                    "idle": round(before.peak[part]),
                    "peak": round(max(during.peak[part], after.peak.get(part, 0.0))),
                }
                for part in BOUND_MIB
            },
            "let_in": sum(got.values()),
            "got": {what: count for what, count in got.items() if count},
            "did": did,
            "health": health,
            "honest_books": {key: value for key, value in honest.counters().items() if value},
        }
    found["missed"] = _missed(found)
    return found


def _attack(name: str, at: Stage, seconds: float) -> tuple[dict[str, int], dict[str, int]]:
    """Runs the hostile process to its end; what it says that it got, and that it did."""
    target = at.folder / "target.json"
    target.write_text(
        json.dumps(
            {
                "tls_port": at.broker.tls_port,
                "secrets": str(at.broker.authority.folder),
                "console": at.console,
                "seconds": seconds,
            }
        )
    )
    command = [sys.executable, "-m", "benchmarks.endurance.attacks_hostile", name, str(target)]
    with (at.folder / "hostile.log").open("wb") as log:
        hostile = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
    ports = 0
    until = time.monotonic() + seconds + 60
    while hostile.poll() is None:
        ports = max(ports, at.udp_ports())
        if time.monotonic() > until:
            hostile.kill()
            break
        time.sleep(0.5)
    said = hostile.communicate()[0]
    if hostile.returncode != 0:
        sys.exit(f"the hostile process failed: {(at.folder / 'hostile.log').read_text()[-2000:]}")
    told = json.loads(said)
    return {**told["got"], "network ports opened": ports}, told["did"]


def _let_in(at: Stage, honest: Honest) -> dict[str, int]:
    """What is in the fleet, or gone from the honest vehicle, and must not be."""
    books = honest.counters()
    settled = {each.id for each in list(honest.samples) if each.settled}
    with at.store() as store:
        kept = store.known(sorted(settled))
        names = {vehicle.name for vehicle in store.vehicles.summaries()}
    return {
        "honest samples believed stored and not there": len(settled - kept),
        "honest samples refused": books["declined"] + books["rejected"] + books["evicted"],
        "made-up vehicles": len(names - {HONEST, *STOLEN}),
        "pages of the console down": at.pages_down(),
        "retained messages left": _retained(at),
    }


def _retained(at: Stage) -> int:
    """How many data messages the broker still retains, once the sweep had its time."""
    until = time.monotonic() + _SETTLE_S
    while (left := _retained_now(at)) and time.monotonic() < until:
        time.sleep(1.0)
    return left


def _retained_now(at: Stage) -> int:
    found: list[str] = []
    client = make_client(at.broker.server(), client_id="auditor")
    client.on_connect = lambda c, *_: c.subscribe(f"misfire/v1/{FLEET}/+/data/+/+/+", qos=1)
    client.on_message = lambda _c, _d, message: _note(found, message)
    client.connect("127.0.0.1", at.broker.inside_port)
    client.loop_start()
    time.sleep(1.0)
    client.disconnect()
    client.loop_stop()
    return len(found)


def _note(found: list[str], message: paho.MQTTMessage) -> None:
    if message.retain:
        found.append(message.topic)


def _seconds(times: list[float]) -> dict[str, float | None]:
    if not times:  # the one before still waits
        return {"samples": 0, "p50": None, "p99": None}
    p50, p99 = np.quantile(times, (0.5, 0.99), method="higher")
    return {"samples": len(times), "p50": round(float(p50), 3), "p99": round(float(p99), 3)}


def _missed(found: dict[str, Any]) -> list[str]:
    """The goals that this attack missed, in words."""
    missed = []
    p99 = found["honest_s"]["during"]["p99"]
    if p99 is None or p99 > MAX_P99_S:
        missed.append(f"honest p99 {p99} s")
    for part, memory in found["memory_mib"].items():
        if memory["peak"] > 2 * memory["idle"] + BOUND_MIB[part]:
            missed.append(f"{part} {memory['peak']} MiB")
    if found["let_in"]:
        missed.append(f"let in: {found['got']}")
    return missed


def _line(found: dict[str, Any]) -> str:
    times = ", ".join(
        f"{phase} p50 {each['p50']} p99 {each['p99']} s (n={each['samples']})"
        for phase, each in found["honest_s"].items()
    )
    memory = ", ".join(f"{part} {each['idle']}->{each['peak']}" for part, each in found["memory_mib"].items())
    return f"{times}; MiB {memory}; let in {found['let_in']}; missed {found['missed'] or 'nothing'}"


if __name__ == "__main__":
    run(main)
