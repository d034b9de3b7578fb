"""A new source is one file: its settings, its class, `@register`. This is such a file, with its tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import Field

from misfire_runtime.bundle import Bundle
from misfire_runtime.config.tables import VehicleConfig, parse_config
from misfire_runtime.errors import ConfigError, SourceError
from misfire_runtime.preprocess import encode_png
from misfire_runtime.sources import Frame, Source, SourceCounts, open_source
from misfire_runtime.sources.registry import SourceKind, SourceTable, open_table, register, unregister
from misfire_runtime.vehicle.session import run_vehicle


class NoiseTable(SourceTable):
    """Pictures of noise."""

    pictures: int = Field(default=10, ge=1)
    seed: int = 0


class Noise(SourceKind):
    """Gives pictures of noise; the input is `noise:WIDTHxHEIGHT`, or a `.noise` file that says it."""

    Settings = NoiseTable
    prefixes = ("noise:",)
    suffixes = (".noise",)
    live = False

    def __init__(self, size: str, *, name: str, pictures: int, seed: int) -> None:
        width, separator, height = size.strip().partition("x")
        if not separator:
            raise SourceError(f"{size!r} is not WIDTHxHEIGHT")
        self.name = name or "noise"
        self.counts = SourceCounts()
        self.identity = f"noise {size} {seed}"
        self._shape = (int(height), int(width), 3)
        self._pictures = pictures
        self._seed = seed

    @classmethod
    def open(cls, settings: NoiseTable) -> Source:
        prefixed = settings.input.startswith(cls.prefixes)
        size = settings.input.removeprefix("noise:") if prefixed else settings.path.read_text()
        return cls(size, name=settings.name, pictures=settings.pictures, seed=settings.seed)

    def frames(self, stop: threading.Event, *, start: int = 0) -> Iterator[Frame]:
        rng = np.random.default_rng(self._seed)
        for index in range(self._pictures):
            image = rng.integers(0, 256, self._shape).astype(np.uint8)
            if stop.is_set():
                return
            if index >= start:
                self.counts.read += 1
                yield Frame(
                    image, self.name, index, f"{index}", original=encode_png(image), media_type="image/png"
                )

    def close(self) -> None:
        pass


@pytest.fixture
def known() -> Iterator[None]:
    register(Noise)
    yield
    unregister(Noise)


def config_for(source: str, bundle: Bundle, folder: Path) -> VehicleConfig:
    text = f'bundle = "{bundle.path}"\n[triggers.all]\nkind = "threshold"\nabove = -1e9\n'
    return parse_config(f"{text}[[source]]\n{source}", file="v.toml", folder=folder)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("where", ["noise:24x16", "size.noise"])
def test_a_whole_run_reads_it_with_its_own_settings(bundle: Bundle, tmp_path: Path, where: str) -> None:
    (tmp_path / "size.noise").write_text("24x16\n")
    config = config_for(f'input = "{where}"\npictures = 7\nseed = 3\n', bundle, tmp_path)
    result = run_vehicle(config)
    assert result.report.frames == 7 and result.report.finished
    assert result.counters.captured == result.counters.pending == 7
    files = [file.read_bytes() for file in (tmp_path / "spool").rglob("*") if file.is_file()]
    for frame in open_table(config.source[0]).frames(threading.Event()):
        assert any(file.startswith(frame.original or b"?") for file in files)


@pytest.mark.usefixtures("known")
def test_its_input_is_no_path_and_its_mistakes_are_named_with_their_line(
    bundle: Bundle, tmp_path: Path
) -> None:
    config = config_for('input = "noise:8x8"\n', bundle, tmp_path)
    assert config.source[0] == NoiseTable(input="noise:8x8")
    assert config.model_dump(exclude_unset=True)["source"] == ({"input": "noise:8x8"},)
    with pytest.raises(ConfigError, match=r"v.toml:7: source.0.pictures: .*greater than or equal to 1"):
        config_for('input = "noise:8x8"\npictures = 0\n', bundle, tmp_path)
    with pytest.raises(ConfigError, match=r"v.toml:7: source.0.pictures: unknown key"):
        config_for('input = "drive.mp4"\npictures = 5\n', bundle, tmp_path)
    with pytest.raises(SourceError, match="is not WIDTHxHEIGHT"):
        open_source("noise:8")


@pytest.mark.usefixtures("known")
def test_an_unknown_scheme_names_it_among_those_that_are_known() -> None:
    with pytest.raises(SourceError, match=r"unknown scheme 'gopher'; known are .*noise:.*rtsp://"):
        open_source("gopher://x")


def test_without_it_its_input_is_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        open_source("noise:8x8")
