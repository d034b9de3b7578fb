"""How long does the console take for each page and API call, with 200 vehicles and 100,000 samples?

    python benchmarks/speed/console.py --json

The store is filled by the function behind `misfire fleet simulate --seed-store`. Requests go through the
whole application in this process, one after the other, on SQLite and, where it is installed, on PostgreSQL.
Every request has other values where the page has some, so no answer is that of the one before. Processor
time is that of this process, without PostgreSQL's and the decoders': it tells something on a busy machine
too.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import httpx
import numpy as np
from fastapi import FastAPI

from benchmarks.record import command_line, finish, run
from misfire_fleet.console.access.settings import AccessSettings
from misfire_fleet.console.app import create_app
from misfire_fleet.console.navigation import PLACES
from misfire_fleet.simulate.seeding.plan import SeedPlan
from misfire_fleet.simulate.seeding.seeding import seed_store
from misfire_fleet.store import Store
from proving_ground.services import MissingServiceError, postgres

VEHICLES, SAMPLES = 200, 100_000
QUICK_VEHICLES, QUICK_SAMPLES = 20, 2_000
REPEATS, QUICK_REPEATS = 30, 5
GOAL_MS = 300.0
_BUILD_S = 600.0


def addresses(store: Store) -> dict[str, Callable[[int], str]]:
    """Returns the addresses to ask for, by name; each takes the number of the request."""
    rows = store.newest(400)
    ids = [row.id for row in rows]
    vehicles = sorted({row.vehicle for row in rows})
    boxed = [row.id for row in rows if row.prediction.get("boxes")] or ids
    context = next((key for row in rows for key in row.offer.context), "weather")
    value = next((str(row.offer.context[context]) for row in rows if context in row.offer.context), "rain")
    bundle, trigger = quote(rows[0].bundle), quote(rows[0].trigger)
    score = next(iter(rows[0].scores), "entropy")

    def sample(number: int) -> str:
        return ids[7 * number % len(ids)]

    def vehicle(number: int) -> str:
        return quote(vehicles[number % len(vehicles)])

    found: dict[str, Callable[[int], str]] = {
        f"page {place.title.lower()}": lambda _n, path=place.path: path
        for place in PLACES  # type: ignore[misc]
    }
    filters: dict[str, Callable[[int], str]] = {
        "first page": lambda n: f"limit={48 + n % 2}",
        "vehicle": lambda n: f"vehicle={vehicle(n)}",
        "trigger and bundle": lambda n: f"trigger={trigger}&bundle={bundle}&limit={48 + n % 2}",
        "random stream": lambda n: f"stream=random&limit={48 + n % 2}",
        "percentile": lambda n: f"percentile={0.9 + n / 1000}",
        "not judged": lambda n: f"verdict=none&limit={48 + n % 2}",
        "wrong, by loss": lambda n: f"verdict=wrong&order=loss&limit={48 + n % 2}",
        "labelled": lambda n: f"labelled=yes&limit={48 + n % 2}",
        "context": lambda n: f"context={quote(context)}={quote(value)}&limit={48 + n % 2}",
        "by a score": lambda n: f"order=score:{quote(score)}&limit={48 + n % 2}",
        "by percentile, folded": lambda n: f"order=percentile&fold=yes&limit={48 + n % 2}",
        "several filters": lambda n: (
            f"vehicle={vehicle(n)}&stream=chosen&verdict=none&percentile=0.5&order=loss&fold=yes"
        ),
        "similar": lambda n: f"similar={sample(n)}",
        "near-duplicates": lambda n: f"group={sample(n)}",
        "boxes": lambda n: f"show=boxes&limit={48 + n % 2}",
        "map": lambda n: f"show=map&limit={48 + n % 2}",
    }
    for name, query in filters.items():
        found[f"uploads, {name}"] = lambda n, query=query: f"/uploads?{query(n)}"  # type: ignore[misc]
    found |= {
        "page sample": lambda n: f"/samples/{sample(n)}",
        "neighbours of a sample": lambda n: f"/samples/{sample(n)}/neighbours",
        "page vehicle": lambda n: f"/vehicles/{vehicle(n)}",
        "totals": lambda _n: "/fragments/totals",
        "thumbnail": lambda n: f"/thumbs/{sample(n)}?width=320",
        "crop of a box": lambda n: f"/crops/{boxed[n % len(boxed)]}/1",
        "file of a sample": lambda n: f"/blobs/{sample(n)}",
        "api samples": lambda n: f"/api/samples?limit={48 + n % 2}",
        "api samples, by loss": lambda n: f"/api/samples?order=loss&limit={48 + n % 2}",
        "api sample": lambda n: f"/api/samples/{sample(n)}",
        "api boxes": lambda n: f"/api/boxes?limit={48 + n % 2}",
        "api map, a vehicle": lambda n: f"/api/map?vehicle={vehicle(n)}",
        "api map, all": lambda n: f"/api/map?limit={48 + n % 2}",
        "api totals": lambda _n: "/api/totals",
        "api vehicles": lambda n: f"/api/vehicles?limit={200 + n}",
        "api verdicts, queue": lambda n: f"/api/verdicts/queue?by=ann&order=score&limit={24 + n % 2}",
        "api views": lambda _n: "/api/views",
        "api selections": lambda _n: "/api/selections",
        "api snapshots": lambda _n: "/api/snapshots",
        "metrics": lambda _n: "/metrics",
        "healthz": lambda _n: "/healthz",
    }
    return found


Taken = dict[str, list[tuple[float, float]]]
"""Milliseconds of each request by the clock, and of this process's processor time, by name."""


