"""The doctor finds what is wrong with a machine, and says nothing is wrong where nothing is."""

from __future__ import annotations

import datetime
import json
import socket
import sys
import threading
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from misfire_runtime import cli
from misfire_runtime.certificates import not_after
from misfire_runtime.config import parse_config
from misfire_runtime.doctor import Finding, examine, expiry, onnxruntime_conflict
from services import free_port, mosquitto

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


def test_expiry_warns_a_month_ahead() -> None:
    day = 86400.0
    assert expiry("c", 100 * day, now=0.0).status == "ok"
    assert expiry("c", 10 * day, now=0.0).status == "warn"
    gone = expiry("c", 10 * day, now=11 * day)
    assert gone.status == "fail" and "expired on 1970-01-11" in gone.text


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
    assert found[0].status == "fail" and "cannot be reached" in found[0].text


def test_a_listener_that_is_no_broker_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("misfire_runtime.doctor._CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        taken: list[socket.socket] = []
        thread = threading.Thread(target=lambda: [taken.append(listener.accept()[0]) for _ in range(2)])
        thread.start()
        found = findings(f'[broker]\nurl = "mqtt://127.0.0.1:{port}"', "broker")
        thread.join(5)
        for connection in taken:
            connection.close()
    assert found[0].status == "fail" and "does not answer as an MQTT 5 broker" in found[0].text


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
