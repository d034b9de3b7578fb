"""Limits sign-ins: per account and address, per account, and per address, in bounded memory.

Each key has a token bucket. A failed attempt takes a token; an empty bucket refuses until one has come back.
The limit of an account from one address is the lowest, so a stranger elsewhere does not lock the owner out
before they have spent the account's own limit. A console's process has limits of its own.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from misfire_fleet.errors import TooManyRequestsError

_MANY = 20_000
"""Keys remembered; about 4 MB. The one that was used longest ago is forgotten first."""
_WINDOW_S = 900.0
"""Seconds in which an empty bucket fills again."""
_PAIR, _ACCOUNT, _ADDRESS = 5, 50, 30


class SignInLimits:
    """Counts failed attempts. Thread-safe.

    Args:
        clock: returns seconds that never go back.
        many: keys remembered.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, many: int = _MANY) -> None:
        self._clock, self._many = clock, many
        self._buckets: OrderedDict[tuple[str, ...], tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, account: str, address: str) -> None:
        """Counts an attempt before the password is checked, so that parallel guesses count, too.

        Without an account ("") only the address counts.

        Raises:
            TooManyRequestsError: a limit is reached; nothing was counted.
        """
        with self._lock:
            now = self._clock()
            buckets = {key: self._left(key, most, now) for key, most in _keys(account, address)}
            for key, most in _keys(account, address):
                if buckets[key] < 1:
                    wait = (1 - buckets[key]) * _WINDOW_S / most
                    raise TooManyRequestsError(
                        "too many attempts to sign in; wait a while", retry_after_s=wait
                    )
            for key, left in buckets.items():
                self._keep(key, left - 1, now)

    def give_back(self, account: str, address: str) -> None:
        """Returns what an attempt took, after it succeeded."""
        with self._lock:
            now = self._clock()
            for key, most in _keys(account, address):
                # Of a guesser who shares the address, only this attempt is forgiven.
                self._keep(key, min(most, self._left(key, most, now) + 1), now)

    def _left(self, key: tuple[str, ...], most: int, now: float) -> float:
        left, at = self._buckets.get(key, (float(most), now))
        return min(most, left + (now - at) * most / _WINDOW_S)

    def _keep(self, key: tuple[str, ...], left: float, now: float) -> None:
        self._buckets[key] = left, now
        self._buckets.move_to_end(key)
        while len(self._buckets) > self._many:
            self._buckets.popitem(last=False)


def _keys(account: str, address: str) -> tuple[tuple[tuple[str, ...], int], ...]:
    network, account = _network(address), account[:64]
    if not account:
        return ((("", network), _ADDRESS),)
    return (((account, network), _PAIR), ((account,), _ACCOUNT), (("", network), _ADDRESS))


def _network(address: str) -> str:
    """Returns an IPv4 address, or the /64 of an IPv6 address, all of which one person can have."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(getattr(found, "ipv4_mapped", None) or found)
