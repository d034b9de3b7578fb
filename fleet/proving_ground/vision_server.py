"""Serves a bundle's classifier as a vision model behind an OpenAI-compatible address, faults on demand.

The answers are the network's own: the likeliest class at temperature 0, else a class drawn from the softmax
at that temperature, by a generator that the picture and the temperature seed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import numpy as np

from misfire_runtime.bundle import Bundle
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.preprocess import decode_image

Fault = Literal["", "silent", "slow", "html", "chat", "empty", "broken", "busy", "redirect", "huge"]


@dataclass
class VisionServer:
    """Holds a running server.

    Attributes:
        url: for --endpoint.
        calls: questions that it answered.
        pictures: SHA-256 of the pictures that it was sent.
        fault: what it does instead of answering, once `good` further questions are answered.
        good: see `fault`.
        keys: values of the Authorization header.
    """

    url: str
    calls: int = 0
    pictures: list[str] = field(default_factory=list)
    fault: Fault = ""
    good: int = 0
    keys: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)


@contextmanager
def vision_server(folder: Path) -> Iterator[VisionServer]:
    """Serves the bundle in `folder` on a free port of this machine until the block ends."""
    scorer = Scorer.load(Bundle.open(folder))
    lock = threading.Lock()
    state = VisionServer("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.keys.append(self.headers.get("Authorization", ""))
            if state.fault and state.good <= 0:
                _misbehave(self, state)
                return
            state.good -= 1
            question = json.loads(body)
            with lock:
                answer = _answer(scorer, question, state)
            state.calls += 1
            _send(self, 200, json.dumps(answer).encode())

        def do_GET(self) -> None:
            state.calls += 1
            _send(self, 200, b"{}")

        def log_message(self, format: str, *args: Any) -> None:
            """Keeps the tests' output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="vision-server")
    thread.start()
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
        scorer.close()


def _answer(scorer: Scorer, question: dict[str, Any], state: VisionServer) -> dict[str, Any]:
    parts = question["messages"][-1]["content"]
    address = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
    data = base64.b64decode(address.split(",", 1)[1])
    state.pictures.append(hashlib.sha256(data).hexdigest())
    scored = scorer.score(decode_image(data))
    logits = np.asarray(scored.answer("logits"), np.float64).reshape(-1)
    temperature = float(question["temperature"])
    if temperature > 0:
        seed = int.from_bytes(hashlib.sha256(data + repr(temperature).encode()).digest()[:8], "big")
        chances = np.exp((logits - logits.max()) / temperature)
        index = int(np.random.default_rng(seed).choice(len(logits), p=chances / chances.sum()))
    else:
        index = int(logits.argmax())
    text = scorer.classes[index]
    return {
        "object": "chat.completion",
        "model": question["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100 + len(data) // 100, "completion_tokens": 1 + len(text) // 4},
    }


def _misbehave(handler: BaseHTTPRequestHandler, state: VisionServer) -> None:
    if state.fault == "silent":
        state.released.wait(30)
        return
    if state.fault == "slow":
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        # A byte now and then: no read of the socket ever times out.
        while not state.released.wait(0.05):
            try:
                handler.wfile.write(b" ")
                handler.wfile.flush()
            except OSError:
                return
        return
    if state.fault == "redirect":
        handler.send_response(307)
        handler.send_header("Location", f"{state.url}/elsewhere")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    chat = {"choices": [{"message": {"content": "I see a lovely picture of something."}}]}
    bodies = {
        "html": b"<html>welcome</html>",
        "chat": json.dumps(chat).encode(),
        "empty": b"{}",
        "broken": b'{"choices": [{"mess',
        "busy": b'{"error": "overloaded"}',
        "huge": b" " * (2 * 1024 * 1024),
    }
    _send(handler, 503 if state.fault == "busy" else 200, bodies[state.fault])


def _send(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    try:
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
    except OSError:
        # The client did not wait: that is what some tests are about.
        time.sleep(0)
