"""Holds how a console is reached, and who may use it."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from misfire_fleet.accounts.oidc import OidcSettings
from misfire_fleet.accounts.sessions import SessionLimits


@dataclass(frozen=True)
class AccessSettings:
    """Holds the settings of `misfire fleet serve` about access.

    Attributes:
        open_to_all: there are no accounts, and everybody is an admin; for a laptop.
        url: by which browsers reach the console, such as https://console.example; "" if only by --host.
        sessions: how long sessions last.
        oidc: the identity provider at which people may sign in, too.
        open_metrics: programs on this machine read /metrics without a token.
    """

    open_to_all: bool = False
    url: str = ""
    sessions: SessionLimits = field(default_factory=SessionLimits)
    oidc: OidcSettings | None = None
    open_metrics: bool = False

    @property
    def is_https(self) -> bool:
        """Returns True if browsers reach the console over https, through a proxy."""
        return urlsplit(self.url).scheme == "https"
