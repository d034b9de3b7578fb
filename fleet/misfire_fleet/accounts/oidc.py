"""Reads whom the identity provider vouches for: a name and a role from the claims of its token.

[oidc] of --config --OidcSettings--> claims --person_of--> issuer, subject, name, role
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from misfire_fleet.accounts.records import account_name
from misfire_fleet.accounts.roles import ROLES, Role
from misfire_fleet.errors import AccountError
from misfire_runtime.toml import read_toml

Text = Annotated[str, Field(min_length=1, max_length=300)]


class OidcSettings(BaseModel):
    """Holds the identity provider, and what its claims mean.

    Attributes:
        issuer: of the provider; its `/.well-known/openid-configuration` says the rest.
        client_id: of the console at the provider.
        client_secret_file: has the client's secret; none for a public client.
        title: of the provider, on the button.
        name_claim: names the account.
        role_claim: a text, or a list of texts, such as groups.
        roles: the role of each such text; of several, the one that may do the most.
        default_role: of people none of whose texts has a role; none refuses them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    issuer: Text
    client_id: Text
    client_secret_file: Path | None = None
    title: Text = "the identity provider"
    scopes: list[Text] = ["openid", "email", "profile"]
    name_claim: Text = "email"
    role_claim: Text = "groups"
    roles: dict[str, Role] = {}
    default_role: Role | None = None

    @field_validator("issuer")
    @classmethod
    def _is_secure(cls, value: str) -> str:
        parts = urlsplit(value)
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        if parts.scheme != "https" and not (parts.scheme == "http" and local):
            raise ValueError("expected https://, or http:// on this machine")
        return value.rstrip("/")


class ConsoleConfig(BaseModel):
    """Holds the file of `misfire fleet serve --config`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    oidc: OidcSettings | None = None


@dataclass(frozen=True)
class Person:
    """Names a person whom the provider knows; `issuer` and `subject` stay the same if the name changes."""

    issuer: str
    subject: str
    name: str
    role: Role


def read_console_config(path: Path) -> ConsoleConfig:
    """Returns the configuration in a file. Raises ConfigError, which names line and key."""
    return read_toml(path).check(ConsoleConfig)


def person_of(settings: OidcSettings, claims: Mapping[str, Any]) -> Person:
    """Returns whom the claims of a verified token name.

    Raises:
        AccountError: a claim is missing, or gives no role.
    """
    subject, name = claims.get("sub"), claims.get(settings.name_claim)
    if not isinstance(subject, str) or not 1 <= len(subject) <= 300:
        raise AccountError("the identity provider names no subject")
    if not isinstance(name, str):
        raise AccountError(f"the identity provider gives no claim {settings.name_claim!r}")
    # Whoever may type any address at the provider must not become the one whose address it is.
    if settings.name_claim == "email" and claims.get("email_verified") is False:
        raise AccountError("the identity provider has not verified the e-mail address")
    given = claims.get(settings.role_claim, ())
    texts = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    found = [settings.roles[text] for text in texts if isinstance(text, str) and text in settings.roles]
    role = max(found, key=ROLES.index) if found else settings.default_role
    if role is None:
        raise AccountError(f"{name[:64]}: no value of {settings.role_claim!r} has a role here; ask an admin")
    return Person(settings.issuer, subject, account_name(name), role)
