"""Rows of the fault suite that a sample makes by itself: a decompression bomb, too large, an offer that lies,
bytes that are not their hash. Each is refused with its reason, on both sides' books; the rest arrives."""

from __future__ import annotations

from pathlib import Path

from proving_ground.faults.chaos_proxy import Trouble
from proving_ground.faults.ground import ProvingGround

CAUSES = {
    "bomb": ("image", "pixels"),
    "large": ("size", "above the limit"),
    "lie": ("image", "image/png"),
    "noise": ("image", "JPEG"),
}


def test_samples_that_must_not_be_taken(tmp_path: Path) -> None:
    """Two of each kind among twenty."""
    tricks = {str(2 * number + 1): kind for number, kind in enumerate([*CAUSES, *CAUSES])}
    with ProvingGround(tmp_path, seed=61) as ground:
        ground.add_collector(settings={"max_sample_bytes": 200_000})
        car = ground.add_vehicle(count=20, rate=1000, tricks=tricks)
        assert ground.settle()
        reasons = ground.reasons(car)
        result = ground.audit()
        assert result.sound and (result.stored, result.rejected) == (12, 8), result
        with ground.store() as store:
            causes = {cause: count for verdict, cause, count in store.vehicles.causes("car-0")}
    assert causes == {"image": 6, "size": 2}
    for _, words in CAUSES.values():
        assert any(words in reason for reason in reasons), (words, reasons)


def test_bytes_that_are_never_their_hash(tmp_path: Path) -> None:
    """Asked for again from the start, twice, then refused: the same wrong bytes are what the vehicle has."""
    with ProvingGround(tmp_path, seed=62) as ground:
        ground.add_collector()
        car = ground.add_vehicle(
            count=6, rate=1000, protocol="3.1.1", link=Trouble(spoil=1.0, alike=True), at_fault=True
        )
        assert ground.settle()
        reasons = ground.reasons(car)
        result = ground.audit()
        assert result.sound and (result.stored, result.rejected) == (0, 6), result
        assert car.proxy.faults["spoiled data"] >= 18
    assert all(reason.startswith("sha256") for reason in reasons), reasons


def test_an_offer_in_the_name_of_another_vehicle_is_neither_stored_nor_refused(tmp_path: Path) -> None:
    """A vehicle that was renamed still has samples of its old name: they are not at fault."""
    with ProvingGround(tmp_path, seed=63) as ground:
        ground.add_collector()
        car = ground.add_vehicle(count=4, rate=1000, tricks={"1": "impostor"})
        assert ground.wait(lambda: ground.captured(car) == 4 and ground.pending(car) == 1)
        assert ground.reasons(car) == []
        with ground.store() as store:
            assert store.totals().samples == 3
