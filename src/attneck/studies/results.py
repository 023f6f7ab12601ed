"""What a study's runs have come to, as far as they have: scores by seed, their curves, and their cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from attneck.errors import UserError
from attneck.runs.cost import Cost, cost_of
from attneck.runs.run import Run
from attneck.studies.statistics import Difference, Spread, difference, spread
from attneck.studies.study import Cell, Study
from attneck.training.recipe_file import deciding


@dataclass
class Row:
    """A variant on a problem: what its finished runs say."""

    problem: str
    variant: str
    scores: dict[int, float] = field(default_factory=dict)
    """By seed."""
    curves: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    """By seed: the training images seen, and the score then."""
    seconds: dict[str, float] = field(default_factory=dict)
    """An epoch's, by processor or GPU: each run's median, and of the seeds that ran there the least."""
    cost: Cost | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    """What its weights depend on but the seed, by the fields' dotted names."""

    @property
    def name(self) -> str:
        """The variant's."""
        return self.variant

    @property
    def spread(self) -> Spread | None:
        """Of the scores; None before the first run has ended."""
        return spread(self.scores) if self.scores else None

    def against(self, baseline: Row) -> Difference | None:
        """Its difference to the baseline's, over the seeds of both."""
        return None if self is baseline else difference(self.scores, baseline.scores)

    def images_to(self, threshold: float, *, less_is_better: bool = False) -> dict[int, int | None]:
        """By seed: the images seen when the score first reached `threshold`; None where it never did."""
        sign = -1 if less_is_better else 1
        return {
            seed: next((images for images, score in curve if sign * score >= sign * threshold), None)
            for seed, curve in self.curves.items()
        }


def collect(study: Study, cells: Sequence[Cell]) -> list[Row]:
    """A row for each variant on each problem, from whatever runs have ended; others are left out.

    Raises:
        UserError: a folder with a run of another recipe, or with files that no run writes.
    """
    rows: dict[tuple[str, str], Row] = {}
    for cell in cells:
        row = rows.setdefault((cell.problem, cell.variant), Row(cell.problem, cell.variant))
        row.recipe = {key: value for key, value in deciding(cell.recipe).items() if key != "seed"}
        if not cell.done:
            continue
        if different := cell.differs():
            raise UserError(
                f"{cell.folder} holds a run of another recipe ({'; '.join(different[:3])}): it is no part of "
                "this study; move it, or give the study's own --out"
            )
        run = Run(cell.folder)
        history = run.history
        key = _key(study.metric, history[-1], cell)
        row.scores[cell.seed] = float(history[-1][key])
        row.curves[cell.seed] = [(one["step"] * cell.recipe.batch, float(one[key])) for one in history]
        took = median(one["seconds"] / _epochs(history, i) for i, one in enumerate(history))
        for machine in _machines(cell):
            row.seconds[machine] = min(took, row.seconds.get(machine, took))
        facts = json.loads((cell.folder / "data.json").read_text())
        row.cost = row.cost or cost_of(cell.folder, cell.recipe, facts)
    return [
        rows[problem, variant]
        for problem in study.problems or [""]
        for variant in study.variants
        if (problem, variant) in rows
    ]


def _key(metric: str, record: dict[str, Any], cell: Cell) -> str:
    """Of the metric in a record: the averaged weights' where they are kept."""
    for key in (f"ema_{metric}", f"val_{metric}"):
        if key in record:
            return key
    known = sorted(name.removeprefix("val_") for name in record if name.startswith("val_"))
    raise UserError(f"{cell.folder} has no score {metric!r}: give the study a metric of {', '.join(known)}")


def _machines(cell: Cell) -> list[str]:
    """The processor or GPU that it ran on; none where it went on on another: its seconds are of neither."""
    environment = json.loads((cell.folder / "environment.json").read_text())
    starts = environment.get("starts") or [environment]
    found = {start.get("gpu") or start.get("processor") or "unknown" for start in starts}
    return [*found] if len(found) == 1 else []


def _epochs(history: list[dict[str, Any]], number: int) -> float:
    """That lie between a record and the one before; a run of steps may end within one."""
    return max(0.001, history[number]["epoch"] - (history[number - 1]["epoch"] if number else 0))


def baseline_of(study: Study, rows: Sequence[Row], problem: str) -> Row:
    """The row that the others of this problem are compared with."""
    return next(row for row in rows if (row.problem, row.variant) == (problem, study.baseline))
