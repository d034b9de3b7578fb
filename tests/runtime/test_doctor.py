"""The doctor finds what is wrong with a machine, and says nothing is wrong where nothing is."""

from __future__ import annotations

import datetime
import json
import socket
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from misfire_runtime import cli
from misfire_runtime.commands.checks import Finding, examine, lifetime, onnxruntime_conflict
from misfire_runtime.config.tables import parse_config
from misfire_runtime.mqtt.certificates import not_after, validity
from misfire_runtime.spool import Spool
from proving_ground.services import free_port, mosquitto

UTC = datetime.timezone.utc


def certificate(until: datetime.datetime) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "vehicle-1")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(datetime.datetime(2001, 1, 1, tzinfo=UTC)).not_valid_after(until)
    return builder.sign(key, hashes.SHA256())


def findings(text: str, check: str) -> list[Finding]:
    return [finding for finding in examine(parse_config(text)) if finding.check == check]


@pytest.mark.parametrize("year", [2002, 2049, 2050, 2099])
def test_the_end_of_a_certificate_is_read_from_pem_and_der(year: int) -> None:
    until = datetime.datetime(year, 6, 1, 12, 30, 15, tzinfo=UTC)
    made = certificate(until)
    for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER):
        assert not_after(made.public_bytes(encoding)) == until.timestamp()
        since = datetime.datetime(2001, 1, 1, tzinfo=UTC).timestamp()
        assert validity(made.public_bytes(encoding)) == (since, until.timestamp())


@given(st.binary(max_size=300))
def test_what_is_no_certificate_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        not_after(b"\x00" + data)


