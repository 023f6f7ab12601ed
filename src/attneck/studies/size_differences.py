"""What ways to score a study's runs differ by at each size, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from attneck.studies.results import Row, baseline_of
from attneck.studies.sizes import SizeRow, ways_of
from attneck.studies.statistics import Difference, decimals_of, difference, pairs_of
from attneck.studies.study import RECALIBRATE, Study


@dataclass(frozen=True)
class Pair:
    """Two ways of a problem and a metric: the second is what the first is compared with."""

    way: SizeRow
    against: SizeRow
    run: Row
    """Whose weights the first has, and …"""
    other: Row
    """… the second."""

    def at(self, size: int) -> Difference | None:
        """Over the seeds that both were scored with there; None where they share none."""
        return difference(self.way.scores.get(size, {}), self.against.scores.get(size, {}))

    def apart(self, size: int) -> int:
        """How many pairs there are known to be of two machines."""
        seeds = self.way.scores[size].keys() & self.against.scores[size].keys()
        return 0 if self.run is self.other else self.run.apart(self.other, seeds)


def pairs(study: Study, rows: Sequence[Row], sizes: Sequence[SizeRow]) -> list[Pair]:
    """Each way beside the baseline's, scored with BatchNorm's statistics of as many images or with its own.

    A way that is no variant is compared with its variant as it was trained, too. Left out are those that
    were scored on other held-out images than the baseline.
    """
    of = {(row.problem, row.variant): row for row in rows}
    there = {(row.problem, row.metric, row.name): row for row in sizes}
    variants = {
        way: (variant, fields.get(RECALIBRATE))
        for variant in study.variants
        for way, fields in ways_of(study, variant).items()
    }
    likewise: dict[Any, str] = {}
    for way, fields in ways_of(study, study.baseline).items():
        likewise.setdefault(fields.get(RECALIBRATE), way)
    found = []
    for row in sizes:
        variant, images = variants[row.name]
        run, baseline = of[row.problem, variant], baseline_of(study, rows, row.problem)
        beside = [(likewise.get(images), baseline)] if run is not baseline and run.scored_as(baseline) else []
        beside += [(variant, run)] if row.name != variant else []
        for name, other in beside:
            against = there.get((row.problem, row.metric, name or ""))
            if against is not None:
                found.append(Pair(row, against, run, other))
    return found


def table(study: Study, found: Sequence[Pair], mark: str = "") -> tuple[list[str], list[list[str]]]:
    """The head, and a row of words for each: the difference at each size, with its interval.

    `mark` stands on both sides of those whose interval does not hold 0.
    """
    head = ["problem", "score", "scored as", "less", *(f"{size} pixels" for size in study.sizes)]
    body = [
        [
            pair.way.problem,
            pair.way.metric,
            pair.way.name,
            pair.against.name,
            *(_told(pair, size, mark) for size in study.sizes),
        ]
        for pair in found
    ]
    if not study.problems:
        head, body = head[1:], [line[1:] for line in body]
    return head, body


def _told(pair: Pair, size: int, mark: str) -> str:
    if (found := pair.at(size)) is None:
        return ""
    mark *= found.surely() or found.surely(lower=True)
    seeds = max(len(row.scores[size]) for row in (pair.way, pair.against))
    said = found.told(decimals_of(pair.way.metric))
    return f"{mark}{said}{mark}" + pairs_of(found.n, seeds, pair.apart(size))


def document(found: Sequence[Pair]) -> list[dict[str, object]]:
    """All of them, as JSON has it."""
    return [
        {
            "problem": pair.way.problem,
            "metric": pair.way.metric,
            "name": pair.way.name,
            "less": pair.against.name,
            "differences": {
                size: asdict(one) | {"of_two_machines": pair.apart(size)}
                for size in sorted(pair.way.scores)
                if (one := pair.at(size)) is not None
            },
        }
        for pair in found
    ]
