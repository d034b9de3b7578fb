"""How soon is the next picture shown after a verdict, and how long does a queue of 100,000 samples take?

    python benchmarks/speed/verdicts.py --json

A store of rows with embeddings, a fifth of them judged by two people, and 60 photographs with the highest
scores. Queues, verdicts and counts are measured on SQLite and, where it is installed, on PostgreSQL; the time
from the key to the next picture on the screen in a real Chromium, on SQLite.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.record import command_line, finish, run
from misfire_fleet.commands.serve import listen
from misfire_fleet.console.access.settings import AccessSettings
from misfire_fleet.console.app import create_app
from misfire_fleet.labels.verdicts.counting import VerdictCounts, summary
from misfire_fleet.labels.verdicts.ledger import NewVerdict, VerdictLedger
from misfire_fleet.labels.verdicts.queue import ORDERS, Query, count_open, next_page
from misfire_fleet.store import Store
from misfire_fleet.store.offers import offer_record, row_of
from misfire_fleet.store.records import NewSample, SampleFilter
from misfire_fleet.store.schema import samples, verdicts
from misfire_runtime.messages import Trigger, pack_embedding
from misfire_runtime.testing import make_offer
from proving_ground import pictures
from proving_ground.services import CHROMIUM_FLAGS, MissingServiceError, chromium, postgres

SAMPLES, QUICK_SAMPLES = 100_000, 5_000
PICTURES, PRESSES = 60, 40
REPEATS = 15
GOAL_MS = 300.0
_GROUP = 5_000


def filled(store: Store, count: int) -> list[str]:
    """Adds rows without images, of which a fifth has a verdict; returns their ids."""
    rng = np.random.default_rng(0)
    ids: list[str] = []
    for start in range(0, count, _GROUP):
        rows, judged = [], []
        for n in range(start, min(start + _GROUP, count)):
            group = int(rng.integers(0, count // 5))
            embedding = np.random.default_rng(group).normal(size=32) + 0.01 * rng.normal(size=32)
            offer = make_offer(
                b"%d" % n,
                vehicle=f"car-{n % 200}",
                percentiles={"entropy": float(rng.random() * 0.99)},
                embedding=pack_embedding(embedding),
                trigger=Trigger(name="random", random=True, rate=0.01)
                if n % 20 == 0
                else Trigger(name="unsure"),
            )
            rows.append(row_of(offer_record(NewSample(offer, b"", 640, 480, "c")), offers="group"))
            ids.append(offer.id)
            if n % 5 == 0:
                judged.append(_verdict(offer.id, n, "ann" if n % 10 else "bob"))
        with store.database.write() as connection:
            store.database.insert_new(connection, samples, rows)
            connection.execute(verdicts.insert(), judged)
    return ids


def _verdict(sample: str, number: int, who: str) -> dict[str, Any]:
    verdict = "wrong" if number % 3 == 0 else "right"
    return {
        "seq": number + 1,
        "act": f"act-{number:08d}",
        "sample": sample,
        "annotator": who,
        "verdict": verdict,
        "holds": f"act-{number:08d}",
        "undoes": "",
        "shared": False,
        "blind": True,
        "took_s": 1.5,
        "at": 1.7e9 + number,
        "recorded_at": 1.7e9 + number,
    }


def measured(store: Store, ids: Sequence[str]) -> dict[str, float]:
    """Returns the median milliseconds of each question."""
    found = {}
    for order in ORDERS:
        query = Query("ann", order)
        page = next_page(store, query)
        cursor = page.cursor or ""
        found[f"queue {order}, first page"] = _median(lambda query=query: next_page(store, query))
        found[f"queue {order}, next page"] = _median(
            lambda query=query, cursor=cursor: next_page(store, query, cursor=cursor)
        )
    found["samples left"] = _median(lambda: count_open(store, Query("ann")), times=5)
    found["where verdict=wrong"] = _median(lambda: store.count(SampleFilter(verdict="wrong")), times=5)
    found["gallery, not judged"] = _median(lambda: store.newest(49, SampleFilter(verdict="none")), times=5)
    found["counts and agreement, first"] = _median(lambda: summary(store), times=3)
    counts = VerdictCounts(store)
    counts.summary()
    found["counts and agreement, again"] = _median(counts.summary, times=5)
    ledger, numbers = VerdictLedger(store), iter(range(10**6))

    def give() -> None:
        number = next(numbers)
        ledger.give(NewVerdict(f"measured-{number}", "eve", (ids[number],), "right"))

    found["record a verdict"] = _median(give, times=40)
    return found


def _median(work: Callable[[], Any], *, times: int = REPEATS) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def shown(store: Store) -> dict[str, float]:
    """Returns milliseconds from the key to the next picture, in a real Chromium."""
    from playwright.sync_api import sync_playwright

    photo = pictures.jpeg()
    new = []
    for number in range(PICTURES):
        comment = f"sample {number}".encode()
        data = photo[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + photo[2:]
        offer = make_offer(data, percentiles={"entropy": 0.999}, embedding=None)
        new.append(NewSample(offer, data, 1280, 720, "c"))
    store.add_many(new)
    waited = (
        "sample => { const s = document.getElementById('stage'); return s.dataset.sample"
        " && s.dataset.sample !== sample && s.getAttribute('aria-busy') === 'false' }"
    )
    with serving(store) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"{address}/verdicts?order=score")
        page.fill("#who-name", "eve")
        page.keyboard.press("Enter")
        page.wait_for_function(waited, arg="")
        taken = []
        for _ in range(PRESSES):
            before = page.get_attribute("#stage", "data-sample")
            page.wait_for_timeout(400)
            page.keyboard.press("w")
            page.wait_for_function(waited, arg=before)
            taken.append(float(page.get_attribute("#stage", "data-shown-ms") or "nan"))
        browser.close()
    return {"median": statistics.median(taken), "p95": float(np.quantile(taken, 0.95)), "presses": PRESSES}


@contextmanager
def serving(store: Store) -> Iterator[str]:
    """Runs a console over the store; yields its address."""
    import uvicorn

    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(create_app(store, access=AccessSettings(open_to_all=True)), log_level="warning")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def main() -> int:
    """Measures every question on every database, and the screen on SQLite."""
    options = command_line(__doc__ or "").parse_args()
    count = QUICK_SAMPLES if options.quick else SAMPLES
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="misfire-bench-")))
        stores = {"sqlite": stack.enter_context(Store.open_folder(folder / "fleet"))}
        try:
            server = stack.enter_context(postgres())
            stores["postgresql"] = stack.enter_context(Store.open(server.url, folder / "blobs"))
        except MissingServiceError:
            pass
        median_ms = {name: measured(store, filled(store, count)) for name, store in stores.items()}
        screen = shown(stores["sqlite"])
    lines = [f"key to next picture: median {screen['median']:.0f} ms, p95 {screen['p95']:.0f} ms"]
    lines += [
        f"{database} {name}: {value:.1f} ms"
        for database, found in median_ms.items()
        for name, value in found.items()
    ]
    result = {"setting": {"samples": count}, "median_ms": median_ms, "shown_ms": screen}
    return finish(__file__, result, options, summary="\n".join(lines), met=screen["median"] <= GOAL_MS)


if __name__ == "__main__":
    run(main)
