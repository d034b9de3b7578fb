"""The hostile side of attacks.py, which starts `python -m benchmarks.endurance.attacks_hostile NAME STAGE`.

STAGE is a JSON file with the port, the folder of stolen certificates, the console's address, and how many
seconds to attack. Each attack goes on until its time is over, and returns what it got and must not.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import queue
import random
import re
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho

from benchmarks.endurance.attacks_stage import FLEET, HONEST, SCENES, scene
from misfire_fleet.collector.settings import CollectorSettings
from misfire_runtime.messages import Reply, Send, Stored, Topics, Verdict, encode
from misfire_runtime.mqtt.client import BrokerConfig, make_client
from misfire_runtime.testing import make_offer
from proving_ground.client import Vehicle
from proving_ground.foreign_bytes import PLAYLISTS, encoded, many_scans, numbered, png, png_chunk

Got = dict[str, int]


@dataclass
class Target:
    """Where to attack, and until when."""

    tls_port: int
    secrets: Path
    console: str
    seconds: float

    def __post_init__(self) -> None:
        self.until = time.monotonic() + self.seconds
        self.did: Counter[str] = Counter()
        """What was done, and answered: an attack that does nothing proves nothing."""

    @property
    def over(self) -> bool:
        return time.monotonic() > self.until

    def certificate(self, name: str) -> BrokerConfig:
        """A stolen one."""
        return BrokerConfig(
            port=self.tls_port,
            tls=True,
            ca_file=self.secrets / "ca.crt",
            cert_file=self.secrets / f"{name}.crt",
            key_file=self.secrets / f"{name}.key",
        )

    def vehicle(self, name: str = "evil") -> Vehicle:
        """One that is connected and hears its verdicts."""
        made = Vehicle(self.certificate(name), name, fleet=FLEET)
        made.connect()
        return made

    def listener(self, name: str, *topics: str) -> list[str]:
        """Subscribes with a stolen certificate; the topics of whatever it is given."""
        heard: list[str] = []
        client = make_client(self.certificate(name), client_id=name)
        client.on_connect = lambda c, *_: c.subscribe([(topic, 1) for topic in topics])
        client.on_message = lambda _c, _d, message: heard.append(message.topic)
        client.connect("127.0.0.1", self.tls_port)
        client.loop_start()
        return heard

    def rest(self) -> None:
        """Waits until the time is over."""
        while not self.over:
            time.sleep(0.1)


def _client(vehicle: Vehicle) -> paho.Client:
    assert vehicle.client is not None
    return vehicle.client


def _wait(target: Target, sent: paho.MQTTMessageInfo) -> None:
    """Until the message is written, so that the client's own queue stays short."""
    try:
        sent.wait_for_publish(5)
    except RuntimeError:  # the broker ended the connection
        target.did["connections lost"] += 1
        time.sleep(0.05)


def _stored(target: Target, payloads: list[tuple[str, bytes]], *, name: str = "evil") -> int:
    """Uploads these again and again, each time as another file; how many were stored."""
    vehicle, stored = target.vehicle(name), 0
    for number in itertools.count():
        if target.over:
            return stored
        media_type, data = payloads[number % len(payloads)]
        data = _renewed(data, f"{name} {number}")
        vehicle.offer(make_offer(data, vehicle=name, media_type=media_type))
        try:
            while isinstance(verdict := vehicle.hear(timeout_s=2.0), Send):
                vehicle.send(data, verdict)
            target.did[_said(verdict)] += 1
            stored += isinstance(verdict, Stored)
        except queue.Empty:
            target.did["silence"] += 1
    return stored


def _said(verdict: Verdict) -> str:
    """A verdict in brief, without numbers."""
    return f"{verdict.verdict} {re.sub('[0-9]+', 'N', getattr(verdict, 'reason', ''))}"[:60]


def _renewed(data: bytes, note: str) -> bytes:
    """The same content as another file."""
    if data.startswith(b"\xff\xd8"):
        return data[:2] + b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note.encode() + data[2:]
    if data.startswith(b"\x89PNG"):
        return data[:-12] + png_chunk(b"tEXt", b"n\0" + note.encode()) + data[-12:]
    return data + note.encode()


