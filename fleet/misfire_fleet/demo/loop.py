"""Runs the loop once with every part real: train, export, drive, upload, label, retrain, re-export.

data set --split--> train | holdout | calibration | field --write_drive--> three folders of frames
train --> run --> bundle --> three `misfire run` processes --MQTT--> collector --> store --> console
store + true labels --> retrained run --> new bundle; accuracy on the frozen test half, clean and shifted
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from misfire_export.options import Options as ExportOptions
from misfire_export.sources.frames import frames_of_run
from misfire_export.sources.run import export_run
from misfire_fleet.collector import Collector
from misfire_fleet.commands.serve import listen
from misfire_fleet.console.access.settings import AccessSettings
from misfire_fleet.console.app import create_app
from misfire_fleet.demo.broker import Broker, embedded_broker
from misfire_fleet.demo.counting import Findings, count, failing_samples
from misfire_fleet.demo.drive import Frame, write_drive
from misfire_fleet.demo.labels import write_labels
from misfire_fleet.demo.plan import Plan
from misfire_fleet.demo.triggering import choose_scores, write_triggers
from misfire_fleet.demo.vehicles import Assignment, running_vehicles
from misfire_fleet.retrain.command import Outcome, retrain_from_store
from misfire_fleet.store import Store
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.service.worker import Worker
from misfire_train.data import Examples, load_dataset
from misfire_train.fit import train_run
from misfire_train.runs import Run, run_splits
from misfire_train.train_config import TrainConfig, parse_train_config

FLEET = "demo"
VEHICLES = 3
_DRIVE_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Result:
    """Holds the demo's numbers. `bytes` are those of the stored uploads; accuracies are shares, 0..1 (F1
    for detection)."""

    dataset: str
    accuracy_name: str
    frames: int
    uploaded: int
    stored: int
    bytes: int
    failures_uploaded: int
    failures_random: float
    accuracy_before_clean: float
    accuracy_after_clean: float
    accuracy_before_shifted: float
    accuracy_after_shifted: float

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as a dict for JSON."""
        return asdict(self)


