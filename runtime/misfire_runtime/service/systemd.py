"""Notifies systemd of a service's state: ready, alive, stopping. The protocol (sd_notify) is one datagram."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class ServiceNotifier:
    """Sends notifications to systemd's socket; does nothing without systemd.

    Args:
        environment: has NOTIFY_SOCKET and WATCHDOG_USEC; None uses the process's own.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        values = os.environ if environment is None else environment
        address = values.get("NOTIFY_SOCKET", "")
        # systemd writes @ for the zero byte that marks an abstract socket.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        # In microseconds; unset if the unit has no WatchdogSec.
        usec = values.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(usec) / 1e6 if usec.isdigit() else None

    def ready(self) -> bool:
        """Reports that the start is complete; returns False if there is no systemd."""
        return self._send("READY=1")

    def alive(self, status: str = "") -> bool:
        """Resets the watchdog; `systemctl status` shows the text `status`."""
        return self._send("WATCHDOG=1" + (f"\nSTATUS={status}" if status else ""))

    def stopping(self) -> bool:
        """Reports that the service is stopping on purpose."""
        return self._send("STOPPING=1")

    def _send(self, text: str) -> bool:
        if not self._address:
            return False
        try:
            # A new socket each time: systemd may have restarted since the last notification.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.connect(self._address)
                sock.sendall(text.encode())
        except OSError:
            return False
        return True
