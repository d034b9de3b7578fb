"""Implements the checks of `misfire doctor`: each tests one requirement of a vehicle and returns findings.

Only configured parts are checked: without a broker, none is connected to.
"""

from __future__ import annotations

import ctypes
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from misfire_runtime.bundle import Bundle
from misfire_runtime.clock import wall_time
from misfire_runtime.config.tables import VehicleConfig
from misfire_runtime.engines.base import EngineOptions
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.errors import ConfigError, MisfireError
from misfire_runtime.files import read_bounded
from misfire_runtime.messages import Topics
from misfire_runtime.mqtt.certificates import name_problem, validity
from misfire_runtime.mqtt.client import is_loopback
from misfire_runtime.mqtt.connection import Connection, LinkError
from misfire_runtime.samples.privacy import Privacy
from misfire_runtime.service.degrade import read_temperature_c
from misfire_runtime.sources.registry import open_table
from misfire_runtime.spool.ledger import Ledger
from misfire_runtime.spool.schema import snapshot
from misfire_runtime.vehicle.session import broker_config

WARN_DAYS = 30
"""A certificate that expires earlier is a warning: a month to renew it on all vehicles."""
_MAX_CERTIFICATES = 1024 * 1024
"""Bytes of a certificate file; a system's bundle of all authorities has about 200 KiB."""
_TIMEX_BYTES = 512
"""Room for the kernel's struct timex, which has 208 bytes on 64-bit Linux."""
_TIME_ERROR = 5
"""TIME_ERROR of <sys/timex.h>: the clock is not synchronised."""


@dataclass(frozen=True)
class Finding:
    """Holds the result of one check."""

    check: str
    status: Literal["ok", "warn", "fail"]
    text: str


def examine(config: VehicleConfig) -> list[Finding]:
    """Runs all checks and returns their findings; an error in a check is a finding, too.

    Args:
        config: the vehicle's configuration.
    """
    checks: list[tuple[str, Callable[[VehicleConfig], Iterator[Finding]]]] = [
        ("python", _python),
        ("engine", _engine),
        ("disk", _disk),
        ("spool", _spool),
        ("clock", _clock),
        ("sources", _sources),
        ("privacy", _privacy),
        ("certificates", _certificates),
        ("broker", _broker),
        ("heat", _heat),
    ]
    findings: list[Finding] = []
    for name, check in checks:
        try:
            findings += check(config)
        except (MisfireError, OSError, ValueError) as error:
            findings.append(Finding(name, "fail", str(error)))
    return findings


def passed(findings: list[Finding]) -> bool:
    """Returns True if no check failed; warnings are allowed."""
    return all(finding.status != "fail" for finding in findings)


def _python(_config: VehicleConfig) -> Iterator[Finding]:
    text = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding("python", "ok" if sys.version_info >= (3, 10) else "fail", text)


def onnxruntime_conflict(installed: Callable[[str], str] = version) -> Finding:
    """Checks that only one of onnxruntime and onnxruntime-gpu is installed.

    They share a folder, so removing one of the two breaks the other.
    """
    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found[name] = installed(name)
        except PackageNotFoundError:
            continue
    if len(found) == 2:
        text = "onnxruntime and onnxruntime-gpu are installed and overwrite each other; uninstall both, then "
        return Finding("engine", "fail", text + "install misfire[cpu] or misfire[gpu]")
    if not found:
        return Finding("engine", "fail", "no ONNX Runtime; install misfire[cpu] or misfire[gpu]")
    name, number = next(iter(found.items()))
    return Finding("engine", "ok", f"{name} {number}")


def _engine(config: VehicleConfig) -> Iterator[Finding]:
    conflict = onnxruntime_conflict()
    yield conflict
    if conflict.status == "fail":
        return
    import onnxruntime

    yield Finding("engine", "ok", "providers listed: " + ", ".join(onnxruntime.get_available_providers()))
    if config.bundle is None:
        yield Finding("engine", "warn", "no bundle given: which provider really loads was not tried")
        return
    scorer = Scorer.load(Bundle.open(config.bundle), options=EngineOptions(**config.engine.model_dump()))
    try:
        yield Finding("engine", "ok", f"{scorer.label} is intact and runs on {scorer.engine.provider}")
        if scorer.calibration_differs is not None:
            yield Finding("engine", "warn", f"{scorer.calibration_differs}: thresholds may not hold")
    finally:
        scorer.close()


def _disk(config: VehicleConfig) -> Iterator[Finding]:
    folder = config.spool.path
    # The spool is made at the first run; its disk is that of the nearest folder.
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    needed = config.spool.reserve_bytes
    status: Literal["ok", "warn", "fail"] = "ok"
    if free < needed:
        status = "fail"
    elif free < needed + config.spool.max_bytes:
        status = "warn"
    wanted = f"the spool may take {config.spool.max_bytes >> 20} MiB and leaves {needed >> 20} MiB"
    yield Finding("disk", status, f"{free >> 20} MiB free at {folder}; {wanted}")


def _clock(_config: VehicleConfig) -> Iterator[Finding]:
    now = wall_time()
    built = Path(__file__).stat().st_mtime
    text = datetime.fromtimestamp(now, timezone.utc).isoformat(timespec="seconds")
    if now < built - 86400:
        yield Finding("clock", "fail", f"{text} lies before this software was installed; set the clock")
        return
    synchronised = clock_is_synchronised()
    if synchronised is None:
        yield Finding("clock", "warn", f"{text}; whether it is synchronised cannot be told here")
    elif synchronised:
        yield Finding("clock", "ok", f"{text}, synchronised")
    else:
        yield Finding("clock", "warn", f"{text}, not synchronised; times of samples may be wrong")