def foreign_clips(target: Target) -> Got:
    """Texts that FFmpeg follows to files and ports, and pictures, all called video/mp4."""
    texts = [("video/mp4", data) for data in PLAYLISTS.values()]
    pictures = [("video/mp4", encoded(suffix)) for suffix in (".png", ".bmp", ".webp")]
    return {"foreign bytes stored": _stored(target, texts + pictures)}


def bombs(target: Target) -> Got:
    """Pictures that are small files and large costs, from several vehicles at once."""
    scans, deep = many_scans(400, side=6000), png(8000, 8000, colour=6, depth=16)
    wide = png(20_000, 20_000, colour=0, depth=8)
    payloads = [("image/jpeg", scans), ("image/png", deep), ("image/png", wide)]
    with ThreadPoolExecutor(4) as pool:
        names = ("evil", "evil-1", "evil-2", "evil-3")
        return {"bombs stored": sum(pool.map(lambda name: _stored(target, payloads, name=name), names))}


def thumbnails(target: Target) -> Got:
    """A picture as large as is allowed, and its thumbnails in every width for many readers."""
    data = png(6000, 6000)
    vehicle = target.vehicle()
    offer = make_offer(data, vehicle="evil", media_type="image/png")
    vehicle.offer(offer)
    while isinstance(verdict := vehicle.hear(timeout_s=20.0), Send):
        vehicle.send(data, verdict)
    target.did[_said(verdict)] += 1

    def read() -> None:
        while not target.over:
            url = f"{target.console}/thumbs/{offer.id}?width={random.randint(16, 1024)}"
            try:
                with urllib.request.urlopen(url, timeout=20) as answer:
                    target.did[f"status {answer.status}"] += 1
            except urllib.error.HTTPError as error:
                target.did[f"status {error.code}"] += 1
                time.sleep(0.05)
            except OSError:
                target.did["no answer"] += 1

    readers = [threading.Thread(target=read, daemon=True) for _ in range(12)]
    for reader in readers:
        reader.start()
    target.rest()
    return {}


def huge_numbers(target: Target) -> Got:
    """Integers of 401 digits, NaN and bottomless nesting in offers, heartbeats and states."""
    vehicle, client = (made := target.vehicle()), _client(made)
    picture, number, stored = encoded(".jpg"), 0, 0
    digits = "1" + "0" * 400
    while not target.over:
        data = numbered(picture, number)
        text = encode(make_offer(data, vehicle="evil")).decode()
        nested = "[" * 5000 + "]" * 5000
        for value in (digits, "NaN", "1e999", nested):
            client.publish(vehicle.topics.offer, text.replace("0.6", value), qos=1)
        clock = '{"wall": 1e308, "monotonic": 0, "boot_id": ""}'
        beat = f'{{"v": 1, "at": {clock}, "bundle": "b", "counters": {{"pending": {digits}}}}}'
        client.publish(vehicle.topics.telemetry, beat, qos=0)
        client.publish(vehicle.topics.telemetry, beat.replace("1e308", "1"), qos=0)
        client.publish(
            vehicle.topics.state, f'{{"v":1,"online":true,"session":{digits}}}', qos=1, retain=True
        )
        for _ in range(4):
            try:
                if isinstance(verdict := vehicle.hear(timeout_s=0.2), Send):
                    vehicle.send(data, verdict)
                target.did[_said(verdict)] += 1
                stored += isinstance(verdict, Stored)
            except queue.Empty:
                break
        number += 1
    return {"unbounded numbers stored": stored}


