"""A vehicle on an endless camera that is told a wish; the tests of probation start it and kill it.

python wish_process.py BUNDLE FOLDER PROBATION WISH: the last two are JSON, WISH may be empty. Prints a JSON
line for what was restored, for the answer to the wish, and about once a second for what is in force.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from vehicle_support import camera

from misfire_runtime.bundle import Bundle
from misfire_runtime.config.tables import VehicleConfig
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.messages import Desired, Reported
from misfire_runtime.spool import Spool
from misfire_runtime.vehicle.live_config import LiveConfig
from misfire_runtime.vehicle.pipeline import Vehicle
from misfire_runtime.vehicle.probation import Probation


def say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def told(reported: Reported | None) -> dict[str, Any] | None:
    return None if reported is None else reported.model_dump(mode="json")


def main(bundle: str, folder: str, probation: str, wish: str) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def tick(vehicle: Vehicle) -> None:
        live.watch()
        say(version=live.desired_version, quality=vehicle.config.encode.jpeg_quality)

    spool = Spool(Path(folder) / "spool")
    vehicle = Vehicle(
        VehicleConfig(),
        scorer=Scorer.load(Bundle.open(Path(bundle))),
        store=spool,
        sources=[camera(period_s=0.01, side=16)],
        state_dir=Path(folder) / "state",
        on_tick=tick,
    )
    live = LiveConfig(
        vehicle,
        config=vehicle.config,
        state_dir=Path(folder) / "state",
        probation=Probation(**json.loads(probation)),
        report=lambda reported: say(later=told(reported)),
    )

    say(restored=told(live.restore()))
    if wish:
        say(answer=told(live.take_desired(Desired.model_validate_json(wish))))
    vehicle.run(stop)
    vehicle.close()
    live.close()
    spool.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
