"""What the promise costs: uploads against a bare loop, bytes on the wire, frames per second.

    python benchmarks/speed/throughput.py --json [--quick]

upload       samples of 100 KB from a filled spool to `stored`, both sides durable, over the rate of a bare
             loop that publishes the same bytes at QoS 1 to one that writes and fsyncs each on arrival, in
             the collector's grouping. Broker, publisher and receiver are processes of their own in both. The
             samples are pictures of 5 KB filled up with comments: what is measured is the transport.
wire         TCP bytes in both directions over bytes of payload, offers, verdicts and headers included.
runtime_fps  frames per second of a vehicle's pipeline on the dash-cam clip, over a bare loop that decodes,
             preprocesses as the contract says, and calls session.run (a network of ResNet-18's shape). Per
             second of processor time: on an idle machine that is the frame rate, on a busy one it leaves out
             the turns of other programs (runtime_fps_wall has them in).

Beside them, upload_parallel: over a bare loop that fsyncs eight files side by side, as the collector does.
upload_pictures: the samples are pictures of 92 KB, which the collector decodes before it says `stored`; the
bare loop still only writes them.

Rounds of both alternate in one run; each ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, run
from benchmarks.speed.throughput_frames import run_rounds
from benchmarks.speed.throughput_parts import BarePublisher, fill_spool, spread_over_disk
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.spool import Spool
from misfire_runtime.uplink import Uplink
from proving_ground.faults.chaos_proxy import ChaosProxy
from proving_ground.faults.ground import BROKER_OPTIONS
from proving_ground.faults.samples import make_payload
from proving_ground.faults.zygote import Zygote
from proving_ground.services import mosquitto

SAMPLE_BYTES = 100_000
OPTIONS = f"{BROKER_OPTIONS}\nset_tcp_nodelay true"
"""As the configuration that is shipped."""


def main() -> int:
    """Measures, prints and records."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="misfire-throughput-", dir=options.folder) as folder:
        uploads = _uploads(Path(folder), samples=options.samples, rounds=options.rounds)
        frames = run_rounds(Path(folder), rounds=options.frame_rounds)
    ratios = {
        "upload": statistics.median(uploads["misfire"]) / statistics.median(uploads["bare"]),
        "wire": uploads["wire"],
        "runtime_fps": statistics.median(frames["misfire_cpu"]) / statistics.median(frames["bare_cpu"]),
        "runtime_fps_wall": statistics.median(frames["misfire"]) / statistics.median(frames["bare"]),
        "upload_parallel": statistics.median(uploads["misfire"])
        / statistics.median(uploads["bare_parallel"]),
        "upload_pictures": statistics.median(uploads["misfire_pictures"])
        / statistics.median(uploads["bare"]),
    }
    result = {
        "ratios": {name: round(value, 4) for name, value in ratios.items()},
        "samples_per_s": uploads,
        "frames_per_s": frames,
        "samples": options.samples,
        "sample_bytes": SAMPLE_BYTES,
        "disk": options.disk,
    }
    return finish(__file__, result, options)


def _uploads(folder: Path, *, samples: int, rounds: int) -> dict[str, Any]:
    result: dict[str, Any] = {"misfire": [], "misfire_pictures": [], "bare": [], "bare_parallel": []}
    spread_over_disk(folder)
    with mosquitto(folder / "broker", options=OPTIONS) as broker, Zygote(folder / "log") as zygote:
        address = {"port": broker.port}
        ready = folder / "ready"
        home = {"database": str(folder / "fleet.sqlite"), "blobs": str(folder / "fleet")}
        config = {"home": home, "broker": address, "fleet": "bench", "ready": str(ready)}
        collector = zygote.spawn("collector", config)
        while not ready.exists():
            time.sleep(0.05)
        with (
            BarePublisher(broker.port, folder / "bare", writers=1) as bare,
            BarePublisher(broker.port, folder / "bare-parallel", writers=8) as parallel,
        ):
            for number in range(rounds + 1):
                payloads, pictures = (_samples(f"round {number} {w}", samples, width=w) for w in (128, 1240))
                to = BrokerConfig(**address)
                rates = {
                    "bare": bare.rate(payloads),
                    "bare_parallel": parallel.rate(payloads),
                    "misfire": _upload_rate(folder / f"vehicle-{number}", payloads, to),
                    "misfire_pictures": _upload_rate(folder / f"camera-{number}", pictures, to),
                }
                if number:  # the first round warms up
                    for name, rate in rates.items():
                        result[name].append(round(rate, 1))
        result["wire"] = _wire(folder, broker.port)
        collector.stop()
    return result


def _samples(name: str, count: int, *, width: int) -> list[bytes]:
    return [make_payload(name, number, size=SAMPLE_BYTES, width=width) for number in range(count)]


def _upload_rate(folder: Path, payloads: list[bytes], broker: BrokerConfig) -> float:
    """Samples per second from the first offer to the last verdict booked."""
    with Spool(folder, reserve_bytes=0) as spool:
        fill_spool(spool, payloads)
        uplink = Uplink(spool, fleet="bench", vehicle="car", broker=broker)
        began = time.perf_counter()
        uplink.start()
        assert uplink.drain(300), "the spool did not become empty"
        took = time.perf_counter() - began
        uplink.close()
        assert spool.counters().stored == len(payloads)
    return len(payloads) / took


def _wire(folder: Path, port: int) -> float:
    payloads = [make_payload("wire", n, size=SAMPLE_BYTES) for n in range(100)]
    with ChaosProxy(port) as proxy:
        _upload_rate(folder / "wire", payloads, BrokerConfig(port=proxy.port))
        return sum(proxy.bytes.values()) / sum(map(len, payloads))


def _options() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--folder", type=Path, help="where the disk is that shall be measured")
    parser.add_argument("--disk", default="", help="what it is, for the record")
    options = parser.parse_args()
    options.samples = 100 if options.quick else 400
    options.rounds = 3 if options.quick else 7
    options.frame_rounds = 2 if options.quick else 7
    return options


if __name__ == "__main__":
    run(main)
