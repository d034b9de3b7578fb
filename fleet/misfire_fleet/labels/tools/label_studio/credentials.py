"""Authorises requests to Label Studio by a legacy token, or by a personal token.

A legacy token is sent as it is. A personal token is a refresh token: it is exchanged for an access token,
which is valid for five minutes. Label Studio 1.18 and later make personal tokens, and turn legacy ones off by
default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from misfire_fleet.errors import LabelToolError
from misfire_fleet.labels.tools.http import Credentials, Endpoint


class LegacyToken:
    """Sends the token with each request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def headers(self) -> Mapping[str, str]:
        """Returns the header."""
        return {"Authorization": f"Token {self._token}"}

    def renew(self) -> bool:
        """Returns False: there is no other."""
        return False

    def hidden(self) -> Sequence[str]:
        """Returns the token."""
        return (self._token,)


class PersonalToken:
    """Exchanges a refresh token for access tokens.

    Args:
        token: the refresh token.
        exchange: sends requests to the same server without credentials.
    """

    def __init__(self, token: str, *, exchange: Endpoint) -> None:
        self._token, self._exchange, self._access = token, exchange, ""

    def headers(self) -> Mapping[str, str]:
        """Returns the header. Raises LabelToolError if the server does not take the token."""
        if not self._access:
            self.renew()
        return {"Authorization": f"Bearer {self._access}"}

    def renew(self) -> bool:
        """Gets another access token and returns True. Raises LabelToolError if it is refused."""
        try:
            answer: Any = self._exchange.send("POST", _REFRESH, {"refresh": self._token}, repeatable=True)
        except LabelToolError as error:
            # The server may repeat the token in its answer.
            raise LabelToolError(str(error).replace(self._token, "[token]"), status=error.status) from None
        access = answer.get("access") if isinstance(answer, dict) else None
        if not isinstance(access, str) or not access.isascii() or not access.isprintable():
            raise LabelToolError(f"{self._exchange.name} at {self._exchange.url}: {_REFRESH}: sent no token")
        self._access = access
        return True

    def hidden(self) -> Sequence[str]:
        """Returns both tokens."""
        return tuple(each for each in (self._token, self._access) if each)


_REFRESH = "/api/token/refresh/"


def credentials_of(token: str, *, exchange: Endpoint) -> Credentials:
    """Returns the credentials of a token: a personal one has three parts, as every JSON web token."""
    if token.count(".") == 2:
        return PersonalToken(token, exchange=exchange)
    return LegacyToken(token)
