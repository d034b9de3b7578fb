"""Telling systemd how the service fares: ready, alive, stopping. The protocol (sd_notify) is one datagram."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class ServiceNotifier:
    """Sends to the socket that systemd names; does nothing where there is none."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """environment: NOTIFY_SOCKET and WATCHDOG_USEC are read from it; None is the process's own."""
        values = os.environ if environment is None else environment
        address = values.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        usec = values.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(usec) / 1e6 if usec.isdigit() else None

    def ready(self) -> bool:
        """Start-up is over."""
        return self._send("READY=1")

    def alive(self, status: str = "") -> bool:
        """Resets the watchdog; `status` is shown by `systemctl status`."""
        return self._send("WATCHDOG=1" + (f"\nSTATUS={status}" if status else ""))

    def stopping(self) -> bool:
        """The service ends on purpose."""
        return self._send("STOPPING=1")

    def _send(self, text: str) -> bool:
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.connect(self._address)
                sock.sendall(text.encode())
        except OSError:
            return False
        return True