def reservations(target: Target) -> Got:
    """Nine vehicles offer 32 MiB again and again, and send a byte of it now and then."""
    vehicles = [target.vehicle(name) for name in ("evil", *(f"evil-{number}" for number in range(8)))]
    round_ = 0
    while not target.over:
        for vehicle in vehicles:
            for number in range(8):
                fake = hashlib.sha256(f"{vehicle.name}{number}".encode()).hexdigest()
                offer = make_offer(b"x", vehicle=vehicle.name, id=fake, size=32 * 1024 * 1024)
                vehicle.offer(offer)
            while not vehicle.verdicts.empty():
                verdict = vehicle.verdicts.get()
                target.did[_said(verdict)] += 1
                if isinstance(verdict, Send):
                    topic = vehicle.topics.data(verdict.collector, verdict.id, verdict.offset)
                    vehicle.publish(topic, b"x")
        round_ += 1
        time.sleep(0.5)
    return {}


def group(target: Target) -> Got:
    """Nine certificates join the usual group, and guesses of others, of the shared subscription."""
    guesses = (CollectorSettings().group, "misfire", "collector", "fleet", FLEET)
    topics = [f"$share/{guess}/misfire/v1/{FLEET}/+/offer" for guess in guesses]
    heard = [target.listener(name, *topics) for name in ("evil", *(f"evil-{n}" for n in range(8)))]
    target.did["memberships"] = len(topics) * len(heard)
    target.rest()
    return {"offers delivered to a thief": sum(map(len, heard))}


def _retained(target: Target, size: int) -> Got:
    client = _client(target.vehicle())
    body, number = b"x" * size, 0
    topics = Topics(FLEET, "evil")
    while not target.over:
        sent = client.publish(
            topics.data("nobody", f"{number % 1000:064d}", number), body, qos=0, retain=True
        )
        number += 1
        if number % 50 == 0:
            _wait(target, sent)
    target.did["messages"] = number
    return {}


def retained_large(target: Target) -> Got:
    """Retained messages of the largest size in data topics, as fast as the line goes."""
    return _retained(target, 120 * 1024)


def retained_small(target: Target) -> Got:
    """Tiny retained messages in data topics, as many as the line takes."""
    return _retained(target, 1)


def near_duplicates(target: Target) -> Got:
    """Offers the scenes that the honest vehicle will see next, and never sends a byte."""
    vehicle, first = target.vehicle(), 0
    while not target.over:
        for number in range(first, first + 40):
            for copy in range(3):
                fake = hashlib.sha256(f"{number} {copy}".encode()).hexdigest()
                vehicle.offer(make_offer(b"x", vehicle="evil", id=fake, size=1000, embedding=scene(number)))
                target.did["offers"] += 1
        first = (first + 40) % SCENES
        time.sleep(0.3)
    return {}


def reserved_names(target: Target) -> Got:
    """Certificates named as servers listen to all; others write as another vehicle and into another fleet."""
    heard = [target.listener(name, "#", f"misfire/v1/{FLEET}/#", "$SYS/#") for name in ("evil", "evil-1")]
    topics = (f"misfire/v1/{FLEET}/+/offer", f"misfire/v1/{FLEET}/+/data/#", f"misfire/v1/{FLEET}/+/reply")
    heard += [target.listener(name, *topics) for name in ("collector", "operator", "_canary")]
    number = 0
    while not target.over:
        vehicle = target.vehicle(f"evil-{2 + number % 6}")
        other = Topics(FLEET, HONEST)
        for topic in (
            other.offer,
            other.state,
            other.reported,
            other.desired,
            f"misfire/v1/other/{HONEST}/offer",
        ):
            vehicle.publish(topic, b"{}")
            target.did["forged messages"] += 1
        time.sleep(0.2)
        vehicle.close()
        number += 1
    return {"messages heard by a thief": sum(map(len, heard))}


def forged_replies(target: Target) -> Got:
    """Verdicts and requests in the honest vehicle's name, from every stolen certificate."""
    number = 0
    while not target.over:
        name = ("evil", "collector", "operator", "_canary")[number % 4]
        client = make_client(target.certificate(name), client_id=name)
        client.connect("127.0.0.1", target.tls_port)
        client.loop_start()
        fake = hashlib.sha256(str(number).encode()).hexdigest()
        verdicts = [Stored(id=fake), Send(id=fake, collector="thief", chunk_bytes=1024)]
        for _ in range(20):
            client.publish(Topics(FLEET, HONEST).reply, encode(Reply(verdicts=verdicts)), qos=1)
            target.did["forged replies"] += 1
        time.sleep(0.2)
        client.disconnect()
        client.loop_stop()
        number += 1
    return {}


