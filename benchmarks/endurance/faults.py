"""The long run of the fault suite: real processes, a real broker, thousands of faults, then a comparison.

    python benchmarks/endurance/faults.py --faults 10000 --kills 1000 --json
    python benchmarks/endurance/faults.py --faults 2000 --kills 200 --store postgres --json

Several vehicles (MQTT 5 and 3.1.1) capture and upload to two collectors that share one store, every link
through a chaos proxy. Faults go on until so many have happened, so many vehicles killed among them: messages
of every kind lost although acknowledged, repeated, overtaken, chunks with a flipped bit; links cut and
half-open; vehicles, collectors and the broker killed with -9, collectors also at named steps of their work;
disks that are full in the middle of a file; clocks that jump ten years; collectors without memory or file
descriptors; a database that somebody else keeps locked. With --store postgres the store is PostgreSQL and S3,
which are killed and stopped dead as well; the database turns read-only, and ends commits in the middle. Then
the trouble ends, everything comes to rest, and what was chosen is compared with what was stored. A vehicle
with a small spool makes evictions, one with broken pictures rejections, a quota per vehicle declines: those
are counted and explained, as the spool promises; lost, duplicated and deleted_unstored must be 0.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, run
from proving_ground.faults.audit import Audit
from proving_ground.faults.chaos_proxy import BESIDE, SAMPLES, Trouble
from proving_ground.faults.collector_process import STEPS
from proving_ground.faults.ground import Member, ProvingGround
from proving_ground.faults.hardship import WAITING, Want, ask, relieve, seal, starve
from proving_ground.faults.homes import FolderHome, Home, ServerHome, servers
from proving_ground.services import find_program

ROOT = Path(__file__).resolve().parents[2]

ENDLESS = 10_000_000
MESSAGES = Trouble(lose=0.06, repeat=0.05, reorder=0.05, spoil=0.02, kinds=(*SAMPLES, *BESIDE))
FIELDS = (
    "faults",
    "chosen",
    "stored",
    "lost",
    "duplicated",
    "deleted_unstored",
    "evicted",
    "declined",
    "rejected",
)


def main() -> int:
    """Runs, prints and records; 1 if something was lost, duplicated or did not come to rest."""
    options = _options()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="misfire-faults-") as folder:
        result, faults, quiet = _run(Path(folder), options)
    report = _report(result, faults, quiet, options, time.monotonic() - began)
    lines = [f"{name:17}{report[name]:>9}" for name in FIELDS]
    lines += [f"  {name:36}{count:>7}" for name, count in report["faults_by_kind"].items()]
    return finish(__file__, report, options, summary="\n".join(lines), met=result.sound and quiet)


def _run(folder: Path, options: argparse.Namespace) -> tuple[Audit, Counter[str], bool]:
    with ExitStack() as stack:
        home = _home(stack, folder, options)
        ground = stack.enter_context(ProvingGround(folder, seed=options.seeds[0], home=home))
        for _ in range(2):
            ground.add_collector(settings=options.collector)
        for number in range(options.vehicles):
            ground.add_vehicle(**_vehicle(number, options))
        for member in ground.vehicles:
            member.proxy.trouble = Trouble(**vars(MESSAGES))
            ground.wishes.desire(member.folder.name, 1)
        _kill_vehicles(ground, options)
        _mistreat(ground, options)
        ground.calm()
        for member in [*ground.vehicles, *ground.collectors]:
            ground.kill(member)
        for member in ground.collectors:
            ground.revive(member, die_at=None)
        for member in ground.vehicles:
            ground.revive(member, count=0)
            ground.wishes.desire(member.folder.name, ENDLESS)
        quiet = ground.settle(timeout_s=300) and all(
            ground.wait(partial(_well, ground, member)) for member in ground.vehicles
        )
        result = ground.audit()
        faults = ground.faults + ground.message_faults() + result.own_faults
    return result, faults, quiet


def _well(ground: ProvingGround, member: Member) -> bool:
    """The fleet knows that the vehicle is there, and the vehicle runs what was wished last."""
    return ground.online(member) and ground.wishes.in_force(member.folder.name) == ENDLESS


def _home(stack: ExitStack, folder: Path, options: argparse.Namespace) -> Home:
    if options.store == "folder":
        return FolderHome(folder / "fleet", busy_timeout_ms=200)
    return ServerHome(stack.enter_context(servers(folder)), "fleet")


def _vehicle(number: int, options: argparse.Namespace) -> dict[str, Any]:
    config: dict[str, Any] = {
        "protocol": "5" if number % 2 else "3.1.1",
        "count": ENDLESS,
        "heartbeat_s": 1.0,
        "rate": options.rate,
        "full": 0.01,
        "jump": 0.01,
        "spool": {"reserve_bytes": 0, "max_bytes": 64 << 20},
    }
    if number == 0:
        config["spool"] = {"reserve_bytes": 0, "max_bytes": 40_000}
    if number == 1:
        # Not a multiple of ten: priorities go by the last digit, and a run of broken ones begins a hold.
        config["broken"] = 21
    return config


def _kill_vehicles(ground: ProvingGround, options: argparse.Namespace) -> None:
    """kill -9 at random instants, one after the other, while links and collectors are well."""
    while ground.faults["vehicle killed"] < options.kills:
        member = ground.rng.choice(ground.vehicles)
        ground.kill(member)
        ground.revive(member)
        time.sleep(ground.rng.uniform(0.0, 0.2))


def _mistreat(ground: ProvingGround, options: argparse.Namespace) -> None:
    """One thing after the other, at random, until enough has happened."""
    rng, told = ground.rng, time.monotonic()
    weights = {
        _kill_vehicle: 12,
        _cut: 14,
        _half_open: 3,
        _kill_collector: 3,
        _kill_at_step: 3,
        _kill_broker: 1,
        _wish: 3,
    }
    weights |= {_starve_collector: 4}
    if isinstance(ground.home, ServerHome):
        weights |= {_kill_server: 6, _freeze_server: 4, _seal_database: 3, _lock_rows: 3}
    else:
        weights |= {_lock_file: 3}
    while (done := _faults_so_far(ground)) < options.faults:
        deed = rng.choices(list(weights), list(weights.values()))[0]
        deed(ground, rng)
        _revive_dead(ground)
        if time.monotonic() - told > 15:
            told = time.monotonic()
            print(
                f"{done} faults: {dict(ground.faults + ground.message_faults())}", file=sys.stderr, flush=True
            )
        time.sleep(rng.expovariate(1 / options.pause_s))


def _faults_so_far(ground: ProvingGround) -> int:
    return sum(ground.faults.values()) + sum(ground.message_faults().values())


def _kill_vehicle(ground: ProvingGround, rng: random.Random) -> None:
    ground.kill(rng.choice(ground.vehicles))


def _cut(ground: ProvingGround, rng: random.Random) -> None:
    # Mostly vehicles: a collector that comes back must first prove that messages reach it.
    everybody = ground.vehicles * 4 + ground.collectors
    ground.cut(rng.choice(everybody))


def _half_open(ground: ProvingGround, rng: random.Random) -> None:
    member = rng.choice(ground.vehicles)
    trouble = member.proxy.trouble
    trouble.half_open = not trouble.half_open
    ground.faults["link half-open"] += trouble.half_open
    for other in ground.vehicles:
        if other is not member:
            other.proxy.trouble.half_open = False


def _kill_collector(ground: ProvingGround, rng: random.Random) -> None:
    ground.kill(rng.choice(ground.collectors))


def _kill_at_step(ground: ProvingGround, rng: random.Random) -> None:
    """Killed now, and the next one kills itself at a step of its work."""
    member = rng.choice(ground.collectors)
    ground.kill(member)
    ground.revive(member, die_at=rng.choice(STEPS), die_after=rng.randint(0, 20))


def _kill_broker(ground: ProvingGround, rng: random.Random) -> None:
    ground.restart_broker(down_s=rng.uniform(0, 0.3))


def _wish(ground: ProvingGround, rng: random.Random) -> None:
    """Not a fault: something for the messages beside the samples to carry."""
    name = rng.choice(ground.vehicles).folder.name
    ground.wishes.desire(name, max(1, ground.wishes.in_force(name) + 1), random={"rate": rng.random()})


def _kill_server(ground: ProvingGround, rng: random.Random) -> None:
    assert isinstance(ground.home, ServerHome)
    running = ground.home.servers
    if rng.random() < 0.5:
        running.kill_database()
        time.sleep(rng.uniform(0, 0.5))
        running.database.start()
        ground.faults["database killed"] += 1
    else:
        running.blobs.kill()
        time.sleep(rng.uniform(0, 0.5))
        running.blobs.start()
        ground.faults["object store killed"] += 1


def _freeze_server(ground: ProvingGround, rng: random.Random) -> None:
    assert isinstance(ground.home, ServerHome)
    part, name = rng.choice((("database", "database stopped dead"), ("blobs", "object store stopped dead")))
    ground.home.servers.freeze(part, rng.uniform(0.2, 1.5))
    ground.faults[name] += 1


def _starve_collector(ground: ProvingGround, rng: random.Random) -> None:
    """No more memory, or no more file descriptors, for a moment."""
    member = rng.choice(ground.collectors)
    wants: tuple[Want, Want] = ("memory", "descriptors")
    want = rng.choice(wants)
    if member.child is None or not member.alive:
        return
    with suppress(ProcessLookupError, FileNotFoundError):
        starve(member.child.pid, want)
        time.sleep(rng.uniform(0.2, 1.5))
        relieve(member.child.pid, want)
        ground.faults[f"collector without {want}"] += 1


def _seal_database(ground: ProvingGround, rng: random.Random) -> None:
    """Read-only for a moment."""
    assert isinstance(ground.home, ServerHome)
    address = str(ground.home.config["database"])
    seal(address, shut=True)
    time.sleep(rng.uniform(0.2, 1.5))
    seal(address, shut=False)
    ground.faults["database read-only"] += 1


def _lock_rows(ground: ProvingGround, rng: random.Random) -> None:
    """Commits wait behind a lock, and those that wait are ended in the middle."""
    assert isinstance(ground.home, ServerHome)
    address = str(ground.home.config["database"])
    with psycopg.connect(address) as holder:
        holder.execute("LOCK TABLE samples IN SHARE MODE")
        time.sleep(rng.uniform(0.1, 0.6))
        ask(address, WAITING)
    ground.faults["commit ended in the middle"] += 1


def _lock_file(ground: ProvingGround, rng: random.Random) -> None:
    """Somebody else writes to the database, longer than collectors wait."""
    assert isinstance(ground.home, FolderHome)
    holder = sqlite3.connect(ground.home.folder / "fleet.sqlite", isolation_level=None, timeout=30)
    holder.execute("BEGIN IMMEDIATE")
    time.sleep(rng.uniform(0.1, 0.8))
    holder.execute("ROLLBACK")
    holder.close()
    ground.faults["database locked"] += 1


def _revive_dead(ground: ProvingGround) -> None:
    for member in ground.collectors:
        if not member.alive:
            if member.config.get("die_at"):
                ground.faults[f"collector killed at {member.config['die_at']}"] += 1
            _start(ground, member, die_at=None)
    for member in ground.vehicles:
        if not member.alive:
            _start(ground, member)


def _start(ground: ProvingGround, member: Member, **changes: Any) -> None:
    ready = member.config.pop("ready", None)
    ground.revive(member, **changes)
    if ready:
        member.config["ready"] = ready


def _report(
    result: Audit, faults: Counter[str], quiet: bool, options: argparse.Namespace, seconds: float
) -> dict[str, Any]:
    return {
        "faults": sum(faults.values()),
        "chosen": result.chosen,
        "stored": result.stored,
        "lost": result.lost,
        "duplicated": result.duplicated,
        "deleted_unstored": result.deleted_unstored,
        "evicted": result.evicted,
        "declined": result.declined,
        "rejected": result.rejected,
        "pending": result.pending,
        "damaged": result.damaged,
        "unheard": result.unheard,
        "orphan_blobs": result.orphan_blobs,
        "came_to_rest": quiet,
        "problems": result.problems,
        "faults_by_kind": dict(sorted(faults.items())),
        "seconds": round(seconds, 1),
        "store": options.store,
        "mosquitto": _mosquitto_version(),
    }


def _mosquitto_version() -> str:
    program = find_program("mosquitto", install="apt-get install mosquitto")
    return subprocess.run([program, "-h"], capture_output=True, text=True, check=False).stdout.split("\n")[0]


def _options() -> argparse.Namespace:
    parser = command_line(__doc__, seeds=(1,))
    parser.add_argument("--faults", type=int, help="default 10000; 60 with --quick")
    parser.add_argument(
        "--store", choices=("folder", "postgres"), default="folder", help="postgres: PostgreSQL and S3"
    )
    parser.add_argument("--vehicles", type=int, default=4)
    parser.add_argument("--rate", type=float, default=8.0, help="samples per second and vehicle")
    parser.add_argument("--kills", type=int, help="vehicle kills before the mixed faults; 300, 10 if quick")
    parser.add_argument("--quota", type=int, default=1500, help="samples per day and vehicle, then declines")
    parser.add_argument(
        "--pause-s", type=float, default=0.2, help="mean time between faults of processes and links"
    )
    options = parser.parse_args()
    options.faults = options.faults or (60 if options.quick else 10_000)
    options.kills = options.kills or (10 if options.quick else 300)
    options.collector = {"quotas": {"samples_per_day": options.quota}, "near_duplicates": None}
    return options


if __name__ == "__main__":
    run(main)
