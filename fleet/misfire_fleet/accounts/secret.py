"""Makes random secrets, and the hash that is kept of them.

A secret has 256 random bits, so its plain SHA-256 tells nothing of it, and looking the hash up takes the same
time whatever was guessed.
"""

from __future__ import annotations

import hashlib
import secrets

MAX_CHARS = 200


def new_secret(prefix: str = "") -> str:
    """Returns a new secret of 43 characters of base64url after the prefix."""
    return prefix + secrets.token_urlsafe(32)


def hash_of(secret: str) -> str:
    """Returns what is kept of a secret, 64 hexadecimal digits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def new_id() -> str:
    """Returns a new public name of a session or a token, 16 hexadecimal digits."""
    return secrets.token_hex(8)