def offer_flood(target: Target) -> Got:
    """Tiny offers as fast as the line goes, in the own name, in made-up names, and as babble."""
    vehicle, client = (made := target.vehicle()), _client(made)
    text = encode(make_offer(b"x", vehicle="evil")).decode()
    old = make_offer(b"x").id
    number = 0
    while not target.over:
        fake = hashlib.sha256(str(number).encode()).hexdigest()
        claimed = text.replace(old, fake)
        if number % 3 == 1:
            claimed = claimed.replace('"evil"', f'"ghost-{number}"')
        sent = client.publish(vehicle.topics.offer, claimed, qos=0)
        number += 1
        if number % 100 == 0:
            _wait(target, sent)
    target.did["offers"] = number
    return {}


def small_chunks(target: Target) -> Got:
    """Whole samples in chunks of two bytes."""
    vehicle, client = (made := target.vehicle()), _client(made)
    data = bytes(8 * 1024 * 1024)
    number = 0
    while not target.over:
        body = numbered(b"\xff\xd8" + data, number)
        number += 1
        vehicle.offer(make_offer(body, vehicle="evil"))
        try:
            verdict = vehicle.hear(timeout_s=3.0)
        except queue.Empty:
            continue
        at = 0
        while isinstance(verdict, Send) and not target.over and vehicle.verdicts.empty():
            sent = client.publish(
                vehicle.topics.data(verdict.collector, verdict.id, at), body[at : at + 2], qos=0
            )
            at += 2
            if at % 200 == 0:
                _wait(target, sent)
        target.did["chunks"] += at // 2
        target.did[_said(verdict)] += 1
    return {}


def chunk_flood(target: Target) -> Got:
    """Large chunks of a transfer that is not open, at a collector by name, as fast as the line goes."""
    vehicle, client = (made := target.vehicle()), _client(made)
    vehicle.offer(make_offer(b"x" * 1000, vehicle="evil"))
    verdict = vehicle.hear()
    collector = verdict.collector if isinstance(verdict, Send) else "unknown"
    body, number = bytes(120 * 1024), 0
    while not target.over:
        sent = client.publish(vehicle.topics.data(collector, "0" * 64, 0), body, qos=0)
        number += 1
        if number % 20 == 0:
            _wait(target, sent)
    target.did["chunks"] = number
    return {}


def connections(target: Target) -> Got:
    """Connects again and again with every stolen certificate, and holds half-open handshakes."""
    held: list[socket.socket] = []
    context = ssl.create_default_context(cafile=str(target.secrets / "ca.crt"))
    context.check_hostname = False
    context.load_cert_chain(target.secrets / "evil.crt", target.secrets / "evil.key")
    while not target.over:
        try:
            raw = socket.create_connection(("127.0.0.1", target.tls_port), timeout=5)
            if len(held) < 200:
                held.append(raw)
                continue
            with context.wrap_socket(raw, server_hostname="127.0.0.1") as wrapped:
                target.did["handshakes"] += 1
                wrapped.send(b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x1e\x00\x00\x02hi")
        except OSError:
            time.sleep(0.01)
    return {}


ATTACKS: dict[str, Callable[[Target], Got]] = {
    attack.__name__: attack
    for attack in (
        *(
            foreign_clips,
            huge_numbers,
            reservations,
            group,
            bombs,
            thumbnails,
            retained_large,
            retained_small,
        ),
        *(
            near_duplicates,
            reserved_names,
            forged_replies,
            offer_flood,
            small_chunks,
            chunk_flood,
            connections,
        ),
    )
}


def main(arguments: list[str]) -> None:
    """Attacks and prints what was got."""
    name, file = arguments
    fields: dict[str, Any] = json.loads(Path(file).read_text())
    target = Target(fields["tls_port"], Path(fields["secrets"]), fields["console"], fields["seconds"])
    got = ATTACKS[name](target)
    print(json.dumps({"got": got, "did": dict(target.did)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
