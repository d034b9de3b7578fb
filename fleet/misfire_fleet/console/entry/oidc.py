"""Signs people in at an identity provider (OpenID Connect), with authlib.

    /oidc/sign-in --state, nonce, PKCE in a signed cookie--> provider --code--> /oidc/back --token verified-->
    claims --person_of--> account, new session

The cookie of the ten minutes in between is not the session's. Authlib checks state, nonce, issuer, audience,
times and the signature of the token against the provider's keys. It speaks HTTP by httpx2.
"""

from __future__ import annotations

from typing import Any

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.starlette_client import OAuth
from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse
from joserfc.errors import JoseError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.routing import Route

from misfire_fleet.accounts.links import shared_secret
from misfire_fleet.accounts.oidc import OidcSettings, person_of
from misfire_fleet.accounts.sessions import Sessions
from misfire_fleet.console.access.cookies import session_in, set_session
from misfire_fleet.console.shared import Shared
from misfire_fleet.errors import AccountError
from misfire_runtime.errors import ConfigError, MisfireError

_BETWEEN_S = 600
_TIMEOUT_S = 10.0
_COOKIE = "misfire-oidc"


def oidc_app(shared: Shared, settings: OidcSettings) -> Starlette:
    """Returns the application for /oidc. Raises ConfigError if the client's secret cannot be read."""
    provider = _client(settings)
    sessions = Sessions(shared.store, limits=shared.access.sessions)

    async def sign_in(request: Request) -> Response:
        request.session.clear()
        request.session["next"] = _local(request.query_params.get("next", "/"))
        back = f"{shared.access.url or str(request.base_url).rstrip('/').removesuffix('/oidc')}/oidc/back"
        try:
            answer: Response = await provider.authorize_redirect(request, back)
        except (httpx2.HTTPError, AuthlibBaseError, ValueError) as error:
            return _refused(request, 502, f"the identity provider does not answer ({type(error).__name__})")
        return answer

    async def back(request: Request) -> Response:
        target = _local(str(request.session.pop("next", "/")))
        try:
            token = await provider.authorize_access_token(request)
            person = person_of(settings, token.get("userinfo") or {})
        except (AuthlibBaseError, JoseError, ValueError, KeyError) as error:
            return _refused(request, 403, f"the answer of the identity provider is refused ({_short(error)})")
        except AccountError as error:
            return _refused(request, 403, str(error))
        except httpx2.HTTPError as error:
            return _refused(request, 502, f"the identity provider does not answer ({type(error).__name__})")
        finally:
            request.session.clear()
        try:
            account = await run_in_threadpool(
                shared.accounts.signed_in_externally, person.issuer, person.subject, person.name, person.role
            )
            secret = await run_in_threadpool(
                sessions.start,
                account,
                address=request.client.host if request.client is not None else "",
                agent=request.headers.get("user-agent", ""),
                replaces=session_in(request.headers.get("cookie", ""), request.url.scheme),
                via="oidc",
            )
        except MisfireError as error:
            return _refused(request, 403, str(error))
        answer = RedirectResponse(target, 303, headers={"Cache-Control": "no-store"})
        seconds = shared.access.sessions.absolute_s
        set_session(answer, secret, scheme=request.url.scheme, max_age_s=seconds)
        return answer

    def _refused(request: Request, status: int, text: str) -> Response:
        return shared.render.problem(request, status, "Not signed in", text)

    https = shared.access.is_https
    between = Middleware(
        SessionMiddleware,
        secret_key=shared_secret(shared.store, "oidc"),
        session_cookie=f"__Host-{_COOKIE}" if https else _COOKIE,
        max_age=_BETWEEN_S,
        same_site="lax",
        https_only=https,
    )
    return Starlette(routes=[Route("/sign-in", sign_in), Route("/back", back)], middleware=[between])


def _client(settings: OidcSettings) -> Any:
    secret = None
    if settings.client_secret_file is not None:
        try:
            secret = settings.client_secret_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"oidc.client_secret_file {settings.client_secret_file}: {error}") from error
    return OAuth().register(
        "provider",
        client_id=settings.client_id,
        client_secret=secret,
        server_metadata_url=f"{settings.issuer}/.well-known/openid-configuration",
        client_kwargs={
            "scope": " ".join(settings.scopes),
            "code_challenge_method": "S256",
            "timeout": _TIMEOUT_S,
            **({} if secret else {"token_endpoint_auth_method": "none"}),
        },
    )


def _local(path: str) -> str:
    """Returns a path of this console; "/" for an address elsewhere, also one that browsers take for it."""
    good = path.startswith("/") and path[1:2] not in ("/", "\\") and path.isprintable() and len(path) < 2000
    return path if good else "/"


def _short(error: Exception) -> str:
    return str(getattr(error, "error", "") or type(error).__name__)[:60]
