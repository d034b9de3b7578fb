"""Finds out why messages do not reach the fleet, and logs it with a limited rate.

connections that come and go, receipts, replies --> LinkHealth.problem

A broker that does not allow a vehicle's topics reports it in MQTT 5, drops messages silently in MQTT 3.1.1,
or disconnects again and again. A wrong common name in the certificate is the usual cause of all three.
"""

from __future__ import annotations

import logging

from misfire_runtime.mqtt.certificates import name_problem
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.mqtt.connection import Receipt
from misfire_runtime.service.logs import Throttle

_LOG = logging.getLogger(__name__)
# A broker that refuses topics disconnects right after the first messages.
_BRIEF_S = 5.0
_BRIEF_CONNECTIONS = 3
"""After this many consecutive connections that end within seconds, without any acknowledgement, a cause is
reported: it is no accident."""


class LinkHealth:
    """Tracks the health of one vehicle's uplink.

    Args:
        broker: address and certificate.
        vehicle: name of the vehicle, which the certificate should have as common name.
        base: prefix of the vehicle's topics.
    """

    def __init__(self, broker: BrokerConfig, *, vehicle: str, base: str) -> None:
        self._broker, self._base = broker, base
        self._wrong_name = _wrong_name(broker, vehicle)
        self._problem: str | None = None
        self._up = self._answered = False
        self._brief = 0
        self._ups = Throttle(_LOG, burst=5)
        self._downs = Throttle(_LOG)

    @property
    def problem(self) -> str | None:
        """Returns why messages do not reach the fleet; None if the last one did, as far as known.

        A wrong name in the certificate is a problem until a collector has answered: a broker may silently
        drop messages that it does not allow.
        """
        return self._problem or (None if self._answered else self._wrong_name)

    def began(self) -> None:
        """Logs a warning if the certificate has another name."""
        if self._wrong_name is not None:
            _LOG.warning("certificate_name", extra={"fields": {"problem": self._wrong_name}})

    def up(self, *, pending: int) -> None:
        """Notes a new connection."""
        self._up = True
        self._ups.log(logging.INFO, "uplink_up", {"broker": self._broker.url, "pending": pending})

    def down(self, problem: str, *, lasted_s: float) -> None:
        """Notes that a connection ended or failed; `lasted_s` are the seconds since the attempt began."""
        self._brief = self._brief + 1 if self._up and lasted_s < _BRIEF_S else 0
        self._up = False
        if self._brief >= _BRIEF_CONNECTIONS:
            each_time = "it does so each time, right after this vehicle's first messages"
            problem = self._with_cause(
                f"{problem}; {each_time}: its access rules may not allow topics of {self._base}"
            )
        self._problem = problem
        self._downs.log(logging.WARNING, "uplink_down", {"problem": problem}, key=problem)

    def receipt(self, receipt: Receipt) -> None:
        """Notes that the broker accepted or refused a message."""
        if receipt.accepted:
            # The broker took a message, so its access rules are not the cause.
            self._problem, self._brief = None, 0
            return
        self._problem = self._with_cause(
            f"{self._broker.url}: the broker refuses this vehicle's messages: {receipt.reason}"
        )
        self._downs.log(logging.WARNING, "publish_refused", {"problem": self._problem}, key=receipt.reason)

    def answered(self) -> None:
        """Notes a reply of a collector."""
        self._answered = True

    def _with_cause(self, problem: str) -> str:
        return problem if self._wrong_name is None else f"{problem}; {self._wrong_name}"


def _wrong_name(broker: BrokerConfig, vehicle: str) -> str | None:
    if broker.cert_file is None:
        return None
    try:
        return name_problem(broker.cert_file, vehicle)
    except (OSError, ValueError):
        return None  # the TLS connection will fail with a better message