async def measured(app: FastAPI, store: Store, *, repeats: int) -> tuple[Taken, list[str]]:
    """Returns what each request took, and a sentence for each that did not succeed."""
    transport = httpx.ASGITransport(app=app)
    wrong: list[str] = []
    found: Taken = {}
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
        await built(client)
        for name, address in addresses(store).items():
            found[name] = []
            # The first request is not counted: it imports modules and compiles templates.
            for number in range(repeats + 1):
                start, worked = time.perf_counter(), time.process_time()
                answer = await client.get(address(number))
                taken = 1000 * (time.perf_counter() - start), 1000 * (time.process_time() - worked)
                if number:
                    found[name].append(taken)
            if answer.status_code != 200:
                wrong.append(f"{name}: status {answer.status_code} of {address(number)}")
    return found, wrong


async def built(client: httpx.AsyncClient) -> None:
    """Waits until the console has read all samples, as a console that runs for a while has."""
    deadline = time.monotonic() + _BUILD_S
    while not (await client.get("/api/samples?limit=1")).json()["complete"]:
        if time.monotonic() > deadline:
            raise TimeoutError("the console did not read all samples in time")
        await asyncio.sleep(0.5)


def stores(stack: ExitStack, folder: Path) -> Iterator[tuple[str, Store]]:
    """Yields empty stores, with the names of their databases."""
    yield "sqlite", stack.enter_context(Store.open_folder(folder / "fleet"))
    with suppress(MissingServiceError):
        server = stack.enter_context(postgres())
        yield "postgresql", stack.enter_context(Store.open(server.url, folder / "postgresql" / "blobs"))


def main() -> int:
    """Measures every page and API call on every database."""
    options = command_line(__doc__ or "").parse_args()
    vehicles = QUICK_VEHICLES if options.quick else VEHICLES
    count = QUICK_SAMPLES if options.quick else SAMPLES
    repeats = QUICK_REPEATS if options.quick else REPEATS
    p50: dict[str, dict[str, float]] = {}
    p95: dict[str, dict[str, float]] = {}
    processor: dict[str, dict[str, float]] = {}
    wrong: list[str] = []
    read_s: dict[str, float] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="misfire-bench-")))
        for database, store in stores(stack, folder):
            seed_store(store, SeedPlan(vehicles=vehicles, samples=count, seed=options.seeds[0]))
            app = create_app(store, access=AccessSettings(open_to_all=True))
            start = time.perf_counter()

            async def work(app: FastAPI = app, store: Store = store) -> Any:
                async with app.router.lifespan_context(app):
                    return await measured(app, store, repeats=repeats)

            taken, problems = asyncio.run(work())
            read_s[database] = round(time.perf_counter() - start, 1)
            p50[database], processor[database] = (
                {name: round(float(np.median(each, axis=0)[place]), 1) for name, each in taken.items()}
                for place in (0, 1)
            )
            p95[database] = {
                name: round(float(np.quantile(each, 0.95, axis=0)[0]), 1) for name, each in taken.items()
            }
            wrong += [f"{database}: {problem}" for problem in problems]
    slow = {
        f"{database} {name}": value
        for database, values in p95.items()
        for name, value in values.items()
        if value > GOAL_MS
    }
    lines = [
        f"{database} {name}: p95 {value:.0f} ms"
        for database, values in p95.items()
        for name, value in values.items()
    ]
    lines += [*wrong, f"above {GOAL_MS:.0f} ms: {len(slow)} of {sum(map(len, p95.values()))}"]
    result = {
        "setting": {"vehicles": vehicles, "samples": count, "requests": repeats, "wall_s": read_s},
        "p50_ms": p50,
        "p95_ms": p95,
        "processor_p50_ms": processor,
        "above_goal": slow,
        "problems": wrong,
    }
    return finish(__file__, result, options, summary="\n".join(lines), met=not slow and not wrong)


if __name__ == "__main__":
    run(main)
