"""Campaigns: what they may say, their states, how several are merged, and what collectors take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.fleet.conftest import CollectorMaker, eventually

from misfire_fleet.campaigns.ledger import Campaign, CampaignLedger
from misfire_fleet.campaigns.merging import Prepared, merge
from misfire_fleet.campaigns.spec import CampaignSpec, parse_spec, tables
from misfire_fleet.campaigns.vehicles import VehicleFacts, facts, means, tag
from misfire_fleet.collector.policy.campaigns import CampaignGate
from misfire_fleet.errors import CampaignConflictError, CampaignGoneError, SampleGoneError
from misfire_fleet.store import Store
from misfire_fleet.store.records import NewSample
from misfire_runtime.config.desired import with_desired
from misfire_runtime.config.tables import VehicleConfig
from misfire_runtime.errors import ConfigError
from misfire_runtime.messages import Declined, State, Stored, Trigger, pack_embedding
from misfire_runtime.testing import make_offer
from proving_ground.client import Vehicle

VehicleMaker = Callable[..., Vehicle]
FOG: dict[str, Any] = {"name": "fog", "what": {"score": "entropy", "level": 0.9, "slice": {"weather": "fog"}}}


def spec(name: str = "fog", **fields: Any) -> CampaignSpec:
    return parse_spec({"name": name, "what": {"when": "entropy > 0.5"}, **fields})


def campaign(name: str = "fog", **fields: Any) -> Campaign:
    return Campaign(spec(name, **fields), "running", "", 0.0, "a", 0.0, "a")


def upload(store: Store, number: int, name: str, **fields: object) -> str:
    data = b"pixels of %d" % number
    offer = make_offer(data, **{"trigger": Trigger(name=f"campaign.{name}"), **fields})
    assert store.add_many([NewSample(offer, data, 64, 48, "collector-1")]) == ["stored"]
    return offer.id


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"what": {}}, "nothing is selected"),
        ({"what": {"top": 0.1, "above": 2}}, "top and above: give one of them"),
        ({"what": {"score": "entropy", "when": "entropy > 1"}}, "score 'entropy': say top, level"),
        ({"what": {"when": "__import__('os')"}}, "cannot be called"),
        ({"what": {"slice": {"a": "x" * 65}}}, "what.slice"),
        ({"what": {"when": "import os"}}, "not an expression"),
        ({"what": {"top": 0.1}, "who": {"vehicles": ["../etc"]}}, "who.vehicles"),
        ({"what": {"top": 0.1}, "spool": "/etc"}, "spool: unknown key"),
        ({"what": {"top": 0.1}, "name": "a.b"}, "name"),
        ({"what": {"top": 0.1}, "until": "yesterday"}, "until"),
        ({"what": {"top": 0.1}, "how_much": {"samples": 10**30}}, "how_much.samples"),
        ({"what": {"top": float("nan")}}, "what.top"),
        ({"what": {"top": 0.1}, "name": "x" * 41}, "name"),
        ("fog", "campaign"),
    ],
)
def test_what_a_campaign_may_not_say(fields: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_spec({"name": "x", **fields} if isinstance(fields, dict) else fields)


def test_the_triggers_of_a_campaign_pass_the_vehicles_own_check() -> None:
    near = (pack_embedding(np.ones(4)), "b@1")
    made = parse_spec(
        {
            "name": "hard",
            "what": {
                "score": "entropy",
                "top": 0.01,
                "when": "confidence < 0.5",
                "slice": {"weather": 'fog\'s "end"', "night": True, "lanes": 2},
                "near": {"sample": "a" * 64},
                "cool_down_s": 5,
            },
        }
    )
    triggers = tables(made, near=near)
    assert triggers["campaign.hard"]["of"] == [f"campaign.hard.{n}" for n in range(1, 7)]
    config = with_desired(VehicleConfig(), {"campaigns": triggers})
    assert config.campaigns["campaign.hard"].cool_down_s == 5
    assert tables(spec()) == {"campaign.fog": {"kind": "rule", "when": "entropy > 0.5", "priority": 5}}


def test_a_campaigns_life_and_its_audit(anywhere: Store) -> None:
    ledger = CampaignLedger(anywhere)
    assert ledger.create(parse_spec(FOG), actor="anna").state == "draft"
    with pytest.raises(CampaignConflictError, match="the name is taken"):
        ledger.create(parse_spec(FOG), actor="bert")
    ledger.change(parse_spec({**FOG, "priority": 7}), actor="bert")
    with pytest.raises(CampaignConflictError, match="it is draft, so it cannot pause"):
        ledger.move("fog", "pause", actor="anna")
    assert ledger.move("fog", "start", actor="anna", reason="winter\n is here").reason == "winter is here"
    started = ledger.get("fog").started_at
    with pytest.raises(CampaignConflictError, match="only a draft can be changed"):
        ledger.change(parse_spec(FOG), actor="anna")
    ledger.move("fog", "pause", actor="anna")
    again = ledger.move("fog", "start", actor="anna")
    assert (again.state, again.started_at) == ("running", started)
    assert ledger.move("fog", "end", actor="anna", reason="enough").state == "ended"
    with pytest.raises(CampaignConflictError, match="it is ended, so it cannot start"):
        ledger.move("fog", "start", actor="anna")
    with pytest.raises(CampaignGoneError):
        ledger.get("none")
    lines = [(who, what, detail) for _at, who, what, detail in anywhere.deletion.audit()]
    actions = [what for _who, what, _detail in reversed(lines)]
    assert actions == [f"campaign-{a}" for a in ("create", "change", "start", "pause", "start", "end")]
    assert lines[0][2] == {
        "campaign": "fog",
        "before": {"state": "running", "reason": ""},
        "after": {"state": "ended", "reason": "enough"},
    }


def test_full_and_past_campaigns_end_with_the_reason(anywhere: Store) -> None:
    ledger = CampaignLedger(anywhere)
    size = len(b"pixels of 0")
    for name, fields in (
        ("few", {"how_much": {"samples": 2}}),
        ("small", {"how_much": {"bytes": 2 * size + 1}}),
        ("open", {}),
    ):
        ledger.create(spec(name, **fields), actor="anna")
        ledger.move(name, "start", actor="anna")
    assert ledger.end_finished(actor="collector") == []
    for number in range(2):
        for index, name in enumerate(("few", "small", "open")):
            upload(anywhere, 10 * index + number, name)
    assert sorted(ledger.end_finished(actor="collector")) == ["few", "small"]
    assert ledger.get("few").reason == "full: 2 samples are stored"
    assert ledger.progress("open").samples == 2 and ledger.progress("open").vehicles == 1
    ledger.create(spec("past", until="2024-01-01"), actor="anna")
    with pytest.raises(CampaignConflictError, match="its time was over"):
        ledger.move("past", "start", actor="anna")


def test_a_damaged_campaign_hides_no_other(store: Store) -> None:
    ledger = CampaignLedger(store)
    ledger.create(spec("good"), actor="anna")
    ledger.create(spec("bad"), actor="anna")
    with store.database.write() as connection:
        connection.exec_driver_sql("UPDATE campaigns SET spec = '{\"name\": 4}' WHERE name = 'bad'")
    assert [each.name for each in ledger.listed()] == ["good"]
    assert ledger.damaged() == ["bad"]


def test_near_needs_a_sample_with_an_embedding(store: Store) -> None:
    ledger = CampaignLedger(store)
    with pytest.raises(SampleGoneError):
        ledger.create(spec(what={"near": {"sample": "a" * 64}}), actor="anna")
    bare = upload(store, 1, "x", embedding=None)
    with pytest.raises(ConfigError, match="no embedding to compare with"):
        ledger.create(spec(what={"near": {"sample": bare}}), actor="anna")
    ledger.create(spec(what={"near": {"sample": upload(store, 2, "x")}}), actor="anna")


def test_who_is_meant(store: Store) -> None:
    store.vehicles.record_states(
        {"bus-1": State(online=True, bundle="b@1.0.0"), "car-1": State(online=False)}
    )
    upload(store, 1, "x", vehicle="car-1", context={"country": "de"}, privacy=["blur:faces"])
    tag(store, "bus-1", {"region": "eu", "depot": "north"}, actor="anna")
    assert tag(store, "bus-1", {"depot": None}, actor="anna") == {"region": "eu"}
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        tag(store, "bus-1", {"": "x"}, actor="anna")
    bus, car = facts(store)
    assert (bus.name, bus.bundle, bus.tags, bus.online) == ("bus-1", "b@1.0.0", {"region": "eu"}, True)
    assert (car.context, car.privacy) == ({"country": "de"}, {"blur:faces"})
    for who, meant in (
        ({}, [True, True]),
        ({"vehicles": ["bus-*", "tram-1"]}, [True, False]),
        ({"bundles": ["b@1.*"]}, [True, False]),
        ({"tags": {"region": "eu"}}, [True, False]),
        ({"context": {"country": "de"}}, [False, True]),
        ({"vehicles": ["car-?"], "tags": {"region": "eu"}}, [False, False]),
    ):
        assert [means(spec(who=who).who, each) for each in (bus, car)] == meant


def test_several_campaigns_become_one_configuration_in_the_same_way() -> None:
    car = VehicleFacts("car-1", bundle="b@1", scores=frozenset({"entropy"}), privacy=frozenset())
    near = (pack_embedding(np.ones(4)), "b@2")
    running = [
        Prepared(campaign("a", priority=9)),
        Prepared(campaign("blurred", privacy=["blur:faces"])),
        Prepared(campaign("like", what={"near": {"sample": "a" * 64}}), near=near),
        Prepared(campaign("other", what={"score": "msp", "top": 0.1})),
        Prepared(campaign("poor", what={"budget": True})),
        Prepared(campaign("same")),
        Prepared(campaign("elsewhere", who={"vehicles": ["bus-*"]})),
        Prepared(campaign("told", what={"top": 0.5})),
    ]
    base = {"limits": {"samples_per_day": 5}, "campaigns": {"campaign.old": {}}}
    merged = merge(car, running, base=base, refused={"told": "the vehicle refuses it: too hot"})
    assert merged.included == ("a", "same")
    assert merged.left_out == {
        "blurred": "privacy: its newest sample is without blur:faces",
        "like": "it runs b@1; the sample's embedding is of b@2",
        "other": "its bundle b@1 has no score msp; it has entropy",
        "poor": "the fleet's budget sets no threshold for it: none is set, or its heartbeats have no sketch",
        "told": "the vehicle refuses it: too hot",
    }
    assert merged.shadowed == {"same": "wants the same frames as a, which comes first"}
    config = merged.config(base)
    assert config["limits"] == {"samples_per_day": 5}
    assert list(config["campaigns"]) == ["campaign.a", "campaign.same"]
    many = merge(car, [Prepared(campaign(f"c{n}", what={"above": n})) for n in range(40)], base={})
    assert len(many.included) == 32 and "no room" in many.left_out["c39"]
    assert merge(car, [], base=base).config(base) == {"limits": {"samples_per_day": 5}}


def test_a_collector_takes_what_a_campaign_wants_and_declines_the_rest(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Callable[[int], bytes]
) -> None:
    ledger = CampaignLedger(store)
    ledger.create(spec("few", how_much={"samples": 2}), actor="anna")
    ledger.create(spec("blurred", privacy=["blur:faces"]), actor="anna")
    ledger.create(spec("varied", how_much={"per_cluster": 1}), actor="anna")
    ledger.create(spec("later"), actor="anna")
    for name in ("few", "blurred", "varied", "later"):
        ledger.move(name, "start", actor="anna")
    ledger.move("later", "pause", actor="anna")
    start_collector()
    car = vehicle()

    def sent(number: int, name: str, **fields: object) -> str:
        trigger = Trigger(name=f"campaign.{name}")
        verdict = car.upload(jpeg(number), trigger=trigger, **fields)
        return verdict.verdict + (f" {verdict.reason}" if isinstance(verdict, Declined) else "")

    assert [sent(n, "few").split()[0] for n in range(3)] == ["stored", "stored", "declined"]
    assert sent(10, "blurred") == "declined campaign: campaign blurred requires blur:faces"
    assert sent(11, "blurred", privacy=["blur:faces"]) == "stored"
    assert sent(20, "varied", embedding=pack_embedding(np.array([1.0, 0.0]))) == "stored"
    again = sent(21, "varied", embedding=pack_embedding(np.array([1.0, 0.01])))
    assert again == "declined near-duplicate: the campaign has enough samples like this one"
    assert sent(22, "varied", embedding=pack_embedding(np.array([0.0, 1.0]))) == "stored"
    assert sent(30, "later") == "busy"
    assert sent(40, "unknown") == "busy", "it may have been started a moment ago"
    assert eventually(lambda: sent(40, "unknown") == "stored")
    assert isinstance(car.upload(jpeg(50), trigger=Trigger(name="random", random=True)), Stored)
    assert eventually(lambda: ledger.get("few").state == "ended")
    assert eventually(lambda: "has ended: full: 2 samples" in sent(41, "few"))
    assert ("declined", "campaign", 3) in store.vehicles.causes("car-1") or eventually(
        lambda: any(cause == "campaign" for _verdict, cause, _n in store.vehicles.causes("car-1"))
    )


def test_the_gate_declines_for_good_only_by_what_is_stored(store: Store) -> None:
    ledger, gate = CampaignLedger(store), CampaignGate()
    ledger.create(spec("few", how_much={"samples": 1}), actor="anna")
    ledger.move("few", "start", actor="anna")
    now = time.monotonic()
    gate.refresh(store, now=now)
    trigger = Trigger(name="campaign.few")
    first, second = (make_offer(b"%d" % n, trigger=trigger) for n in range(2))
    gate.accept(first)
    refusal = gate.refusal(second, now)
    assert refusal is not None and not refusal.final, "the first may still not arrive"
    assert gate.refusal(first, now) is None, "offered again, it does not stand in its own way"
    gate.stored(first.id)
    refusal = gate.refusal(second, now)
    assert refusal is not None and refusal.final
    stale = gate.refusal(second, now + 3600)
    assert stale is not None and not stale.final, "what the store said an hour ago declines nothing"
    gate.given_up(first.id)
    assert gate.refusal(second, now) is None