def clock_is_synchronised() -> bool | None:
    """Returns whether the kernel (ntp_adjtime) has a synchronised clock; None if it cannot be asked."""
    try:
        # A buffer of zeros asks for the state and changes nothing.
        state = ctypes.CDLL(None).ntp_adjtime(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (AttributeError, OSError):
        return None
    return None if state < 0 else bool(state != _TIME_ERROR)


def _sources(config: VehicleConfig) -> Iterator[Finding]:
    for table in config.source:
        source = open_table(table)
        stop = threading.Event()
        if source.live:
            device = Path(table.input.removeprefix("v4l2:"))
            here = not str(device).startswith("/dev/") or device.exists()
            yield Finding(
                "sources", "ok" if here else "fail", f"{source.name}" + ("" if here else " is not there")
            )
            continue
        first = next(iter(source.frames(stop)), None)
        source.close()
        if first is None:
            problem = source.counts.problems[0] if source.counts.problems else "no frames"
            yield Finding("sources", "fail", f"{source.name}: {problem}")
        else:
            height, width = first.image.shape[:2]
            yield Finding("sources", "ok", f"{source.name}: {width}x{height}")


def _privacy(config: VehicleConfig) -> Iterator[Finding]:
    if config.privacy is not None:
        problem = Privacy(config.privacy).problem
        yield Finding("privacy", "ok" if problem is None else "fail", problem or "every stage loads")


def _certificates(config: VehicleConfig) -> Iterator[Finding]:
    try:
        broker = broker_config(config)
    except ConfigError:
        return  # the check of the broker reports it
    if broker is None:
        return
    for file in (broker.ca_file, broker.cert_file):
        if file is not None:
            since, until = validity(read_bounded(file, max_bytes=_MAX_CERTIFICATES))
            yield lifetime(file.name, since, until, now=wall_time())
    if broker.cert_file is not None and (problem := name_problem(broker.cert_file, config.vehicle)):
        # With a configured client id, the broker may identify vehicles by that, as AWS IoT Core does.
        yield Finding("certificates", "warn" if broker.client_id else "fail", problem)


def lifetime(name: str, since: float, until: float, *, now: float) -> Finding:
    """Checks whether a certificate is valid now, and for how long.

    Args:
        name: name of the file, for the finding.
        since: start of validity, seconds since 1970.
        until: end of validity, seconds since 1970.
        now: seconds since 1970.
    """
    days = (until - now) / 86400
    if now < since:
        text = f"{name} is not valid before {_date(since)}, and this clock says {_date(now)}"
        return Finding("certificates", "fail", text)
    if days <= 0:
        return Finding("certificates", "fail", f"{name} expired on {_date(until)}; renew it")
    status: Literal["ok", "warn"] = "warn" if days < WARN_DAYS else "ok"
    return Finding("certificates", status, f"{name} is valid until {_date(until)}, {int(days)} more days")


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).date().isoformat()


def _broker(config: VehicleConfig) -> Iterator[Finding]:
    broker = broker_config(config)
    if broker is None:
        return
    if not broker.tls and not is_loopback(broker.host):
        text = "is not encrypted: anybody on the way can read pictures, and forge verdicts that delete them"
        yield Finding("broker", "warn", f"{broker.url} {text}")
    # The vehicle's own topic, so that the broker's access rules are tested, too.
    replies = Topics(config.fleet, config.vehicle).reply
    # Not the vehicle's own: the broker would end the connection of a running vehicle.
    client_id = f"misfire-doctor-{socket.gethostname()[:32]}"
    connection = Connection(broker, client_id=client_id, subscriptions=(replies,))
    try:
        connection.open()
    except LinkError as error:
        connection.close(in_order=False)
        yield Finding("broker", "fail", str(error))
        return
    connection.close(in_order=True)
    yield Finding("broker", "ok", f"{broker.url} speaks MQTT {broker.protocol}")


def _spool(config: VehicleConfig) -> Iterator[Finding]:
    """Checks the counters of a spool without writing to it, also while a vehicle uses it."""
    file = config.spool.path / "spool.sqlite"
    if not file.is_file():
        return
    with closing(snapshot(file)) as copy:
        yield from _counters(Ledger(copy), config.spool.path)


def _counters(ledger: Ledger, folder: Path) -> Iterator[Finding]:
    counters = ledger.counters()
    ended = {name: counters.get(name, 0) for name in ("stored", "pending", "declined", "rejected", "evicted")}
    captured = counters.get("captured", 0)
    text = f"{captured} captured = " + " + ".join(f"{count} {name}" for name, count in ended.items())
    if captured == sum(ended.values()):
        yield Finding("spool", "ok", f"{folder}: {text}")
    else:
        text = text.replace(" = ", " is not ")
        yield Finding("spool", "fail", f"{folder}: the counters do not add up: {text}")
    gone = sum(not (folder / "samples" / sample).is_file() for sample, _size in ledger.lengths())
    if gone:
        yield Finding("spool", "warn", f"{gone} pending samples have no file in {folder / 'samples'}")
    for reason, count in sorted(ledger.lost().items()):
        yield Finding("spool", "warn", f"{count} chosen frames were lost: {reason}")
    hold = ledger.hold()
    if hold is not None:
        yield Finding("spool", "fail", f"nothing is offered since {_date(hold.since)}: {hold.reason}")


def _heat(config: VehicleConfig) -> Iterator[Finding]:
    heat = read_temperature_c(config.degrade.temperature_file)
    limit = config.degrade.temperature_c
    if heat is not None and limit is not None:
        yield Finding("heat", "ok" if heat < limit else "warn", f"{heat:.0f} of {limit:.0f} degrees Celsius")
