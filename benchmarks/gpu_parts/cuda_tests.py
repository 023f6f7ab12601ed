"""Part 1: the tests that need CUDA, a row each; one that hangs or spoils the GPU is left out, and said."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attneck.errors import one_line

from .apart import sound
from .kept import Job, Kept, NotHere

TESTS = Path(__file__).parents[2] / "tests"


def work(kept: Kept, job: Job) -> bool:
    """Run those that have no row yet."""
    try:
        import pytest
    except ImportError:
        raise NotHere("pytest is not installed") from None
    files = [file for file in sorted(TESTS.rglob("test_*.py")) if "mark.gpu" in file.read_text()]
    if job.tiny:
        files = files[:1]
    rows = _Rows(kept, job)
    os.chdir(TESTS.parent)
    code = pytest.main(["-m", "gpu", "-p", "no:cacheprovider", "-q", *map(str, files)], plugins=[rows])
    known = {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED}
    if job.left <= 0:
        known.add(pytest.ExitCode.INTERRUPTED)
    if code not in known:
        raise RuntimeError(f"pytest ended with {pytest.ExitCode(code).name}: see what it printed")
    return rows.left == 0


class _Rows:
    """A plugin that keeps each test's outcome, and starts none when the time is over."""

    def __init__(self, kept: Kept, job: Job) -> None:
        self.kept, self.job = kept, job
        self.left = 0
        self.outcome: dict[str, Any] = {}

    def pytest_collection_modifyitems(self, session: Any, config: Any, items: list[Any]) -> None:
        """Only those of the mark that have no row. Called before or after the mark's own selection."""
        items[:] = [
            item
            for item in items
            if item.get_closest_marker("gpu")
            and item.nodeid not in self.kept.rows
            and item.nodeid not in self.kept.left_out
        ]
        self.left = len(items)

    def pytest_runtest_protocol(self, item: Any) -> bool | None:
        """None lets pytest run it."""
        if self.job.left <= 0:
            item.session.shouldstop = "the time is over"
            return True
        self.outcome = {"outcome": "passed", "seconds": 0.0}
        self.kept.doing(item.nodeid)
        return None

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Of set-up, call and teardown, the one that did not pass says how it was."""
        self.outcome["seconds"] = round(self.outcome["seconds"] + report.duration, 3)
        if report.outcome != "passed":
            said = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            crash = getattr(getattr(report.longrepr, "reprcrash", None), "message", said)
            self.outcome |= {"outcome": report.outcome, "said": one_line(crash, 500)}
        if report.when == "teardown":
            self.kept.row(report.nodeid, self.outcome)
            self.left -= 1
            if self.outcome["outcome"] == "failed":
                self.kept.doing(report.nodeid)
                sound(self.kept, self.job.device)
                self.kept.document.pop("under_way")


def lines(document: dict[str, Any]) -> Iterator[str]:
    """Counts, and the names of those that failed."""
    rows = document["rows"]
    outcomes = [row["outcome"] for row in rows.values()]
    counts = {name: outcomes.count(name) for name in sorted({*outcomes})}
    yield ", ".join(f"{count} {name}" for name, count in counts.items()) or "none ran"
    for name, row in rows.items():
        if row["outcome"] == "failed":
            yield f"FAILED {name}: {row['said'][:200]}"
    for name, why in document["left_out"].items():
        yield f"LEFT OUT {name}: {why['']}"
