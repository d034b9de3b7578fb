"""Signals from a socket, UDP or a file: understood or counted, and gone when they are old."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from misfire_runtime.errors import ConfigError
from misfire_runtime.sources.context import MAX_KEYS, Context, ContextListener, ContextTable, parse_signals


def wait_for(context: Context, key: str) -> object:
    deadline = time.monotonic() + 5
    while key not in context.snapshot() and time.monotonic() < deadline:
        time.sleep(0.01)
    return context.snapshot().get(key)


def test_pairs_and_json_are_understood() -> None:
    assert parse_signals('speed=13.5 raining=true road="main street" n=-1e3') == {
        "speed": 13.5,
        "raining": True,
        "road": "main street",
        "n": -1000.0,
    }
    assert parse_signals('{"gps": {"lat": 48.4, "fix": true}, "gear": 3, "mode": "auto"}') == {
        "gps.lat": 48.4,
        "gps.fix": True,
        "gear": 3.0,
        "mode": "auto",
    }


DEEP = '{"a":' * 9 + "1" + "}" * 9


@pytest.mark.parametrize(
    "line",
    [
        "speed",
        "=3",
        "1speed=3",
        "a b=3",
        '{"a": [1]}',
        '{"a": null}',
        "[1]",
        "{",
        "a=nan",
        '{"a": NaN}',
        'x="',
        DEEP,
    ],
)
def test_what_is_no_signal_is_refused(line: str) -> None:
    context = Context()
    assert context.update(line) == 0
    assert context.refused == 1 and context.snapshot() == {}


@given(st.text(max_size=80))
def test_no_text_breaks_it(text: str) -> None:
    context = Context()
    context.update(text)
    assert all(isinstance(value, float | str | bool) for value in context.snapshot().values())


def test_an_old_signal_is_gone_and_keys_are_bounded() -> None:
    now = [0.0]
    context = Context(max_age_s=5.0, now=lambda: now[0])
    context.update("speed=10\n# a comment\n\ngear=2")
    assert context.snapshot() == {"speed": 10.0, "gear": 2.0}
    now[0] = 4.0
    context.update("gear=3")
    now[0] = 6.0
    assert context.snapshot() == {"gear": 3.0}
    context.update("\n".join(f"k{number}=1" for number in range(500)))
    assert len(context.snapshot()) <= MAX_KEYS


def test_a_unix_socket_udp_and_a_file_each_deliver(tmp_path: Path) -> None:
    file = tmp_path / "gps.json"
    table = ContextTable(socket=tmp_path / "ctx.sock", udp="127.0.0.1:0", file=file)
    context = Context()
    listener = ContextListener(context, table)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"speed=12", str(tmp_path / "ctx.sock"))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"\xff\xfe\x00", ("127.0.0.1", listener.udp_port or 0))
            sender.sendto(json.dumps({"gear": 4}).encode(), ("127.0.0.1", listener.udp_port or 0))
        file.write_text("lat=48.4 lon=9.9\n")
        assert wait_for(context, "speed") == 12.0
        assert wait_for(context, "gear") == 4.0
        assert wait_for(context, "lon") == 9.9
    finally:
        listener.close()
    assert not (tmp_path / "ctx.sock").exists()


def test_a_socket_left_by_a_crash_is_replaced_but_a_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "ctx.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
        left.bind(str(path))
    ContextListener(Context(), ContextTable(socket=path)).close()
    path.write_text("precious")
    with pytest.raises(ConfigError, match="cannot listen"):
        ContextListener(Context(), ContextTable(socket=path))
    assert path.read_text() == "precious"
