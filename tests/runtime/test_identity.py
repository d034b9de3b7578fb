"""Whose state it is on a vehicle's topic: its own, a predecessor's late Will, or a clone's."""

from __future__ import annotations

from misfire_runtime.messages import State
from misfire_runtime.uplink.side import Identity


def state(boot: str, *, online: bool) -> State:
    return State(online=online, boot_id=boot)


def test_its_own_birth_needs_no_answer_and_its_own_late_death_does() -> None:
    identity = Identity("mine", on_clone=None)
    assert not identity.sees(state("mine", online=True))
    assert identity.sees(state("mine", online=False)) and identity.sees(state("mine", online=False))
    assert identity.clones == ()


def test_a_predecessor_may_die_once_and_is_a_clone_after_that() -> None:
    found: list[str] = []
    identity = Identity("mine", on_clone=found.append)
    identity.follows(state("before", online=True))
    assert identity.sees(state("before", online=False)) and found == []
    assert identity.sees(state("before", online=False)) and found == ["before"]


def test_a_stranger_is_a_clone_whether_it_is_born_or_dies_and_is_answered_once() -> None:
    for online in (True, False):
        identity = Identity("mine", on_clone=None)
        identity.follows(state("before", online=True))
        assert identity.sees(state("stranger", online=online)) and identity.clones == ("stranger",)
        assert not identity.sees(state("stranger", online=True))