def test_a_torn_certificate_is_a_value_error() -> None:
    whole = certificate(datetime.datetime(2030, 1, 1, tzinfo=UTC))
    for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER):
        data = whole.public_bytes(encoding)
        with pytest.raises(ValueError, match=r"not a certificate|padding"):
            not_after(data[: len(data) // 2])


def test_a_certificates_lifetime_warns_a_month_ahead_and_names_one_that_is_not_valid_yet() -> None:
    day = 86400.0
    assert lifetime("c", 0.0, 100 * day, now=1.0).status == "ok"
    assert lifetime("c", 0.0, 10 * day, now=1.0).status == "warn"
    gone = lifetime("c", 0.0, 10 * day, now=11 * day)
    assert gone.status == "fail" and "expired on 1970-01-11" in gone.text
    early = lifetime("c", 5 * day, 10 * day, now=2 * day)
    assert early.status == "fail"
    assert "not valid before 1970-01-06, and this clock says 1970-01-03" in early.text


def test_both_onnx_runtimes_at_once_are_found() -> None:
    def only(*names: str) -> Any:
        def version(name: str) -> str:
            if name not in names:
                raise PackageNotFoundError(name)
            return "1.2.3"

        return version

    assert onnxruntime_conflict(only("onnxruntime")).status == "ok"
    assert onnxruntime_conflict(only("onnxruntime-gpu")).text == "onnxruntime-gpu 1.2.3"
    assert "overwrite each other" in onnxruntime_conflict(only("onnxruntime", "onnxruntime-gpu")).text
    assert onnxruntime_conflict(only()).status == "fail"


def test_a_broker_that_answers_and_those_that_do_not(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        for protocol in ("5", "3.1.1"):
            found = findings(f'[broker]\nurl = "{broker.url}"\nprotocol = "{protocol}"', "broker")
            assert [f.status for f in found] == ["ok"] and f"MQTT {protocol}" in found[0].text
    found = findings(f'[broker]\nurl = "mqtt://127.0.0.1:{free_port()}"', "broker")
    assert found[0].status == "fail" and "connection refused: nothing listens" in found[0].text


def test_a_listener_that_is_no_broker_is_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        text = f'[broker]\nurl = "mqtt://127.0.0.1:{port}"\nconnect_timeout_s = 0.3'
        found = findings(text, "broker")
    assert found[0].status == "fail" and "no answer within" in found[0].text


def test_a_broker_that_refuses_is_named(tmp_path: Path) -> None:
    with mosquitto(tmp_path, options="allow_anonymous false") as broker:
        found = findings(f'[broker]\nurl = "{broker.url}"', "broker")
    assert found[0].status == "fail" and "refuses the connection: not authorised" in found[0].text


def test_plain_mqtt_to_another_machine_is_found() -> None:
    text = '[broker]\nurl = "mqtt://192.0.2.1"\nconnect_timeout_s = 0.2\n'
    found = findings(text, "broker")
    assert [f.status for f in found] == ["fail"] and "is not encrypted" in found[0].text
    assert findings(text, "certificates") == [], "it is said once"
    allowed = findings(text + "insecure = true", "broker")
    assert allowed[0].status == "warn" and "forge verdicts" in allowed[0].text


def test_a_name_that_does_not_fit_its_certificate_is_found(tmp_path: Path) -> None:
    cert_file, key_file = Authority(tmp_path).issue("bus-12", days=90)
    text = f"""
        vehicle = "NAME"
        [broker]
        url = "mqtts://127.0.0.1:{free_port()}"
        cert_file = "{cert_file}"
        key_file = "{key_file}"
        """
    assert [f.status for f in findings(text.replace("NAME", "bus-12"), "certificates")] == ["ok"]
    found = findings(text.replace("NAME", "bus-13"), "certificates")
    assert [f.status for f in found] == ["ok", "fail"]
    assert "is issued to 'bus-12', but this vehicle is 'bus-13'" in found[1].text
    other = findings(text.replace("NAME", "bus-13") + 'client_id = "thing"', "certificates")
    assert [f.status for f in other] == ["ok", "warn"]


def test_the_books_of_the_spool_are_read_while_a_vehicle_runs(tmp_path: Path) -> None:
    text = f'[spool]\npath = "{tmp_path}"'
    assert findings(text, "spool") == []
    spool = Spool(tmp_path)
    try:
        (ok,) = findings(text, "spool")
        assert ok.status == "ok" and "0 captured = 0 stored + 0 pending" in ok.text
        with spool._ledger.transaction():
            spool._ledger.increase({"captured": 3})
            spool._ledger.lose({"disk full": 167})
            spool._ledger._hold("8 samples in a row were rejected, the last: no picture")
        wrong, lost, hold = findings(text, "spool")
    finally:
        spool.close()
    assert wrong.status == "fail" and "do not add up: 3 captured is not 0 stored" in wrong.text
    assert lost.status == "warn" and "167 chosen frames were lost: disk full" in lost.text
    assert hold.status == "fail" and "nothing is offered since" in hold.text
    assert "8 samples in a row were rejected" in hold.text
    (tmp_path / "spool.sqlite").write_bytes(b"no database" * 500)
    assert findings(text, "spool")[0].status == "fail"


def test_certificates_of_the_broker_are_looked_at(tmp_path: Path) -> None:
    old = certificate(datetime.datetime(2010, 1, 1, tzinfo=UTC))
    (tmp_path / "ca.pem").write_bytes(old.public_bytes(serialization.Encoding.PEM))
    text = f'[broker]\nurl = "mqtts://127.0.0.1:{free_port()}"\nca_file = "{tmp_path / "ca.pem"}"'
    found = findings(text, "certificates")
    assert found[0].status == "fail" and "ca.pem expired on 2010-01-01" in found[0].text


def test_disk_sources_and_privacy_are_tried(tmp_path: Path, clip: Path) -> None:
    reserve = findings("[spool]\nreserve_bytes = 9_000_000_000_000_000", "disk")
    assert reserve[0].status == "fail"
    (tmp_path / "a.png").write_bytes(b"junk")
    text = f'[[source]]\nname="clip"\ninput = "{clip}"\n[[source]]\nname="bad"\ninput = "{tmp_path}"'
    assert [finding.status for finding in findings(text, "sources")] == ["ok", "fail"]
    assert "no such file" in findings('[[source]]\ninput = "gone.mp4"', "sources")[0].text
    closed = findings('[[privacy.blur]]\nmodel = "gone.onnx"', "privacy")
    assert closed[0].status == "fail" and "gone.onnx is not there" in closed[0].text


def test_the_command_prints_findings_and_fails_where_something_failed(
    bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def doctor(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["misfire", "doctor", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().out

    status, out = doctor("--bundle", str(bundle.path), "--spool", str(tmp_path), "--json")
    report = json.loads(out)
    assert status == 0 and report["ok"]
    assert any(
        "small@1.0.0 is intact and runs on CPUExecutionProvider" in f["text"] for f in report["findings"]
    )
    (tmp_path / "bad.toml").write_text("[random]\nrate = 9\n")
    status, out = doctor("--config", str(tmp_path / "bad.toml"))
    assert status == 1 and "bad.toml:2: random.rate" in out
    (bundle.path / "stray.txt").write_text("x")
    try:
        status, out = doctor("--bundle", str(bundle.path))
    finally:
        (bundle.path / "stray.txt").unlink()
    assert status == 1 and "stray.txt is not listed" in out
