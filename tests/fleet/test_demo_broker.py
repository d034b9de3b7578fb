"""Both brokers of the demo carry a message at QoS 1, and say so clearly where they cannot start."""

from __future__ import annotations

import threading
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from misfire_fleet.demo.broker import Broker, embedded_broker, find_mosquitto
from misfire_runtime.errors import MisfireError
from proving_ground.services import find_program


def round_trip(broker: Broker) -> bytes:
    arrived = threading.Event()
    ready = threading.Event()
    payloads: list[bytes] = []
    version = mqtt.MQTTv5 if broker.protocol == "5" else mqtt.MQTTv311
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=version)
    client.on_connect = lambda c, *_: c.subscribe("misfire/v1/f/v/reply", qos=1)
    client.on_subscribe = lambda *_: ready.set()

    def keep(_client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        payloads.append(message.payload)
        arrived.set()

    client.on_message = keep
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    try:
        assert ready.wait(10)
        client.publish("misfire/v1/f/v/reply", b"x" * 70_000, qos=1)
        assert arrived.wait(10)
    finally:
        client.disconnect()
        client.loop_stop()
    return payloads[0]


def test_amqtt_carries_messages(tmp_path: Path) -> None:
    with embedded_broker(tmp_path, mosquitto=None) as broker:
        assert broker.protocol == "3.1.1"
        assert round_trip(broker) == b"x" * 70_000


def test_mosquitto_carries_messages(tmp_path: Path) -> None:
    program = find_program("mosquitto", install="apt-get install mosquitto")
    with embedded_broker(tmp_path, mosquitto=program) as broker:
        assert broker.protocol == "5"
        assert round_trip(broker) == b"x" * 70_000


def test_a_mosquitto_is_found_where_one_is_installed() -> None:
    installed = find_program("mosquitto", install="apt-get install mosquitto")
    assert find_mosquitto() == installed


def test_a_broker_that_dies_is_reported_with_its_last_words(tmp_path: Path) -> None:
    program = tmp_path / "broken"
    program.write_text("#!/bin/sh\necho out of luck >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(MisfireError, match="out of luck"), embedded_broker(tmp_path, mosquitto=str(program)):
        pass
