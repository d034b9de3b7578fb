"""Who did something is known also where the user has no name."""

from __future__ import annotations

import os
import pwd

import pytest

from misfire_fleet.actor import current_actor


def test_a_user_without_a_name_is_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> object:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert current_actor() == pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert current_actor() == f"uid-{os.getuid()}"
    monkeypatch.setenv("USER", "kim")
    assert current_actor() == "kim"
