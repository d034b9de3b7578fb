"""Changes a running vehicle: to a rewritten configuration file, or to what the fleet desires.

file changed / SIGHUP  --validate--> version above the last? hot tables only? --> Vehicle.apply
Desired (MQTT)  --version? validate--> kept on trial --> Vehicle.apply or switch --> Reported
watch, once a second: what is on trial is confirmed, or does harm and is taken back (probation.py)

Everything is checked before anything is changed; the last good configuration stays in force, and the reason
for a refusal is logged and reported. What the fleet last desired is kept on disk, so that a restart without
a connection runs as the fleet last said, and an old retained message cannot turn a vehicle back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from misfire_runtime.bundle import Bundle, read_manifest
from misfire_runtime.config.desired import with_desired
from misfire_runtime.config.tables import HOT, VehicleConfig, read_config
from misfire_runtime.engines.base import EngineOptions
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.errors import BundleError, ConfigError, EngineError, MisfireError
from misfire_runtime.messages import Desired, Reported
from misfire_runtime.vehicle.pipeline import Vehicle
from misfire_runtime.vehicle.probation import MAX_VERSION, DesiredStore, Probation, Vitals, harm

_LOG = logging.getLogger(__name__)
# Far above milliseconds since 1970 (about 2**41).
MAX_FIRST_VERSION = 2**48
MAX_RISE = 2**32
"""Of a version in one message, so that an absurdly high one cannot lock out all later ones. Enough for a
counter, and for milliseconds since 1970 if there is a message every 49 days."""


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
        probation: Probation | None = None,
        report: Callable[[Reported], None] = lambda _reported: None,
    ) -> None:
        """Watches nothing yet.

        Args:
            vehicle: what is changed.
            config: as started with.
            state_dir: where the desired configuration is kept.
            file: watched for changes; None watches none.
            overlay: puts the command line's options, which override a changed file, on top of it.
            probation: how long a desired configuration is on trial, and what counts as harm.
            report: gets what becomes of a desired configuration after `take_desired` has returned.
        """
        self._vehicle = vehicle
        self._local = config
        self._file = file
        self._overlay = overlay
        self._probation = probation or Probation()
        self._publish = report
        self._home = vehicle.scorer.label
        self._stamp = _stamp(file)
        self._lock = threading.Lock()
        self._kept = DesiredStore(state_dir)
        self._desired: Desired | None = None
        self._unfit = ""
        self._trial_since: tuple[float, Vitals] | None = None

    @property
    def desired_version(self) -> int:
        """Returns the version of the desired configuration in force; -1 without one."""
        return -1 if self._desired is None else self._desired.version

    def restore(self) -> Reported | None:
        """Applies what is kept from an earlier run, if it still fits.

        One on trial with which the process crashed `Probation.starts` times is refused for good, and the last
        confirmed one is applied instead.

        Returns:
            What became of it; None if nothing is kept.
        """
        with self._lock:
            trial = self._kept.trial
            if trial is not None and not trial.refused:
                if trial.starts >= self._probation.starts:
                    self._refuse(f"the vehicle ended {trial.starts} times other than in order while on trial")
                else:
                    self._try(trial.desired, begin=self._kept.start_again)
            confirmed = self._kept.confirmed
            if self._desired is None and confirmed is not None:
                try:
                    self._put_in_force(confirmed)
                except Exception as error:  # noqa: BLE001  (see _try)
                    self._unfit = _said(error)
                    _log_refusal(confirmed, self._unfit)
            kept = self._kept.trial.desired if self._kept.trial is not None else confirmed
            return None if kept is None else self._answer_known(kept)

    def reload_if_changed(self) -> bool:
        """Reads the file again if its time or size changed; returns True if it is in force now."""
        stamp = _stamp(self._file)
        if stamp is None or stamp == self._stamp:
            return False
        return self.reload()

    def reload(self) -> bool:
        """Reads the file again; returns False, and logs why, if it is refused."""
        if self._file is None:
            return False
        with self._lock:
            # Before the read: a change during the read is noticed the next time.
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
        """Applies what the fleet desires, on trial.

        Returns:
            Whether it is in force, and why not.
        """
        with self._lock:
            highest = self._kept.version
            # First: the broker delivers a retained message again at every connection.
            if desired.version <= highest:
                return self._answer_known(desired)
            most = min(MAX_VERSION, highest + MAX_RISE if highest >= 0 else MAX_FIRST_VERSION)
            if desired.version > most:
                reason = f"version {desired.version} is above {most}, the highest that may follow {highest}"
                _log_refusal(desired, reason)
                return self._report(max(0, highest), accepted=False, reason=reason)
            problem = self._try(desired, begin=lambda: self._kept.begin(desired))
            return self._report(desired.version, accepted=not problem, reason=problem, bundle=desired.bundle)

    def watch(self) -> None:
        """Judges what is on trial; called about once a second from the frame path.

        It waits for nobody, but a bundle that did harm is exchanged for the earlier one right here.
        """
        if self._trial_since is None or not self._lock.acquire(blocking=False):
            return  # while a bundle is being loaded, nothing is judged
        try:
            self._judge()
        finally:
            self._lock.release()

    def close(self, error: BaseException | None = None) -> None:
        """Notes whether the process ends in order.

        Args:
            error: what it ends by. Only an engine that gave up, or an unforeseen error, counts against what
                is on trial.
        """
        own = error is None or (isinstance(error, MisfireError) and not isinstance(error, EngineError))
        if own and self._lock.acquire(timeout=1.0):  # longer: a bundle is being loaded
            try:
                self._write(self._kept.ended_in_order)
            finally:
                self._lock.release()

    def _try(self, desired: Desired, *, begin: Callable[[], None]) -> str:
        """Keeps it as on trial and applies it. Returns why it is not in force, "" if it is."""
        earlier = self._kept.trial
        try:
            self._merged(self._local, desired)
            # Kept before it is applied: if it crashes the vehicle, the next start knows which one it was.
            begin()
            self._put_in_force(desired)
        except OSError as error:
            problem = f"it cannot be kept, so it is not applied: {error}"
        except Exception as error:  # noqa: BLE001  (an engine's own: the vehicle goes on with what it runs)
            problem = _said(error)
        else:
            self._trial_since = (time.monotonic(), self._vehicle.vitals())
            _LOG.info("desired_taken", extra={"fields": {"version": desired.version}})
            self._judge()
            return ""
        if self._kept.trial is not None and self._kept.trial.desired == desired:
            again = earlier is not None and earlier.desired == desired
            self._write(lambda: self._kept.withdraw(None if again else earlier))
        _log_refusal(desired, problem)
        return problem

    def _put_in_force(self, desired: Desired) -> None:
        """Raises MisfireError; then nothing changes."""
        config = self._merged(self._local, desired)
        self._take_over(config, desired.bundle)
        self._desired = desired

    def _take_over(self, config: VehicleConfig, bundle: str | None) -> None:
        # Loaded before anything changes: it may fail, and takes seconds.
        scorer = self._load(bundle)
        if scorer is None:
            self._vehicle.apply(config)
            return
        try:
            self._vehicle.switch(config, scorer)
        except Exception:
            # Nobody else would close it, and it holds memory.
            scorer.close()
            raise

    def _judge(self) -> None:
        trial = self._kept.trial
        if self._trial_since is None or trial is None:
            return
        since, before = self._trial_since
        now = self._vehicle.vitals()
        problem = harm(now, before, self._probation)
        if problem:
            self._take_back(problem)
        elif (
            time.monotonic() - since >= self._probation.seconds
            and now.frames - before.frames >= self._probation.frames
        ):
            self._trial_since = None
            self._write(self._kept.confirm)
            _LOG.info("desired_confirmed", extra={"fields": {"version": trial.desired.version}})

    def _take_back(self, problem: str) -> None:
        """Refuses what is on trial and returns to the last confirmed one."""
        assert self._kept.trial is not None
        version = self._kept.trial.desired.version
        self._refuse(problem)
        back = self._kept.confirmed
        try:
            self._take_over(
                self._merged(self._local, back), (back.bundle if back is not None else None) or self._home
            )
            self._desired = back
        except Exception as error:  # noqa: BLE001  (see _try)
            _LOG.error("desired_not_taken_back", extra={"fields": {"problem": _said(error)}})
        self._publish(self._report(version, accepted=False, reason=problem))

    def _refuse(self, problem: str) -> None:
        assert self._kept.trial is not None
        self._trial_since = None
        _log_refusal(self._kept.trial.desired, problem)
        self._write(lambda: self._kept.refuse(problem))

    def _answer_known(self, desired: Desired) -> Reported:
        """Returns what became of a version that is not above the highest."""
        trial, highest = self._kept.trial, self._kept.version
        if trial is not None and trial.refused and desired == trial.desired:
            return self._report(desired.version, accepted=False, reason=trial.refused)
        if desired == self._desired:
            return self._report(desired.version, accepted=True, reason="")
        if desired == self._kept.confirmed and trial is None:
            return self._report(desired.version, accepted=False, reason=self._unfit)
        reason = f"version {desired.version} is not above {highest}"
        return self._report(highest, accepted=False, reason=reason)

    def _report(self, version: int, *, accepted: bool, reason: str, bundle: str | None = None) -> Reported:
        label = bundle if bundle is not None and accepted else self._vehicle.scorer.label
        return Reported(version=version, bundle=label, accepted=accepted, reason=reason[:500])

    def _write(self, change: Callable[[], None]) -> None:
        try:
            change()
        except OSError as error:
            _LOG.warning("desired_unwritable", extra={"fields": {"problem": str(error)}})

    def _merged(self, config: VehicleConfig, desired: Desired | None) -> VehicleConfig:
        return config if desired is None or not desired.config else with_desired(config, desired.config)

    def _check(self, fresh: VehicleConfig) -> None:
        """Raises ConfigError if the version does not rise, or a table that needs a restart has changed."""
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
        """Returns a scorer for a bundle, loaded and warmed up; None if it runs already."""
        if label is None or label == self._vehicle.scorer.label:
            return None
        options = EngineOptions(**self._local.engine.model_dump())
        if label == self._home and self._local.bundle is not None:
            return Scorer.load(Bundle.open(self._local.bundle), options=options)
        folder = self._local.bundles
        if folder is None:
            raise BundleError(f"bundle {label} is desired, but no `bundles` folder is configured")
        try:
            paths = sorted(folder.iterdir()) if folder.is_dir() else []
        except OSError as error:
            raise BundleError(f"bundle {label} is desired, but {folder}: {error.strerror}") from error
        for path in paths:
            try:
                found = (path / "manifest.json").is_file() and read_manifest(path).label == label
            except BundleError:
                continue
            if found:
                return Scorer.load(Bundle.open(path), options=options)
        raise BundleError(f"bundle {label} is desired, but is not in {folder}")


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, MisfireError) else f"{type(error).__name__}: {error}"


def _log_refusal(desired: Desired, problem: str) -> None:
    _LOG.error("desired_refused", extra={"fields": {"version": desired.version, "problem": problem}})


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    try:
        stat = file.stat() if file is not None else None
    except OSError:
        return None
    return None if stat is None else (stat.st_mtime_ns, stat.st_size, stat.st_ino)
