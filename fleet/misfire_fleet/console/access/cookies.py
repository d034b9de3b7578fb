"""Reads and writes the cookie of a session.

Over https its name begins with `__Host-`: browsers then take it only from this host, over https, for all
paths, so a neighbouring subdomain cannot set one. Over plain http (loopback) browsers refuse that prefix.
"""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie

from fastapi import Response

_PLAIN, _SECURE = "misfire-session", "__Host-misfire-session"


def cookie_name(scheme: str) -> str:
    """Returns the name of the cookie for `http` or `https`."""
    return _SECURE if scheme == "https" else _PLAIN


def session_in(header: str, scheme: str) -> str:
    """Returns the session's secret in a Cookie header; "" if there is none, or more than one."""
    name = cookie_name(scheme)
    found = []
    for part in header.split(";"):
        try:
            cookies: SimpleCookie = SimpleCookie(part)
        except CookieError:
            continue
        found += [morsel.value for key, morsel in cookies.items() if key == name]
    return found[0] if len(found) == 1 else ""


def set_session(response: Response, secret: str, *, scheme: str, max_age_s: float) -> None:
    """Sets the cookie. Scripts cannot read it, and other sites' requests that write do not carry it."""
    response.set_cookie(
        cookie_name(scheme),
        secret,
        max_age=int(max_age_s),
        path="/",
        secure=scheme == "https",
        httponly=True,
        samesite="lax",
    )


def drop_session(response: Response, *, scheme: str) -> None:
    """Deletes the cookie."""
    response.delete_cookie(
        cookie_name(scheme), path="/", secure=scheme == "https", httponly=True, samesite="lax"
    )
