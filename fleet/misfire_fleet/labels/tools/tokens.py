"""Reads the token of a label tool from a file or the environment: everybody sees a command line."""

from __future__ import annotations

import os
from pathlib import Path

from misfire_runtime.errors import ConfigError

_MAX_CHARACTERS = 8192


def read_token(file: Path | None, *, variable: str) -> str:
    """Returns a token.

    Args:
        file: has the token alone; None reads the environment.
        variable: of the environment.

    Raises:
        ConfigError: there is none, or it is not a token; the message does not contain it.
    """
    if file is None:
        text, place = os.environ.get(variable, ""), f"the environment variable {variable}"
        if not text.strip():
            raise ConfigError(f"no token: set {variable}, or name a file with --token-file")
    else:
        place = str(file)
        try:
            with file.open(encoding="utf-8-sig") as stream:
                text = stream.read(_MAX_CHARACTERS + 1)
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file}: is not text") from error
    token = text.strip()
    # Anything else would break the header that it goes into.
    if not token or len(token) > _MAX_CHARACTERS or not token.isascii() or not token.isprintable():
        raise ConfigError(f"{place}: expected one line with a token alone")
    if " " in token:
        raise ConfigError(f"{place}: expected the token alone, without the word before it")
    return token
