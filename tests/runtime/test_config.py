"""A configuration says where it is wrong, and the fleet may change what is chosen and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from misfire_runtime.commands.run import overlay
from misfire_runtime.config.tables import parse_config, read_config
from misfire_runtime.errors import ConfigError
from misfire_runtime.toml import line_of

FULL = """
version = 3
fleet = "north"
vehicle = "bus-12"
bundle = "bundles/current"

[[source]]
name = "front"
input = "drive"
[[source]]
name = "rear"
input = "rtsp://10.0.0.2/stream"

[spool]
path = "spool"

[triggers.night]
kind = "target-rate"
rate = 0.02
cool_down_s = 2

[triggers."rare"]
kind = "rule"
when = "entropy > 0.5"

[limits]
bytes_per_day = 500_000_000

[[privacy.blur]]
model = "faces.onnx"
label = "faces"

[context]
socket = "/run/misfire/context.sock"
file = "gps.txt"
"""


def test_a_whole_file_is_read_and_its_paths_are_beside_it(tmp_path: Path) -> None:
    (tmp_path / "v.toml").write_text(FULL)
    config = read_config(tmp_path / "v.toml")
    assert config.bundle == tmp_path / "bundles/current"
    assert config.source[0].input == str(tmp_path / "drive")
    assert config.source[1].input == "rtsp://10.0.0.2/stream"
    assert config.spool.path == tmp_path / "spool"
    assert config.privacy is not None and config.privacy.blur[0].model == tmp_path / "faces.onnx"
    assert config.context is not None
    assert config.context.socket == Path("/run/misfire/context.sock")
    assert config.context.file == tmp_path / "gps.txt"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("rate = 0.02", "rate = 2", r"v.toml:19: triggers.night.rate: .*less than or equal to 1, got 2"),
        ('name = "rear"', 'name = "front"', r"several sources need a `name` each, all different"),
        ("cool_down_s = 2", "cooldown = 2", r"v.toml:20: triggers.night.cooldown: unknown key"),
        ('kind = "rule"', 'kind = "rules"', r"v.toml:22: triggers.rare: .*'target-rate'.*"),
        ("bytes_per_day = 500_000_000", "bytes_per_day = -1", r"v.toml:27: limits.bytes_per_day: .*got -1"),
        ('fleet = "north"', 'fleet = "a/b"', r"v.toml:3: fleet: .*pattern.*got 'a/b'"),
        ('input = "drive"', "", r"v.toml:7: source.0.input: Field required"),
        ('label = "faces"', 'label = "f:f"', r"v.toml:31: privacy.blur.0.label"),
        ("version = 3", "version = 'x'", r"v.toml:2: version: .*integer.*got 'x'"),
        ("version = 3", "version =", r"v.toml: .*line 2"),
        ("version = 3", "nonsense = 3", r"v.toml:2: nonsense: unknown key"),
    ],
)
def test_an_error_names_file_line_key_and_what_was_expected(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    assert old in FULL
    (tmp_path / "v.toml").write_text(FULL.replace(old, new))
    with pytest.raises(ConfigError, match=says):
        read_config(tmp_path / "v.toml")


def test_every_relative_path_in_a_file_is_beside_it(tmp_path: Path) -> None:
    text = """
        bundle = "b"
        bundles = "c"
        [[source]]
        input = "drive"
        [broker]
        url = "mqtts://h"
        ca_file = "ca.pem"
        cert_file = "cert.pem"
        key_file = "key.pem"
        username = "u"
        password_file = "pw"
        [degrade]
        temperature_file = "temperature"
        [context]
        socket = "s"
        file = "f"
        [[privacy.blur]]
        model = "faces.onnx"
        """
    (tmp_path / "v.toml").write_text(text)
    config = read_config(tmp_path / "v.toml")
    assert config.broker is not None and config.context is not None and config.privacy is not None
    broker = config.broker.connection()
    assert broker is not None
    found = [config.bundle, config.bundles, Path(config.source[0].input), config.spool.path]
    found += [broker.ca_file, broker.cert_file, broker.key_file, broker.password_file]
    found += [config.degrade.temperature_file, config.context.socket, config.context.file]
    found += [config.privacy.blur[0].model]
    assert [path.parent for path in found if path is not None] == [tmp_path] * 12
    assert overlay(config, {}).spool.path == tmp_path / "spool", "options do not move what they leave alone"
    (tmp_path / "v.toml").write_text(text.replace('"ca.pem"', '"/etc/ca.pem"'))
    absolute = read_config(tmp_path / "v.toml").broker
    assert absolute is not None and absolute.ca_file == Path("/etc/ca.pem")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('url = "mqtt://127.0.0.1"\nprotocal = "5"', r"v.toml:4: broker.protocal: unknown key"),
        ('host = "127.0.0.1"\nport = 0', r"v.toml:4: broker.port: .*greater than 0"),
        ('url = "mqtt:127.0.0.1"', r"v.toml:3: broker.url: .*expected mqtt://HOST:PORT"),
        ('url = "mqtt://127.0.0.1"\nca_file = "x"', r"v.toml:2: broker: .*need tls"),
        ('url = "mqtts://h"\nhost = "h"', r"v.toml:2: broker: a url already says host"),
        ('url = "mqtts://h"\nkeepalive_s = 1', r"v.toml:4: broker.keepalive_s: .*greater than or equal to 2"),
    ],
)
def test_a_mistake_about_the_broker_is_named_like_all_others(tmp_path: Path, table: str, says: str) -> None:
    (tmp_path / "v.toml").write_text(f"version = 1\n[broker]\n{table}\n")
    with pytest.raises(ConfigError, match=says):
        read_config(tmp_path / "v.toml")


def test_a_configuration_in_a_log_or_an_error_shows_no_password(tmp_path: Path) -> None:
    text = '[broker]\nurl = "mqtts://car:hunter2x@h"\n'
    assert "hunter2x" not in repr(parse_config(text))
    for wrong in (text + "port = 1\n", text + 'colour = "red"\n', text.replace("@h", "@h:x")):
        with pytest.raises(ConfigError) as caught:
            parse_config(wrong)
        assert "hunter2x" not in str(caught.value)


def test_the_command_line_adds_to_the_broker_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "v.toml").write_text('[broker]\nurl = "mqtt://far.example"\nclient_id = "c"\n')
    config = read_config(tmp_path / "v.toml")
    assert config.broker is not None
    with pytest.raises(ConfigError, match="--insecure"):
        config.broker.connection()
    table = overlay(config, {"broker": {"url": "mqtts://near.example", "insecure": True}}).broker
    assert table is not None
    broker = table.connection()
    assert broker is not None and (broker.host, broker.tls, broker.client_id) == ("near.example", True, "c")
    unnamed = parse_config('[broker]\nprotocol = "3.1.1"').broker
    assert unnamed is not None and unnamed.connection() is None


def test_a_file_that_is_not_there_not_text_or_huge_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_config(tmp_path / "gone.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_config(tmp_path / "b.toml")
    (tmp_path / "h.toml").write_text("#" * 2_000_000)
    with pytest.raises(ConfigError, match="larger than"):
        read_config(tmp_path / "h.toml")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_config(Path("/dev/zero"))


def test_lines_are_found_in_nested_and_repeated_tables() -> None:
    text = 'a = 1\n[b]\n"c d".e = 2\n[[f]]\nx = 1\n[[f]]\n[f.g] # note\ny = 2\n[[f.h]]\nz = 3\n'
    assert line_of(text, ("a",)) == 1
    assert line_of(text, ("b", "c d", "e")) == 3
    assert line_of(text, ("f", 0, "x")) == 5
    assert line_of(text, ("f", 1, "g", "y")) == 8
    assert line_of(text, ("f", 1, "h", 0, "z")) == 10
    assert line_of(text, ("f", 1, "missing")) == 6
    assert line_of(text, ("nowhere",)) is None
