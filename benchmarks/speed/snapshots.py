"""How long does a fleet of 100,000 labelled samples take to import labels, and to make and read a snapshot?

    python benchmarks/speed/snapshots.py --json

A store without images: rows, labels with ten classes from 200 vehicles, then one snapshot with a frozen test
set and one that takes it over. Every step is measured on SQLite and, where it is installed, on PostgreSQL.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, run
from misfire_fleet.datasets.snapshots import Plan, Snapshots
from misfire_fleet.datasets.splits import Shares
from misfire_fleet.labels.content import ClassLabel
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.store import Store
from misfire_fleet.store.offers import offer_record, row_of
from misfire_fleet.store.records import ANY, NewSample, SampleFilter
from misfire_fleet.store.schema import samples
from misfire_runtime.messages import Clock
from misfire_runtime.testing import make_offer
from proving_ground.services import MissingServiceError, postgres

SAMPLES, QUICK_SAMPLES = 100_000, 5_000
VEHICLES, CLASSES, PER_DRIVE = 200, 10, 50
GOAL_S = 10.0
"""CPU seconds of a snapshot: "takes seconds"."""
_GROUP = 5_000


def filled(store: Store, count: int) -> list[str]:
    """Adds rows without images; returns the ids."""
    ids: list[str] = []
    for start in range(0, count, _GROUP):
        rows = []
        for n in range(start, min(start + _GROUP, count)):
            clock = Clock(wall=1.7e9 + 60 * n, monotonic=0, boot_id=f"boot-{n // PER_DRIVE}")
            offer = make_offer(b"%d" % n, vehicle=f"car-{n % VEHICLES}", captured_at=clock)
            rows.append(row_of(offer_record(NewSample(offer, b"", 640, 480, "c")), offers="group"))
            ids.append(offer.id)
        with store.database.write() as connection:
            store.database.insert_new(connection, samples, rows)
    return ids


def measured(store: Store, count: int) -> dict[str, dict[str, float]]:
    """Returns wall and CPU seconds of each step."""
    ids = filled(store, count)
    ledger, made = LabelLedger(store), Snapshots(store)
    found: dict[str, dict[str, float]] = {}

    def step(name: str, work: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        found[name] = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        return result

    def new() -> Iterator[NewLabel]:
        for n, key in enumerate(ids):
            yield NewLabel(key, ClassLabel(name=f"class {n % CLASSES}"), source="file", annotator="ann")

    step("import_labels", lambda: ledger.add(new(), add_classes=True))
    step("import_labels_again", lambda: ledger.add(new()))
    step("read_labels", lambda: sum(1 for _ in ledger.current()))
    step("count_a_class", lambda: store.count(SampleFilter(label_class="class 3")))
    plan = Plan(shares=Shares(0.1, 0.1), frozen=True)
    step("snapshot", lambda: made.create("exam", ANY, plan=plan))
    step("snapshot_test_from", lambda: made.create("again", ANY, plan=Plan(test_from="exam")))
    step("read", lambda: made.read("exam"))
    step("diff", lambda: made.diff("exam", "again"))
    step("verify", lambda: made.verify("exam"))
    identical = step("rebuild", lambda: made.rebuild("again")).identical
    step("list", made.listed)
    if not identical:
        raise AssertionError("a snapshot was rebuilt to other bytes")
    return found


@contextmanager
def stores() -> Iterator[dict[str, Store]]:
    """Opens an empty store on each database that is installed."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="misfire-bench-")))
        found = {"sqlite": stack.enter_context(Store.open_folder(folder / "fleet"))}
        try:
            server = stack.enter_context(postgres())
            found["postgresql"] = stack.enter_context(Store.open(server.url, folder / "blobs"))
        except MissingServiceError:
            pass
        yield found


def main() -> int:
    """Measures every step on every database."""
    options = command_line(__doc__ or "").parse_args()
    count = QUICK_SAMPLES if options.quick else SAMPLES
    with stores() as opened:
        databases = {name: measured(store, count) for name, store in opened.items()}
    result = {
        "setting": {"samples": count, "vehicles": VEHICLES, "classes": CLASSES},
        "databases": databases,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    lines = [
        f"{database} {name}: {step['wall_s']:.2f} s, of the processor {step['cpu_s']:.2f} s"
        for database, steps in databases.items()
        for name, step in steps.items()
    ]
    met = all(steps["snapshot"]["cpu_s"] <= GOAL_S for steps in databases.values())
    return finish(__file__, result, options, summary="\n".join(lines), met=met)


if __name__ == "__main__":
    run(main)
