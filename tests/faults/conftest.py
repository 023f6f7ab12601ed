"""`make faults`: counts what was tried and what held, a family of faults a file, and writes it down."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
from fault_cases import LONG

from attneck.files import write_atomic
from attneck.training.environment import environment

RESULTS = Path(__file__).parents[2] / "results" / "faults"
outcomes: dict[str, dict[str, str]] = defaultdict(dict)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note a case's outcome; one that could not be set up did not hold."""
    if report.when == "call" or report.outcome != "passed":
        file, _, case = report.nodeid.partition("::")
        outcomes[Path(file).stem.removeprefix("test_")][case] = report.outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write one file a family in the long form; with xdist, the process that started the rest does."""
    chosen = session.config.option.keyword or session.config.option.markexpr
    if not LONG or chosen or hasattr(session.config, "workerinput"):
        return  # a selection of cases is no count
    RESULTS.mkdir(parents=True, exist_ok=True)
    for family, cases in outcomes.items():
        tried = {case: outcome for case, outcome in cases.items() if outcome != "skipped"}
        document = {
            "family": family,
            "tried": len(tried),
            "held": sum(outcome == "passed" for outcome in tried.values()),
            "not_held": sorted(case for case, outcome in tried.items() if outcome != "passed"),
            "skipped": len(cases) - len(tried),
            "environment": environment() | {"command": "make faults"},
        }
        write_atomic(RESULTS / f"{family}.json", (json.dumps(document, indent=1) + "\n").encode())
