"""Changing a running vehicle: a rewritten configuration file, or what the fleet desires.

file changed / SIGHUP  --validate--> version above the last? hot tables only? --> Vehicle.apply
Desired (MQTT)         --version above the last? validate--> Vehicle.apply, Vehicle.use --> Reported

Everything is checked before anything is changed; the last good configuration stays in force, and the reason
for a refusal is logged and reported. What the fleet last wished is kept on disk, so that a restart without
a connection runs as the fleet last said, and an old retained message cannot turn a vehicle back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from misfire_runtime.bundle import Bundle, read_manifest
from misfire_runtime.config import HOT, VehicleConfig, read_config
from misfire_runtime.desired_config import with_desired
from misfire_runtime.engine import EngineOptions
from misfire_runtime.errors import BundleError, ConfigError, MessageError, MisfireError
from misfire_runtime.messages import Desired, Reported, decode, encode
from misfire_runtime.pipeline import Vehicle
from misfire_runtime.scoring import Scorer

_LOG = logging.getLogger(__name__)


class LiveConfig:
    """Keeps a vehicle's configuration current. Safe to call from several threads."""

    def __init__(
        self,
        vehicle: Vehicle,
        *,
        config: VehicleConfig,
        state_dir: Path,
        file: Path | None = None,
        overlay: Callable[[VehicleConfig], VehicleConfig] = lambda config: config,
    ) -> None:
        """config: as started with.  file: watched for changes.  overlay: the command line's options, which
        stay in force over a changed file.
        """
        self._vehicle = vehicle
        self._local = config
        self._file = file
        self._overlay = overlay
        self._stamp = _stamp(file)
        self._lock = threading.Lock()
        self._kept = state_dir / "desired.json"
        self._desired: Desired | None = None

    @property
    def desired_version(self) -> int:
        """Of the fleet's last accepted wish; -1 before any."""
        return -1 if self._desired is None else self._desired.version

    def restore(self) -> Reported | None:
        """Applies the wish kept from an earlier run, if there is one that still fits."""
        try:
            kept = decode(Desired, self._kept.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, MessageError) as error:
            _LOG.warning("desired_unreadable", extra={"fields": {"problem": str(error)}})
            return None
        return self.take_desired(kept)

    def reload_if_changed(self) -> bool:
        """Looks at the file's time and size; True where a new configuration was taken over."""
        stamp = _stamp(self._file)
        if stamp is None or stamp == self._stamp:
            return False
        return self.reload()

    def reload(self) -> bool:
        """Reads the file again. False, and a log line, where it is refused."""
        if self._file is None:
            return False
        with self._lock:
            self._stamp = _stamp(self._file)
            try:
                fresh = self._overlay(read_config(self._file))
                self._check(fresh)
                self._vehicle.apply(self._merged(fresh, self._desired))
            except MisfireError as error:
                _LOG.error(
                    "config_refused", extra={"fields": {"problem": str(error), "kept": self._local.version}}
                )
                return False
            self._local = fresh
        _LOG.info("config_taken", extra={"fields": {"version": fresh.version}})
        return True

    def take_desired(self, desired: Desired) -> Reported:
        """The fleet's wish. The answer says whether it is in force, and why not."""
        with self._lock:
            if self._desired is not None and desired.version <= self._desired.version:
                same = desired == self._desired
                reason = "" if same else f"version {desired.version} is not above {self._desired.version}"
                return self._report(self._desired.version, accepted=same, reason=reason)
            scorer: Scorer | None = None
            try:
                config = self._merged(self._local, desired)
                scorer = self._load(desired.bundle)
                if scorer is not None:
                    self._vehicle.switch(config, scorer)
                else:
                    self._vehicle.apply(config)
            except MisfireError as error:
                if scorer is not None:
                    scorer.close()
                _LOG.error(
                    "desired_refused", extra={"fields": {"version": desired.version, "problem": str(error)}}
                )
                return self._report(desired.version, accepted=False, reason=str(error)[:500])
            self._desired = desired
            self._keep(desired)
        _LOG.info("desired_taken", extra={"fields": {"version": desired.version}})
        return self._report(desired.version, accepted=True, reason="", bundle=desired.bundle)

    def _report(self, version: int, *, accepted: bool, reason: str, bundle: str | None = None) -> Reported:
        label = bundle or self._vehicle.scorer.label
        return Reported(version=version, bundle=label, accepted=accepted, reason=reason)

    def _merged(self, config: VehicleConfig, desired: Desired | None) -> VehicleConfig:
        return config if desired is None or not desired.config else with_desired(config, desired.config)

    def _check(self, fresh: VehicleConfig) -> None:
        """Raises ConfigError where the version does not rise, or a table that needs a restart has changed."""
        if fresh.version <= self._local.version:
            raise ConfigError(
                f"{self._file}: version: {fresh.version} is not above {self._local.version}; "
                "raise it with every change"
            )
        cold = [
            name
            for name in VehicleConfig.model_fields
            if name not in HOT and name != "version" and getattr(fresh, name) != getattr(self._local, name)
        ]
        if cold:
            raise ConfigError(f"{self._file}: {', '.join(cold)}: changed, which needs a restart")

    def _load(self, label: str | None) -> Scorer | None:
        """A scorer for the desired bundle, loaded and warmed up; None where it runs already."""
        if label is None or label == self._vehicle.scorer.label:
            return None
        folder = self._local.bundles
        if folder is None:
            raise BundleError(f"bundle {label} is desired, but no `bundles` folder is configured")
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            try:
                found = (path / "manifest.json").is_file() and read_manifest(path).label == label
            except BundleError:
                continue
            if found:
                options = EngineOptions(**self._local.engine.model_dump())
                return Scorer.load(Bundle.open(path), options=options)
        raise BundleError(f"bundle {label} is desired, but is not in {folder}")

    def _keep(self, desired: Desired) -> None:
        temporary = self._kept.with_suffix(".tmp")
        try:
            temporary.write_bytes(encode(desired))
            temporary.replace(self._kept)
        except OSError as error:
            _LOG.warning("desired_unwritable", extra={"fields": {"problem": str(error)}})


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    try:
        stat = file.stat() if file is not None else None
    except OSError:
        return None
    return None if stat is None else (stat.st_mtime_ns, stat.st_size, stat.st_ino)
