"""Hashes and checks passwords with argon2id, a few at a time.

Each check takes 19 MiB and some hundredths of a second. Without a limit, forty sign-ins at the same moment
would take 760 MiB.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pwdlib import PasswordHash
from pwdlib.exceptions import PwdlibError
from pwdlib.hashers.argon2 import Argon2Hasher

from misfire_fleet.errors import AccountError, TooManyRequestsError

MIN_CHARS, MAX_CHARS = 12, 200
"""NIST 800-63B asks for 8 at least and 64 to be allowed. A longer one would only cost time to hash."""
_AT_ONCE, _WAITING, _WAIT_S = 2, 8, 5.0
"""More who wait would hold all threads of the console."""


class Passwords:
    """Hashes passwords. Thread-safe."""

    def __init__(self) -> None:
        # The OWASP Password Storage Cheat Sheet's first choice for argon2id; memory in KiB.
        self._hash = PasswordHash((Argon2Hasher(time_cost=2, memory_cost=19_456, parallelism=1),))
        self._turns = threading.BoundedSemaphore(_AT_ONCE)
        self._places = threading.BoundedSemaphore(_AT_ONCE + _WAITING)
        self._nobody: str | None = None

    def hashed(self, password: str, *, name: str) -> str:
        """Returns the hash of a new password of the account `name`. Raises AccountError if it is too weak."""
        if not MIN_CHARS <= len(password) <= MAX_CHARS:
            raise AccountError(f"password: expected {MIN_CHARS} to {MAX_CHARS} characters")
        if name and name in password.lower() and len(password) - len(name) < 8:
            raise AccountError("password: it is little more than the name")
        if len(set(password)) < 5:
            raise AccountError("password: expected at least five different characters")
        with self._turn():
            return self._hash.hash(_text(password))

    def matches(self, password: str, kept: str | None) -> bool:
        """Returns True if the password is the one of the hash. Without a hash it takes as long, and is False.

        Raises:
            TooManyRequestsError: too many others are being checked.
        """
        with self._turn():
            if self._nobody is None:
                self._nobody = self._hash.hash("nobody has this password")
            try:
                found = self._hash.verify(_text(password[:MAX_CHARS]), kept or self._nobody)
            except PwdlibError:
                return False
        return found and kept is not None and len(password) <= MAX_CHARS

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise TooManyRequestsError("too many people sign in at this moment", retry_after_s=_WAIT_S)
        try:
            with self._turns:
                yield
        finally:
            self._places.release()


def _text(password: str) -> bytes:
    return password.encode("utf-8", "surrogatepass")
