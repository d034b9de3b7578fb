"""What may be repeated, what happens without a service, and what the summary says about skipped tests.

A test that drives a browser, or that waits for processes on a machine that may be busy, is repeated at most
twice; the summary lists each repetition. All others must pass at once. A test whose service is not installed
is skipped; with MISFIRE_REQUIRE_SERVICES=1 it fails.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator

import pytest
from _pytest.doctest import DoctestModule

from proving_ground.services import MissingServiceError

_TIMED = ("tests/faults/", "test_source_stream.py", "test_decoder.py", "test_collector_decoding.py")


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Keeps --doctest-modules to the units: it would import every file of the tests a second time."""
    return [collector for collector in (yield) if not isinstance(collector, DoctestModule)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what may be repeated, and as slow what drives a browser or a fleet of processes."""
    for item in items:
        browses = not {"page", "browser"}.isdisjoint(getattr(item, "fixturenames", ()))
        if browses or any(part in item.nodeid for part in _TIMED):
            item.add_marker(pytest.mark.flaky(reruns=2))
        if browses or "tests/faults/" in item.nodeid:
            item.add_marker(pytest.mark.slow)


def _skip_or_fail() -> Generator[None, object, object]:
    """Turns a missing service of the wrapped phase into a skip, or into a failure where all are required."""
    try:
        return (yield)
    except MissingServiceError as error:
        if os.environ.get("MISFIRE_REQUIRE_SERVICES") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    """Sees the services of fixtures."""
    return (yield from _skip_or_fail())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Sees the services that a test starts itself."""
    return (yield from _skip_or_fail())


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints one line per reason."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        if isinstance(report.longrepr, tuple):
            reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1
    if not reasons:
        return
    terminalreporter.section("skipped, and what would run them")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:4} tests: {reason}")