class Demo:
    """Runs the loop.

    Args:
        out: an empty folder for all files.
        dataset: name of the data set.
        plan: sizes of training and drives, and the weather.
        data: folder of the data set, None for the default.
        seed: random seed.
        mosquitto: path of the mosquitto program; None runs amqtt.
        say: receives one sentence per step.
    """

    def __init__(
        self,
        out: Path,
        *,
        dataset: str,
        plan: Plan,
        data: Path | None,
        seed: int,
        mosquitto: str | None,
        say: Callable[[str], None],
    ) -> None:
        self.out = out
        self.plan = plan
        self.seed = seed
        self.mosquitto = mosquitto
        self.say = say
        self.config = train_config(dataset, plan, data=data, seed=seed)
        self.dataset = load_dataset(dataset, root=data)

    @contextmanager
    def running(self) -> Iterator[Result]:
        """Runs the loop; broker, collector and console keep running until the block ends."""
        with ExitStack() as stack:
            # The broker first, so that it ends last: the others still disconnect in order.
            broker = stack.enter_context(embedded_broker(self.out / "broker", mosquitto=self.mosquitto))
            store = stack.enter_context(Store.open_folder(self.out / "fleet"))
            self.say(f"broker: {broker.name} on port {broker.port}, MQTT {broker.protocol}")
            self.say(f"console: {stack.enter_context(_console(store))}")
            stack.enter_context(_collector(store, broker))
            yield self._turn(store, broker)

    def _turn(self, store: Store, broker: Broker) -> Result:
        score = "" if self.config.head.recipe == "none" else ", and its failure score on held-out losses"
        self.say(f"training a small network on {self.dataset.name}{score}")
        run = train_run(self.config, out=self.out / "run", command="misfire demo")
        parts = run_splits(run, self.dataset)
        right = run.record.metrics["test_accuracy"]
        name = run.task.accuracy_name
        self.say(f"trained on {len(parts['train'])} images: {name} {right:.1%} on the test half")
        bundle = export_run(
            run,
            frames_of_run(run, self.dataset),
            out=self.out / "bundle",
            options=ExportOptions(f"demo-{self.dataset.name}", "1.0.0"),
        )
        trigger = bundle.manifest.default_score
        self.say(f"exported {bundle.manifest.label}; it triggers on {trigger}")
        triggers = self._choose_triggers(bundle.path, parts["calibration"], run)
        drives = self._write_drives(parts["field"])
        self.say(f"{VEHICLES} vehicles drive {sum(map(len, drives))} frames; bad weather comes half way")
        reports = self._drive(bundle.path, broker, triggers)
        truth = {frame.sample: frame for drive in drives for frame in drive}
        failing = failing_samples(bundle.path, list(truth.values()), run.task)
        stored = store.among(list(truth))
        findings = count(stored, failing, frames=len(truth))
        labels = write_labels(
            self.out / "labels.csv", [(sample, truth[sample.id]) for sample in stored], self.dataset
        )
        self.say(f"{findings.uploads} uploads stored and labelled; retraining on them")
        outcome = retrain_from_store(
            run,
            store,
            labels=labels,
            dataset=self.dataset,
            out=self.out / "run-2",
            bundle_out=self.out / "bundle-2",
        )
        return self._result(run, reports, findings, outcome)

    def _write_drives(self, field: Examples) -> list[list[Frame]]:
        deal = np.random.default_rng(self.seed).permutation(len(field))
        return [
            write_drive(
                self.out / "drives" / f"vehicle-{number + 1}",
                field.take(deal[number::VEHICLES]),
                weather=self.plan.weather,
                severity=self.plan.severity,
                frames=self.plan.frames_per_vehicle,
                seed=self.seed + 1000 * (number + 1),
            )
            for number in range(VEHICLES)
        ]

    def _choose_triggers(self, bundle: Path, held_out: Examples, run: Run) -> Path | None:
        """Returns a file with the vehicles' triggers; None leaves them to the bundle."""
        if not self.plan.triggers:
            return None
        choice = choose_scores(
            bundle,
            held_out,
            run.task,
            candidates=self.plan.triggers,
            weather=self.plan.weather,
            severity=self.plan.severity,
            rate=self.plan.upload_rate,
            seed=self.seed,
        )
        self.say(
            f"vehicles trigger on {' or '.join(choice.scores)}: on held-out frames that finds "
            f"{choice.found} failures in {choice.uploads} uploads, a random sample {choice.random}"
        )
        return write_triggers(self.out / "vehicle.toml", choice.scores, rate=self.plan.upload_rate)

    def _drive(self, bundle: Path, broker: Broker, triggers: Path | None) -> list[Mapping[str, Any]]:
        (self.out / "vehicles").mkdir(exist_ok=True)
        assignments = [
            Assignment(
                name=f"vehicle-{number}",
                bundle=bundle,
                source=self.out / "drives" / f"vehicle-{number}",
                spool=self.out / "vehicles" / f"vehicle-{number}",
                rate=self.plan.upload_rate,
                seed=self.seed + number,
                triggers=triggers,
            )
            for number in range(1, VEHICLES + 1)
        ]
        with running_vehicles(assignments, broker, fleet=FLEET) as vehicles:
            return [vehicle.result(timeout_s=_DRIVE_TIMEOUT_S) for vehicle in vehicles]

    def _result(
        self, run: Run, reports: list[Mapping[str, Any]], findings: Findings, outcome: Outcome
    ) -> Result:
        before, after = outcome.before, outcome.after
        return Result(
            dataset=self.dataset.name,
            accuracy_name=run.task.accuracy_name,
            frames=sum(report["frames"] for report in reports),
            uploaded=sum(report["counters"]["stored"] for report in reports),
            stored=findings.uploads,
            bytes=findings.bytes,
            failures_uploaded=findings.failures_uploaded,
            failures_random=findings.failures_random,
            accuracy_before_clean=round(before["clean"], 4),
            accuracy_after_clean=round(after["clean"], 4),
            accuracy_before_shifted=round(before["shifted"], 4),
            accuracy_after_shifted=round(after["shifted"], 4),
        )


def train_config(dataset: str, plan: Plan, *, data: Path | None, seed: int) -> TrainConfig:
    """Returns the configuration of the first training."""
    return parse_train_config(
        {"dataset": dataset, "data": data, "seed": seed},
        overrides={
            "split.field": plan.field,
            "split.limit": plan.limit,
            "training.epochs": plan.epochs,
            **plan.training,
        },
        source=f"the demo's plan for {dataset}",
    )


@contextmanager
def _collector(store: Store, broker: Broker) -> Iterator[Collector]:
    address = BrokerConfig(host="127.0.0.1", port=broker.port, protocol=broker.protocol)
    collector = Collector(store, broker=address, fleet=FLEET, name="demo-collector")
    collector.start()
    try:
        yield collector
    finally:
        collector.close()


@contextmanager
def _console(store: Store) -> Iterator[str]:
    """Runs the console in a thread on a free port and yields its URL."""
    listener = listen("127.0.0.1", 0)
    app = create_app(store, access=AccessSettings(open_to_all=True))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False))

    def end() -> None:
        server.should_exit = True

    worker = Worker("console", lambda _stop: server.run(sockets=[listener]), wake=end)
    worker.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        worker.close(timeout_s=10)
        listener.close()
