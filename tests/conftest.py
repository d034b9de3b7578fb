"""What may be repeated, and what the closing summary says about tests that were skipped.

A test that drives a browser, or that waits for processes on a machine that may be busy, is repeated at most
twice; the summary lists each repetition. All others must pass at once.
"""

from __future__ import annotations

from collections import Counter

import pytest

_TIMED = ("tests/faults/", "test_source_stream.py", "test_decoder.py", "test_collector_decoding.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what may be repeated."""
    for item in items:
        browses = "page" in getattr(item, "fixturenames", ())
        if browses or any(part in item.nodeid for part in _TIMED):
            item.add_marker(pytest.mark.flaky(reruns=2))


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
