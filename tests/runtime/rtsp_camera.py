"""A small RTSP server that plays a clip over interleaved TCP (RFC 2326, RFC 6184), as an IP camera does."""

from __future__ import annotations

import base64
import contextlib
import socket
import struct
import threading
from pathlib import Path

import av

MAX_PAYLOAD = 1400


class RtspCamera:
    """Serves one clip in a loop to whoever connects; after `silent_after` frames it sends no more."""

    def __init__(
        self, clip: Path, *, port: int = 0, fps: float = 100.0, silent_after: int | None = None
    ) -> None:
        self._units = _access_units(clip)
        self._sps, self._pps = _parameter_sets(clip)
        self._period_s, self._silent_after = 1.0 / fps, silent_after
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.settimeout(0.2)
        self.port = int(self._listener.getsockname()[1])
        self.url = f"rtsp://127.0.0.1:{self.port}/front"
        self._clients: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        """Goes away as a camera that loses power: every connection is cut."""
        self._stop.set()
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        self._listener.close()
        for client in self._clients:
            client.close()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                client, _address = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            self._clients.append(client)
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(20)
        with contextlib.suppress(OSError), client.makefile("rb") as requests:
            while not self._stop.is_set():
                line = requests.readline().decode()
                if not line:
                    return
                headers = {}
                while (header := requests.readline().decode().strip()) != "":
                    key, _, value = header.partition(":")
                    headers[key.lower()] = value.strip()
                method = line.split()[0]
                self._answer(client, method, headers.get("cseq", "0"))
                if method == "PLAY":
                    self._play(client)
                    return

    def _answer(self, client: socket.socket, method: str, sequence: str) -> None:
        extra, body = "", ""
        if method == "OPTIONS":
            extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
        elif method == "DESCRIBE":
            sets = ",".join(base64.b64encode(part).decode() for part in (self._sps, self._pps))
            body = (
                "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=front\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
                "c=IN IP4 0.0.0.0\r\na=rtpmap:96 H264/90000\r\n"
                f"a=fmtp:96 packetization-mode=1;sprop-parameter-sets={sets}\r\na=control:track\r\n"
            )
            extra = f"Content-Type: application/sdp\r\nContent-Base: {self.url}/\r\n"
        elif method == "SETUP":
            extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
        elif method == "PLAY":
            extra = "Session: 1\r\n"
        if body:
            extra += f"Content-Length: {len(body)}\r\n"
        client.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {sequence}\r\n{extra}\r\n{body}".encode())

    def _play(self, client: socket.socket) -> None:
        sequence = 0
        for number in range(10**9):
            if self._silent_after is not None and number >= self._silent_after:
                self._stop.wait(30)
                return
            if self._stop.wait(self._period_s):
                return
            nals = self._units[number % len(self._units)]
            for position, nal in enumerate(nals):
                for payload, last in _fragments(nal):
                    marker = 0x80 if last and position == len(nals) - 1 else 0
                    packet = struct.pack(">BBHII", 0x80, 96 | marker, sequence, number * 3600 & 0xFFFFFFFF, 7)
                    packet += payload
                    client.sendall(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
                    sequence = sequence + 1 & 0xFFFF


def _fragments(nal: bytes) -> list[tuple[bytes, bool]]:
    """A NAL unit as RTP payloads: whole, or in FU-A fragments; the flag marks its end."""
    if len(nal) <= MAX_PAYLOAD:
        return [(nal, True)]
    indicator, kind, body = nal[0] & 0xE0 | 28, nal[0] & 0x1F, nal[1:]
    parts = [body[at : at + MAX_PAYLOAD] for at in range(0, len(body), MAX_PAYLOAD)]
    result = []
    for number, part in enumerate(parts):
        first, last = number == 0, number == len(parts) - 1
        result.append((bytes([indicator, kind | 0x80 * first | 0x40 * last]) + part, last))
    return result


def _access_units(clip: Path) -> list[list[bytes]]:
    """NAL units of every packet of an H.264 clip (length-prefixed in MP4)."""
    units = []
    with av.open(str(clip)) as container:
        for packet in container.demux(video=0):
            data, at, nals = bytes(packet), 0, []
            while at + 4 <= len(data):
                size = int.from_bytes(data[at : at + 4], "big")
                nals.append(data[at + 4 : at + 4 + size])
                at += 4 + size
            if nals:
                units.append(nals)
    return units


def _parameter_sets(clip: Path) -> tuple[bytes, bytes]:
    """SPS and PPS from the clip's avcC record."""
    with av.open(str(clip)) as container:
        record = bytes(container.streams.video[0].codec_context.extradata or b"")
    size = int.from_bytes(record[6:8], "big")
    sps = record[8 : 8 + size]
    at = 8 + size + 1
    size = int.from_bytes(record[at : at + 2], "big")
    return sps, record[at + 2 : at + 2 + size]
