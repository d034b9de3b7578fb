"""The published JSON Schemas are what the contracts say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from misfire_runtime.commands.schemas import contracts, schema_text, schemas
from misfire_runtime.errors import MisfireError
from misfire_runtime.messages import Clock, Offer, Trigger

PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / "schemas"


@pytest.mark.parametrize("name", sorted(contracts()))
def test_the_published_schema_is_up_to_date(name: str) -> None:
    published = (PUBLISHED / f"{name}.schema.json").read_text(encoding="utf-8")
    assert published == schema_text(contracts()[name]), "run `misfire schemas`"


def test_check_names_the_stale_file(tmp_path: Path) -> None:
    schemas(out=tmp_path, check=False)
    (tmp_path / "offer.schema.json").write_text("{}")
    with pytest.raises(MisfireError, match=r"offer\.schema\.json"):
        schemas(out=tmp_path, check=True)


def test_a_real_offer_has_no_field_the_schema_does_not_know() -> None:
    offer = Offer(
        id="0" * 64,
        vehicle="v1",
        size=1,
        captured_at=Clock(wall=0, monotonic=0, boot_id="b"),
        bundle="m@1.0.0",
        scores={"entropy": 1.0},
        trigger=Trigger(name="random", random=True),
    )
    schema = json.loads(schema_text(Offer))
    assert set(json.loads(offer.model_dump_json())) <= set(schema["properties"])
    assert set(schema["required"]) <= set(json.loads(offer.model_dump_json()))
